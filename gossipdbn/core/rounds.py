"""A round is a pure function; so every update is a checkable claim.

::

    (replica at start_version, residual, optimiser state, chains, counters, the rows named)  ->  update

``begin`` fixes the inputs, the driver trains (``run``, or a simulator's stand-in), ``finish`` turns the difference into
an update. Live training, recovery and replay all call these three, and nothing else computes an update.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import plan
from gossipdbn.core.chain import EXACT, Chain, payload_digest, tip_after
from gossipdbn.core.values import (
    CLOSES_PHASE,
    FAILED,
    NO_METRICS,
    OPEN,
    Manifest,
    Metrics,
    Payload,
    PayloadRef,
    RowRange,
    TensorDelta,
    Update,
    Version,
)
from gossipdbn.errors import LocalProtocolError, SnapshotCorrupt, SnapshotMissing
from gossipdbn.kernels import codec, workspaces
from gossipdbn.models import learners
from gossipdbn.models.rows import AnyRows
from gossipdbn.models.spec import parameter_count, share_divisor, trained_count, trained_tensors

__all__ = [
    "GetObject",
    "RoundJob",
    "ShardPosition",
    "SlotState",
    "Spare",
    "begin",
    "closing",
    "finish",
    "fresh_state",
    "initial_parameters",
    "parameters_name",
    "run",
]

DIVERGED_AT = 1 << 30

GetObject = Callable[[str, int], bytes]
"""(name, most bytes) -> an object of the snapshot store."""


@dataclass(frozen=True, slots=True)
class ShardPosition:
    """Where a snapshot's owner reads its shards on: ``offset`` holds ``row``; ``sequence`` is the state."""

    offset: int
    row: int
    sequence: bytes


@dataclass(slots=True)
class SlotState:
    """What a slot is besides the replica: all that its next round depends on.

    ``residual`` int32 [p]: of each parameter that the phase trains, what quantisation left behind. ``optimiser``: named
    arrays of the phase's learner (momentum, moments, chains, running means). ``seq``, ``step``, ``cursor``, ``phase``,
    ``tip``, ``start_version`` run ahead of the slot's chain by the updates that are sent and not yet read back.
    """

    slot: int
    residual: NDArray[np.int32]
    optimiser: dict[str, np.ndarray]
    seq: int
    step: int
    cursor: plan.Cursor
    phase: int
    tip: bytes
    start_version: Version
    incarnation: int
    closed: bool = False
    shards: ShardPosition | None = None


@dataclass(slots=True)
class RoundJob:
    """One round to train.

    ``start`` int32 [P] is the replica itself, lent until the round is finished, with what the slot has sent beyond it.
    ``trained`` says where the parameters lie once they are; who trains without it changes ``parameters``.
    """

    slot: int
    phase: int
    rows: RowRange
    step: int
    start_version: Version
    start_digest: int
    start_largest: int
    start: NDArray[np.int32]
    optimiser: dict[str, np.ndarray]
    spare: Spare
    vector: NDArray[np.int32] | None = None
    trained: learners.Trained | None = None

    @property
    def parameters(self) -> NDArray[np.int32]:
        """A copy of ``start`` (int32 [P]) to be trained in place; it is made when somebody asks for it."""
        if self.trained is not None and self.trained.spaces:
            raise LocalProtocolError("this round was trained in workspaces: nothing reads its parameters as one vector")
        if self.vector is None:
            self.vector = self.spare.take(self.start.size)
            self.vector[:] = self.start
        return self.vector


@lru_cache(maxsize=8)
def _mean(data: bytes) -> NDArray[np.float32]:
    return np.frombuffer(data, "<f4").astype(np.float32)


