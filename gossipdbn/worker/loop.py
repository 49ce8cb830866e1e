"""A worker: poll the log, step the core, perform its effects. One thread trains; one more writes snapshots."""

from __future__ import annotations

import contextlib
import logging
import math
import random
import secrets
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from gossipdbn.core import events as ev
from gossipdbn.core import rounds
from gossipdbn.core.host import Host
from gossipdbn.core.mending import Mender
from gossipdbn.core.resume import earlier
from gossipdbn.core.revocation import Subtraction
from gossipdbn.core.slot import Settings
from gossipdbn.core.topics import run_names
from gossipdbn.core.values import Metrics, Revocation, SnapshotAnnounced, WorkerState
from gossipdbn.errors import DataError, LogError, StoreError
from gossipdbn.ports import Clock, Log, Record, SlotAssigned, SnapshotStore
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire
from gossipdbn.worker.control import Control
from gossipdbn.worker.keeping import SnapshotWriter
from gossipdbn.worker.mending import PutBack
from gossipdbn.worker.options import WorkerOptions, WorkerResult
from gossipdbn.worker.recover import LogCursor, Recovery, fetch_payload, newest_replica
from gossipdbn.worker.rows import RowStore
from gossipdbn.worker.spill import Held, Outbox
from gossipdbn.worker.tuning import CadenceTuner, TauTuner

__all__ = ["Worker", "WorkerOptions", "WorkerResult"]

logger = logging.getLogger("gossipdbn.worker")
STOP_DEADLINE_S = 20.0
RECOVER_S = 0.1
RECOVER_AGAIN_S = 0.5
HAND_OVER_S = 5.0


