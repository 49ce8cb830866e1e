"""Recompute a piece of a slot's history: from a place where its state is empty to the next such place.

A slot's residual, optimiser and chains are empty at its start, after a closed phase and after a reset; its parameters
at any version follow from the log alone. So a run falls into pieces that need nothing of each other. In a piece the
slot's own records are judged and trained again; other slots' updates were judged before and are only added.

Pieces of several slots that a process has to recompute go side by side, in the order in which the log took their
updates: so each update is read and decoded once for all of them, as a worker that hosts several slots does.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import chain as chains
from gossipdbn.core import recompute, rounds
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import (
    Accepted,
    Manifest,
    Payload,
    PayloadRef,
    Pending,
    RowRange,
    Sealed,
    Undecided,
    Update,
    Verdict,
    Version,
    Void,
)
from gossipdbn.errors import DataError, GossipDbnError, LocalProtocolError, LogError
from gossipdbn.kernels import codec
from gossipdbn.kernels.tiers import TIER
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.rows import AnyRows
from gossipdbn.models.spec import layout, parameter_count
from gossipdbn.replay.history import History, LoggedRun
from gossipdbn.replay.recent import Recent
from gossipdbn.wire.messages import decode_payload, payload_name
from gossipdbn.worker.rows import RowStore

__all__ = [
    "Base",
    "Difference",
    "Divergence",
    "Letters",
    "Piece",
    "PieceResult",
    "complete",
    "counted",
    "cut",
    "recompute_pieces",
    "side_by_side",
]

Letters = Sequence[NDArray[np.uint8]]
"""Per updates partition, the verdicts on its records as letters (PartitionHistory.letters)."""

ROW_BYTES = 1 << 30  # of all slots
_READ = 64
_DECODED_BYTES = 32 << 20
_SIDE_BY_SIDE_BYTES = 1 << 30


@dataclass(frozen=True, slots=True)
class Piece:
    """Records ``start`` .. ``stop`` - 1 of a slot's partition; ``chain`` is where ``start`` stands.

    ``version``: what its first update starts from.
    """

    slot: int
    start: int
    stop: int
    chain: chains.Chain
    version: Version
    updates: int
    rows: int


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs first in an update: a field, or a tensor's value (``index`` in row-major order, units 2^-24)."""

    field: str
    logged: int
    recomputed: int
    tensor: str = ""
    index: int = -1


@dataclass(frozen=True, slots=True)
class Divergence:
    """An update that is not what its recomputation gives."""

    slot: int
    seq: int
    offset: int
    at_ms: int
    worker: str
    incarnation: int
    difference: Difference
    numerics_logged: int
    numerics_here: int
    tier_here: str


@dataclass(frozen=True, slots=True)
class PieceResult:
    """What came of a piece. ``train_s``: seconds in training; ``problem``: why it could not be recomputed."""

    slot: int
    start: int
    updates: int
    rows: int
    seconds: float
    train_s: float
    divergence: Divergence | None = None
    problem: str = ""


def complete(history: History) -> Version:
    """The largest version whose updates name nothing beyond it: copies of a live run may end with some that do."""
    have = list(history.version)
    starts = [[x.start_version for x in p.updates()] for p in history.partitions[:-1]]
    while True:
        before = list(have)
        for p, versions in enumerate(starts):
            for n, version in enumerate(versions[: have[p]]):
                if version is not None and any(a > b for a, b in zip(version, have, strict=True)):
                    have[p] = n
                    break
        if have == before:
            return tuple(have)


def cut(history: History, version: Version | None = None) -> list[Piece]:
    """The pieces of all slots up to ``version`` (None: ``complete``), in the order of their beginnings."""
    pieces: list[Piece] = []
    for partition, count in zip(history.partitions[:-1], version or complete(history), strict=False):
        updates = list(partition.updates())
        end = updates[count].offset if count < len(updates) else len(partition.lines)
        stops = [min(c.offset, end) for c in partition.cuts[1:]] + [end]
        for place, stop in zip(partition.cuts, stops, strict=True):
            inside = [x for x in partition.lines[place.offset : stop] if x.accepted and isinstance(x.message, Update)]
            if inside:
                rows = sum(x.message.rows.count for x in inside if isinstance(x.message, Update))
                first = inside[0].start_version
                assert first is not None
                pieces.append(Piece(partition.partition, place.offset, stop, place.chain, first, len(inside), rows))
    return sorted(pieces, key=lambda p: (sum(p.version), p.slot, p.start))


