"""An executable model of the protocol in integers: no bytes, no tensors, no clock. The rules, and nothing else.

A parameter vector is one integer; a round is a hash of its inputs; a partition is a list of records and a fold. Random
schedules of small actions (read, send, deliver, train, keep, crash, pause, move, revoke) run with every invariant
checked; production code is compared with it record by record (``test_agreement.py``; ``schedules.py`` draws them).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

Version = tuple[int, ...]
State = tuple[int, int]
"""(residual, optimiser)."""
OPEN, CLOSES_PHASE, DONE = 0, 1, 2


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True)
class Claim:
    incarnation: int
    nonce: int
    reset: bool


@dataclass(frozen=True)
class Update:
    incarnation: int
    nonce: int
    seq: int
    phase: int
    start: Version
    rows: tuple[int, int, int]
    step: int
    delta: int
    closing: int


@dataclass(frozen=True)
class Revocation:
    number: int
    slot: int
    seq: int
    delta: int


Record = Claim | Update | Revocation


def train(total: int, state: State, phase: int, rows: tuple[int, ...], step: int, slot: int) -> tuple[int, State]:
    """A round: what it publishes, and the state after it. Never zero for long, different for any other input."""
    h = hash((total, *state, phase, rows, step, slot)) & 0xFFFFFFFF
    d = (h % 4001) - 2000 + state[0]
    sent = (d + 32) // 64 * 64
    return sent, (d - sent, (h >> 9) & 0xFFFF)


@dataclass
class Partition:
    """The fold of one partition."""

    slot: int
    slots: int
    offset: int = 0
    incarnation: int = 0
    nonce: int = 0
    start: Version = ()
    cursor: tuple[int, int] = (0, 0)
    phase: int = 0
    closed: bool = False
    accepted: list[Update | Revocation] = field(default_factory=list)
    resets: dict[int, int] = field(default_factory=dict)
    history: tuple[object, ...] = ()

    def __post_init__(self) -> None:
        self.start = self.start or (0,) * (self.slots + 1)

    @property
    def count(self) -> int:
        return len(self.accepted)

    def total(self, n: int) -> int:
        """Sum of the first ``n`` accepted deltas."""
        return sum(r.delta for r in self.accepted[:n])

    def feed(self, record: Record) -> bool:
        """Whether the next record is accepted: a function of this partition's prefix alone."""
        self.offset += 1
        ok = self._accepts(record)
        if ok:
            self.history = (*self.history, record)
        return ok

    def _accepts(self, r: Record) -> bool:
        if isinstance(r, Revocation):
            ok = r.number == self.count
            if ok:
                self.accepted.append(r)
            return ok
        if self.closed:
            return False
        if isinstance(r, Claim):
            if r.incarnation != self.incarnation + 1:
                return False
            self.incarnation, self.nonce = r.incarnation, r.nonce
            if r.reset:
                self.resets[self.count] = r.incarnation
                self.start = (0,) * (self.slots + 1)
            return True
        if (r.incarnation, r.nonce, r.seq) != (self.incarnation, self.nonce, self.count) or r.start[self.slot] != r.seq:
            return False
        if r.rows[:2] not in (self.cursor, (self.cursor[0] + 1, 0)):
            return False
        self.start, self.cursor = r.start, (r.rows[0], r.rows[1] + r.rows[2])
        self.accepted.append(r)
        self.phase += r.closing == CLOSES_PHASE
        self.closed = r.closing == DONE
        return True


@dataclass
class Owner:
    """One slot as hosted by a worker, from its claim on."""

    nonce: int
    running: bool = False
    claimed: bool = False
    state: State = (0, 0)
    seq: int = 0
    step: int = 0
    phase: int = 0
    cursor: tuple[int, int] = (0, 0)
    start: Version = ()
    incarnation: int = 0
    done: bool = False
    pending: list[Update] = field(default_factory=list)
    history: tuple[object, ...] = ()


@dataclass
class Worker:
    name: int
    reads: list[Partition]
    alive: bool = True
    paused: bool = False
    assigned: set[int] = field(default_factory=set)
    owners: dict[int, Owner] = field(default_factory=dict)
    queue: list[tuple[int, Record]] = field(default_factory=list)
    flight: list[tuple[int, Record]] = field(default_factory=list)

    @property
    def version(self) -> Version:
        return tuple(p.count for p in self.reads)


@dataclass(frozen=True)
class Setting:
    slots: int
    workers: int
    rows: tuple[int, ...]
    epochs: tuple[int, ...]
    take: int
    window: int
    faults: int