def initial_parameters(manifest: Manifest, get: GetObject | None = None) -> NDArray[np.int32]:
    """theta_0, int32 [P]: a function of the manifest alone, and of the stored object it names if it has a parent.

    Raises
    ------
    SnapshotMissing, SnapshotCorrupt : ``get`` (a snapshot store's) does not give the parent's parameters.
    """
    if manifest.parent is None:
        return learners.initial_parameters(manifest.spec, manifest.run_key, _mean(manifest.visible_mean))
    name, size = parameters_name(manifest.parent), 4 * parameter_count(manifest.spec)
    if get is None:
        raise SnapshotMissing(f"run {manifest.run} starts from {name} in the snapshot store, and no store is at hand")
    data = get(name, size)
    if len(data) != size or hashlib.sha256(data).hexdigest() != manifest.parent.get("parameters"):
        raise SnapshotCorrupt(f"{name}, the initial parameters of run {manifest.run}, is damaged in the snapshot store")
    return np.frombuffer(data, "<i4").astype(np.int32)


def parameters_name(parent: Mapping[str, object]) -> str:
    """Name of the object that holds a child run's initial parameters (int32 little endian) in its snapshot store."""
    return f"parameters/{parent.get('parameters')}"


def _no_residual(manifest: Manifest, phase: int) -> NDArray[np.int32]:
    return np.zeros(trained_count(manifest.spec, manifest.phases[phase]), np.int32)


def fresh_state(manifest: Manifest, slot: int, chain: Chain) -> SlotState:
    """The state of a slot that begins, or that was reset, where its chain stands: empty residual and optimiser."""
    return SlotState(
        slot=slot,
        residual=_no_residual(manifest, chain.phase),
        optimiser={} if chain.closed else learners.new_state(manifest.spec, manifest.phases[chain.phase]),
        seq=chain.count,
        step=chain.step,
        cursor=chain.cursor,
        phase=chain.phase,
        tip=chain.tip,
        start_version=chain.start_version,
        incarnation=chain.incarnation,
        closed=chain.closed,
    )


class Spare:
    """The vector of the last round that needed one, for the next: a worker trains one round at a time."""

    def __init__(self) -> None:
        self._kept: NDArray[np.int32] | None = None

    def take(self, size: int) -> NDArray[np.int32]:
        """A vector int32 [size] with anything in it."""
        kept, self._kept = self._kept, None
        return np.empty(size, np.int32) if kept is None or kept.size != size else kept

    def give(self, job: RoundJob) -> None:
        """The job is done with."""
        self._kept = job.vector if job.vector is not None else self._kept

    def clear(self) -> None:
        """No round comes for a while: let its vector go, and the workspaces of all layers."""
        self._kept = None
        workspaces.clear()


def begin(
    state: SlotState, start: NDArray[np.int32], version: Version, rows: RowRange, spare: Spare | None = None
) -> RoundJob:
    """Fix a round's inputs: the replica with the slot's own pending updates, ``start`` int32 [P] at ``version``, which
    must not change before ``finish``.
    """
    at = (state.slot, state.phase, rows, state.step, version)
    return RoundJob(*at, *codec.measured(start), start, state.optimiser, spare or Spare())


def run(
    manifest: Manifest, job: RoundJob, values: AnyRows, labels: NDArray[np.int32] | None, total_rows: int
) -> learners.RoundStats:
    """Train the round on its rows: sets ``job.trained``, changes ``job.optimiser`` in place. Pure otherwise."""
    context = learners.RoundContext(
        run_key=manifest.run_key,
        slot=job.slot,
        step=job.step,
        slots=manifest.slots,
        visible_mean=_mean(manifest.visible_mean),
        learning_rates=plan.learning_rates(manifest, job.phase, job.rows, total_rows),
    )
    spec, phase = manifest.spec, manifest.phases[job.phase]
    stats, job.trained = learners.train(
        spec, phase, job.start, lambda: job.parameters, job.optimiser, values, labels, context
    )
    return stats


Trainer = Callable[[Manifest, RoundJob, AnyRows, "NDArray[np.int32] | None", int], learners.RoundStats]


