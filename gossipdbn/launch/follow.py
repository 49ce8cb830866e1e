"""Follow a run from its log: an independent replica, the ledger, and what people want to see of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import rounds
from gossipdbn.core.ledger import Ledger, Summary
from gossipdbn.core.replica import Replica
from gossipdbn.core.topics import run_names
from gossipdbn.core.values import OPEN, Accepted, Claim, Manifest, PayloadRef, Undecided, Update, Void
from gossipdbn.errors import RemoteProtocolError
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.ports import Log, Record, SnapshotStore
from gossipdbn.report.page import CurvePoint, Turn, phase_name
from gossipdbn.report.status import RunState, RunView, SlotView
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire
from gossipdbn.wire.shards import EndMark, open_shard
from gossipdbn.worker.control import Control
from gossipdbn.worker.recover import fetch_payload
from gossipdbn.worker.rows import limits_of

__all__ = ["Follower", "rows_of_slots"]

_WINDOW_S = 5.0


def rows_of_slots(log: Log, manifest: Manifest, keys: envelope.Keyring, prefix: str = "") -> dict[int, int | None]:
    """Rows counted by each slot's end mark; None while a partition has none."""
    topic = run_names(manifest.run, prefix).shards
    found: dict[int, int | None] = {}
    for slot in range(manifest.slots):
        first, end = log.offsets(topic, slot)
        found[slot] = None
        for record in reversed(list(log.read(topic, slot, max(first, end - 8), end))):
            try:
                message = open_shard(record.value, limits_of(manifest), keys)
            except (RemoteProtocolError, envelope.Unreadable):
                continue
            if isinstance(message, EndMark):
                found[slot] = message.rows
    return found


@dataclass(slots=True)
class _SlotFacts:
    worker: str = ""
    updates: int = 0
    rows: int = 0
    staleness: int | None = None
    error: float | None = None
    tau: int = 0


@dataclass(slots=True)
class _Seen:
    """What a follower has seen, in log order."""

    curve: list[CurvePoint] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    staleness: list[int] = field(default_factory=list)
    bytes: int = 0
    claims: int = 0
    first_ms: int | None = None
    last_ms: int = 0


