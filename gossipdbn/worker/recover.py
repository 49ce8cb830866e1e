"""Bring a claimed slot back to where its claim stands: newest usable snapshot, then recompute the rounds after it.

One round is recomputed per call of ``advance``, so that a worker's other slots and its group membership stay alive.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import recompute, resume, rounds
from gossipdbn.core.events import Hold, Recover, Recovered, Snapshot, Wire
from gossipdbn.core.replica import Replica
from gossipdbn.core.rounds import ShardPosition
from gossipdbn.core.topics import RunTopics
from gossipdbn.core.values import Manifest, Payload, PayloadRef, RowRange, SnapshotAnnounced
from gossipdbn.errors import DataError, LogError, SnapshotError, StoreError
from gossipdbn.models.rows import AnyRows
from gossipdbn.ports import Log, Record, SnapshotStore
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import decode_payload, payload_name
from gossipdbn.wire.snapshots import decode_snapshot, max_bytes
from gossipdbn.worker.control import Control
from gossipdbn.worker.rows import RowStore

__all__ = ["LogCursor", "Recovery", "fetch_payload", "fetch_snapshot", "newest_replica"]

logger = logging.getLogger("gossipdbn.worker")
READ_AHEAD = 256
SNAPSHOTS_TRIED = 8


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


def newest_replica(control: Control, manifest: Manifest, store: SnapshotStore, wire: Wire) -> Replica:
    """A replica to begin with: from the newest usable snapshot of any slot, else from the initial parameters."""
    announced = [a for slot in control.snapshots.values() for a in slot]
    for a in sorted(announced, key=lambda a: -sum(a.version))[:SNAPSHOTS_TRIED]:
        try:
            s = fetch_snapshot(store, manifest, a)
        except (SnapshotError, StoreError) as e:
            logger.warning("snapshot %s is not used: %s", a.name, e)
            continue
        replica = Replica(manifest, wire.decode, s.parameters, s.chains)
        if replica.digest() == a.digest:
            return replica
        logger.warning("snapshot %s is not used: its parameters have another digest than announced", a.name)
    return Replica(manifest, wire.decode, rounds.initial_parameters(manifest, store.get))


def fetch_payload(store: SnapshotStore, ref: PayloadRef) -> Payload | None:
    """A spilled payload, or None while the store does not have it."""
    try:
        return decode_payload(ref, store.get(payload_name(ref), ref.size))
    except (SnapshotError, StoreError):
        return None


class Recovery:
    """Recovers one slot by ``core.resume``, with a log, a store and a row store behind it.

    Parameters
    ----------
    announced : the slot's snapshots, newest first. Each unusable one (missing, corrupt, of another history) is left for
        the next older; in the end the start of the log.
    steps_max : longest tail of rounds to recompute; beyond it the slot is reset instead.
    remade : takes payloads of the slot that were gone and are recomputed; without it they are waited for.

    Attributes
    ----------
    rows : the slot's rows, to go on with after success. skipped : why snapshots were not used.
    waits_for, retry_at_s : its driver's notes, why and until when it waits.
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
        remade: recompute.Remade | None = None,
    ) -> None:
        self.manifest, self.slot = manifest, effect.slot
        self._log, self._topics, self._store, self._keys = log, topics, store, keys
        self._memory_bytes = memory_bytes
        self.waits_for, self.retry_at_s = "", 0.0
        self.rows = RowStore(manifest, effect.slot, keys, None, memory_bytes)
        inputs = resume.Inputs(
            LogCursor(log, topics.updates),
            lambda ref: fetch_payload(store, ref),
            tuple(announced),
            lambda a: fetch_snapshot(store, manifest, a),
            self._begin,
            initial or (lambda: rounds.initial_parameters(manifest, store.get)),
            train,
            steps_max,
            remade,
        )
        self._resume = resume.Resume(manifest, effect, wire, inputs)

    @property
    def recomputed(self) -> int:
        """Rounds recomputed so far."""
        return self._resume.recomputed

    @property
    def recomputed_rows(self) -> int:
        """Rows of those rounds."""
        return self._resume.rows

    @property
    def skipped(self) -> list[str]:
        """Why snapshots were not used."""
        return self._resume.skipped

    @property
    def lacks(self) -> Hold | None:
        """The record whose payload it waits for, after a retryable error."""
        return self._resume.lacks

    def advance(self) -> Recovered | None:
        """Recompute one round more; the outcome when there is one. ``LogError`` that is retryable: call again later."""
        outcome = self._resume.advance()
        if outcome is not None and outcome.state is not None:
            cursor = outcome.state.cursor
            with contextlib.suppress(DataError):  # damaged rows fail the slot when it comes to them, with their reason
                self._catch_rows(cursor[1] if cursor[0] == 0 else 0)
        return outcome

    def _begin(self, position: ShardPosition | None) -> Callable[[RowRange], Any]:
        self.rows = RowStore(self.manifest, self.slot, self._keys, position, self._memory_bytes)
        return self._get

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

    def _get(self, rows: RowRange) -> tuple[AnyRows, NDArray[np.int32] | None, int]:
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
