"""Bring a claimed slot back to where its claim stands: newest usable snapshot, then recompute the rounds after it.

One round is recomputed per call of ``advance``, so that a worker's other slots and its group membership stay alive.
The driver says where log records, objects and rows come from; nothing here touches the shared replica.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import recompute, rounds
from gossipdbn.core.chain import genesis, tip_after
from gossipdbn.core.events import Hold, Recover, Recovered, Snapshot, Wire
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import (
    Manifest,
    Payload,
    PayloadRef,
    Revocation,
    Sealed,
    SnapshotAnnounced,
    Update,
    Version,
)
from gossipdbn.errors import GossipDbnError, SnapshotError, StoreError

__all__ = ["Inputs", "Resume", "beyond", "dominated", "earlier"]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a recovery asks its driver for.

    Attributes
    ----------
    record, fetch, train : as in ``recompute.Source``.
    announced : snapshots of the slot, newest first. load : one of them; raises SnapshotError or StoreError.
    rows : begin to read the slot's rows at a snapshot's position (None: at the start); the source of its rounds' rows.
    initial : the manifest's initial parameters, int32 [P].
    remade : who stores payloads of the slot again that its store has lost; they are recomputed like its rounds.
    rounds_max : longest tail of rounds to recompute; beyond it the slot is reset instead.
    """

    record: recompute.NextRecord
    fetch: recompute.Fetch
    announced: Sequence[SnapshotAnnounced]
    load: Callable[[SnapshotAnnounced], Snapshot]
    rows: Callable[[rounds.ShardPosition | None], recompute.Rows]
    initial: Callable[[], NDArray[np.int32]]
    train: rounds.Trainer = rounds.run
    rounds_max: int = 1_000_000
    remade: recompute.Remade | None = None


def beyond(manifest: Manifest, hold: Hold, m: Update) -> Recover:
    """The recovery that recomputes a slot's update as well, which is undecided for want of its payload.

    Nothing is claimed, and what it comes to is nobody's state. Only snapshots before that record are of use
    (``earlier``).
    """
    tip, chain = tip_after(m.prev, hold.raw), genesis(manifest.slots)
    after = replace(chain, offset=hold.offset + 1, incarnation=m.incarnation, count=m.seq + 1, tip=tip)
    return Recover(m.slot, m.incarnation, after)


def earlier(announced: Sequence[SnapshotAnnounced], effect: Recover) -> tuple[SnapshotAnnounced, ...]:
    """The snapshots that do not contain the last update that ``effect`` asks for."""
    return tuple(a for a in announced if a.seq < effect.chain.count)


