"""A child run that goes on from a moment of its parent: other slots, another plan, the same model and rows' schema."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from gossipdbn.core import rounds
from gossipdbn.core.values import Manifest
from gossipdbn.errors import ConfigError
from gossipdbn.kernels import codec
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.replay.moments import Moment, Timeline

__all__ = ["child_manifest", "child_parameters"]


def child_parameters(timeline: Timeline, moment: Moment) -> tuple[bytes, dict[str, object]]:
    """The parameters at a moment as bytes (int32 little endian), and what a child's manifest says of its parent."""
    acc = timeline.parameters(moment.version)
    data = acc.astype("<i4").tobytes()
    return data, {
        "run": timeline.run.manifest.run,
        "version": list(moment.version),
        "digest": f"{codec.digest(acc):016x}",
        "parameters": hashlib.sha256(data).hexdigest(),
    }


def child_manifest(
    parent: Manifest, child: str, origin: dict[str, object], *, slots: int | None = None,
    phases: Sequence[PhaseSpec] | None = None, software: dict[str, str] | None = None, store: str = "",
    created_ms: int = 0,
) -> tuple[Manifest, str]:  # fmt: skip
    """The manifest of a child run, and the name of the object its store must hold first.

    Parameters
    ----------
    origin : from ``child_parameters``. slots, phases, store : None or "" = the parent's.

    Raises
    ------
    ConfigError : the plan does not fit the model.
    """
    plan = tuple(phases) if phases is not None else parent.phases
    spec = parent.spec
    for i, phase in enumerate(plan):
        fits = spec.classes if phase.learner == "backprop" else spec.hidden_units == "binary"
        if not 0 <= phase.layer < len(spec.hidden) or not fits:
            raise ConfigError(f"phase {i} ({phase.learner}, layer {phase.layer}) does not fit the parent's model")
    key = hashlib.sha256(f"gossipdbn fork {parent.run_key} {child} {origin['digest']}".encode()).digest()
    config = {**parent.config, **({"store": store} if store else {})}
    manifest = msgspec.structs.replace(
        parent, run=child, slots=slots or parent.slots, phases=plan, numerics=NUMERICS, parent=origin, config=config,
        run_key=int.from_bytes(key[:8], "little"), versions=software or parent.versions, created_ms=created_ms,
        round_rows_max=max(parent.round_rows_max, 16 * max(p.tau * p.batch for p in plan)),
        gate=min(parent.gate, slots or parent.slots),
    )  # fmt: skip
    return manifest, rounds.parameters_name(origin)
