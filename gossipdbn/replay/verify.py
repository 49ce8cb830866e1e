"""Recompute a whole run from its records, on all cores, and say whether every update is what it claims to be."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import rounds
from gossipdbn.core.replica import add_payload
from gossipdbn.core.values import Claim, Revocation, Version
from gossipdbn.errors import GossipDbnError
from gossipdbn.kernels import codec
from gossipdbn.kernels.tiers import TIER
from gossipdbn.models.spec import parameter_count
from gossipdbn.replay.archive import ArchiveFacts, compare
from gossipdbn.replay.history import History, LoggedRun, PartitionHistory, judge_all, judge_partition, open_run
from gossipdbn.replay.pieces import (
    Base,
    Divergence,
    Letters,
    Piece,
    PieceResult,
    complete,
    cut,
    recompute_pieces,
    side_by_side,
)
from gossipdbn.wire.envelope import Keyring

__all__ = [
    "Progress",
    "Verification",
    "divergence_text",
    "judge_run",
    "letters_of",
    "verify",
    "workers",
]

_LETTERS, _PROGRESS = "letters.npz", "progress.bin"
_LOOK_S = 0.2
_MASK = (1 << 64) - 1


class Progress(NamedTuple):
    """How far a verification is: partitions judged, then rows recomputed of rows logged, pieces done of pieces."""

    judged: int
    partitions: int
    rows: int
    rows_all: int
    pieces: int
    pieces_all: int
    seconds: float


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Verification:
    """What a replay found.

    Attributes
    ----------
    identical : every update of every slot was recomputed and is byte for byte the logged one; every revocation is minus
        the sum of what it revokes; the parameters have the digest that the log and every worker state.
    updates : recomputed and equal. digest : hexadecimal, of the parameters at ``version``.
    beyond : updates at the end of a live run's copy that name records which came after it; not recomputed.
    divergences : first one of each piece that has any, in log order. problems : what could not be checked, or is wrong.
    seconds : of the whole verification; ``kernel_seconds``: summed over processes. ``training_seconds``: first to last
        record of the run; ``training_kernel_seconds``: as its updates state.
    """

    run: str
    identical: bool
    state: str
    updates: int
    rows: int
    claims: int
    revocations: int
    voids: int
    resets: int
    version: Version
    digest: str
    seconds: float
    kernel_seconds: float
    training_seconds: float
    training_kernel_seconds: float
    jobs: int
    pieces: int
    tier: str
    beyond: int = 0
    divergences: tuple[Divergence, ...] = ()
    problems: tuple[str, ...] = ()


# ---- processes ------------------------------------------------------------------------------------------------------
class Workers(Protocol):
    """Where pieces are computed: other processes, or right here."""

    jobs: int

    def judge(self, partition: int, add: bool) -> Future[PartitionHistory]: ...

    def publish(self, letters: Letters, tasks: int) -> None:
        """Make the verdicts known, before the first ``recompute``."""

    def recompute(self, task: int, pieces: tuple[Piece, ...]) -> Future[list[PieceResult]]: ...

    def rows_done(self) -> int: ...

    def watched(self, look: Callable[[], None]) -> None:
        """``look`` is called now and then by what is computed right here, where nobody else could."""


@dataclass(slots=True)
class _Here:
    """Computes at once, in this process."""

    run: LoggedRun
    train: rounds.Trainer
    jobs: int = 1
    letters: Letters = ()
    rows: int = 0
    base: Base = field(default_factory=Base)
    look: Callable[[], None] = lambda: None
    looked_s: float = 0.0

    def judge(self, partition: int, add: bool) -> Future[PartitionHistory]:
        return _done(judge_partition(self.run, partition, add))

    def publish(self, letters: Letters, tasks: int) -> None:
        self.letters = letters

    def recompute(self, task: int, pieces: tuple[Piece, ...]) -> Future[list[PieceResult]]:
        return _done(recompute_pieces(self.run, pieces, self.letters, self.train, self._count, self.base))

    def rows_done(self) -> int:
        return self.rows

    def watched(self, look: Callable[[], None]) -> None:
        self.look = look

    def _count(self, rows: int) -> None:
        self.rows += rows
        if time.monotonic() - self.looked_s > _LOOK_S:
            self.looked_s = time.monotonic()
            self.look()


def _done(result: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(result)
    return future


@dataclass(slots=True)
class _Process:
    """What a process of the pool keeps between pieces."""

    folder: Path
    run: LoggedRun
    letters: Letters | None = None
    progress: NDArray[np.int64] | None = None
    base: Base = field(default_factory=Base)


_mine: list[_Process] = []


def _begin(folder: str, keys: Keyring) -> None:
    """First call in a process of the pool. Ctrl-C is the parent's business: it ends the pool."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _mine.append(_Process(Path(folder), open_run(Path(folder), keys)))