def dominated(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether version ``a`` is contained in version ``b``."""
    return len(a) == len(b) and all(x <= y for x, y in zip(a, b, strict=True))


class Resume:
    """Recovers one slot at an accepted claim.

    Attributes
    ----------
    recomputed, rows : rounds and their rows so far. skipped : why snapshots were not used.
    lacks : the record whose payload it waits for, after a retryable error.
    """

    def __init__(self, manifest: Manifest, effect: Recover, wire: Wire, inputs: Inputs) -> None:
        self.manifest, self.slot, self.effect = manifest, effect.slot, effect
        self.recomputed = self.rows = 0
        self.skipped: list[str] = []
        self.lacks: Hold | None = None
        self._wire, self._inputs = wire, inputs
        self._given: dict[int, tuple[int, bytes]] = {}
        self._candidates = deque(a for a in inputs.announced if a.seq <= effect.chain.count)
        self._again: recompute.Recomputation | None = None
        self._run: Iterator[recompute.Recomputed] = iter(())
        self._from_the_start = False

    def advance(self) -> Recovered | None:
        """Recompute one round more; the outcome when there is one, ``state`` None if the slot must be reset.

        Raises
        ------
        LogError, StoreError : with ``retryable`` set, something is not to be had now: call again later.
        """
        try:
            if self._again is None:
                self._start()
            step = next(self._run, None)
        except GossipDbnError as e:
            if getattr(e, "retryable", False):
                self._go_on()
                raise
            return self._failed(str(e))
        self.lacks = None
        if step is None:
            return self._outcome()
        self.recomputed += 1
        self.rows += step.logged.rows.count
        if not step.same:
            return self._failed(f"update {step.logged.seq}, recomputed, differs from the logged one")
        if self.recomputed > self._inputs.rounds_max:
            return self._failed(f"more than {self._inputs.rounds_max} rounds to recompute")
        return None

    def _failed(self, why: str) -> Recovered:
        return Recovered(self.slot, self.effect.incarnation, None, why)

    def _go_on(self) -> None:
        """A generator that raised is finished; the recomputation itself stands before the round that failed."""
        if self._again is not None:
            self._run = self._again.run(self.effect.chain.offset)

    def _start(self) -> None:
        snapshot = self._next_snapshot()
        self._from_the_start = snapshot is None
        if snapshot is None:
            scratch = Replica(self.manifest, self._wire.decode, self._inputs.initial())
            state = rounds.fresh_state(self.manifest, self.slot, genesis(self.manifest.slots))
        else:
            scratch = Replica(self.manifest, self._wire.decode, snapshot.parameters, snapshot.chains)
            state = snapshot.state
        i = self._inputs
        rows = i.rows(state.shards)
        source = recompute.Source(self._record, self._fetch, rows, self._base, i.train, i.remade)
        self._again = recompute.Recomputation(self.manifest, self.slot, scratch, state, self._wire, source)
        self._go_on()

    def _record(self, partition: int, offset: int) -> bytes | None:
        self.lacks = None
        raw = self._inputs.record(partition, offset)
        if raw is not None:
            self._given[partition] = offset, raw
        return raw

    def _fetch(self, ref: PayloadRef) -> Payload | None:
        payload = self._inputs.fetch(ref)
        if payload is None:
            self.lacks = next((h for h in map(self._held, self._given) if h.wants == ref), None)
        return payload

    def _held(self, partition: int) -> Hold:
        """The partition's record that was asked for last, with the reference it holds."""
        offset, raw = self._given[partition]
        decoded = self._wire.decode(raw)
        message = decoded.message if isinstance(decoded, Sealed) else None
        wants = message.payload_ref if isinstance(message, Update | Revocation) else None
        return Hold(partition, offset, raw, "its payload is not in the store", wants)

    def _next_snapshot(self) -> Snapshot | None:
        while self._candidates:
            announced = self._candidates.popleft()
            try:
                snapshot = self._inputs.load(announced)
            except (SnapshotError, StoreError) as e:
                self.skipped.append(str(e))
                continue
            if snapshot.slot == self.slot and snapshot.chains[self.slot].offset <= self.effect.chain.offset:
                return snapshot
            self.skipped.append(f"{announced.name} is not of slot {self.slot}'s past")
        return None

    def _base(self, version: Version) -> Replica:
        """A replica at or below ``version``: of the newest snapshot that is, or the initial parameters."""
        for announced in self._inputs.announced:
            if dominated(announced.version, version):
                try:
                    s = self._inputs.load(announced)
                except (SnapshotError, StoreError) as e:
                    self.skipped.append(str(e))
                    continue
                if dominated(tuple(c.count for c in s.chains), version):
                    return Replica(self.manifest, self._wire.decode, s.parameters, s.chains)
        return Replica(self.manifest, self._wire.decode, self._inputs.initial())

    def _outcome(self) -> Recovered | None:
        assert self._again is not None
        state, chain = self._again.state, self.effect.chain
        if (state.tip, state.seq) == (chain.tip, chain.count):
            return Recovered(self.slot, self.effect.incarnation, state, rounds=self.recomputed)
        if self._from_the_start:
            return self._failed("the log does not lead to the claimed history")
        self.skipped.append("a snapshot is of another history")
        self._again = None
        return None
