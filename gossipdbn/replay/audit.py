"""The books of a run, from its records alone: every row, shard, update, claim and revocation, and what does not add up.

Rows are counted one by one (not by ranges, as the ledger in the core does), through the very permutations that epochs
use: two ways to the same sums.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core.ledger import Ledger, Summary
from gossipdbn.core.values import CLOSES_PHASE, DONE, FAILED, GIVEN_UP, OPEN, RESET, Claim, Revocation, Update
from gossipdbn.errors import ConfigError, DataError, RemoteProtocolError
from gossipdbn.kernels.counter_rng import permutation
from gossipdbn.replay.history import History, Line, LoggedRun
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import ShardSequence, open_shard
from gossipdbn.worker.rows import limits_of

__all__ = [
    "Audit",
    "AuditedClaim",
    "AuditedRevocation",
    "AuditedShard",
    "AuditedSlot",
    "AuditedUpdate",
    "Dropped",
    "Training",
    "VoidRecord",
    "audit",
    "row_history",
]

CLOSINGS = {
    OPEN: "",
    CLOSES_PHASE: "closes its phase",
    DONE: "done",
    FAILED: "failed",
    GIVEN_UP: "given up",
}


@dataclass(frozen=True, slots=True)
class AuditedShard:
    """A shard that counts. ``times``: how often its rows were trained, fewest and most; ``trainings`` in all."""

    id: str
    slot: int
    offset: int
    first_row: int
    rows: int
    digest: str
    times_min: int = 0
    times_max: int = 0
    trainings: int = 0
    revoked_trainings: int = 0


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record of the shards topic that does not count, and why."""

    slot: int
    offset: int
    id: str
    why: str


@dataclass(frozen=True, slots=True)
class AuditedSlot:
    """One slot's books. ``times_*``: how often each of its rows was trained; ``planned_times``: None = endless."""

    slot: int
    rows: int
    shards: int
    ended: bool
    closed: str
    updates: int
    trained_rows: int
    outstanding_rows: int | None
    planned_times: int | None
    times_min: int
    times_max: int
    incarnations: int
    resets: int
    tip: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class AuditedUpdate:
    """One accepted update: its place in the chain of tips, its rows, what it started from, what it changed."""

    slot: int
    seq: int
    offset: int
    at_ms: int
    bytes: int
    incarnation: int
    worker: str
    phase: int
    closing: str
    epoch: int
    first_row: int
    rows: int
    step: int
    start_version: tuple[int, ...]
    start_digest: str
    digest: str
    previous_tip: str
    tip: str
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class AuditedClaim:
    """Who claimed which slot when, and whether the log took it."""

    slot: int
    incarnation: int
    worker: str
    reset: bool
    at_ms: int
    offset: int
    accepted: bool
    why_void: str = ""


@dataclass(frozen=True, slots=True)
class AuditedRevocation:
    """A range of updates subtracted by the operator.

    ``in_between``: (slot, seq) of updates that were trained from parameters which still contained revoked ones.
    """

    number: int
    slot: int
    first_seq: int
    last_seq: int
    rows: int
    at_ms: int
    offset: int
    reason: str
    in_between: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class VoidRecord:
    """A record of the updates topic that counts for nothing."""

    partition: int
    offset: int
    at_ms: int
    why: str


@dataclass(frozen=True, slots=True)
class Audit:
    """Everything; see the parts. ``exact``: rows add up one by one, and so do the ledger's ranges."""

    run: str
    state: str
    exact: bool
    summary: Summary
    version: tuple[int, ...]
    digest: str
    slots: tuple[AuditedSlot, ...]
    shards: tuple[AuditedShard, ...]
    dropped: tuple[Dropped, ...]
    claims: tuple[AuditedClaim, ...]
    revocations: tuple[AuditedRevocation, ...]
    voids: tuple[VoidRecord, ...]
    updates: tuple[AuditedUpdate, ...]
    problems: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Training:
    """One training of one row."""

    seq: int
    epoch: int
    phase: int
    worker: str
    at_ms: int
    revoked: bool


# ---- rows -----------------------------------------------------------------------------------------------------------
@dataclass(slots=True)
class _SlotRows:
    """A slot's shards as every reader counts them."""

    sequence: ShardSequence = field(default_factory=ShardSequence)
    shards: list[AuditedShard] = field(default_factory=list)
    dropped: list[Dropped] = field(default_factory=list)
    problem: str = ""