def _letters(me: _Process) -> Letters:
    if me.letters is None:
        with np.load(me.folder / _LETTERS) as saved:
            me.letters = [saved[f"p{i}"] for i in range(me.run.manifest.slots + 1)]
        me.progress = np.memmap(me.folder / _PROGRESS, np.int64, "r+")
    return me.letters


def _judge(partition: int, add: bool) -> PartitionHistory:
    return judge_partition(_mine[0].run, partition, add)


def _recompute(task: int, pieces: tuple[Piece, ...]) -> list[PieceResult]:
    me = _mine[0]
    letters = _letters(me)

    def count(rows: int) -> None:
        assert me.progress is not None
        me.progress[task] += rows

    return recompute_pieces(me.run, pieces, letters, on_update=count, base=me.base)


@dataclass(slots=True)
class _Pool:
    """Computes in processes that open the same folder; they share nothing else."""

    folder: Path
    pool: ProcessPoolExecutor
    jobs: int
    progress: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    def judge(self, partition: int, add: bool) -> Future[PartitionHistory]:
        return self.pool.submit(_judge, partition, add)

    def publish(self, letters: Letters, tasks: int) -> None:
        np.savez(self.folder / _LETTERS, **{f"p{i}": a for i, a in enumerate(letters)})  # type: ignore[arg-type]
        np.zeros(max(1, tasks), np.int64).tofile(self.folder / _PROGRESS)
        self.progress = np.memmap(self.folder / _PROGRESS, np.int64, "r")

    def recompute(self, task: int, pieces: tuple[Piece, ...]) -> Future[list[PieceResult]]:
        return self.pool.submit(_recompute, task, pieces)

    def rows_done(self) -> int:
        return int(self.progress.sum())

    def watched(self, look: Callable[[], None]) -> None:
        """The caller waits for other processes, and looks itself."""


@contextmanager
def workers(run: LoggedRun, jobs: int, train: rounds.Trainer = rounds.run) -> Iterator[Workers]:
    """``jobs`` processes, one thread each; 1 = this process. ``train`` stands in for the learners here only."""
    if jobs <= 1:
        yield _Here(run, train)
        return
    context = multiprocessing.get_context("spawn")
    arguments = (str(run.spool.folder), dict(run.keys))
    pool = ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=arguments)
    try:
        yield _Pool(run.spool.folder, pool, jobs)
        pool.shutdown()
    except BrokenProcessPool as error:
        raise GossipDbnError(f"a process of the replay died (memory?): try --jobs 1 to see more ({error})") from error
    finally:
        for process in list((pool._processes or {}).values()):  # a piece can take minutes: nobody waits for it
            process.terminate()
        pool.shutdown(cancel_futures=True)


# ---- the checks -----------------------------------------------------------------------------------------------------
def judge_run(run: LoggedRun, on: Workers) -> History:
    """Verdicts on all records, partitions spread over the workers."""
    futures = [on.judge(p, False) for p in range(run.manifest.slots + 1)]
    return judge_all(run, [f.result() for f in futures])


def _judge_and_add(run: LoggedRun, on: Workers, judged: Callable[[int, int], None]) -> tuple[History, str]:
    """Verdicts, and the digest (hexadecimal) of the parameters after all updates, added up as integers."""
    partitions = run.manifest.slots + 1
    ahead, futures = min(partitions, 2 * on.jobs), deque[Future[PartitionHistory]]()
    acc, histories = run.initial(), list[PartitionHistory]()
    for p in range(partitions + ahead):  # a sum each: few at a time are in memory
        if p >= ahead:
            judged(len(histories), partitions)
            found = futures.popleft().result()
            assert found.total is not None
            acc += found.total
            histories.append(replace(found, total=None))
        if p < partitions:
            futures.append(on.judge(p, True))
    return judge_all(run, histories), f"{codec.digest(acc):016x}"


def letters_of(history: History) -> Letters:
    """The verdicts as arrays that processes share."""
    return [np.frombuffer(p.letters.encode(), np.uint8) for p in history.partitions]


