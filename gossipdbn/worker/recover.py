"""Bring a claimed slot back to where its claim stands: newest usable snapshot, then recompute the rounds after it.

One round is recomputed per call of ``advance``, so that a worker's other slots and its group membership stay alive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import recompute, rounds
from gossipdbn.core.chain import genesis
from gossipdbn.core.events import Recover, Recovered, Snapshot, Wire
from gossipdbn.core.replica import Replica
from gossipdbn.core.topics import RunTopics
from gossipdbn.core.values import Manifest, Payload, PayloadRef, RowRange, SnapshotAnnounced, Version
from gossipdbn.errors import DataError, GossipDbnError, LogError, SnapshotError, StoreError
from gossipdbn.ports import Log, Record, SnapshotStore
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import decode_payload, payload_name
from gossipdbn.wire.snapshots import decode_snapshot, max_bytes
from gossipdbn.worker.rows import RowStore

__all__ = ["LogCursor", "Recovery", "fetch_payload", "fetch_snapshot"]

READ_AHEAD = 256


class LogCursor:
    """Random access that is nearly sequential: reads one topic partition by partition, some records ahead."""

    def __init__(self, log: Log, topic: str) -> None:
        self._log, self._topic = log, topic
        self._ahead: dict[int, deque[Record]] = {}

    def __call__(self, partition: int, offset: int) -> bytes | None:
        """The record at ``offset``, or None when the log ends before it."""
        ahead = self._ahead.setdefault(partition, deque())
        while ahead and ahead[0].offset < offset:
            ahead.popleft()
        if not ahead or ahead[0].offset != offset:
            end = self._log.offsets(self._topic, partition)[1]
            if offset >= end:
                return None
            ahead.clear()
            ahead.extend(self._log.read(self._topic, partition, offset, min(end, offset + READ_AHEAD)))
        return ahead[0].value


def fetch_snapshot(store: SnapshotStore, manifest: Manifest, announced: SnapshotAnnounced) -> Snapshot:
    """The announced snapshot; raises SnapshotError or StoreError."""
    data = store.get(announced.name, min(announced.size, max_bytes(manifest)))
    return decode_snapshot(manifest, data, announced.sha256)


def fetch_payload(store: SnapshotStore, ref: PayloadRef) -> Payload | None:
    """A spilled payload, or None while the store does not have it."""
    try:
        return decode_payload(ref, store.get(payload_name(ref), ref.size))
    except (SnapshotError, StoreError):
        return None


class Recovery:
    """Recovers one slot.

    Parameters
    ----------
    announced : the slot's snapshots, newest first. Each unusable one (missing, corrupt, of another history) is left for
        the next older; in the end the start of the log.
    steps_max : longest tail of rounds to recompute; beyond it the slot is reset instead.

    Attributes
    ----------
    rows : the slot's rows, to go on with after success. skipped : why snapshots were not used.
    """

    def __init__(
        self,
        manifest: Manifest,
        effect: Recover,
        log: Log,
        topics: RunTopics,
        store: SnapshotStore,
        wire: Wire,
        keys: envelope.Keyring,
        announced: Sequence[SnapshotAnnounced],
        train: rounds.Trainer = rounds.run,
        steps_max: int = 1_000_000,
        memory_bytes: int = 1 << 30,
        initial: Callable[[], NDArray[np.int32]] | None = None,
    ) -> None:
        self.manifest, self.slot, self.effect = manifest, effect.slot, effect
        self.skipped: list[str] = []
        self.recomputed = 0
        self.rows = RowStore(manifest, effect.slot, keys, None, memory_bytes)
        self._log, self._topics, self._store, self._wire, self._keys = log, topics, store, wire, keys
        self._announced = tuple(announced)
        self._from_the_start = False
        self._candidates = deque(a for a in announced if a.seq <= effect.chain.count)
        self._train, self._steps_max, self._memory_bytes = train, steps_max, memory_bytes
        self._initial = initial or (lambda: rounds.initial_parameters(manifest, store.get))
        self._run: Iterator[recompute.Recomputed] | None = None
        self._again: recompute.Recomputation | None = None

    def advance(self) -> Recovered | None:
        """Recompute one round more; the outcome when there is one. ``LogError`` that is retryable: call again later."""
        try:
            if self._run is None or self._again is None:
                self._start()
            assert self._run is not None
            step = next(self._run, None)
        except (DataError, StoreError, LogError, GossipDbnError) as e:
            if getattr(e, "retryable", False):
                self._run = self._again.run(self.effect.chain.offset) if self._again is not None else None
                raise
            return Recovered(self.slot, self.effect.incarnation, None, str(e))
        if step is not None:
            self.recomputed += 1
            if not step.same:
                return self._failed(f"update {step.logged.seq}, recomputed, differs from the logged one")
            if self.recomputed > self._steps_max:
                return self._failed(f"more than {self._steps_max} rounds to recompute")
            return None
        return self._outcome()

    def _failed(self, why: str) -> Recovered:
        return Recovered(self.slot, self.effect.incarnation, None, why)

    def _outcome(self) -> Recovered | None:
        assert self._again is not None
        state, chain = self._again.state, self.effect.chain
        if (state.tip, state.seq) != (chain.tip, chain.count):
            if self._from_the_start:
                return self._failed("the log does not lead to the claimed history")
            self.skipped.append("a snapshot is of another history")
            self._run = None
            return None
        self._catch_rows(state.cursor[1] if state.cursor[0] == 0 else 0)
        return Recovered(self.slot, self.effect.incarnation, state)

    def _catch_rows(self, first: int) -> None:
        end = self._log.offsets(self._topics.shards, self.slot)[1]
        while self.rows.next_offset < end and self.rows.rows < first and not self.rows.held:
            self._read_rows(end)

    def _read_rows(self, end: int) -> None:
        for record in self._log.read(
            self._topics.shards, self.slot, self.rows.next_offset, min(end, self.rows.next_offset + 16)
        ):
            self.rows.feed(record.offset, record.value)
            if self.rows.held:
                raise LogError(f"shards partition {self.slot}: {self.rows.held}")

    def _start(self) -> None:
        snapshot = self._next_snapshot()
        if snapshot is None:
            base = Replica(self.manifest, self._wire.decode, self._initial())
            state = rounds.fresh_state(self.manifest, self.slot, genesis(self.manifest.slots))
        else:
            base = Replica(self.manifest, self._wire.decode, snapshot.parameters, snapshot.chains)
            state = snapshot.state
        self.rows = RowStore(self.manifest, self.slot, self._keys, state.shards, self._memory_bytes)
        self._from_the_start = snapshot is None
        source = recompute.Source(
            LogCursor(self._log, self._topics.updates),
            lambda ref: fetch_payload(self._store, ref),
            self._get,
            self._base,
            self._train,
        )
        self._again = recompute.Recomputation(self.manifest, self.slot, base, state, self._wire, source)
        self._run = self._again.run(self.effect.chain.offset)

    def _base(self, version: Version) -> Replica:
        """A replica at or below ``version``: the newest snapshot that is, or the initial parameters."""
        for announced in self._announced:
            if len(announced.version) == len(version) and all(
                a <= b for a, b in zip(announced.version, version, strict=True)
            ):
                try:
                    s = fetch_snapshot(self._store, self.manifest, announced)
                except (SnapshotError, StoreError) as e:
                    self.skipped.append(str(e))
                    continue
                return Replica(self.manifest, self._wire.decode, s.parameters, s.chains)
        return Replica(self.manifest, self._wire.decode, self._initial())

    def _next_snapshot(self) -> Snapshot | None:
        while self._candidates:
            announced = self._candidates.popleft()
            try:
                snapshot = fetch_snapshot(self._store, self.manifest, announced)
            except (SnapshotError, StoreError) as e:
                self.skipped.append(str(e))
                continue
            if snapshot.slot == self.slot and snapshot.chains[self.slot].offset <= self.effect.chain.offset:
                return snapshot
            self.skipped.append(f"{announced.name} is not of slot {self.slot}'s past")
        return None

    def _get(self, rows: RowRange) -> tuple[np.ndarray, NDArray[np.int32] | None, int]:
        """Rows of a round, reading the shards partition as far as they need (to its end mark after epoch 0)."""
        need = rows.first + rows.count
        while (self.rows.rows < need or (rows.epoch > 0 and not self.rows.ended)) and not self.rows.held:
            end = self._log.offsets(self._topics.shards, self.slot)[1]
            if self.rows.next_offset >= end:
                raise DataError(
                    f"slot {self.slot}: the shards topic ends at row {self.rows.rows}, an update names {need}"
                )
            self._read_rows(end)
        return self.rows.get(rows)