def _read_rows(run: LoggedRun, slot: int) -> _SlotRows:
    found, topic, limits = _SlotRows(), run.spool.names.shards, limits_of(run.manifest)
    start, end = run.spool.offsets(topic, slot)
    if start:
        found.problem = f"shards partition {slot} starts at offset {start}: what came before was trimmed"
    for record in run.spool.read(topic, slot, start, end):
        try:
            message = open_shard(record.value, limits, run.keys)
        except (RemoteProtocolError, envelope.Unreadable) as error:
            found.dropped.append(Dropped(slot, record.offset, "", f"void: {error}"))
            continue
        name, first, ended = getattr(message, "id", "end mark"), found.sequence.rows, found.sequence.ended
        try:
            kept = found.sequence.add(message)
        except DataError as error:
            found.problem = f"shards partition {slot}, offset {record.offset}: {error}"
            break
        if kept is not None:
            found.shards.append(AuditedShard(kept.id, slot, record.offset, first, kept.rows, kept.digest.hex()))
        elif ended:
            found.dropped.append(Dropped(slot, record.offset, name, "after the end mark"))
        elif name != "end mark":
            found.dropped.append(Dropped(slot, record.offset, name, "a copy of a shard that counts already"))
    return found


def _rows_of(run: LoggedRun, slot: int, m: Update, total: int) -> slice | NDArray[np.int64]:
    """Which rows of the slot an update trained."""
    if m.rows.epoch == 0:
        return slice(m.rows.first, m.rows.first + m.rows.count)
    order = permutation(run.manifest.run_key, slot, m.rows.epoch, total)
    return order[m.rows.first : m.rows.first + m.rows.count]