def _advance(state: SlotState, version: Version) -> tuple[int, ...]:
    return tuple(b - a for a, b in zip(state.start_version, version, strict=True))


def _update(
    manifest: Manifest,
    state: SlotState,
    version: Version,
    start_digest: int,
    rows: RowRange,
    closing_kind: int,
    payload: Payload,
    metrics: Metrics,
    note: str,
) -> Update:
    return Update(
        run=manifest.run,
        slot=state.slot,
        incarnation=state.incarnation,
        seq=state.seq,
        prev=state.tip,
        phase=state.phase,
        closing=closing_kind,
        advance=_advance(state, version),
        start_digest=start_digest,
        rows=rows,
        step=state.step,
        digest=payload_digest(manifest, payload),
        payload=payload,
        metrics=metrics,
        note=note[:500],
    )


def finish(manifest: Manifest, state: SlotState, job: RoundJob, metrics: Metrics = NO_METRICS) -> Update:
    """The update of a trained round. Moves the residual; ``sent`` moves the rest of the state. Uses the job up."""
    spec, phase = manifest.spec, manifest.phases[job.phase]
    parts: list[TensorDelta] = []
    for t, at, among in trained_tensors(spec, phase):
        residual = state.residual[among].reshape(t.blocks)
        divisor = share_divisor(spec, phase, t.id, manifest.slots)
        now = job.parameters[at] if job.trained is None else job.trained.tensors[t.id]
        data = codec.fold_and_quantise(manifest.codec, residual, now, job.start[at], divisor, manifest.e_max)
        parts.append(TensorDelta(t.id, manifest.codec, data))
    if job.trained is not None:
        job.trained.give_back()
    return _update(manifest, state, job.start_version, job.start_digest, job.rows, OPEN, tuple(parts), metrics, "")


def closing(
    manifest: Manifest,
    state: SlotState,
    start_digest: int,
    version: Version,
    kind: int,
    metrics: Metrics = NO_METRICS,
    note: str = "",
) -> Update:
    """A closing update: no rows, the whole residual by the exact codec; the optimiser is cleared by ``sent``."""
    parts: list[TensorDelta] = []
    if kind != FAILED:
        for t, _, among in trained_tensors(manifest.spec, manifest.phases[state.phase]):
            rest = state.residual[among]
            if rest.any():
                parts.append(TensorDelta(t.id, EXACT, codec.quantise(EXACT, rest.reshape(t.blocks), manifest.e_max)))
    rows = RowRange(*state.cursor, 0)
    return _update(manifest, state, version, start_digest, rows, kind, tuple(parts), metrics, note)


def sent(manifest: Manifest, state: SlotState, update: Update, raw: bytes, version: Version) -> None:
    """Move the state past an update whose exact bytes are ``raw``, as every reader will when it reads them."""
    state.seq += 1
    state.step += plan.minibatches(manifest, update.phase, update.rows.count)
    state.cursor = (update.rows.epoch, update.rows.first + update.rows.count)
    state.tip = tip_after(state.tip, raw)
    state.start_version = version
    if update.closing == OPEN:
        return
    if update.closing == CLOSES_PHASE:
        state.phase += 1
        state.residual = _no_residual(manifest, state.phase)
        state.optimiser = learners.new_state(manifest.spec, manifest.phases[state.phase])
    else:
        state.residual[:] = 0
        state.optimiser = {}
        state.closed = True


def by_reference(update: Update, ref: PayloadRef) -> Update:
    """The same update with its payload in the store."""
    fields = {f: getattr(update, f) for f in update.__struct_fields__}
    return Update(**{**fields, "payload": None, "payload_ref": ref})


def diverged(job: RoundJob) -> bool:
    """Whether any parameter is at or beyond +-2^30 (+-64 in real units): checked at start versions, nowhere else."""
    return job.start_largest >= DIVERGED_AT
