"""What must be true after every event, computed apart from the code under test wherever that is possible.

The judge of the world reads every record in the order of the log, the moment it is appended, with all keys and all
objects at hand. It folds each partition with the production's chain and, beside it, with thirty lines that know the
rules by another route (``Naive``); it recomputes every accepted update; it knows what any replica must hold.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import rounds
from gossipdbn.core.chain import Chain, genesis
from gossipdbn.core.recompute import Recomputation, Source
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import (
    CLOSES_PHASE,
    DONE,
    FAILED,
    GIVEN_UP,
    OPEN,
    RESET,
    Accepted,
    Claim,
    Decoded,
    Manifest,
    Payload,
    Revocation,
    RowRange,
    Sealed,
    SnapshotAnnounced,
    Undecided,
    Update,
    Version,
)
from gossipdbn.errors import GossipDbnError, RemoteProtocolError, SnapshotError
from gossipdbn.kernels import codec
from gossipdbn.models.spec import layout
from gossipdbn.sim.abstract import RowView
from gossipdbn.sim.brokers import CONTROL, SHARDS, UPDATES, Log, Store
from gossipdbn.wire.messages import RunWire, decode_control, decode_payload, payload_name
from gossipdbn.wire.snapshots import decode_snapshot

__all__ = ["Checker", "Naive", "Violation"]

Ints = NDArray[np.int32]


KINDS = ("", " closes the phase", " done", " failed", " given up")


class Violation(Exception):
    """An invariant does not hold."""


@dataclass(slots=True)
class Naive:
    """One partition by the shortest reading of the rules; no bytes, digests or bounds."""

    slot: int
    slots: int
    incarnation: int = 0
    owner: str = ""
    count: int = 0
    start: Version = ()
    cursor: tuple[int, int] = (0, 0)
    phase: int = 0
    step: int = 0
    closed: bool = False

    def __post_init__(self) -> None:
        self.start = self.start or (0,) * (self.slots + 1)

    def feed(self, m: object, sender: str, manifest: Manifest) -> bool:
        """Whether the message is accepted; moves on if so."""
        if isinstance(m, Revocation):
            ok = self.slot == self.slots and m.number == self.count
            self.count += ok
            return ok
        if not isinstance(m, Claim | Update) or m.slot != self.slot or self.closed:
            return False
        if isinstance(m, Claim):
            if m.incarnation != self.incarnation + 1:
                return False
            self.incarnation, self.owner = m.incarnation, sender
            if m.mode == RESET:
                self.start = (0,) * (self.slots + 1)
            return True
        start = tuple(a + b for a, b in zip(self.start, m.advance, strict=True))
        known = (m.incarnation, m.seq, m.phase, m.step) == (self.incarnation, self.count, self.phase, self.step)
        at = (m.rows.epoch, m.rows.first)
        if not known or start[self.slot] != m.seq or at not in (self.cursor, (self.cursor[0] + 1, 0)):
            return False
        self.count, self.start, self.cursor = self.count + 1, start, (m.rows.epoch, m.rows.first + m.rows.count)
        self.step += -(-m.rows.count // manifest.phases[m.phase].batch)
        self.phase += m.closing == CLOSES_PHASE
        self.closed = m.closing in (DONE, FAILED, GIVEN_UP)
        return True


@dataclass(slots=True)
class _Partition:
    """What the judge knows of one updates partition."""

    naive: Naive
    chains: list[Chain]
    sums: list[Ints]
    owner: str = ""
    outstanding: bool = False
    again: Recomputation | None = None
    states: dict[bytes, tuple[object, ...]] = field(default_factory=dict)
    trained: list[tuple[int, RowRange]] = field(default_factory=list)
    tips: dict[bytes, int] = field(default_factory=dict)


def facts_of(state: rounds.SlotState) -> tuple[object, ...]:
    """Everything in a slot's state that its next round depends on, comparable."""
    arrays = tuple((k, v.tobytes()) for k, v in sorted(state.optimiser.items()))
    counters = (state.seq, state.step, tuple(state.cursor), state.phase, state.start_version)
    return (*counters, state.residual.tobytes(), arrays)