def _count(
    history: History, slot: int, rows: _SlotRows, revoked: set[int]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(times trained, times trained by updates that are revoked) of every row."""
    times = np.zeros((2, rows.sequence.rows), np.int64)
    order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))
    for line in history.partitions[slot].updates():
        m = line.message
        assert isinstance(m, Update)
        at: slice | NDArray[np.int64] = slice(m.rows.first, m.rows.first + m.rows.count)
        if m.rows.epoch:
            if order[0] != m.rows.epoch:
                order = (m.rows.epoch, permutation(history.run.manifest.run_key, slot, m.rows.epoch, times.shape[1]))
            at = order[1][at]
        times[0, at] += 1
        if m.seq in revoked:
            times[1, at] += 1
    return times[0], times[1]


def row_history(history: History, slot: int, row: int) -> list[Training]:
    """Which updates trained one row of a slot, in order.

    Raises
    ------
    ConfigError : the slot has no such row.
    """
    run = history.run
    if not 0 <= slot < run.manifest.slots:
        raise ConfigError(f"--row: the run has no slot {slot}, it has 0 to {run.manifest.slots - 1}")
    total = _read_rows(run, slot).sequence.rows
    if not 0 <= row < total:
        has = f"rows 0 to {total - 1}" if total else "no rows"
        raise ConfigError(f"--row: slot {slot} has no row {row}, it has {has}")
    revoked, names = _revoked(history, slot), _workers(history, slot)
    found = []
    for line in history.partitions[slot].updates():
        m = line.message
        assert isinstance(m, Update)
        at = _rows_of(run, slot, m, total)
        if at.start <= row < at.stop if isinstance(at, slice) else bool((at == row).any()):
            found.append(Training(m.seq, m.rows.epoch, m.phase, names[m.incarnation], line.at_ms, m.seq in revoked))
    return found


# ---- updates and claims ---------------------------------------------------------------------------------------------
def _revoked(history: History, slot: int) -> set[int]:
    ranges = history.partitions[-1].chain.revoked
    return {seq for s, a, b in ranges if s == slot for seq in range(a, min(b, history.version[slot]) + 1)}


def _workers(history: History, slot: int) -> dict[int, str]:
    lines = history.partitions[slot].lines
    return {x.message.incarnation: x.message.worker for x in lines if x.accepted and isinstance(x.message, Claim)}


def _updates(history: History, slot: int) -> list[AuditedUpdate]:
    names, revoked, found = _workers(history, slot), _revoked(history, slot), []
    for x in history.partitions[slot].updates():
        m = x.message
        assert isinstance(m, Update)
        found.append(
            AuditedUpdate(
                slot, m.seq, x.offset, x.at_ms, x.size, m.incarnation, names[m.incarnation], m.phase,
                CLOSINGS[m.closing], *m.rows, m.step, x.start_version or (), f"{m.start_digest:016x}",
                f"{m.digest:016x}", m.prev.hex(), x.tip.hex(), m.seq in revoked,
            )
        )  # fmt: skip
    return found


def _claims(lines: tuple[Line, ...]) -> list[AuditedClaim]:
    return [
        AuditedClaim(x.message.slot, x.message.incarnation, x.message.worker, x.message.mode == RESET, x.at_ms,
                     x.offset, x.accepted, x.reason)
        for x in lines if isinstance(x.message, Claim)
    ]  # fmt: skip


def _revocations(history: History, updates: list[AuditedUpdate]) -> list[AuditedRevocation]:
    found = []
    for x in history.partitions[-1].updates():
        m = x.message
        assert isinstance(m, Revocation)
        rows = sum(u.rows for u in updates if u.slot == m.slot and m.first_seq <= u.seq <= m.last_seq)
        between = tuple(
            (u.slot, u.seq) for u in updates
            if u.start_version[m.slot] > m.first_seq and u.start_version[-1] <= m.number
            and not (u.slot == m.slot and u.seq <= m.last_seq)
        )  # fmt: skip
        found.append(
            AuditedRevocation(m.number, m.slot, m.first_seq, m.last_seq, rows, x.at_ms, x.offset, m.reason, between)
        )
    return found


def _slot(history: History, slot: int, rows: _SlotRows, times: NDArray[np.int64], epochs: int | None) -> AuditedSlot:
    partition = history.partitions[slot]
    updates = [x.message for x in partition.updates() if isinstance(x.message, Update)]
    last = updates[-1] if updates else None
    trained, counted = int(times.sum()), rows.sequence.rows
    return AuditedSlot(
        slot, counted, rows.sequence.shards, rows.sequence.ended,
        CLOSINGS[last.closing] if last is not None and partition.chain.closed else "",
        len(updates), trained, None if epochs is None or not rows.sequence.ended else counted * epochs - trained,
        epochs, int(times.min(initial=1 << 62)) if counted else 0, int(times.max(initial=0)),
        partition.chain.incarnation, partition.chain.resets, partition.chain.tip.hex(),
        last.note if last is not None else "",
    )  # fmt: skip


def _shard(shard: AuditedShard, times: NDArray[np.int64], revoked: NDArray[np.int64]) -> AuditedShard:
    at = slice(shard.first_row, shard.first_row + shard.rows)
    part = times[at]
    return AuditedShard(
        shard.id, shard.slot, shard.offset, shard.first_row, shard.rows, shard.digest, int(part.min()), int(part.max()),
        int(part.sum()), int(revoked[at].sum()),
    )  # fmt: skip


def audit(history: History) -> Audit:
    """Draw up the books of a run."""
    run, slots = history.run, history.run.manifest.slots
    ledger = Ledger(run.manifest)
    for line in history.order:
        ledger.record(line.message)
    epochs = ledger.epochs_planned()
    updates, claims, shards, dropped, audited = [], [], [], [], []
    problems = [f"updates partition {p} was not judged to its end: {why}" for p, why in history.undecided.items()]
    known: dict[int, int | None] = {}
    for slot in range(slots):
        rows = _read_rows(run, slot)
        problems += [rows.problem] if rows.problem else []
        known[slot] = rows.sequence.rows if rows.sequence.ended else None
        times, revoked = _count(history, slot, rows, _revoked(history, slot))
        audited.append(_slot(history, slot, rows, times, epochs))
        problems += _row_problems(audited[-1])
        shards += [_shard(s, times, revoked) for s in rows.shards]
        dropped += rows.dropped
        updates += _updates(history, slot)
        claims += _claims(history.partitions[slot].lines)
    summary = ledger.summary(known)
    every = [*problems, *summary.problems]
    return Audit(
        run.spool.run, history.state, summary.exact and not every, summary, history.version,
        f"{history.digest_at(history.version):016x}", tuple(audited), tuple(shards), tuple(dropped),
        tuple(sorted(claims, key=lambda c: (c.at_ms, c.slot, c.offset))), tuple(_revocations(history, updates)),
        tuple(VoidRecord(x.partition, x.offset, x.at_ms, x.reason)
              for p in history.partitions for x in p.lines if not x.accepted),
        tuple(sorted(updates, key=lambda u: (u.at_ms, u.slot, u.seq))), tuple(every),
    )  # fmt: skip


def _row_problems(slot: AuditedSlot) -> list[str]:
    """A slot that is done trained each of its rows exactly as often as planned; no slot trains a row more often."""
    planned = slot.planned_times
    if planned is None or not slot.ended:
        return []
    if slot.closed == CLOSINGS[DONE] and (slot.rows and (slot.times_min, slot.times_max) != (planned, planned)):
        return [
            f"slot {slot.slot} is done, its rows were trained {slot.times_min} to {slot.times_max} of {planned} times"
        ]
    if slot.times_max > planned:
        return [f"slot {slot.slot} trained a row {slot.times_max} times, {planned} are planned"]
    return []
