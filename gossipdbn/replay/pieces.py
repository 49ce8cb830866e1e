"""Recompute a piece of a slot's history: from a place where its state is empty to the next such place.

A slot's residual, optimiser and chains are empty at its start, after a closed phase and after a reset; its parameters
at any version follow from the log alone. So a run falls into pieces that need nothing of each other. In a piece the
slot's own records are judged and trained again; other slots' updates were judged before and are only added.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import chain as chains
from gossipdbn.core import recompute, rounds
from gossipdbn.core.replica import Replica, add_payload
from gossipdbn.core.values import (
    Accepted,
    Manifest,
    Payload,
    PayloadRef,
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
from gossipdbn.models.spec import layout
from gossipdbn.replay.history import History, LoggedRun
from gossipdbn.wire.messages import decode_payload, payload_name
from gossipdbn.worker.rows import RowStore

__all__ = [
    "Difference",
    "Divergence",
    "Letters",
    "Piece",
    "PieceResult",
    "complete",
    "counted",
    "cut",
    "recompute_piece",
]

Letters = Sequence[NDArray[np.uint8]]
"""Per updates partition, the verdicts on its records as letters (PartitionHistory.letters)."""

ROW_BYTES = 256 << 20
_READ = 64


@dataclass(frozen=True, slots=True)
class Piece:
    """Records ``start`` .. ``stop`` - 1 of a slot's partition; ``chain`` is where ``start`` stands."""

    slot: int
    start: int
    stop: int
    chain: chains.Chain
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
    """The pieces of all slots up to ``version`` (None: ``complete``), longest first."""
    pieces: list[Piece] = []
    for partition, count in zip(history.partitions[:-1], version or complete(history), strict=False):
        updates = list(partition.updates())
        end = updates[count].offset if count < len(updates) else len(partition.lines)
        stops = [min(c.offset, end) for c in partition.cuts[1:]] + [end]
        for place, stop in zip(partition.cuts, stops, strict=True):
            inside = [
                x.message for x in partition.lines[place.offset : stop] if x.accepted and isinstance(x.message, Update)
            ]
            if inside:
                rows = sum(m.rows.count for m in inside)
                pieces.append(Piece(partition.partition, place.offset, stop, place.chain, len(inside), rows))
    return sorted(pieces, key=lambda p: (-p.rows, p.slot, p.start))


class _Scratch(Replica):
    """A replica that follows one slot's chain by verdicts that were given before; what others sent is only added."""

    def __init__(self, run: LoggedRun, piece: Piece, letters: NDArray[np.uint8]) -> None:
        at = [chains.genesis(run.manifest.slots)] * (run.manifest.slots + 1)
        at[piece.slot] = piece.chain
        super().__init__(run.manifest, run.wire.decode, run.initial(), at)
        self._run, self._letters = run, letters
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

    def read(self, partition: int, offset: int, raw: bytes, fetched: Payload | None = None) -> Verdict:
        """Fold and merge the record that was judged just now."""
        verdict = self._last
        if offset != self.chains[partition].offset or isinstance(verdict, Undecided):
            raise LocalProtocolError(f"updates partition {partition}: offset {offset} was not judged")
        self.chains[partition] = chains.fold(self.manifest, self.chains[partition], raw, verdict)
        if isinstance(verdict, Accepted) and isinstance(verdict.message, Update):
            m = verdict.message
            add_payload(self.manifest, self.acc, m.payload if m.payload is not None else self._run.payload(raw))
        return verdict


def counted(letters: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Offsets of the records that count in the version: updates, closings, revocations."""
    return np.flatnonzero((letters == ord("u")) | (letters == ord("r")))


class _Again(recompute.Recomputation):
    """A recomputation that adds other slots' updates by their known offsets."""

    def __init__(self, run: LoggedRun, piece: Piece, scratch: _Scratch, source: recompute.Source,
                 letters: Letters) -> None:  # fmt: skip
        state = rounds.fresh_state(run.manifest, piece.slot, piece.chain)
        super().__init__(run.manifest, piece.slot, scratch, state, run.wire, source)
        self._logged, self._accepted = run, [counted(x) for x in letters]
        self._have = [0] * (run.manifest.slots + 1)
        self._have[piece.slot] = piece.chain.count
        for offset in self._accepted[piece.slot][: piece.chain.count]:
            run.add(scratch.acc, piece.slot, int(offset))

    def advance(self, version: Version) -> None:
        for p, n in enumerate(version):
            if p == self.slot:
                continue
            if n > len(self._accepted[p]) or n < self._have[p]:
                raise LogError(
                    f"an update of slot {self.slot} names {n} updates of partition {p}, which holds "
                    f"{len(self._accepted[p])}; {self._have[p]} were contained before"
                )
            for offset in self._accepted[p][self._have[p] : n]:
                self._logged.add(self.scratch.acc, p, int(offset))
            self._have[p] = n


class _Rows:
    """Rows of one slot, read from the shards partition as far as a round needs them."""

    def __init__(self, run: LoggedRun, slot: int) -> None:
        self._run, self._slot = run, slot
        self._store = RowStore(run.manifest, slot, run.keys, None, ROW_BYTES)
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


def recompute_piece(
    run: LoggedRun, piece: Piece, letters: Letters, train: rounds.Trainer = rounds.run,
    on_update: Callable[[int], None] = lambda _rows: None,
) -> PieceResult:  # fmt: skip
    """Recompute a piece and compare every update with the logged one; stops at the first that differs."""
    began, trained, updates, rows = time.perf_counter(), 0.0, 0, 0

    def timed(manifest: Manifest, job: rounds.RoundJob, values: AnyRows, labels: NDArray[np.int32] | None,
              total: int) -> Any:  # fmt: skip
        nonlocal trained
        at = time.perf_counter()
        stats = train(manifest, job, values, labels, total)
        trained += time.perf_counter() - at
        return stats

    divergence, problem = None, ""
    try:
        scratch = _Scratch(run, piece, letters[piece.slot])
        source = recompute.Source(
            run.spool.record, lambda ref: _fetch(run, ref), _Rows(run, piece.slot), _no_base, timed
        )
        for r in _Again(run, piece, scratch, source, letters).run(piece.stop):
            if not r.same:
                divergence = _divergence(run, r, scratch.chains[piece.slot])
                break
            updates, rows = updates + 1, rows + r.logged.rows.count
            on_update(r.logged.rows.count)
    except GossipDbnError as error:
        problem = f"slot {piece.slot}: {error}"
    return PieceResult(
        piece.slot, piece.start, updates, rows, time.perf_counter() - began, trained, divergence, problem
    )


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