class Follower:
    """Reads updates and control of one run; ``poll`` as often as you like, then ask.

    Attributes
    ----------
    replica : merged parameters at what has been read. ledger : the rows behind them.
    held : partition -> why it waits. messages : last events worth telling.
    pretrained : int32 [P] when the first slot began backprop, or None.
    """

    def __init__(
        self, log: Log, control: Control, store: SnapshotStore | None, keys: envelope.Keyring, prefix: str = ""
    ) -> None:
        assert control.manifest is not None
        self.manifest, self.control, self.prefix = control.manifest, control, prefix
        initial = rounds.initial_parameters(self.manifest, store.get if store is not None else None)
        self.replica = Replica(self.manifest, RunWire(0, keys).decode, initial)
        self.ledger = Ledger(self.manifest)
        self.seen = _Seen()
        self.pretrained: NDArray[np.int32] | None = None
        self.held: dict[int, str] = {}
        self.messages: deque[str] = deque(maxlen=5)
        self.rows: dict[int, int | None] = dict.fromkeys(range(self.manifest.slots))
        self._log, self._store, self._keys = log, store, keys
        self._topics = run_names(self.manifest.run, prefix)
        self._slots = [_SlotFacts() for _ in range(self.manifest.slots)]
        self._recent: deque[tuple[float, int, int]] = deque()
        self._waiting: dict[int, tuple[int, bytes, int, PayloadRef | None]] = {}
        self._adapts = bool(self.manifest.config.get("communication_share"))
        self._reader = log.reader(eager=False)  # who looks on must not cost those who train
        for p in range(self.manifest.slots + 1):
            self._reader.add(self._topics.updates, p, 0)
        self._reader.add(self._topics.control, 0, control.offset)

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()

    # ---- reading ----------------------------------------------------------------------------------------------------
    def poll(self, timeout_s: float, now_s: float) -> int:
        """Read what is there; returns how many records."""
        records = self._reader.poll(timeout_s, 1000)
        for record in records:
            if record.topic == self._topics.control:
                if record.offset >= self.control.offset:
                    self.control.read(record.offset, record.value)
            elif record.partition not in self.held:
                self._update(record, now_s)
        for partition in list(self._waiting):
            self._again(partition, now_s)
        return len(records)

    def catch_up(self, now_s: float) -> None:
        """Read up to the ends that the partitions have now."""
        ends = [self._log.offsets(self._topics.updates, p)[1] for p in range(self.manifest.slots + 1)]
        control = self._log.offsets(self._topics.control, 0)[1]
        while self.control.offset < control or any(
            c.offset < end and p not in self.held
            for p, (c, end) in enumerate(zip(self.replica.chains, ends, strict=True))
        ):
            self.poll(0.1, now_s)

    def _update(self, record: Record, now_s: float) -> None:
        self._read(record.partition, record.offset, record.value, record.timestamp_ms, now_s)

    def _read(self, partition: int, offset: int, raw: bytes, at_ms: int, now_s: float, payload=None) -> None:  # type: ignore[no-untyped-def]
        if offset < self.replica.chains[partition].offset:
            return
        verdict = self.replica.read(partition, offset, raw, payload)
        if isinstance(verdict, Undecided):
            self.held[partition] = verdict.reason
            self._waiting[partition] = (offset, raw, at_ms, verdict.wants)
            self._reader.remove(self._topics.updates, partition)
            return
        for m in self.replica.mismatches:
            self.messages.append(f"slot {m.slot} update {m.seq} was trained from other parameters than the log gives")
        self.replica.mismatches.clear()
        if isinstance(verdict, Void):
            self.messages.append(f"updates partition {partition} offset {offset} is void: {verdict.reason}")
        elif isinstance(verdict, Accepted):
            self._accepted(partition, verdict, len(raw), at_ms, now_s)

    def _again(self, partition: int, now_s: float) -> None:
        offset, raw, at_ms, wants = self._waiting[partition]
        payload = fetch_payload(self._store, wants) if wants is not None and self._store is not None else None
        if payload is None:
            return
        del self._waiting[partition], self.held[partition]
        self._read(partition, offset, raw, at_ms, now_s, payload)
        if partition not in self.held:
            self._reader.add(self._topics.updates, partition, offset + 1)

    def _accepted(self, partition: int, verdict: Accepted, size: int, at_ms: int, now_s: float) -> None:
        message = verdict.message
        seen = self.seen
        seen.first_ms = at_ms if seen.first_ms is None else min(seen.first_ms, at_ms)
        seen.last_ms = max(seen.last_ms, at_ms)
        self.ledger.record(message)
        if isinstance(message, Claim):
            self._claimed(message, at_ms)
        elif isinstance(message, Update):
            self._trained(message, size, at_ms, now_s)

    def _claimed(self, message: Claim, at_ms: int) -> None:
        name = message.worker.partition("#")[0]
        before = self._slots[message.slot].worker
        if before and message.incarnation > 1:
            whose = "again" if before == name else f"after {before}"
            self.messages.append(f"slot {message.slot} goes on at {name} ({whose})")
        self._slots[message.slot].worker = name
        self.seen.claims += 1
        at = self._seconds(at_ms)
        self.seen.turns.append(Turn(message.slot, name, message.incarnation, at, at))

    def _trained(self, message: Update, size: int, at_ms: int, now_s: float) -> None:
        facts, m = self._slots[message.slot], message.metrics
        facts.updates += 1
        facts.rows += message.rows.count
        self.seen.bytes += size
        for i in range(len(self.seen.turns) - 1, -1, -1):
            if self.seen.turns[i].slot == message.slot:
                self.seen.turns[i] = self.seen.turns[i]._replace(end_s=self._seconds(at_ms))
                break
        if message.closing != OPEN:
            facts.error = None  # the next phase measures something else
            return
        phase = self.manifest.phases[message.phase]
        if phase.learner == "backprop" and self.pretrained is None:
            self.pretrained = self.replica.acc.copy()  # to within one update
        facts.error, facts.staleness = _error(phase, message), m.staleness
        facts.tau = -(-message.rows.count // phase.batch)
        self.seen.staleness.append(m.staleness)
        self.seen.curve.append(
            CurvePoint(self._seconds(at_ms), message.slot, message.seq, message.phase, facts.error, message.rows.count)
        )
        self._recent.append((now_s, message.rows.count, 1))

    def _seconds(self, at_ms: int) -> float:
        return (at_ms - (self.manifest.created_ms or self.seen.first_ms or at_ms)) / 1000

    # ---- answers ----------------------------------------------------------------------------------------------------
    @property
    def finished(self) -> bool:
        return self.replica.finished

    @property
    def failed(self) -> str:
        """Why the run failed, or ""."""
        return next((c.failed for c in self.replica.chains if c.failed), "")

    def level(self) -> dict[str, int]:
        """Digest that each worker states which has read as much as this follower."""
        have = self.replica.version
        return {name: w.digest for name, w in self.control.workers.items() if w.version == have}

    def digests(self) -> dict[str, str]:
        """Digests, hexadecimal, of the log as read so far ("log"), and as workers state it that have read as much."""
        return {name: f"{d:016x}" for name, d in (*self.level().items(), ("log", self.replica.digest()))}

    def summary(self) -> Summary:
        """The ledger's sums, with the end marks known so far."""
        if any(r is None for r in self.rows.values()):
            self.rows = rows_of_slots(self._log, self.manifest, self._keys, self.prefix)
        return self.ledger.summary(self.rows)

    def planned_of(self, slot: int) -> int | None:
        """Rows that the plan owes in the slot; None while unknown or endless."""
        rows, epochs = self.rows[slot], self.ledger.epochs_planned()
        return None if rows is None or epochs is None else rows * epochs

    @property
    def snapshot_every_s(self) -> float | None:
        """Seconds between two snapshots of a slot, as the newest announcements state it (their median)."""
        newest = (max(of_slot, key=lambda a: a.seq) for of_slot in self.control.snapshots.values() if of_slot)
        stated = sorted(a.every_ms for a in newest if a.every_ms)
        return stated[len(stated) // 2] / 1000 if stated else None

    def view(
        self, state: RunState, elapsed_s: float, now_s: float, workers: tuple[str, ...] = (),
        waits: tuple[str, ...] = (), extra: Callable[[int], str] = lambda _slot: "",
    ) -> RunView:  # fmt: skip
        """One look at the run."""
        while self._recent and now_s - self._recent[0][0] > _WINDOW_S:
            self._recent.popleft()
        span = max(1.0, min(_WINDOW_S, now_s - self._recent[0][0])) if self._recent else 1.0
        chains = self.replica.chains[:-1]
        phase = min((c.phase for c in chains if not c.closed), default=len(self.manifest.phases) - 1)
        planned = [self.planned_of(s) for s in range(self.manifest.slots)]
        errors = [f.error for f, c in zip(self._slots, chains, strict=True) if f.error is not None and c.phase == phase]
        return RunView(
            run=self.manifest.run, state=state, elapsed_s=elapsed_s, phase=phase, phases=len(self.manifest.phases),
            phase_name=phase_name(self.manifest.phases[phase]), rows_done=sum(f.rows for f in self._slots),
            rows_planned=None if None in planned else sum(p or 0 for p in planned),
            rows_per_s=sum(r for _, r, _ in self._recent) / span,
            updates_per_s=sum(u for _, _, u in self._recent) / span, updates=sum(f.updates for f in self._slots),
            error=sum(errors) / len(errors) if errors else None,
            error_name=_error_name(self.manifest.phases[phase]),
            workers=workers, claims=self.seen.claims, voids=sum(c.voids for c in self.replica.chains),
            undecided=len(self.held), snapshot_every_s=self.snapshot_every_s,
            slots=tuple(self._slot_view(s, extra(s)) for s in range(self.manifest.slots)),
            waits=(*waits, *(f"updates partition {p}: {why}" for p, why in self.held.items())),
            messages=tuple(self.messages),
        )  # fmt: skip

    def _slot_view(self, slot: int, note: str) -> SlotView:
        facts, chain = self._slots[slot], self.replica.chains[slot]
        phase = min(chain.phase, len(self.manifest.phases) - 1)
        if self._adapts and facts.tau and not chain.closed:
            note = f"{note} tau {facts.tau}".lstrip()
        return SlotView(
            slot=slot, worker=facts.worker, incarnation=chain.incarnation, phase=phase,
            phase_name=phase_name(self.manifest.phases[phase]), rows_done=facts.rows,
            rows_planned=self.planned_of(slot), updates=facts.updates,
            staleness=facts.staleness, error=facts.error, closed=chain.closed,
            note=chain.failed or note,
        )  # fmt: skip


def _error_name(phase: PhaseSpec) -> str:
    return "training error" if phase.learner == "backprop" else "reconstruction error"


def _error(phase: PhaseSpec, message: Update) -> float:
    """What a person calls the error of a round: wrong rows in backprop, else mean squared reconstruction error."""
    if phase.learner == "backprop":
        return 1.0 - message.metrics.correct / message.rows.count
    return message.metrics.reconstruction_ppm / 1e6
