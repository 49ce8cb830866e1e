"""What the records of a run say: the verdict on every one, and the accepted updates in the order the log took them.

Acceptance depends on a partition's own prefix alone, so partitions are judged independently of each other, in as many
processes as there are. The order of moments is the log's append time, partition by partition never backwards; any such
prefix is a version.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import chain as chains
from gossipdbn.core import rounds
from gossipdbn.core.sums import Sum
from gossipdbn.core.values import (
    CLOSES_PHASE,
    OPEN,
    RESET,
    Accepted,
    Claim,
    Manifest,
    Message,
    Payload,
    Revocation,
    Undecided,
    Update,
    Version,
)
from gossipdbn.errors import LogError, RetentionError, SnapshotCorrupt, SnapshotError
from gossipdbn.kernels import codec
from gossipdbn.models.spec import parameter_count
from gossipdbn.replay.spool import Spool
from gossipdbn.wire.envelope import Keyring
from gossipdbn.wire.messages import RunWire, decode_payload, payload_name
from gossipdbn.worker.control import Control, load_control

__all__ = ["Cut", "History", "Line", "LoggedRun", "PartitionHistory", "judge_all", "judge_partition", "open_run"]

_MASK = (1 << 64) - 1


class Line(NamedTuple):
    """One record of the updates topic and its verdict. ``message`` comes without its payload, None if it has no form.

    ``tip``: name of the partition's history after the record.
    """

    partition: int
    offset: int
    at_ms: int
    size: int
    accepted: bool
    reason: str
    message: Message | None
    start_version: Version | None
    tip: bytes


class Cut(NamedTuple):
    """A place where a slot's state is known without its past (nothing in it, at ``chain``), and its next offset."""

    offset: int
    chain: chains.Chain


@dataclass(frozen=True, slots=True)
class PartitionHistory:
    """A partition, judged. ``undecided``: why judging stopped before the end, or "".

    ``total``: the sum of its deltas, int32 [P], if it was asked for.
    """

    partition: int
    lines: tuple[Line, ...]
    cuts: tuple[Cut, ...]
    chain: chains.Chain
    undecided: str = ""
    total: NDArray[np.int32] | None = None

    def updates(self) -> Iterator[Line]:
        """Accepted records that count in the version: updates, closings, revocations."""
        return (x for x in self.lines if x.accepted and not isinstance(x.message, Claim))

    @property
    def letters(self) -> str:
        """One letter per record: c claim, u update, r revocation, v void."""
        return "".join(_letter(x) for x in self.lines)


def _letter(line: Line) -> str:
    if not line.accepted:
        return "v"
    return "c" if isinstance(line.message, Claim) else "r" if isinstance(line.message, Revocation) else "u"


@dataclass(frozen=True, slots=True)
class LoggedRun:
    """A run as its records tell it: where they are, its manifest, control facts and keys."""

    spool: Spool
    manifest: Manifest
    control: Control
    keys: Keyring = field(default_factory=dict, repr=False)
    _kept: list[NDArray[np.int32]] = field(default_factory=list, repr=False, compare=False)

    @property
    def wire(self) -> RunWire:
        return RunWire(0, self.keys)

    def initial(self) -> NDArray[np.int32]:
        """theta_0, int32 [P]: a new array each time."""
        if not self._kept:
            self._kept.append(rounds.initial_parameters(self.manifest, self.spool.get))
        return self._kept[0].copy()

    def payload(self, raw: bytes) -> Payload:
        """The payload of an accepted record, fetched if it travels by reference."""
        m = self.wire.reopen(raw)
        assert not isinstance(m, Claim)
        if m.payload is not None:
            return m.payload
        assert m.payload_ref is not None
        payload = decode_payload(m.payload_ref, self.spool.get(payload_name(m.payload_ref), m.payload_ref.size))
        if payload is None:
            raise SnapshotCorrupt(f"payload {payload_name(m.payload_ref)} is damaged")
        return payload

    def deltas(self, partition: int, offset: int) -> tuple[codec.Deltas, ...]:
        """The deltas of an accepted record."""
        raw = self.spool.record(partition, offset)
        if raw is None:
            raise LogError(f"updates partition {partition} has no offset {offset}")
        return chains.read_payload(self.manifest, self.payload(raw))

    def add(self, acc: NDArray[np.int32], partition: int, offset: int) -> None:
        """Add the deltas of an accepted record to parameters int32 [P]."""
        codec.merge(acc, self.deltas(partition, offset))


def open_run(folder: Path, keys: Keyring) -> LoggedRun:
    """A run from a spool folder.

    Raises
    ------
    ConfigError : its manifest cannot be used here. SnapshotCorrupt : partitions are missing.
    """
    spool = Spool(folder)
    control = load_control(spool, spool.run, keys)
    manifest = control.manifest
    assert manifest is not None
    have = (spool.partitions(spool.names.updates), spool.partitions(spool.names.shards))
    if have != (manifest.slots + 1, manifest.slots):
        raise SnapshotCorrupt(f"run {spool.run} has {manifest.slots} slots, its records {have} partitions")
    return LoggedRun(spool, manifest, control, keys)