class Checker:
    """The judge of one world. Methods raise Violation."""

    def __init__(
        self,
        manifest: Manifest,
        wire: RunWire,
        log: Log,
        store: Store,
        initial: Ints,
        plan_rows: tuple[int, ...],
        train: rounds.Trainer,
    ) -> None:
        self.manifest, self.wire, self.log, self.store = manifest, wire, log, store
        self.initial, self.plan_rows, self._train = initial, plan_rows, train
        self.replica = Replica(manifest, wire.decode, initial)
        self.rows = [RowView(manifest, s) for s in range(manifest.slots)]
        self.published: dict[tuple[int, str, bytes, int], bytes] = {}
        self.accepted = self.void = self.snapshots = 0
        self.partitions = [self._partition(p) for p in range(manifest.slots + 1)]

    def _partition(self, p: int) -> _Partition:
        part = _Partition(Naive(p, self.manifest.slots), [genesis(self.manifest.slots)], [np.zeros_like(self.initial)])
        if p < self.manifest.slots:
            state = rounds.fresh_state(self.manifest, p, genesis(self.manifest.slots))
            source = Source(self._record, self._fetch, self._rows(p), self._base, self._train)
            part.again = Recomputation(self.manifest, p, self._base(()), state, self.wire, source)
            part.states[state.tip] = facts_of(state)
        return part

    # ---- the judge's own inputs -------------------------------------------------------------------------------------
    def _record(self, partition: int, offset: int) -> bytes | None:
        records = self.log.records[UPDATES, partition]
        return records[offset].raw if offset < len(records) else None

    def _fetch(self, ref: object) -> Payload | None:
        name = payload_name(ref)  # type: ignore[arg-type]
        data = self.store.ever.get(name)
        return None if data is None else decode_payload(ref, data)  # type: ignore[arg-type]

    def _rows(self, slot: int) -> Callable[[RowRange], tuple[np.ndarray, NDArray[np.int32] | None, int]]:
        return self.rows[slot].get

    def _base(self, _: Version) -> Replica:
        return Replica(self.manifest, self.wire.decode, self.initial)

    # ---- at every append --------------------------------------------------------------------------------------------
    def appended(self, topic: str, partition: int, offset: int, raw: bytes, sender: str) -> str:
        """A record is in the log from now on; returns its verdict in words."""
        if topic == SHARDS:
            if not self.rows[partition].problem:
                try:
                    self.rows[partition].feed(raw)
                except GossipDbnError as e:
                    self.rows[partition].problem = str(e)
            return ""
        if topic == CONTROL:
            return self._control(raw)
        return self._update(partition, offset, raw, sender)

    def _update(self, p: int, offset: int, raw: bytes, sender: str) -> str:
        part = self.partitions[p]
        decoded = self.wire.decode(raw)
        payload = self._payload_of(decoded)
        verdict = self.replica.read(p, offset, raw, payload)
        if isinstance(verdict, Undecided):
            raise Violation(f"partition {p} offset {offset}: undecided for who knows everything: {verdict.reason}")
        chain = self.replica.chains[p]
        part.chains.append(chain)
        message = decoded.message if isinstance(decoded, Sealed) else None
        self._against_the_naive(p, offset, message, sender, isinstance(verdict, Accepted))
        if not isinstance(verdict, Accepted):
            self.void += 1
            return f"void ({verdict.reason})"
        self.accepted += 1
        if isinstance(message, Claim):
            part.owner = sender
            assert part.again is not None
            self._recompute(p, None)
            return f"claim {message.incarnation}{' with reset' if message.mode == RESET else ''}"
        assert isinstance(message, Update | Revocation)
        part.sums.append(part.sums[-1] + self._deltas(message.payload if message.payload is not None else payload))
        if isinstance(message, Revocation):
            return f"revokes updates {message.first_seq}..{message.last_seq} of slot {message.slot}"
        if sender != part.owner:
            raise Violation(f"slot {p}: update {message.seq} of {sender} is accepted, the slot is {part.owner}'s")
        assert verdict.start_version is not None
        self._recompute(p, message)
        self._plan(p, message)
        kind = KINDS[message.closing]
        return f"update {message.seq} rows {tuple(message.rows)} from {verdict.start_version}{kind}"

    def _payload_of(self, decoded: Decoded) -> Payload | None:
        if isinstance(decoded, Sealed) and isinstance(decoded.message, Update | Revocation):
            ref = decoded.message.payload_ref
            return None if ref is None else self._fetch(ref)
        return None

    def _against_the_naive(self, p: int, offset: int, message: object, sender: str, accepted: bool) -> None:
        """The production's verdict may be stricter (digests, bounds, tips), never laxer; honest bytes never differ."""
        naive = self.partitions[p].naive
        if not accepted:
            return
        if not naive.feed(message, sender, self.manifest):
            raise Violation(f"partition {p} offset {offset}: accepted against the rules: {message}")
        chain = self.replica.chains[p]
        same = (chain.incarnation, chain.count, chain.closed) == (naive.incarnation, naive.count, naive.closed)
        if not same or (p < self.manifest.slots and (chain.phase, chain.step) != (naive.phase, naive.step)):
            raise Violation(f"partition {p} offset {offset}: the chain stands elsewhere than the rules say: {chain}")

    def _deltas(self, payload: Payload | None) -> Ints:
        total = np.zeros_like(self.initial)
        for part in payload or ():
            t = layout(self.manifest.spec)[part.tensor]
            total[t.offset : t.offset + t.size] += codec.decode(part.codec, part.data, *t.blocks).reshape(-1)
        return total

    def _recompute(self, p: int, message: Update | None) -> None:
        part = self.partitions[p]
        assert part.again is not None
        if message is not None:
            held = [len(x.sums) - 1 for x in self.partitions]
            start = self.replica.chains[p].start_version
            dangling = [j for j, n in enumerate(start) if n > held[j]]
            if dangling:
                raise Violation(f"slot {p} update {message.seq}: start_version {start} dangles, the log holds {held}")
        try:
            for again in part.again.run():
                if not again.same:
                    raise Violation(
                        f"slot {p}: update {again.logged.seq} cannot be recomputed from the log:\n"
                        f"  logged     {again.logged}\n  recomputed {again.update}"
                    )
        except GossipDbnError as e:
            raise Violation(f"slot {p}: recomputing from the log: {e}") from e
        part.states[part.again.state.tip] = facts_of(part.again.state)
        part.tips[self.replica.chains[p].tip] = self.replica.chains[p].count

    def _plan(self, p: int, message: Update) -> None:
        """Rows and closings, counted from the plan itself."""
        part, view = self.partitions[p], self.rows[p]
        if message.closing == OPEN:
            part.trained.append((message.phase, message.rows))
            if message.rows.first + message.rows.count > view.rows:
                raise Violation(f"slot {p}: update {message.seq} names rows that its partition does not hold")
            return
        if message.closing in (FAILED, GIVEN_UP):
            part.outstanding = True
            return
        per_row = self.manifest.phases[message.phase].epochs
        owed = view.rows * (1 if per_row is None else per_row)
        got = sum(r.count for phase, r in part.trained if phase == message.phase)
        if not view.ended or got != owed:
            raise Violation(f"slot {p} closes phase {message.phase} after {got} of {owed} rows (ended: {view.ended})")

    # ---- control ----------------------------------------------------------------------------------------------------
    def _control(self, raw: bytes) -> str:
        try:
            message = decode_control(raw, self.wire.keys)
        except RemoteProtocolError:
            return "void"
        if not isinstance(message, SnapshotAnnounced):
            return type(message).__name__
        self._announced(message)
        return f"snapshot of slot {message.slot} at update {message.seq}"

    def _announced(self, a: SnapshotAnnounced) -> None:
        """An announced snapshot is whole, of the accepted chain, and what the log says; later it may only vanish."""
        self.snapshots += 1
        data = self.store.objects.get(a.name)
        if data is None:  # replaced by newer ones, or lost, since it was announced
            return
        try:
            s = decode_snapshot(self.manifest, data, a.sha256)
        except SnapshotError as e:
            raise Violation(f"announced snapshot {a.name} is not readable: {e}") from e
        known = self.partitions[a.slot].states.get(s.state.tip)
        if known is None:
            raise Violation(f"announced snapshot {a.name} is of a dead branch")
        if facts_of(s.state) != known:
            raise Violation(f"announced snapshot {a.name} holds another state than the log leads to")
        self._check_replica(f"snapshot {a.name}", s.parameters, s.chains)

    # ---- workers ----------------------------------------------------------------------------------------------------
    def _check_replica(self, who: str, acc: Ints, chains: tuple[Chain, ...] | list[Chain]) -> None:
        expected = self.initial.copy()
        for p, chain in enumerate(chains):
            known = self.partitions[p].chains
            if chain.offset >= len(known):
                raise Violation(
                    f"{who} has read offset {chain.offset} of partition {p}, the log holds {len(known) - 1}"
                )
            if chain != known[chain.offset]:
                raise Violation(
                    f"{who} judges partition {p} otherwise than the log: at offset {chain.offset}\n  has {chain}\n"
                    f"  log {known[chain.offset]}"
                )
            expected += self.partitions[p].sums[chain.count]
        if not np.array_equal(acc, expected):
            raise Violation(
                f"{who} at version {tuple(c.count for c in chains)} holds other integers than the log's sum"
            )

    def replica_of(self, who: str, replica: Replica) -> None:
        """A worker's replica holds exactly what its version names."""
        self._check_replica(who, replica.acc, replica.chains)

    def publishes(self, who: str, incarnation_tip: bytes, update: Update, raw: bytes) -> None:
        """A (claim, seq) is one byte string for ever."""
        key = (update.slot, who, incarnation_tip, update.seq)
        if self.published.setdefault(key, raw) != raw:
            raise Violation(f"{who} makes update {update.seq} of slot {update.slot} a second time under the same claim")

    def recovered(self, who: str, state: rounds.SlotState) -> None:
        """A recovered state is the one that the log leads to."""
        if self.partitions[state.slot].states.get(state.tip) != facts_of(state):
            raise Violation(f"{who} recovered slot {state.slot} to another state than the log leads to")

    # ---- the end ----------------------------------------------------------------------------------------------------
    @property
    def finished(self) -> bool:
        """All slots are closed in the log."""
        return self.replica.finished

    def ledger(self) -> None:
        """Every row was trained as often as the plan says, unless its slot failed."""
        for p, part in enumerate(self.partitions[:-1]):
            if part.outstanding:
                continue
            for phase, spec in enumerate(self.manifest.phases):
                passes = 1 if spec.epochs is None else spec.epochs
                counts = np.zeros(self.plan_rows[p], np.int64)
                for _, r in (x for x in part.trained if x[0] == phase):
                    counts[r.first : r.first + r.count] += 1
                if (counts != passes).any():
                    raise Violation(f"ledger: slot {p} phase {phase} trained its rows {counts.tolist()} times")