Watch = Callable[[str, int, int, Record, bool], None]
"""(what happened: created | appended | read, worker, partition, record, accepted)."""


class World:
    """All workers, the log, and what is checked. ``lineage``: only snapshots of the accepted history are used."""

    lineage = True

    def __init__(self, setting: Setting, watch: Watch = lambda *_: None) -> None:
        self.setting, self.watch = setting, watch
        s = setting.slots
        self.log: list[list[Record]] = [[] for _ in range(s + 1)]
        self.truth = [Partition(p, s) for p in range(s + 1)]
        self.states: list[tuple[State, int]] = [((0, 0), 0)] * s
        self.workers: list[Worker] = []
        self.snapshots: list[list[Owner]] = [[] for _ in range(s)]
        self.faults, self.nonces = setting.faults, 0
        for _ in range(setting.workers):
            self.join()
        self.hosts = [self.workers[p % setting.workers].name for p in range(s)]
        for p, name in enumerate(self.hosts):
            self.workers[name].assigned.add(p)

    def join(self) -> None:
        s = self.setting.slots
        self.workers.append(Worker(len(self.workers), [Partition(p, s) for p in range(s + 1)]))

    # ---- the log ----------------------------------------------------------------------------------------------------
    def append(self, p: int, record: Record, by: int) -> None:
        self.log[p].append(record)
        ok = self.truth[p].feed(record)
        self.watch("appended", by, p, record, ok)
        if ok and isinstance(record, Claim) and record.reset:
            self.states[p] = ((0, 0), self.states[p][1])
        if ok and isinstance(record, Update):
            self._recompute(p, record)

    def _recompute(self, p: int, u: Update) -> None:
        held = [t.count for t in self.truth]
        held[p] = u.seq
        if any(n > have for n, have in zip(u.start, held, strict=True)):
            raise Broken("dangling start_version")
        state, step = self.states[p]
        if u.step != step:
            raise Broken("step counter not continued")
        if u.closing:
            sent, after = state[0], (0, 0)
        else:
            total = sum(t.total(n) for t, n in zip(self.truth, u.start, strict=True))
            sent, after = train(total, state, u.phase, self._rows(p, u.rows), step, p)
        if sent != u.delta:
            raise Broken("update not recomputable from the log")
        self.states[p] = (after, step + (not u.closing))

    def _rows(self, p: int, rows: tuple[int, int, int]) -> tuple[int, ...]:
        epoch, first, count = rows
        if first + count > self.setting.rows[p]:
            raise Broken("rows beyond the partition")
        return tuple(1000 * p + 100 * epoch + i for i in range(first, first + count))

    # ---- actions: each returns False when it is not possible --------------------------------------------------------
    def read(self, w: Worker, p: int) -> bool:
        mine = w.reads[p]
        if mine.offset >= len(self.log[p]):
            return False
        record = self.log[p][mine.offset]
        ok = mine.feed(record)
        self.watch("read", w.name, p, record, ok)
        if p in w.owners:
            self._own(w, p, w.owners[p], record, ok)
        for reader, truth in zip(w.reads, self.truth, strict=True):
            if reader.accepted != truth.accepted[: reader.count]:
                raise Broken("a replica holds what the log voids")
        return True

    def _own(self, w: Worker, p: int, o: Owner, record: Record, ok: bool) -> None:
        if isinstance(record, Claim):
            mine = record.nonce == o.nonce
            if mine and ok:
                o.claimed, o.incarnation = True, record.incarnation
            elif mine or (ok and o.claimed):
                del w.owners[p]
        elif isinstance(record, Update) and o.pending and record.nonce == o.nonce:
            if ok and record == o.pending[0]:
                o.pending.pop(0)
            else:
                del w.owners[p]

    def claim(self, w: Worker, p: int, reset: bool = False) -> bool:
        if p not in w.assigned or p in w.owners or w.reads[p].closed or w.reads[p].offset < len(self.log[p]):
            return False
        self.nonces += 1
        w.owners[p] = Owner(self.nonces)
        self._send(w, p, Claim(w.reads[p].incarnation + 1, self.nonces, reset))
        return True

    def _send(self, w: Worker, p: int, record: Record) -> None:
        self.watch("created", w.name, p, record, True)
        w.queue.append((p, record))

    def recover(self, w: Worker, p: int) -> bool:
        """Newest snapshot on the accepted chain, then the rounds after it; in truth's order, any version can be had."""
        o = w.owners.get(p)
        if o is None or not o.claimed or o.running:
            return False
        fold = w.reads[p]
        ok = [k for k in self.snapshots[p] if k.seq <= fold.count]
        if self.lineage:
            ok = [k for k in ok if k.history == fold.history[: len(k.history)]]
        base = max(ok, key=lambda k: len(k.history), default=Owner(0))
        state, step = base.state, base.step
        for record in fold.history[len(base.history) :]:
            if isinstance(record, Claim):
                state = (0, 0) if record.reset else state
            elif isinstance(record, Update):
                if any(n > r.count for n, r in zip(record.start, w.reads, strict=True)):
                    return False
                if record.closing:
                    state = (0, 0)
                else:
                    total = sum(r.total(n) for r, n in zip(w.reads, record.start, strict=True))
                    sent, state = train(total, state, record.phase, self._rows(p, record.rows), step, p)
                    if sent != record.delta:
                        raise Broken("recovery: a round differs from the log")
                    step += 1
        o.running, o.state, o.step, o.seq, o.phase = True, state, step, fold.count, fold.phase
        o.cursor, o.start, o.history, o.done = fold.cursor, fold.start, fold.history, fold.closed
        return True

    def work(self, w: Worker, p: int) -> bool:
        o = w.owners.get(p)
        if o is None or not o.running or o.done or len(o.pending) >= self.setting.window:
            return False
        start = tuple(o.seq if j == p else n for j, n in enumerate(w.version))
        if any(a < b for a, b in zip(start, o.start, strict=True)):
            return False
        rows, (epoch, first) = self.setting.rows[p], o.cursor
        if first >= rows > 0:
            epoch, first = epoch + 1, 0
        if not rows or epoch >= sum(self.setting.epochs[: o.phase + 1]):
            closing = DONE if o.phase == len(self.setting.epochs) - 1 else CLOSES_PHASE
            u = Update(o.incarnation, o.nonce, o.seq, o.phase, start, (*o.cursor, 0), o.step, o.state[0], closing)
            o.state, o.phase, o.done = (0, 0), o.phase + (closing == CLOSES_PHASE), closing == DONE
        else:
            at = (epoch, first, min(self.setting.take, rows - first))
            total = sum(r.total(n) for r, n in zip(w.reads, w.version, strict=True)) + sum(x.delta for x in o.pending)
            sent, o.state = train(total, o.state, o.phase, self._rows(p, at), o.step, p)
            u = Update(o.incarnation, o.nonce, o.seq, o.phase, start, at, o.step, sent, OPEN)
            o.step, o.cursor = o.step + 1, (at[0], at[1] + at[2])
        o.seq, o.start = o.seq + 1, start
        o.history = (*o.history, u)
        o.pending.append(u)
        self._send(w, p, u)
        return True

    def keep(self, w: Worker, p: int) -> bool:
        """A snapshot, pending rounds included: only those whose history is accepted will ever be used."""
        o = w.owners.get(p)
        if o is None or not o.running or o.done:
            return False
        self.snapshots[p].append(replace(o, pending=[]))
        return True

    def send(self, w: Worker) -> bool:
        if w.queue:
            w.flight.append(w.queue.pop(0))
        return bool(w.flight)

    def deliver(self, w: Worker, p: int) -> bool:
        i = next((i for i, (q, _) in enumerate(w.flight) if q == p), None)
        if i is None:
            return False
        self.append(p, w.flight.pop(i)[1], w.name)
        return True

    # ---- faults -----------------------------------------------------------------------------------------------------
    def crash(self, w: Worker) -> bool:
        w.alive, w.queue, w.owners = False, [], {}
        return True

    def lose(self, w: Worker) -> bool:
        if w.alive or not w.flight:
            return False
        w.flight.pop()
        return True

    def timeout(self, w: Worker, p: int) -> bool:
        """A send is given up, though it may arrive: the owner claims again."""
        if p not in w.owners or not w.owners[p].pending:
            return False
        del w.owners[p]
        return True

    def move(self, p: int, to: Worker) -> bool:
        old = self.workers[self.hosts[p]]
        if old is to or not to.alive:
            return False
        old.assigned.discard(p)
        if not old.paused:
            old.owners.pop(p, None)
        self.hosts[p] = to.name
        to.assigned.add(p)
        return True

    def revoke(self, p: int) -> bool:
        t, operator = self.truth[p], self.truth[-1]
        if not t.count or any(isinstance(r, Revocation) and r.slot == p for r in self.log[-1]):
            return False
        record = Revocation(operator.count, p, t.count - 1, -t.accepted[-1].delta)
        self.watch("created", -1, len(self.log) - 1, record, True)
        self.append(len(self.log) - 1, record, -1)
        return True
