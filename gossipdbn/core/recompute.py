"""Recompute what a slot did, from the log alone: recovery after a takeover, replay, audit and the simulator's check.

A scratch replica is moved forward record by record: before each of the slot's updates the other partitions are read up
to that update's start_version, then the round is trained again on its rows, and the result compared byte for byte.
The shared replica of a worker is never turned back for this.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import rounds
from gossipdbn.core.chain import Chain
from gossipdbn.core.events import Wire
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import (
    OPEN,
    RESET,
    Accepted,
    Claim,
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
from gossipdbn.errors import LocalProtocolError, LogError, ReplayDivergence
from gossipdbn.kernels import codec
from gossipdbn.models.rows import AnyRows

__all__ = ["Recomputation", "Recomputed", "Rows", "Source"]

Rows = Callable[[RowRange], tuple[AnyRows, "NDArray[np.int32] | None", int]]
"""Rows of the slot: (values, labels, total rows of the slot as counted by its end mark, 0 while unknown)."""

NextRecord = Callable[[int, int], "bytes | None"]
"""(partition, offset) -> the record there, or None at the end of what the log holds."""

Fetch = Callable[[PayloadRef], "Payload | None"]
Remade = Callable[[PayloadRef, bytes], None]
"""A payload that is in no store any more, recomputed: its reference and its bytes, to be stored again."""

Base = Callable[[Version], Replica]


@dataclass(frozen=True, slots=True)
class Source:
    """Where a recomputation gets its inputs: log records, spilled payloads, rows, replicas, and who trains.

    ``base``: a new replica at or below a version, from a snapshot or from the initial parameters. ``remade``: who puts
    payloads of the slot back that are missing; without one they are waited for.
    """

    record: NextRecord
    fetch: Fetch
    rows: Rows
    base: Base
    train: rounds.Trainer = rounds.run
    remade: Remade | None = None


@dataclass(frozen=True, slots=True)
class Recomputed:
    """One recomputed update beside the logged one. ``same``: their exact bytes are equal (metrics aside)."""

    logged: Update
    offset: int
    raw: bytes
    update: Update
    start_version: Version
    same: bool


class Recomputation:
    """Follows one slot through the log from a starting point (its state and the scratch replica that belongs to it)."""

    def __init__(
        self, manifest: Manifest, slot: int, scratch: Replica, state: rounds.SlotState, wire: Wire, source: Source,
        spare: rounds.Spare | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.slot, self.scratch, self.state = manifest, slot, scratch, state
        self._wire, self._source = wire, source
        self._spare = spare or rounds.Spare()

    def run(self, until: int | None = None) -> Iterator[Recomputed]:
        """Recompute the slot's updates up to offset ``until`` of its partition (None: to the end).

        Raises
        ------
        LogError : the log does not hold a record or payload that is needed.
        """
        while until is None or self.scratch.chains[self.slot].offset < until:
            offset = self.scratch.chains[self.slot].offset
            raw = self._source.record(self.slot, offset)
            if raw is None:
                if until is not None:
                    raise LogError(f"updates partition {self.slot} ends at offset {offset}, needed {until}")
                return
            verdict, payload = self._judged(self.slot, raw)
            again: Recomputed | None = None
            if isinstance(verdict, Undecided) and verdict.wants is not None and self._source.remade is not None:
                again = self._remake(offset, raw, verdict.reason)
                payload = again.update.payload
                verdict = self.scratch.judge(self.slot, raw, payload)
            decided = self._decided(self.slot, verdict)
            accepted = decided.message if isinstance(decided, Accepted) else None
            if isinstance(accepted, Update) and isinstance(decided, Accepted) and decided.start_version is not None:
                yield again or self._again(accepted, offset, raw, decided.start_version)
            self.scratch.read(self.slot, offset, raw, payload)
            if isinstance(accepted, Claim):
                self._claimed(accepted)

    def _remake(self, offset: int, raw: bytes, reason: str) -> Recomputed:
        """The slot's next update, which is undecided for want of its payload; recomputed, it says what that was.

        Raises
        ------
        LogError : (retryable) it comes to something else than the record names; so it is waited for.
        """
        decoded = self._wire.decode(raw)
        if not isinstance(decoded, Sealed) or not isinstance(decoded.message, Update) or self._source.remade is None:
            raise LogError(f"updates partition {self.slot}: {reason}", retryable=True)
        logged, kept = decoded.message, copy.deepcopy(self.state)
        start = self.scratch.chains[self.slot].start_version
        again = self._again(logged, offset, raw, tuple(a + b for a, b in zip(start, logged.advance, strict=True)))
        if not again.same:
            self.state = kept
            raise LogError(f"updates partition {self.slot}: {reason}; recomputed, it is another one", retryable=True)
        self._source.remade(*self._wire.pack_payload(again.update.payload or ()))
        return again

    def _judged(self, partition: int, raw: bytes) -> tuple[Verdict, Payload | None]:
        verdict = self.scratch.judge(partition, raw)
        if not isinstance(verdict, Undecided) or verdict.wants is None:
            return verdict, None
        payload = self._source.fetch(verdict.wants)
        return self.scratch.judge(partition, raw, payload), payload

    def _decided(self, partition: int, verdict: Verdict) -> Accepted | Void:
        if isinstance(verdict, Undecided):
            raise LogError(f"updates partition {partition}: {verdict.reason}", retryable=verdict.wants is not None)
        return verdict

    def _claimed(self, claim: Claim) -> None:
        """A claim moves the tip; with reset the state is emptied where the claim stands."""
        chain: Chain = self.scratch.chains[self.slot]
        if claim.mode == RESET:
            self.state = rounds.fresh_state(self.manifest, self.slot, chain)
        self.state.tip, self.state.incarnation = chain.tip, chain.incarnation
        self.state.start_version = chain.start_version

    def advance(self, version: Version) -> None:
        """Bring the scratch replica's other partitions to ``version``, exactly.

        A snapshot's replica, or one that a reset has left behind, may contain more: the slot's next owner may have
        lagged. Then an older base is brought forward instead.
        """
        if any(
            c.count > n for p, (c, n) in enumerate(zip(self.scratch.chains, version, strict=True)) if p != self.slot
        ):
            self._begin_again(version)
        for p, n in enumerate(version):
            while p != self.slot and self.scratch.chains[p].count < n:
                self._merge(p, f"an update of slot {self.slot} names {n} of its updates")

    def _begin_again(self, version: Version) -> None:
        offset = self.scratch.chains[self.slot].offset
        self.scratch = self._source.base(version)
        if any(c.count > n for c, n in zip(self.scratch.chains, version, strict=True)):
            raise LocalProtocolError(f"a base at {self.scratch.version} was given for version {version}")
        while self.scratch.chains[self.slot].offset < offset:
            self._merge(self.slot, f"offset {offset} was read before")

    def _merge(self, partition: int, why: str) -> None:
        offset = self.scratch.chains[partition].offset
        raw = self._source.record(partition, offset)
        if raw is None:
            raise LogError(f"updates partition {partition} ends at offset {offset}, but {why}")
        verdict, payload = self._judged(partition, raw)
        self._decided(partition, verdict)
        self.scratch.read(partition, offset, raw, payload)

    def _again(self, logged: Update, offset: int, raw: bytes, version: Version) -> Recomputed:
        self.advance(version)
        if logged.closing == OPEN:
            values, labels, total = self._source.rows(logged.rows)
            job = rounds.begin(self.state, self.scratch.acc, version, logged.rows, spare=self._spare)
            self._source.train(self.manifest, job, values, labels, total)
            update = rounds.finish(self.manifest, self.state, job, logged.metrics)
            self._spare.give(job)
        else:
            digest = codec.digest(self.scratch.acc)
            update = rounds.closing(
                self.manifest, self.state, digest, version, logged.closing, logged.metrics, logged.note
            )
        compared = update
        if logged.payload_ref is not None:
            compared = rounds.by_reference(update, self._wire.pack_payload(update.payload or ())[0])
        same = compared == logged
        rounds.sent(self.manifest, self.state, update, raw, version)
        return Recomputed(logged, offset, raw, update, version, same)


def require_same(r: Recomputed) -> None:
    """Raise ReplayDivergence naming the first difference between a recomputed update and the logged one."""
    if r.same:
        return
    for name in ("start_digest", "step", "digest"):
        a, b = getattr(r.logged, name), getattr(r.update, name)
        if a != b:
            raise ReplayDivergence(
                f"slot {r.logged.slot} update {r.logged.seq} (offset {r.offset}): logged {name} {a}, recomputed {b}"
            )
    raise ReplayDivergence(
        f"slot {r.logged.slot} update {r.logged.seq} (offset {r.offset}) differs from its recomputation"
    )
