"""A worker of the simulated world: the production's Host behind a driver that loses, delays and forgets on command."""

from __future__ import annotations

import io
from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import events as ev
from gossipdbn.core import resume, rounds
from gossipdbn.core.chain import Chain
from gossipdbn.core.host import Host
from gossipdbn.core.recompute import Rows
from gossipdbn.core.replica import Replica
from gossipdbn.core.slot import Settings
from gossipdbn.core.values import (
    NO_METRICS,
    Claim,
    Metrics,
    Payload,
    PayloadRef,
    RowRange,
    Sealed,
    SnapshotAnnounced,
    Update,
)
from gossipdbn.errors import DataError, LocalProtocolError, LogError, RetentionError, SnapshotError, StoreError
from gossipdbn.sim import abstract, mending
from gossipdbn.sim.brokers import CONTROL, SHARDS, UPDATES, Writer
from gossipdbn.sim.checkers import Violation
from gossipdbn.wire.envelope import Unreadable
from gossipdbn.wire.messages import RunWire, decode_control, decode_payload, payload_name
from gossipdbn.wire.snapshots import announce, chain_room, decode_snapshot, write_chain, write_snapshot

if TYPE_CHECKING:
    from gossipdbn.sim.world import World

__all__ = ["Worker"]

IDLE_S = 0.03
LOOKS_EVERY = 3
"""Turns from one look at a replica to the next: a look ends what rounds are lent beyond it, which workers seldom do."""