def verify(
    run: LoggedRun, jobs: int = 1, on_progress: OnProgress = lambda _p: None, train: rounds.Trainer = rounds.run,
    expected: ArchiveFacts | None = None,
) -> Verification:  # fmt: skip
    """Judge, cut and recompute a run; see ``Verification``.

    Parameters
    ----------
    jobs : processes. train : stands in for the learners (only with one job). expected : what an archive says of itself.
    """
    began = time.monotonic()
    with workers(run, jobs, train) as on:
        history, digest = _judge_and_add(
            run, on, lambda n, of: on_progress(Progress(n, of, 0, 0, 0, 0, time.monotonic() - began))
        )
        letters = letters_of(history)
        whole = complete(history)
        pieces = cut(history, whole)
        tasks = side_by_side(run, pieces, on.jobs)
        on.publish(letters, len(tasks))
        rows_all, partitions = sum(p.rows for p in pieces), len(history.partitions)
        results: list[PieceResult] = []

        def look() -> None:
            done = (on.rows_done(), rows_all, len(results), len(pieces))
            on_progress(Progress(partitions, partitions, *done, time.monotonic() - began))

        on.watched(look)
        pending = {on.recompute(i, task) for i, task in enumerate(tasks)}
        while pending:
            done, pending = wait(pending, _LOOK_S, FIRST_COMPLETED)
            results += [result for f in done for result in f.result()]
            look()
    problems = [r.problem for r in results if r.problem]
    problems += [f"updates partition {p} could not be judged further: {why}" for p, why in history.undecided.items()]
    beyond = sum(history.version) - sum(whole)
    if beyond and history.state == "finished":
        problems.append(f"{beyond} updates name others that the log does not hold")
    if history.voids and not history.order:
        problems.append(f"none of {history.voids} records is valid: wrong keys, or records of something else")
    problems += compare(expected, history) if expected is not None else []
    problems += [*_revocation_problems(history), *_digest_problems(history, digest)]
    divergences = sorted((r.divergence for r in results if r.divergence), key=lambda d: (d.at_ms, d.slot, d.seq))
    return _verification(history, results, divergences, problems, digest, time.monotonic() - began, on.jobs, beyond)


def _verification(
    history: History, results: list[PieceResult], divergences: list[Divergence], problems: list[str], digest: str,
    seconds: float, jobs: int, beyond: int,
) -> Verification:  # fmt: skip
    wall, kernels = history.training_seconds()
    return Verification(
        run=history.run.spool.run,
        identical=not divergences and not problems,
        state=history.state,
        updates=sum(r.updates for r in results),
        rows=sum(r.rows for r in results),
        claims=history.count(Claim),
        revocations=history.count(Revocation),
        voids=history.voids,
        resets=sum(p.chain.resets for p in history.partitions[:-1]),
        version=history.version,
        digest=digest,
        seconds=round(seconds, 3),
        kernel_seconds=round(sum(r.train_s for r in results), 3),
        training_seconds=wall,
        training_kernel_seconds=round(kernels, 3),
        jobs=jobs,
        pieces=len(results),
        tier=str(TIER),
        beyond=beyond,
        divergences=tuple(divergences),
        problems=tuple(problems),
    )


def _revocation_problems(history: History) -> list[str]:
    """A revocation must be minus the sum of updates that were there: anyone can add them up."""
    run, problems = history.run, []
    for line in history.partitions[-1].updates():
        m = line.message
        assert isinstance(m, Revocation)
        updates = list(history.partitions[m.slot].updates())
        name = f"revocation {m.number} (slot {m.slot}, updates {m.first_seq} to {m.last_seq})"
        if m.last_seq >= len(updates):
            problems.append(f"{name} names updates that the log does not hold")
            continue
        total = np.zeros(parameter_count(run.manifest.spec), np.int32)
        for x in updates[m.first_seq : m.last_seq + 1]:
            run.add(total, x.partition, x.offset)
        raw = run.spool.record(line.partition, line.offset)
        assert raw is not None
        add_payload(run.manifest, total, run.payload(raw))
        if total.any():
            problems.append(f"{name} is not minus the sum of those updates")
    return problems


def _digest_problems(history: History, digest: str) -> list[str]:
    """The integers, the log's own digests and the workers' statements must agree."""
    problems = []
    logged = f"{history.digest_at(history.version):016x}"
    if logged != digest:
        problems.append(f"the parameters have digest {digest}, the log's updates say {logged}")
    for w in history.run.control.workers.values():
        here = len(w.version) == len(history.version)
        if not here or any(a > b for a, b in zip(w.version, history.version, strict=True)):
            if not here or history.state == "finished":  # a live run's copy may end before what a worker states
                problems.append(f"worker {w.worker} states version {w.version}, the log ends at {history.version}")
        elif history.digest_at(w.version) != w.digest:
            problems.append(f"worker {w.worker} states digest {w.digest:016x}, not what the log gives at that version")
    return problems


def divergence_text(d: Divergence) -> str:
    """One sentence that names where a run and its recomputation part."""
    where = f"{d.difference.tensor}[{d.difference.index}]" if d.difference.tensor else d.difference.field
    return (
        f"slot {d.slot} update {d.seq} (offset {d.offset}, worker {d.worker.partition('#')[0]}, incarnation "
        f"{d.incarnation}): {where} is {d.difference.logged} in the log, {d.difference.recomputed} recomputed; "
        f"numerics {d.numerics_logged} logged, {d.numerics_here} here (tier {d.tier_here})"
    )