def judge_partition(run: LoggedRun, partition: int, add: bool = False) -> PartitionHistory:
    """Fold one partition of the updates topic from its first record; with ``add`` its deltas too."""
    manifest, wire, topic = run.manifest, run.wire, run.spool.names.updates
    chain = chains.genesis(manifest.slots)
    first, end = run.spool.offsets(topic, partition)
    if first:
        raise RetentionError(f"{topic} partition {partition} starts at offset {first}: what came before was trimmed")
    lines: list[Line] = []
    cuts, undecided = [Cut(0, chain)], ""
    total = Sum(np.zeros(parameter_count(manifest.spec), np.int32)) if add else None
    for record in run.spool.read(topic, partition, first, end):
        decoded = wire.decode(record.value)
        verdict = chains.judge(manifest, chain, partition, decoded)
        payload = None
        if isinstance(verdict, Undecided) and verdict.wants is not None:
            payload = _fetch(run, record.value)
            verdict = chains.judge(manifest, chain, partition, decoded, payload)
        if isinstance(verdict, Undecided):
            undecided = verdict.reason
            break
        chain = chains.fold(manifest, chain, record.value, verdict)
        accepted = isinstance(verdict, Accepted)
        m = verdict.message
        if total is not None and isinstance(verdict, Accepted):
            total.add(verdict.deltas)
        start = verdict.start_version if isinstance(verdict, Accepted) else None
        lines.append(
            Line(
                partition, record.offset, record.timestamp_ms, len(record.value), accepted,
                "" if isinstance(verdict, Accepted) else verdict.reason, _bare(m), start, chain.tip,
            )
        )  # fmt: skip
        if accepted and _empties(m) and partition < manifest.slots and not chain.closed:
            cuts.append(Cut(record.offset + 1, chain))
    added = total.total if total is not None else None
    return PartitionHistory(partition, tuple(lines), tuple(cuts), chain, undecided, added)


def _fetch(run: LoggedRun, raw: bytes) -> Payload | None:
    try:
        return run.payload(raw)
    except SnapshotError:
        return None


def _bare(message: Message | None) -> Message | None:
    if message is None or isinstance(message, Claim):
        return message
    return msgspec.structs.replace(message, payload=None)


def _empties(message: Message | None) -> bool:
    """Whether a slot's state after this accepted record is empty: a phase closed, or a reset."""
    if isinstance(message, Claim):
        return message.mode == RESET
    return isinstance(message, Update) and message.closing == CLOSES_PHASE


@dataclass(slots=True)
class History:
    """All partitions of a run, judged; ``order``: its accepted updates as the log took them."""

    run: LoggedRun
    partitions: tuple[PartitionHistory, ...]
    order: list[Line] = field(default_factory=list)

    def __post_init__(self) -> None:
        merged = heapq.merge(*(_never_backwards(p) for p in self.partitions), key=lambda pair: pair[0])
        self.order = [line for _, line in merged]

    @property
    def version(self) -> Version:
        """The version after all records."""
        return tuple(p.chain.count for p in self.partitions)

    @property
    def undecided(self) -> dict[int, str]:
        """Partitions that could not be judged to their end, and why."""
        return {p.partition: p.undecided for p in self.partitions if p.undecided}

    @property
    def state(self) -> str:
        """failed, finished, or open."""
        slots = [p.chain for p in self.partitions[:-1]]
        return "failed" if any(c.failed for c in slots) else "finished" if all(c.closed for c in slots) else "open"

    def count(self, kind: type[Message]) -> int:
        """Accepted records of a kind."""
        return sum(x.accepted and isinstance(x.message, kind) for p in self.partitions for x in p.lines)

    @property
    def voids(self) -> int:
        return sum(not x.accepted for p in self.partitions for x in p.lines)

    def rows(self) -> int:
        """Rows trained by accepted updates."""
        return sum(x.message.rows.count for x in self.order if isinstance(x.message, Update))

    def digest_at(self, version: Version) -> int:
        """What the log says the digest at ``version`` is, without adding anything up but digests."""
        total = codec.digest(self.run.initial())
        for partition, n in zip(self.partitions, version, strict=True):
            for i, line in enumerate(partition.updates()):
                if i >= n:
                    break
                total += line.message.digest  # type: ignore[union-attr]
        return total & _MASK

    def training_seconds(self) -> tuple[float, float]:
        """(first to last record of the slots by the log's clock, sum of seconds that rounds report to have trained)."""
        times = [x.at_ms for p in self.partitions[:-1] for x in p.lines if x.accepted]
        trained = sum(
            x.message.metrics.train_us
            for x in self.order
            if isinstance(x.message, Update) and x.message.closing == OPEN
        )
        return ((max(times) - min(times)) / 1000 if times else 0.0), trained / 1e6


def _never_backwards(history: PartitionHistory) -> Iterator[tuple[tuple[int, int, int], Line]]:
    newest = 0
    for i, line in enumerate(history.updates()):
        newest = max(newest, line.at_ms)
        yield (newest, history.partition, i), line


def judge_all(run: LoggedRun, histories: Sequence[PartitionHistory] | None = None) -> History:
    """Judge every partition here, one after another (or take those that were judged elsewhere)."""
    if histories is None:
        histories = [judge_partition(run, p) for p in range(run.manifest.slots + 1)]
    return History(run, tuple(sorted(histories, key=lambda h: h.partition)))