def side_by_side(run: LoggedRun, pieces: Sequence[Piece], jobs: int) -> list[tuple[Piece, ...]]:
    """Pieces, neighbours together: as many as leave every process some, within a bound of memory."""
    each = 16 * parameter_count(run.manifest.spec)  # replica, residual, optimiser
    n = max(1, min(-(-run.manifest.slots // jobs), _SIDE_BY_SIDE_BYTES // each))
    return [tuple(pieces[i : i + n]) for i in range(0, len(pieces), n)]


@dataclass(slots=True)
class Base:
    """What a process keeps from pieces for later ones: parameters (int32 [P]) where they began, and slots' rows."""

    version: Version = ()
    parameters: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    rows: dict[int, _Rows] = field(default_factory=dict)
    spare: rounds.Spare = field(default_factory=rounds.Spare)

    def rows_of(self, run: LoggedRun, slot: int) -> _Rows:
        if slot not in self.rows:
            self.rows[slot] = _Rows(run, slot)
        return self.rows[slot]


class _Shared:
    """What pieces that go side by side have in common: decoded updates, and parameters to begin with.

    ``base`` is used where it lies before them, and moved to where they begin.
    """

    def __init__(self, run: LoggedRun, pieces: Sequence[Piece], letters: Letters, base: Base) -> None:
        self.run = run
        self.accepted = [counted(x) for x in letters]
        self._recent: Recent[tuple[codec.Deltas, ...]] = Recent(_DECODED_BYTES, lambda d: sum(x.nbytes for x in d))
        self.version: Version = tuple(map(min, zip(*(p.version for p in pieces), strict=True)))
        contained, base.version = base.version, ()  # nothing, should this end before it is done
        if not contained or any(a > b for a, b in zip(contained, self.version, strict=True)):
            contained, base.parameters = (0,) * len(self.version), run.initial()
        for partition, (have, n) in enumerate(zip(contained, self.version, strict=True)):
            for i in range(have, n):
                codec.merge(base.parameters, self.deltas(partition, i))
        base.version, self.parameters, self.base = self.version, base.parameters.copy(), base

    def deltas(self, partition: int, number: int) -> tuple[codec.Deltas, ...]:
        """Of the partition's update with that number."""
        offset = int(self.accepted[partition][number])
        return self.known(partition, number, lambda: self.run.deltas(partition, offset))

    def known(
        self, partition: int, number: int, make: Callable[[], tuple[codec.Deltas, ...]]
    ) -> tuple[codec.Deltas, ...]:
        """The same, from where it is decoded already."""
        return self._recent.get((partition, number), make)


class _Scratch(Replica):
    """A replica that follows one slot's chain by verdicts that were given before; what others sent is only added."""

    def __init__(self, shared: _Shared, piece: Piece, letters: NDArray[np.uint8]) -> None:
        run = shared.run
        at = [chains.genesis(run.manifest.slots)] * (run.manifest.slots + 1)
        at[piece.slot] = piece.chain
        super().__init__(run.manifest, run.wire.decode, shared.parameters, at)
        self._shared, self._letters = shared, letters
        self._last: Verdict = Undecided("nothing was judged")

    def judge(self, partition: int, raw: bytes, fetched: Payload | None = None) -> Verdict:
        """The verdict that the record got when all partitions were judged."""
        chain = self.chains[partition]
        letter = chr(self._letters[chain.offset])
        if letter == "v":
            self._last = Void("judged before")
            return self._last
        decoded = self._decode(raw)
        assert isinstance(decoded, Sealed)
        m = decoded.message
        if isinstance(m, Update):
            version = tuple(a + b for a, b in zip(chain.start_version, m.advance, strict=True))
            self._last = Accepted(m, version)
        else:
            self._last = Accepted(m)
        return self._last

    def read(
        self, partition: int, offset: int, raw: bytes, fetched: Payload | None = None, own: Pending | None = None
    ) -> Verdict:
        """Fold and merge the record that was judged just now."""
        verdict = self._last
        if offset != self.chains[partition].offset or isinstance(verdict, Undecided):
            raise LocalProtocolError(f"updates partition {partition}: offset {offset} was not judged")
        number = self.chains[partition].count
        self.chains[partition] = chains.fold(self.manifest, self.chains[partition], raw, verdict)
        if isinstance(verdict, Accepted) and isinstance(verdict.message, Update):
            inline = verdict.message.payload
            payload = inline if inline is not None else self._shared.run.payload(raw)
            self.add(self._shared.known(partition, number, lambda: chains.read_payload(self.manifest, payload)))
        return verdict

    def add(self, deltas: tuple[codec.Deltas, ...]) -> None:
        """Merge an update that was judged before."""
        self._sum.add(deltas)


def counted(letters: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Offsets of the records that count in the version: updates, closings, revocations."""
    return np.flatnonzero((letters == ord("u")) | (letters == ord("r")))


class _Again(recompute.Recomputation):
    """A recomputation that adds other slots' updates by their known offsets."""

    def __init__(self, shared: _Shared, piece: Piece, scratch: _Scratch, source: recompute.Source) -> None:
        run = shared.run
        state = rounds.fresh_state(run.manifest, piece.slot, piece.chain)
        super().__init__(run.manifest, piece.slot, scratch, state, run.wire, source, shared.base.spare)
        self._shared, self._replica = shared, scratch
        self._have = list(shared.version)
        for i in range(self._have[piece.slot], piece.chain.count):
            scratch.add(shared.deltas(piece.slot, i))

    def advance(self, version: Version) -> None:
        for p, n in enumerate(version):
            if p == self.slot:
                continue
            there, have = len(self._shared.accepted[p]), self._have[p]
            if n > there or n < have:
                raise LogError(
                    f"an update of slot {self.slot} names {n} updates of partition {p}, which holds {there}; "
                    f"{have} were contained before"
                )
            for i in range(have, n):
                self._replica.add(self._shared.deltas(p, i))
            self._have[p] = n


class _Rows:
    """Rows of one slot, read from the shards partition as far as a round needs them."""

    def __init__(self, run: LoggedRun, slot: int) -> None:
        self._run, self._slot = run, slot
        self._store = RowStore(run.manifest, slot, run.keys, None, ROW_BYTES // run.manifest.slots)
        self._topic = run.spool.names.shards
        first, self._end = run.spool.offsets(self._topic, slot)
        if first:
            raise DataError(f"shards partition {slot} starts at offset {first}: rows that were trained are gone")

    def __call__(self, rows: RowRange) -> tuple[AnyRows, NDArray[np.int32] | None, int]:
        store, need = self._store, rows.first + rows.count
        while (store.rows < need or (rows.epoch > 0 and not store.ended)) and not store.held:
            if store.next_offset >= self._end:
                raise DataError(f"slot {self._slot}: the shards end at row {store.rows}, an update names {need}")
            stop = min(self._end, store.next_offset + _READ)
            for record in self._run.spool.read(self._topic, self._slot, store.next_offset, stop):
                store.feed(record.offset, record.value)
                if store.held:
                    raise LogError(f"shards partition {self._slot}: {store.held}")
        return store.get(rows)


@dataclass(slots=True)
class _Work:
    """A piece while it is recomputed; ``again`` is None where it could not begin."""

    piece: Piece
    updates: int = 0
    rows: int = 0
    seconds: float = 0.0
    train_s: float = 0.0
    divergence: Divergence | None = None
    problem: str = ""
    scratch: _Scratch | None = field(default=None, repr=False)
    again: Iterator[recompute.Recomputed] | None = field(default=None, repr=False)

    def begin(self, shared: _Shared, letters: Letters, train: rounds.Trainer) -> None:
        run, piece = shared.run, self.piece

        def timed(manifest: Manifest, job: rounds.RoundJob, values: AnyRows, labels: NDArray[np.int32] | None,
                  total: int) -> Any:  # fmt: skip
            at = time.perf_counter()
            stats = train(manifest, job, values, labels, total)
            self.train_s += time.perf_counter() - at
            return stats

        self.scratch = _Scratch(shared, piece, letters[piece.slot])
        source = recompute.Source(
            run.spool.record, lambda ref: _fetch(run, ref), shared.base.rows_of(run, piece.slot), _no_base, timed
        )
        self.again = _Again(shared, piece, self.scratch, source).run(piece.stop)

    def next_ms(self, run: LoggedRun) -> int:
        """When the log took the record that comes next."""
        assert self.scratch is not None
        return run.spool.time_ms(self.piece.slot, min(self.scratch.chains[self.piece.slot].offset, self.piece.stop - 1))

    def step(self, run: LoggedRun) -> int | None:
        """Recompute the next update and compare it with the logged one: its rows; None at the end or a difference."""
        assert self.again is not None and self.scratch is not None
        r = next(self.again, None)
        if r is None:
            return None
        if not r.same:
            self.divergence = _divergence(run, r, self.scratch.chains[self.piece.slot])
            return None
        self.updates, self.rows = self.updates + 1, self.rows + r.logged.rows.count
        return r.logged.rows.count

    def result(self) -> PieceResult:
        return PieceResult(
            self.piece.slot, self.piece.start, self.updates, self.rows, self.seconds, self.train_s,
            self.divergence, self.problem,
        )  # fmt: skip


def recompute_pieces(
    run: LoggedRun, pieces: Sequence[Piece], letters: Letters, train: rounds.Trainer = rounds.run,
    on_update: Callable[[int], None] = lambda _rows: None, base: Base | None = None,
) -> list[PieceResult]:  # fmt: skip
    """Recompute pieces and compare every update with the logged one; each stops at its first that differs.

    ``base``: what the caller keeps from one call to the next.
    """
    works = [_Work(piece) for piece in pieces]
    shared: _Shared | None = None
    queue: list[tuple[int, int]] = []

    def turn(n: int) -> None:
        nonlocal shared
        work, began = works[n], time.perf_counter()
        try:
            if work.again is None:
                shared = shared or _Shared(run, pieces, letters, base or Base())
                work.begin(shared, letters, train)
                heapq.heappush(queue, (work.next_ms(run), n))
            else:
                rows = work.step(run)
                if rows is not None:
                    heapq.heappush(queue, (work.next_ms(run), n))
                    on_update(rows)
        except GossipDbnError as error:
            work.problem = f"slot {work.piece.slot}: {error}"
        work.seconds += time.perf_counter() - began

    for n in range(len(works)):
        turn(n)
    while queue:
        turn(heapq.heappop(queue)[1])
    return [w.result() for w in works]


def _no_base(version: Version) -> NoReturn:
    raise LocalProtocolError(f"a piece went back to version {version}: its start versions only rise")


def _fetch(run: LoggedRun, ref: PayloadRef) -> Payload | None:
    return decode_payload(ref, run.spool.get(payload_name(ref), ref.size))


def _divergence(run: LoggedRun, r: recompute.Recomputed, chain: chains.Chain) -> Divergence:
    return Divergence(
        r.logged.slot, r.logged.seq, r.offset, run.spool.time_ms(r.logged.slot, r.offset), chain.worker,
        chain.incarnation, _difference(run, r), chain.numerics, NUMERICS, str(TIER),
    )  # fmt: skip


def _difference(run: LoggedRun, r: recompute.Recomputed) -> Difference:
    """The first difference: where training started, the schedule, then values in layout order, then anything else."""
    for name in ("start_digest", "step"):
        a, b = getattr(r.logged, name), getattr(r.update, name)
        if a != b:
            return Difference(name, a, b)
    tensors = layout(run.manifest.spec)
    logged = {p.tensor: p for p in run.payload(r.raw)}
    again = {p.tensor: p for p in r.update.payload or ()}
    for i in sorted(logged.keys() | again.keys()):
        t = tensors[i]
        zero = np.zeros(t.size, np.int32)
        a, b = (codec.decode(p.codec, p.data, *t.blocks).ravel() if p else zero for p in (logged.get(i), again.get(i)))
        where = np.flatnonzero(a != b)
        if len(where):
            at = int(where[0])
            return Difference("payload", int(a[at]), int(b[at]), t.name, at)
    a, b = r.logged.digest, r.update.digest
    return Difference("digest" if a != b else "bytes", a, b)