class Worker:
    """One process.

    Attributes
    ----------
    cut_until_s, paused_until_s : until when it cannot reach the brokers, or does not run at all.
    fetched : per topic and partition, the end of what has reached it. unread : updates partitions it does not read.
    """

    def __init__(self, world: World, name: str, wire: RunWire) -> None:
        self.world, self.name, self.wire = world, name, wire
        self.alive, self.leaving, self.damaged = True, False, False
        self.cut_until_s = self.paused_until_s = self.clock_s = self.told_s = 0.0
        self.pace = 1.0
        self.mail: deque[ev.Event] = deque()
        self.told: deque[ev.Assigned | ev.Unassigned] = deque()
        self.fetched: dict[tuple[str, int], int] = {}
        self.control = 0
        self.snapshots: dict[int, list[SnapshotAnnounced]] = {}
        self.rows: dict[int, abstract.RowView] = {}
        self.job: rounds.RoundJob | None = None
        self.recoveries: dict[int, tuple[resume.Resume, list[abstract.RowView]]] = {}
        self.asks: deque[int] = deque()
        self.unread: set[int] = set()
        self.holds: dict[int, ev.Hold] = {}
        self.claims: dict[int, bytes] = {}
        self.copies: dict[int, tuple[ev.Snapshot, io.BytesIO]] = {}
        self.writer = self._writer()
        self._turn_at_s: float | None = None
        self._turns = 0
        o = world.options
        settings = Settings(
            worker=name,
            key_id=wire.key_id,
            numerics=world.manifest.numerics,
            linger_s=o.linger_s,
            snapshot_every_s=o.snapshot_every_s,
            claim_delay_s=o.claim_delay_s,
            claim_delay_max_s=20 * o.claim_delay_s,
        )
        self._read_control(world.log.end(CONTROL, 0))
        self.host = Host(self._newest_replica(), wire, settings, world.dice(name))
        self.mender = mending.mender(self)
        for p, chain in enumerate(self.host.replica.chains):
            if chain.offset < world.log.first[UPDATES, p]:
                raise RetentionError(f"updates partition {p} begins after offset {chain.offset}")
            self.fetched[UPDATES, p] = world.log.end(UPDATES, p)
        self.wake(0.0)

    def _writer(self) -> Writer:
        w = self.world
        return Writer(w.log, w, self.name, lambda: max(0.0, self.cut_until_s - w.now_s), self.acknowledged)

    def _newest_replica(self) -> Replica:
        announced = [a for of_slot in self.snapshots.values() for a in of_slot]
        for a in sorted(announced, key=lambda a: -sum(a.version)):
            try:
                s = self._load(a)
            except (SnapshotError, StoreError):
                continue
            return Replica(self.world.manifest, self.wire.decode, s.parameters, s.chains)
        return Replica(self.world.manifest, self.wire.decode, self.world.initial)

    def _load(self, a: SnapshotAnnounced) -> ev.Snapshot:
        return decode_snapshot(self.world.manifest, self.world.store.get_sized(a.name, a.size), a.sha256)

    # ---- time -------------------------------------------------------------------------------------------------------
    def wake(self, delay_s: float) -> None:
        """Take a turn after ``delay_s``, or earlier if one is due earlier."""
        at = self.world.now_s + delay_s
        if self._turn_at_s is not None and self._turn_at_s <= at:
            return
        self._turn_at_s = at
        self._turns += 1
        number = self._turns
        self.world.later(delay_s, lambda: self._due(number))

    def _due(self, number: int) -> None:
        if number != self._turns or not self.alive:
            return
        self._turn_at_s = None
        if self.world.now_s < self.paused_until_s:
            self.wake(self.paused_until_s - self.world.now_s + 1e-6)
            return
        try:
            soon = self.turn()
        except RetentionError as e:
            self.world.crashed(self, f"the log was trimmed: {e}")
            return
        except LocalProtocolError as e:
            self.world.stopped_itself(self, str(e))
            return
        if not self.damaged and self._turns % LOOKS_EVERY == 0:
            self.world.checker.replica_of(self.name, self.host.replica)
        if self.alive:
            self.wake((0.001 if soon else IDLE_S) * self.pace)

    def reached(self, topic: str, partition: int, end: int) -> None:
        """Records up to ``end`` have arrived here."""
        if not self.alive:
            return
        if self.world.now_s < self.cut_until_s:
            self.world.later(
                self.cut_until_s - self.world.now_s + self.world.delay(), lambda: self.reached(topic, partition, end)
            )
            return
        key = (topic, partition)
        self.fetched[key] = max(self.fetched.get(key, 0), end)
        self.wake(0.0005 * self.pace)

    def acknowledged(self, partition: int, offset: int, raw: bytes, writer: Writer) -> None:
        """The log told ``writer`` that it took a record; one that was renewed meanwhile is told nothing."""
        if self.alive and self.writer is writer and self.world.now_s >= self.cut_until_s:
            self.mail.append(ev.Acknowledged(partition, offset, raw))
            self.wake(0.0005 * self.pace)

    # ---- a turn -----------------------------------------------------------------------------------------------------
    def turn(self) -> bool:
        """What the production's loop does in one pass; True when there is more to do at once."""
        host = self.host
        self._step(ev.Tick(self.world.now_s + self.clock_s))
        while self.mail:
            self._step(self.mail.popleft())
        self._poll()
        self._background()
        if self.recoveries:
            self._recover_some()
        if self.job is None:
            self.perform(self.next_work())
        if self.leaving and host.stopped and not self.writer.held_anything():
            self.world.left(self)
        return bool(self.recoveries or self.mender.busy or self.asks or self.mail)

    def next_work(self) -> list[ev.Effect]:
        """What the core wants to be done now."""
        return self.host.work()

    def metrics_of(self, _: rounds.RoundJob) -> Metrics:
        """What a round reports of itself."""
        return NO_METRICS

    def _poll(self) -> None:
        for p in self.world.shuffled(len(self.host.replica.chains)):
            self._poll_updates(p)
        self._read_control(self.fetched.get((CONTROL, 0), 0))
        for slot, view in list(self.rows.items()):
            self._poll_rows(slot, view)

    def _poll_updates(self, p: int) -> None:
        for _ in range(self.world.options.poll_max):
            offset = self.host.replica.chains[p].offset
            if p in self.holds or p in self.unread or offset >= self.fetched[UPDATES, p]:
                return
            raw = self.world.log.record(UPDATES, p, offset)
            assert raw is not None
            self._step(ev.Logged(p, offset, raw))

    def _poll_rows(self, slot: int, view: abstract.RowView) -> None:
        end = self.fetched.get((SHARDS, slot), 0)
        moved = False
        while view.next_offset < end and not view.problem:
            raw = self.world.log.record(SHARDS, slot, view.next_offset)
            assert raw is not None
            moved = True
            try:
                view.feed(raw)
            except DataError as e:
                view.problem = str(e)
                self._step(ev.RoundFailed(slot, str(e)))
        if moved:
            self._rows_arrived(slot, view)

    def _rows_arrived(self, slot: int, view: abstract.RowView) -> None:
        self._step(ev.RowsArrived(slot, view.rows, view.ended))

    def _read_control(self, end: int) -> None:
        while self.control < end:
            raw = self.world.log.record(CONTROL, 0, self.control)
            assert raw is not None
            self.control += 1
            try:
                message = decode_control(raw, self.wire.keys)
            except Unreadable:
                continue
            if isinstance(message, SnapshotAnnounced):
                known = self.snapshots.setdefault(message.slot, [])
                known.append(message)
                if message.slot in self.host_slots():  # older ones go when the newest is known to everybody
                    for old in sorted(known, key=lambda x: x.seq)[: -self.world.options.keep]:
                        self.world.store.delete(old.name)

    def host_slots(self) -> tuple[int, ...]:
        """Slots hosted now; none while the worker starts."""
        return tuple(self.host.slots) if hasattr(self, "host") else ()

    def _background(self) -> None:
        reachable = self.world.now_s >= self.cut_until_s
        for _ in range(len(self.asks)):
            p = self.asks.popleft()
            if reachable and self.world.log.reachable((UPDATES, p)):
                self._step(ev.EndOffset(p, self.world.log.end(UPDATES, p)))
            else:
                self.asks.append(p)
        for hold in list(self.holds.values()):
            payload = self.fetch(hold.wants) if hold.wants is not None else None
            if payload is not None:
                del self.holds[hold.partition]
                self._step(ev.Logged(hold.partition, hold.offset, hold.raw, payload))
        self.perform(mending.mend(self))
        if self.writer.broken:
            self._step(ev.SendFailed(self.writer.broken))

    def put_back(self, ref: PayloadRef, data: bytes) -> None:
        """A payload that was gone, recomputed."""
        mending.put_back(self, ref, data)

    def fetch(self, ref: PayloadRef) -> Payload | None:
        """A spilled payload, None while it cannot be seen."""
        try:
            return decode_payload(ref, self.world.store.get_sized(payload_name(ref), ref.size))
        except SnapshotError:
            return None

    # ---- effects ----------------------------------------------------------------------------------------------------
    def _step(self, event: ev.Event) -> None:
        self.perform(self.host.step(event))

    def perform(self, effects: list[ev.Effect]) -> None:
        """Carry out what the core asks for."""
        for effect in effects:
            self._one(effect)

    def _one(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Train(job=job):
                self.job = job
                self.world.later(self.world.train_time() * self.pace, lambda: self._trained(job))
            case ev.Publish():
                self._publish(effect)
            case ev.AskEnd(partition=partition):
                self.asks.append(partition)
            case ev.Follow(partition=partition, offset=offset):
                (self.unread.add if offset is None else self.unread.discard)(partition)
            case ev.Hold():
                self.unread.discard(effect.partition)
                self.holds[effect.partition] = effect
                self.world.say(f"{self.name} partition {effect.partition} waits: {effect.reason}")
            case ev.Recover():
                self._recover(effect)
            case ev.FollowRows(slot=slot):
                self._follow(slot)
            case ev.StoreSnapshot(snapshot=snapshot):
                self._copy(snapshot)
            case ev.SnapshotWhole(slot=slot, chain=chain):
                self._store(slot, chain)
            case ev.SnapshotDropped(slot=slot):
                del self.copies[slot]
            case ev.Announce(message=message):
                self.writer.send(CONTROL, 0, self.wire.control(message))
            case ev.RenewWriter():
                self.writer.give_up(self.world.uniform())
                self.writer = self._writer()
            case ev.Release(slot=slot):
                self.rows.pop(slot, None)
                self.recoveries.pop(slot, None)
            case ev.Report():
                self.world.say(f"{self.name} slot {effect.slot} {effect.kind}: {effect.text}")

    def _trained(self, job: rounds.RoundJob) -> None:
        if not self.alive or self.job is not job:
            return
        if self.world.now_s < self.paused_until_s:
            wait = self.paused_until_s - self.world.now_s + 1e-6
            self.world.later(wait, lambda: self._trained(job))
            return
        self.job = None
        if job.slot in self.world.poisoned:
            self.mail.append(ev.RoundFailed(job.slot, "a row that cannot be trained", job))
        else:
            try:
                values, labels, total = self.rows[job.slot].get(job.rows) if job.slot in self.rows else (None, None, 0)
                if values is not None:
                    self.world.train(self.world.manifest, job, values, labels, total)
                    self.mail.append(ev.RoundTrained(job, self.metrics_of(job)))
            except DataError as e:
                self.mail.append(ev.RoundFailed(job.slot, str(e), job))
        self.wake(0.0)

    def _publish(self, effect: ev.Publish) -> None:
        decoded = self.wire.decode(effect.raw)
        assert isinstance(decoded, Sealed)
        m = decoded.message
        slot = self.host.slots.get(effect.slot)
        if isinstance(m, Claim):
            self.world.say(f"{self.name} slot {m.slot} claims incarnation {m.incarnation}")
        elif isinstance(m, Update) and slot is not None:
            if slot.pending[-1].sealed != decoded:
                raise Violation(f"{self.name} slot {m.slot}: update {m.seq} is read otherwise than it was meant")
            self.world.checker.publishes(self.name, f"{m.incarnation}".encode(), m, effect.raw)
            self.world.window(self.name, slot)
        if effect.spill is not None:
            try:
                self.world.store.put(payload_name(effect.spill[0]), effect.spill[1], self.world.store_time())
            except StoreError as e:
                self.mail.append(ev.SendFailed(str(e)))
                return
        self.writer.send(UPDATES, effect.slot, effect.raw)

    def _follow(self, slot: int) -> None:
        if slot not in self.rows:
            self.rows[slot] = abstract.RowView(self.world.manifest, slot)
        self.fetched.setdefault((SHARDS, slot), self.world.log.end(SHARDS, slot))
        self._rows_arrived(slot, self.rows[slot])

    # ---- snapshots and recovery -------------------------------------------------------------------------------------
    def _copy(self, snapshot: ev.Snapshot) -> None:
        spool = io.BytesIO()
        write_snapshot(self.world.manifest, snapshot, spool, chain_room(self.world.manifest))
        self.copies[snapshot.slot] = snapshot, spool

    def _store(self, slot: int, chain: Chain) -> None:
        snapshot, spool = self.copies.pop(slot)
        write_chain(slot, chain, spool)
        data = spool.getvalue()
        chains = (*snapshot.chains[:slot], chain, *snapshot.chains[slot + 1 :])
        a = announce(self.world.manifest, replace(snapshot, chains=chains), data)
        self.world.later(self.world.store_time() * self.pace, lambda: self._stored(a, data))

    def _stored(self, a: SnapshotAnnounced, data: bytes) -> None:
        if not self.alive:
            return
        try:
            self.world.store.put(a.name, data, 0.0)
        except StoreError as e:
            self.world.say(f"{self.name} slot {a.slot} snapshot not stored: {e}")
            self.mail.append(ev.SnapshotStored(a.slot, None))
            return
        self.mail.append(ev.SnapshotStored(a.slot, a))
        self.wake(0.0)

    def _recover(self, effect: ev.Recover) -> None:
        self.rows.pop(effect.slot, None)
        self._read_control(self.world.log.end(CONTROL, 0))
        self.recoveries[effect.slot] = self.resume(effect)

    def resume(self, effect: ev.Recover, mend: bool = False) -> tuple[resume.Resume, list[abstract.RowView]]:
        """A recovery with this world's log, store and rows behind it, and where it keeps the rows."""
        views: list[abstract.RowView] = []
        announced = sorted(self.snapshots.get(effect.slot, ()), key=lambda a: -a.seq)

        def begin(position: rounds.ShardPosition | None) -> Rows:
            views.append(abstract.RowView(self.world.manifest, effect.slot, position))
            return lambda rows: self._rows_for(views[-1], rows)

        inputs = resume.Inputs(
            self.record,
            self.fetch,
            resume.earlier(announced, effect) if mend else announced,
            self._load,
            begin,
            lambda: self.world.initial,
            self.world.train,
            remade=self.put_back,
        )
        return resume.Resume(self.world.manifest, effect, self.wire, inputs), views

    def record(self, partition: int, offset: int) -> bytes | None:
        """A record of the updates, asked for apart from the stream that ``fetched`` tells of."""
        if self.world.now_s < self.cut_until_s or not self.world.log.reachable((UPDATES, partition)):
            raise LogError("the brokers cannot be reached", retryable=True)
        return self.world.log.record(UPDATES, partition, offset)

    def _rows_for(self, view: abstract.RowView, rows: RowRange) -> tuple[np.ndarray, NDArray[np.int32] | None, int]:
        while view.rows < rows.first + rows.count or (rows.epoch and not view.ended):
            raw = self.world.log.record(SHARDS, view.slot, view.next_offset)
            if raw is None:
                raise DataError(f"slot {view.slot}: the shards end at row {view.rows}, an update names {rows}")
            view.feed(raw)
        return view.get(rows)

    def _recover_some(self) -> None:
        slot, (recovery, views) = next(iter(self.recoveries.items()))
        try:
            outcome = recovery.advance()
        except (LogError, StoreError) as e:
            if isinstance(e, RetentionError):
                raise
            self.recoveries[slot] = self.recoveries.pop(slot)  # the others need not wait for it
            return
        if outcome is None:
            return
        del self.recoveries[slot]
        if outcome.state is None and not any(self.world.log.first.values()):
            raise Violation(
                f"{self.name} cannot recover slot {slot}, though the log holds everything: {outcome.reason}"
            )
        if outcome.state is not None:
            self.world.say(f"{self.name} slot {slot} recovered after {recovery.recomputed} rounds")
            self.world.checker.recovered(self.name, outcome.state)
            self.rows[slot] = views[-1]
        self._step(outcome)
