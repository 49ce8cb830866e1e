"""What a run came to: the model file, the test error, the facts as JSON and a page to look at."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from gossipdbn import inference
from gossipdbn.config import RunConfig, RunFolder
from gossipdbn.errors import GossipDbnError
from gossipdbn.launch.follow import Follower
from gossipdbn.launch.runs import software
from gossipdbn.models.files import Model, Provenance, save_model
from gossipdbn.report.page import LedgerSummary, RunReport, write_page

__all__ = ["LedgerFacts", "TrainResult", "finish", "model_of"]


@dataclass(frozen=True, slots=True)
class LedgerFacts:
    """Rows planned, trained and outstanding over all epochs; ``exact``: they add up, nothing twice, nothing skipped."""

    exact: bool
    planned_rows: int | None
    trained_rows: int
    outstanding_rows: int | None
    revoked_rows: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The facts that ``--json`` writes.

    ``test_error``: fraction of held-out rows that are classified wrongly. ``rows``: distinct rows fed. ``digests``:
    final digest as each worker (and the launcher's own fold of the log) states it, hexadecimal.
    """

    run: str
    state: str
    test_error: float | None
    test_rows: int
    rows: int | None
    wall_seconds: dict[str, float]
    updates: int
    bytes_per_update: float
    digests: dict[str, str]
    ledger: LedgerFacts
    model: str
    page: str
    versions: dict[str, str]
    bootstrap: str = ""
    failed: str = ""
    slots: int = 0
    voids: int = 0
    claims: int = 0
    extra: dict[str, object] = field(default_factory=dict)


def model_of(follower: Follower) -> Model:
    """The model at the version that the follower has read."""
    m = follower.manifest
    classes = tuple(str(c) for c in m.schema.get("classes", ()) or ())  # type: ignore[attr-defined]
    provenance = Provenance(
        run=m.run, version=follower.replica.version, digest=f"{follower.replica.digest():016x}", numerics=m.numerics,
        packages=tuple(sorted(m.versions.items())),
    )  # fmt: skip
    return Model(m.spec, follower.replica.acc.copy(), dict(m.schema), classes if m.spec.classes else (), provenance)


def _head_trained(follower: Follower) -> bool:
    """Whether the softmax head has learned anything yet; before that a test error says nothing."""
    heads = {i for i, p in enumerate(follower.manifest.phases) if p.learner in ("backprop", "joint")}
    return any(e.phase in heads for slot in follower.ledger.entries for e in slot)


def finish(
    *, config: RunConfig, follower: Follower, folder: RunFolder, stopped: bool, wall: dict[str, float],
    started_s: float, bootstrap: str, say: Callable[[str], None],
) -> TrainResult:  # fmt: skip
    """Save the model, score the held-out rows, write the page and the facts."""
    began = time.monotonic()
    model = model_of(follower)
    folder.path.mkdir(parents=True, exist_ok=True)
    save_model(folder.model, model)
    evaluation = None
    if config.test is not None and model.spec.classes and _head_trained(follower):
        say("scoring the held-out rows")
        evaluation = inference.evaluate(model, config.test)
    wall["result"] = time.monotonic() - began
    wall["total"] = time.monotonic() - started_s
    s = follower.summary()
    rows = [r for r in follower.rows.values() if r is not None]
    state = "failed" if follower.failed else "finished" if follower.finished else "stopped" if stopped else "open"
    page = folder.path / "report.html"
    result = TrainResult(
        run=follower.manifest.run, state=state, test_error=evaluation.error if evaluation else None,
        test_rows=evaluation.rows if evaluation else 0,
        rows=sum(rows) if len(rows) == follower.manifest.slots else None,
        wall_seconds={k: round(v, 2) for k, v in wall.items()}, updates=follower.ledger.updates,
        bytes_per_update=round(follower.seen.bytes / max(1, follower.ledger.updates), 1), digests=follower.digests(),
        ledger=LedgerFacts(s.exact, s.planned_rows, s.trained_rows, s.outstanding_rows, s.revoked_rows, s.problems),
        model=str(folder.model), page=str(page), versions=software(), bootstrap=bootstrap, failed=follower.failed,
        slots=follower.manifest.slots, voids=sum(c.voids for c in follower.replica.chains), claims=follower.seen.claims,
    )  # fmt: skip
    try:
        write_page(page, _report(result, follower, model, evaluation, config))
    except (OSError, GossipDbnError) as error:
        say(f"the page could not be written: {error}")
    (folder.path / "result.json").write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=2))
    return result


def _report(
    r: TrainResult, follower: Follower, model: Model, evaluation: inference.Evaluation | None, config: RunConfig
) -> RunReport:
    ledger = r.ledger
    side = int(model.spec.visible**0.5)
    image = (side, side) if side * side == model.spec.visible and config.source.kind == "idx" else None
    values = None
    if config.test is not None:
        values = next(iter(inference.encoded(model, config.test, piece_rows=64))).values[:12]
    return RunReport(
        run=r.run, model=model, model_path=r.model, phases=follower.manifest.phases, slots=follower.manifest.slots,
        wall_seconds=tuple(r.wall_seconds.items()), updates=r.updates, bytes_per_update=r.bytes_per_update,
        test_error=r.test_error, test_rows=r.test_rows,
        confusion=evaluation.confusion if evaluation else None, test_values=values, image_shape=image,
        generative=follower.pretrained,
        curve=tuple(follower.seen.curve), turns=tuple(follower.seen.turns), staleness=tuple(follower.seen.staleness),
        ledger=LedgerSummary(ledger.exact, ledger.planned_rows or 0, ledger.trained_rows, ledger.outstanding_rows or 0,
                             ledger.revoked_rows),
        digests=tuple(r.digests.items()), versions=tuple(r.versions.items()),
        created=dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        next_steps=(
            ("Classify new rows", f"gossipdbn predict {r.model} DATA"),
            ("Look at the run again", f"gossipdbn show {r.run}"),
        ),
    )  # fmt: skip