class Worker:
    """Hosts the slots that the group gives it, until the run is finished or it is asked to stop."""

    def __init__(
        self,
        log: Log,
        store: SnapshotStore,
        control: Control,
        options: WorkerOptions,
        clock: Clock,
        keys: envelope.Keyring = envelope.NO_KEYS,
        train: rounds.Trainer = rounds.run,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        if control.manifest is None:
            raise LogError(f"run {control.run} has no manifest")
        self.manifest, self.control, self.options = control.manifest, control, options
        self.topics = run_names(control.run, options.prefix)
        self._log, self._store, self._clock, self._keys, self._train = log, store, clock, keys, train
        self._should_stop = should_stop
        self._wire = RunWire(options.key_id, keys)
        cadence = CadenceTuner(self.manifest, options.failure_every_s, options.snapshot_every_s)
        settings = Settings(
            worker=f"{options.name}#{secrets.token_hex(4)}",  # claims of two processes of one name must differ
            key_id=options.key_id,
            numerics=self.manifest.numerics,
            linger_s=options.linger_s,
            snapshot_every_s=cadence.every_s,
        )
        replica = newest_replica(control, self.manifest, store, self._wire)
        self.host = Host(replica, self._wire, settings, random.Random(options.name).random)  # noqa: S311 - spreads claims
        self.rows: dict[int, RowStore] = {}
        self.rounds = self.rows_trained = 0
        self.train_s = self._merge_s = self._sent_s = 0.0
        self._stopping_since: float | None = None
        self._recoveries: dict[int, Recovery] = {}
        self._asks: deque[int] = deque()
        self._acknowledged: deque[Record] = deque()
        self._idle_since_s: float | None = None
        self._letting_go = False
        self._pool, self._payloads = ThreadPoolExecutor(1, "snapshots"), ThreadPoolExecutor(2, "payloads")
        self._snapshots = SnapshotWriter(store, self.manifest, self._pool, cadence)
        self._tuner = TauTuner(self.manifest, options.communication_share)
        self._outbox = Outbox(store, self._payloads, lambda slot, raw: self._send(self.topics.updates, slot, raw))
        self._held = Held(store, self._payloads)
        self._put_back = PutBack(store, self._payloads)
        again = self._mending, self._subtraction, self._put_back.keep
        self._mender = Mender(self.host, self._wire, *again, options.mend_after_s)

    # ---- running ----------------------------------------------------------------------------------------------------
    def run(self) -> WorkerResult:
        """Work until the run is finished, or a stop is carried out."""
        with contextlib.ExitStack() as stack:
            stack.enter_context(self._pool)
            stack.enter_context(self._payloads)
            self._reader = stack.enter_context(contextlib.closing(self._log.reader()))
            self._writer = self._log.writer(self._acknowledged.append)
            stack.push(lambda *_: self._writer.close())  # whichever it is by then
            for p, chain in enumerate(self.host.replica.chains):
                self._reader.add(self.topics.updates, p, chain.offset)
            self._reader.add(self.topics.control, 0, self.control.offset)
            group = self._log.membership(self.topics.group, self.topics.shards, self.options.name, self._let_go)
            self._group = stack.enter_context(contextlib.closing(group))
            try:
                while not self._done():
                    self._turn()
            finally:
                self._letting_go = True  # whatever is left is nobody's to wait for
            return self._result()

    def _turn(self) -> None:
        if not self._letting_go:
            self._membership()
        started, trained_s = self._clock.monotonic_s(), self.train_s
        self._step(ev.Tick(started))
        self._acknowledgements()  # first: what they tell need not be read
        busy = self._busy()
        for record in self._reader.poll(0.0 if busy else self._patience_s()):
            self._record(record)
        self._merge_s += self._clock.monotonic_s() - started
        self._background()
        failure = self._writer.failure()
        if failure:
            self._step(ev.SendFailed(failure))
        if self._recoveries:
            self._recover_some()
        self._perform(self.host.work())
        if busy and not self._recoveries:
            other_s = self._clock.monotonic_s() - started - (self.train_s - trained_s)
            self._tuner.spent(other_s, self._clock.background_s())

    def _busy(self) -> bool:
        return (
            self._mender.busy
            or any(r.retry_at_s <= self._clock.monotonic_s() for r in self._recoveries.values())
            or any(s.state is not None and not s.waits_for for s in self.host.slots.values())
        )

    def _acknowledgements(self) -> None:
        self._writer.failure()  # calls back
        while self._acknowledged:
            record = self._acknowledged.popleft()
            if record.topic == self.topics.updates:
                self._step(ev.Acknowledged(record.partition, record.offset, record.value))

    def _patience_s(self) -> float:
        """How long an idle worker waits for records; an acknowledgement, which may come soon, ends no wait."""
        return 0.001 if self._clock.monotonic_s() - self._sent_s < 0.1 else 0.005

    def _done(self) -> bool:
        if self.host.finished and not self._snapshots.busy:
            return True
        now = self._clock.monotonic_s()
        if self._stopping_since is None and (self._should_stop() or self.control.stop):
            self._stopping_since = now
            logger.info("stopping: finishing rounds, writing snapshots")
            self._step(ev.StopAsked())
        if self._stopping_since is not None:
            late = now - self._stopping_since > STOP_DEADLINE_S
            if late:
                missing = sorted(self.host.slots)
                logger.warning("stopped without snapshots of slots %s after %.0f s", missing, STOP_DEADLINE_S)
            return late or (self.host.stopped and not self._snapshots.busy)
        return self._idle_too_long(now)

    def _idle_too_long(self, now: float) -> bool:
        if self.host.slots or not self.options.idle_exit_s:
            self._idle_since_s = None
            return False
        self._idle_since_s = self._idle_since_s or now
        return now - self._idle_since_s > self.options.idle_exit_s

    def _result(self) -> WorkerResult:
        replica = self.host.replica
        digest = replica.digest()
        state = WorkerState(
            self.manifest.run, self.options.name, replica.version, digest, "finished" if self.host.finished else "left"
        )
        with contextlib.suppress(LogError):
            self._writer.send(self.topics.control, 0, self._wire.control(state))
            self._writer.flush(5.0)
        failed = next((c.failed for c in replica.chains if c.failed), "")
        done = (self.rounds, self.rows_trained, self.train_s)
        return WorkerResult(self.options.name, self.host.finished, replica.version, digest, *done, failed)

    # ---- inputs -----------------------------------------------------------------------------------------------------
    def _membership(self) -> None:
        for event in self._group.poll(0.0):
            if isinstance(event, SlotAssigned):
                self._step(ev.Assigned(event.slot))
            else:
                self._step(ev.Unassigned(event.slot))
        self._choose_cadence()

    def _let_go(self, slots: list[int]) -> None:
        """The group wants slots back: whoever is given them next finds all that was sent, and a snapshot of it.

        Called from within the group's ``poll``; the other slots go on training meanwhile.
        """
        if self._letting_go:
            return
        for slot in slots:
            self._step(ev.Unassigned(slot))
        self._letting_go, until_s = True, self._clock.monotonic_s() + HAND_OVER_S
        try:
            while (self._snapshots.busy or any(s in self.host.slots for s in slots)) and (
                self._clock.monotonic_s() < until_s
            ):
                self._turn()
        finally:
            self._letting_go = False

    def _choose_cadence(self) -> None:
        every_s = self._snapshots.cadence.choose(len(self.host.slots))
        if every_s is not None:
            self._step(ev.CadenceChosen(every_s))

    def _record(self, record: Record) -> None:
        if record.topic == self.topics.updates:
            ahead = record.offset >= self.host.replica.chains[record.partition].offset
            if ahead and record.partition not in self._held:
                self._step(ev.Logged(record.partition, record.offset, record.value))
        elif record.topic == self.topics.shards:
            self._shard(record)
        elif record.offset >= self.control.offset:
            self.control.read(record.offset, record.value)

    def _shard(self, record: Record) -> None:
        rows = self.rows.get(record.partition)
        if rows is None or record.offset != rows.next_offset:
            return
        try:
            rows.feed(record.offset, record.value)
        except DataError as e:
            self._step(ev.RoundFailed(record.partition, str(e)))
            self._reader.remove(self.topics.shards, record.partition)
            return
        if rows.held:
            logger.warning("shards partition %d waits: %s", record.partition, rows.held)
            self._reader.remove(self.topics.shards, record.partition)
        self._step(ev.RowsArrived(record.partition, rows.rows, rows.ended))

    def _background(self) -> None:
        """Answers that no reader of the log brings: end offsets, stored snapshots, payloads that were missing."""
        for _ in range(len(self._asks)):
            partition = self._asks.popleft()
            try:
                end = self._log.offsets(self.topics.updates, partition)[1]
            except LogError as e:
                logger.warning("end of updates partition %d: %s", partition, e)
                self._asks.append(partition)
                break
            self._step(ev.EndOffset(partition, end))
        for snapshot, message in self._snapshots.done(self.host.slots):
            self._snapshot_done(snapshot, message)
        now_s = self._clock.monotonic_s()
        self._outbox.turn(now_s)
        for hold, payload in self._held.turn(now_s):
            self._step(ev.Logged(hold.partition, hold.offset, hold.raw, payload))
            if hold.partition not in self._held:
                self._reader.add(self.topics.updates, hold.partition, hold.offset + 1)
        self._put_back.turn(now_s)
        lacking = [r.lacks for r in self._recoveries.values() if r.lacks is not None]
        self._perform(self._mender.turn([*self._held.holds, *lacking], now_s))

    def _hold(self, hold: ev.Hold) -> None:
        self._held.add(hold)
        self._reader.remove(self.topics.updates, hold.partition)

    def _recover_some(self) -> None:
        """Recompute rounds for a while: what is behind goes first, and everybody else waits no longer than that."""
        until = self._clock.monotonic_s() + RECOVER_S
        while (now_s := self._clock.monotonic_s()) < until:
            ready = [slot for slot, r in self._recoveries.items() if r.retry_at_s <= now_s]
            if not ready:
                return
            slot, recovery = ready[0], self._recoveries[ready[0]]
            logger.debug("slot %d recovers: %d rows recomputed so far", slot, recovery.recomputed_rows)
            try:
                outcome = recovery.advance()
            except (LogError, StoreError) as e:
                if recovery.waits_for != str(e):
                    logger.warning("recovery of slot %d waits: %s", slot, e)
                recovery.waits_for, recovery.retry_at_s = str(e), now_s + RECOVER_AGAIN_S
                continue
            if outcome is not None:
                self._recovered(slot, recovery, outcome)

    def _recovered(self, slot: int, recovery: Recovery, outcome: ev.Recovered) -> None:
        del self._recoveries[slot]
        for why in recovery.skipped:
            logger.warning("slot %d: %s", slot, why)
        if outcome.state is not None:
            self.rows[slot] = recovery.rows
            done = (recovery.recomputed, recovery.recomputed_rows)
            logger.info("slot %d recovered: %d rounds recomputed, %d rows", slot, *done)
        self._step(outcome)

    # ---- effects ----------------------------------------------------------------------------------------------------
    def _step(self, event: ev.Event) -> None:
        self._perform(self.host.step(event))

    def _perform(self, effects: list[ev.Effect]) -> None:
        for effect in effects:
            self._one(effect)

    def _one(self, effect: ev.Effect) -> None:
        match effect:
            case ev.Train(job=job):
                self._do_train(job)
            case ev.Publish():
                self._outbox.publish(effect)
            case ev.AskEnd(partition=partition):
                self._asks.append(partition)
            case ev.Follow(partition=partition, offset=None):
                self._reader.remove(self.topics.updates, partition)
            case ev.Follow(partition=partition, offset=int(offset)):
                self._reader.add(self.topics.updates, partition, offset)
            case ev.Hold():
                self._hold(effect)
            case ev.Recover():
                self._recover(effect)
            case ev.FollowRows(slot=slot):
                self._follow(slot)
            case ev.StoreSnapshot(snapshot=snapshot):
                self._copy_snapshot(snapshot)
            case ev.SnapshotWhole(slot=slot, chain=chain):
                self._snapshots.write(slot, chain)
            case ev.SnapshotDropped(slot=slot):
                self._snapshots.drop(slot)
            case ev.Announce(message=message):
                self._send(self.topics.control, 0, self._wire.control(message))
            case ev.RenewWriter():
                self._writer.close()
                self._writer = self._log.writer(self._acknowledged.append)
            case ev.Release(slot=slot):
                self._reader.remove(self.topics.shards, slot)
                self.rows.pop(slot, None)
                self._recoveries.pop(slot, None)
            case ev.Report(kind=kind, slot=slot, text=text):
                if kind == "dropped":
                    self._outbox.drop(slot)
                level = logging.INFO if kind in ("running", "dropped", "waits") else logging.WARNING
                logger.log(level, "slot %d %s: %s", slot, kind, text)

    def _do_train(self, job: rounds.RoundJob) -> None:
        started = self._clock.monotonic_s()
        logger.debug("slot %d trains %d rows", job.slot, job.rows.count)
        try:
            values, labels, total = self.rows[job.slot].get(job.rows)
            stats = self._train(self.manifest, job, values, labels, total)
        except DataError as e:
            self._step(ev.RoundFailed(job.slot, str(e), job))
            return
        taken = self._clock.monotonic_s() - started
        self.rounds += 1
        self.rows_trained += job.rows.count
        self.train_s += taken
        slot = self.host.slots.get(job.slot)
        staleness = slot.staleness if slot is not None else 0
        metrics = Metrics(
            _ppm(stats.reconstruction_error),
            _ppm(stats.loss),
            stats.correct,
            round(taken * 1e6),
            0,
            round(self._merge_s * 1e6),
            max(0, staleness),
        )
        self._merge_s = 0.0
        self._step(ev.RoundTrained(job, metrics))
        tau = self._tuner.trained(job.phase, job.rows.count, taken)
        if tau is not None:
            self._step(ev.TauChosen(job.slot, job.phase, tau))

    def _send(self, topic: str, partition: int, raw: bytes) -> None:
        self._sent_s = self._clock.monotonic_s()
        try:
            self._writer.send(topic, partition, raw)
        except LogError as e:
            self._step(ev.SendFailed(str(e)))

    def _follow(self, slot: int) -> None:
        if slot not in self.rows:
            self.rows[slot] = RowStore(self.manifest, slot, self._keys, None, self.options.memory_bytes)
        rows = self.rows[slot]
        self._reader.add(self.topics.shards, slot, rows.next_offset)
        self._step(ev.RowsArrived(slot, rows.rows, rows.ended))

    def _recover(self, effect: ev.Recover) -> None:
        self._reader.remove(self.topics.shards, effect.slot)
        self.rows.pop(effect.slot, None)
        start, end = self.control.offset, self._log.offsets(self.topics.control, 0)[1]
        for record in self._log.read(self.topics.control, 0, start, end):
            self.control.read(record.offset, record.value)
        self._reader.add(self.topics.control, 0, self.control.offset)
        self._recoveries[effect.slot] = self._recovery(effect, self.control.newest(effect.slot))

    def _mending(self, effect: ev.Recover) -> Recovery:
        return self._recovery(effect, earlier(self.control.newest(effect.slot), effect))

    def _subtraction(self, m: Revocation) -> Subtraction:
        cursor = LogCursor(self._log, self.topics.updates)
        return Subtraction(self.manifest, m, self._wire, cursor, lambda ref: fetch_payload(self._store, ref))

    def _recovery(self, effect: ev.Recover, announced: Sequence[SnapshotAnnounced]) -> Recovery:
        return Recovery(
            self.manifest,
            effect,
            self._log,
            self.topics,
            self._store,
            self._wire,
            self._keys,
            announced,
            self._train,
            memory_bytes=self.options.memory_bytes,
            remade=self._put_back.keep,
        )

    # ---- snapshots --------------------------------------------------------------------------------------------------
    def _copy_snapshot(self, snapshot: ev.Snapshot) -> None:
        rows = self.rows.get(snapshot.slot)
        if rows is not None:
            snapshot.state.shards = rows.position(snapshot.state.cursor[1])
        self._snapshots.copy(snapshot)

    def _snapshot_done(self, snapshot: ev.Snapshot, message: SnapshotAnnounced | None) -> None:
        slot = snapshot.slot
        self._step(ev.SnapshotStored(slot, message))
        if message is None:
            return
        if slot in self.rows:
            self.rows[slot].forget(snapshot.state.shards)
        # One that is announced already stays: this one's announcement may still be lost with its writer.
        for old in [a for a in self.control.newest(slot) if a.seq < message.seq][max(1, self.options.keep - 1) :]:
            self._snapshots.delete(old.name)
            self.control.snapshots[slot].remove(old)


def _ppm(x: float) -> int:
    """A non-negative float in millionths; what is not finite or too large becomes the largest."""
    return round(min(max(x, 0.0), 1e12) * 1e6) if not math.isnan(x) else 10**18
