"""One world per seed: virtual time, a feed, a group that spreads slots, workers, faults, and a judge.

Everything that happens is an event in one queue ordered by virtual time; dice come from the seed; so a failing world is
its seed. ``World.run`` raises Violation with the invariant that does not hold.
"""

from __future__ import annotations

import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from gossipdbn.core import events as ev
from gossipdbn.core import rounds
from gossipdbn.core.slot import Slot
from gossipdbn.core.values import Manifest
from gossipdbn.errors import RetentionError
from gossipdbn.sim import abstract, faults
from gossipdbn.sim.brokers import SHARDS, Log, Store
from gossipdbn.sim.checkers import Checker, Violation
from gossipdbn.sim.options import Fault, Options, manifest_of
from gossipdbn.sim.worker import Worker
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire
from gossipdbn.wire.shards import BITS, ShardSequence, encode_shard, make_shard, slot_of

__all__ = ["Job", "World"]

EVENTS_MAX = 60_000
PATIENCE_S = 60.0
WORKERS_MAX = 5


@dataclass(frozen=True, slots=True)
class Job:
    """What a world works on: a run's manifest, per slot its shards' records with the end mark, and who trains."""

    manifest: Manifest
    feed: list[list[bytes]]
    train: rounds.Trainer


class World:
    """A run under the options of a seed. ``transcript`` fills when ``trace`` is set.

    ``job``: another run than the small one that the options describe.
    """

    def __init__(self, options: Options, trace: bool = False, job: Job | None = None) -> None:
        self.options, self.manifest = options, job.manifest if job is not None else manifest_of(options)
        self.train = job.train if job is not None else abstract.train
        self.now_s = 0.0
        self.events = 0
        self.counted: Counter[str] = Counter()
        self.transcript: list[str] = []
        self.poisoned: set[int] = set()
        self.workers: list[Worker] = []
        self.owner: list[Worker | None] = [None] * options.slots
        self.paused_run = False
        self.feed: list[list[bytes]] = job.feed if job is not None else []
        self._trace = trace
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._number = 0
        self._rng = random.Random(f"world {options.seed}")  # noqa: S311 - dice of a game
        self._names = 0
        self.keys = {1: b"k" * 16, 2: b"r" * 16} if options.rotate_at_s is not None else envelope.NO_KEYS
        self.initial = rounds.initial_parameters(self.manifest)
        self.store = Store(self)
        self.log = Log(options.slots, self, self._appended)
        wire = RunWire(0, self.keys)
        planned = options.rows if job is not None else self._shards()
        self.checker = Checker(self.manifest, wire, self.log, self.store, self.initial, planned, self.train)

    # ---- what others ask for ----------------------------------------------------------------------------------------
    def later(self, delay_s: float, what: Callable[[], object]) -> None:
        """Do something after a while of virtual time."""
        self._number += 1
        heapq.heappush(self._queue, (self.now_s + max(delay_s, 0.0), self._number, what))

    def uniform(self) -> float:
        return self._rng.random()

    def delay(self) -> float:
        """How long a message takes."""
        o = self.options
        return o.latency_s * (1 + o.jitter * self._rng.random() ** 3 * 4)

    def train_time(self) -> float:
        return self.options.train_s * (0.5 + self._rng.random())

    def store_time(self) -> float:
        return (
            self.options.store_s * (0.2 + 2 * self._rng.random()) * (10 if self.now_s < self.store_slow_until_s else 1)
        )

    store_slow_until_s = 0.0

    def shuffled(self, n: int) -> list[int]:
        """0 .. n - 1 in any order."""
        order = list(range(n))
        self._rng.shuffle(order)
        return order

    def dice(self, name: str) -> Callable[[], float]:
        return random.Random(f"{name} {self.options.seed}").random  # noqa: S311 - dice of a game

    def say(self, text: str) -> None:
        """A line of the transcript."""
        if self._trace:
            self.transcript.append(f"{self.now_s:9.4f}  {text}")

    def window(self, who: str, slot: Slot) -> None:
        """Own updates under way are bounded."""
        if len(slot.pending) > self.manifest.pending:
            raise Violation(
                f"{who} slot {slot.slot} has {len(slot.pending)} updates pending, {self.manifest.pending} allowed"
            )

    # ---- the feed ---------------------------------------------------------------------------------------------------
    def _shards(self) -> tuple[int, ...]:
        """Prepare the feed: shards of random rows and an end mark per slot; returns rows per slot."""
        for slot, rows in enumerate(self.options.rows):
            sequence, out, ordinal = ShardSequence(), [], 0
            for first in range(0, rows, self.options.shard_rows):
                n = min(self.options.shard_rows, rows - first)
                while slot_of(f"s{slot}#{ordinal}:{first}+{n}", self.options.slots) != slot:
                    ordinal += 1
                values = np.array([[self._rng.randrange(2) for _ in range(3)] for _ in range(n)], np.uint8)
                labels = np.zeros(n, np.int32) if self.options.classes else None
                shard = make_shard(f"s{slot}#{ordinal}:{first}+{n}", values, labels, BITS)
                ordinal += 1
                sequence.add(shard)
                out.append(envelope.seal(encode_shard(shard)))
            out.append(envelope.seal(encode_shard(sequence.end_mark())))
            self.feed.append(out)
        return self.options.rows

    def feed_from(self, slot: int, index: int) -> None:
        """Send the slot's shards from ``index`` on, one after another, the end mark last."""
        if index >= len(self.feed[slot]):
            return
        wait_s = self.log.away_until_s[SHARDS, slot] - self.now_s
        if wait_s > 0:  # the feed keeps its order: it waits for the leader before it sends on
            self.later(wait_s + 1e-6, lambda: self.feed_from(slot, index))
            return
        self.log.append(SHARDS, slot, self.feed[slot][index], "feed")
        self.later(self.options.feed_s * (0.5 + self.uniform()), lambda: self.feed_from(slot, index + 1))

    # ---- workers and their group ------------------------------------------------------------------------------------
    def spawn(self, old: bool = False) -> Worker | None:
        """A worker joins; ``old``: without the key that is used after the rotation."""
        if sum(w.alive for w in self.workers) >= WORKERS_MAX or self.paused_run:
            return None
        self._names += 1
        o = self.options
        rotated = o.rotate_at_s is not None and self.now_s >= o.rotate_at_s and not old
        keys = {k: v for k, v in self.keys.items() if not old or k == 1}
        key_id = (2 if rotated else 1) if keys else 0
        name = f"w{self._names}{'-old' if old else ''}"
        try:
            worker = Worker(self, name, RunWire(key_id, keys))
        except RetentionError as e:
            if old:  # it cannot read announcements under the new key either
                return None
            raise Violation(f"{name} cannot start: nothing leads to the trimmed log: {e}") from e
        self.workers.append(worker)
        self.say(f"{name} joins")
        self._spread()
        return worker

    def members(self) -> list[Worker]:
        return [w for w in self.workers if w.alive and not w.leaving]

    def give(self, slot: int, worker: Worker) -> None:
        """Assign a slot; the former owner learns of it at some other time."""
        former = self.owner[slot]
        if former is worker or not worker.alive:
            return
        self.owner[slot] = worker
        if former is not None and former.alive:
            self._tell(former, ev.Unassigned(slot))
        self._tell(worker, ev.Assigned(slot))

    def _tell(self, worker: Worker, word: ev.Assigned | ev.Unassigned) -> None:
        """The group's words reach each worker late, in order; two workers may believe to host a slot for a while."""
        worker.told_s = max(worker.told_s, self.now_s + self.delay() * 2)

        worker.told.append(word)

        def arrive() -> None:
            next_word = worker.told.popleft()  # by a queue: equal times may come in any order
            if worker.alive:
                worker.mail.append(next_word)
                worker.wake(0.0)

        self.later(worker.told_s - self.now_s, arrive)

    def _spread(self) -> None:
        """Even out: slots without a live member find one, and a newcomer gets its share."""
        members = self.members()
        if not members:
            return
        for slot, owner in enumerate(self.owner):
            if owner is None or not owner.alive or owner.leaving:
                self.give(slot, min(members, key=lambda m: sum(o is m for o in self.owner)))
        idle = [m for m in members if not any(o is m for o in self.owner)]
        for m in idle:
            counts = Counter(o.name for o in self.owner if o is not None)
            most = max(members, key=lambda x: counts[x.name])
            if counts[most.name] > 1:
                self.give(next(s for s, o in enumerate(self.owner) if o is most), m)

    def crashed(self, worker: Worker, why: str) -> None:
        """A worker is gone: what it had sent arrives in part; its slots move when its session ends."""
        worker.alive = False
        self.say(f"{worker.name} is gone: {why}")
        worker.writer.give_up(self.uniform())
        self.later(self.options.session_s, self._spread)

    def stopped_itself(self, worker: Worker, why: str) -> None:
        """A worker ended over damaged memory; anything else that ends one so is a bug."""
        if not worker.damaged:
            raise Violation(f"{worker.name} stopped: {why}")
        self.crashed(worker, why)

    def left(self, worker: Worker) -> None:
        """A worker has carried out its stop."""
        worker.alive = False
        self.say(f"{worker.name} has left")
        self._spread()

    def leave(self, worker: Worker) -> None:
        """Ask a worker to stop; after a deadline it just goes."""
        worker.leaving = True
        self.say(f"{worker.name} is asked to leave")
        worker.mail.append(ev.StopAsked())
        worker.wake(0.0)
        self.later(1.0, lambda: self.crashed(worker, "its stop took too long") if worker.alive else None)
        self.later(self.delay(), self._spread)

    def _supervise(self) -> None:
        """The launcher keeps the number of workers up."""
        if not self.paused_run and len(self.members()) < (1 if self.checker.finished else self.options.workers):
            self.spawn()
        self._spread()
        self.later(0.05, self._supervise)

    # ---- the log ----------------------------------------------------------------------------------------------------
    def _appended(self, topic: str, partition: int, offset: int, raw: bytes, sender: str) -> None:
        words = self.checker.appended(topic, partition, offset, raw, sender)
        if words:
            self.say(f"{topic} {partition} @{offset} {sender}: {words}")
        for w in self.workers:
            if w.alive and (topic != SHARDS or (SHARDS, partition) in w.fetched):
                self.later(self.delay(), lambda w=w: w.reached(topic, partition, offset + 1))  # type: ignore[misc]

    # ---- running ----------------------------------------------------------------------------------------------------
    def run(self) -> None:
        """Until every slot is closed and every worker knows, or an invariant breaks."""
        for _ in range(self.options.workers):
            self.spawn()
        for slot in range(self.options.slots):
            self.later(self.uniform() * 0.01, lambda s=slot: self.feed_from(s, 0))  # type: ignore[misc]
        for fault in self.options.faults:
            self.later(fault.at_s, lambda f=fault: self._strike(f))  # type: ignore[misc]
        self.later(self.options.healed_s, lambda: faults.heal(self))
        self.later(0.05, self._supervise)
        while not self._over():
            if not self._queue or self.events > EVENTS_MAX or self.now_s > self.options.healed_s + PATIENCE_S:
                raise Violation(f"the run does not end: at {self.now_s:.1f} s, {self.events} events, {self._stuck()}")
            self.step()
        self._final()

    def step(self) -> None:
        """The next event."""
        self.now_s, _, what = heapq.heappop(self._queue)
        self.events += 1
        what()

    def _strike(self, fault: Fault) -> None:
        if faults.strike(self, fault):
            self.counted[fault.kind] += 1

    def _over(self) -> bool:
        if not self.checker.finished:
            return False
        live = [w for w in self.workers if w.alive]
        version = self.checker.replica.version
        return (
            bool(live) and self.now_s >= self.options.healed_s and all(w.host.replica.version == version for w in live)
        )

    def _stuck(self) -> str:
        parts = [
            f"slot {s}: {c.count} updates, phase {c.phase}"
            for s, c in enumerate(self.checker.replica.chains[:-1])
            if not c.closed
        ]
        for w in self.workers:
            if w.alive:
                parts += [f"{w.name} slot {s.slot} {s.stage} waits for {s.waits_for!r}" for s in w.host.slots.values()]
                parts += [f"{w.name} holds {w.host.held}"] if w.host.held else []
        return "; ".join(parts)

    def _final(self) -> None:
        self.checker.ledger()
        for w in self.workers:
            if w.alive and not w.damaged:
                self.checker.replica_of(w.name, w.host.replica)
                if w.host.replica.digest() != self.checker.replica.digest():
                    raise Violation(f"{w.name} ends with another digest than the log")
        again = Worker(self, "again", RunWire(0, self.keys))
        again.alive = False
        for _ in range(sum(len(part.chains) for part in self.checker.partitions)):
            again.turn()
        if again.host.replica.version != self.checker.replica.version and not again.holds:
            raise Violation("a worker that starts at the end comes to another version")
        self.checker.replica_of("again", again.host.replica)
