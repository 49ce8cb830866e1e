"""The rows of one slot: read from its partition of the shards topic, kept packed, given out by epoch and range.

Rows are numbered in the order of first occurrence (``ShardSequence``). Epoch 0 gives them in that order; every later
epoch in a permutation keyed by (run key, slot, epoch): the same order for whoever trains, recovers or replays.
Beyond a memory limit rows move to a temporary file. On an endless stream rows before the last snapshot are forgotten.
"""

from __future__ import annotations

import tempfile
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core.rounds import ShardPosition
from gossipdbn.core.values import Manifest, RowRange
from gossipdbn.errors import DataError, LocalProtocolError, RemoteProtocolError
from gossipdbn.kernels.counter_rng import permutation
from gossipdbn.models.rows import AnyRows, PackedRows
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import (
    BITS,
    FLOATS,
    EndMark,
    Shard,
    ShardLimits,
    ShardSequence,
    dtype_code,
    open_shard,
    row_bytes,
)

__all__ = ["RowStore", "limits_of"]


def limits_of(manifest: Manifest) -> ShardLimits:
    """What a shard of the run may be."""
    spec = manifest.spec
    return ShardLimits(
        width=spec.visible, dtype=dtype_code(spec.visible_units), classes=spec.classes, keyed=manifest.keyed
    )


class RowStore:
    """Rows of slot ``slot``.

    Parameters
    ----------
    position : where to begin (from a snapshot); None = the start of the partition.
    memory_bytes : packed rows kept in memory; more go to a temporary file.

    Attributes
    ----------
    rows : distinct rows read so far, forgotten ones included. ended : the end mark was read.
    next_offset : the next offset to read. voids : records that were no shard. held : why reading stopped, or "".
    """

    def __init__(
        self,
        manifest: Manifest,
        slot: int,
        keys: envelope.Keyring,
        position: ShardPosition | None = None,
        memory_bytes: int = 1 << 30,
    ) -> None:
        self.slot, self.voids, self.held = slot, 0, ""
        self._run_key, self._keys, self._limits = manifest.run_key, keys, limits_of(manifest)
        self._endless = any(p.epochs is None for p in manifest.phases)
        self._row_bytes = row_bytes(self._limits.dtype, self._limits.width)
        at = position or ShardPosition(0, 0, ShardSequence().state())
        self._head = ShardSequence.from_state(at.sequence)
        self._tail = ShardSequence.from_state(at.sequence)
        self._tail_offset, self._base = at.offset, at.row
        self.next_offset = at.offset
        self._waiting: deque[tuple[int, str, int, bytes]] = deque()
        self._memory_bytes = memory_bytes
        self._file: Any = None
        self._packed: NDArray[np.uint8] = np.empty((0, self._row_bytes), np.uint8)
        self._labels: NDArray[np.int32] = np.empty(0, np.int32)
        self._permuted: tuple[int, NDArray[np.int64]] | None = None

    @property
    def rows(self) -> int:
        return self._head.rows

    @property
    def ended(self) -> bool:
        return self._head.ended

    def feed(self, offset: int, value: bytes) -> None:
        """Take the next record of the partition.

        Raises
        ------
        DataError : the end mark does not fit the shards before it: the run's data are damaged.
        """
        if offset != self.next_offset:
            raise LocalProtocolError(f"shards partition {self.slot}: read offset {offset}, expected {self.next_offset}")
        try:
            message = open_shard(value, self._limits, self._keys)
        except envelope.Unreadable as e:
            self.held = str(e)
            return
        except RemoteProtocolError:
            self.voids += 1
            self.next_offset += 1
            return
        self.held = ""
        before = self._head.rows
        try:
            kept = self._head.add(message)
        except DataError:
            if isinstance(message, EndMark):
                raise
            self.voids += 1  # a shard counts at its first occurrence; the feed is who stops over another content
            kept = None
        self.next_offset += 1
        if kept is not None:
            self._append(kept, before)
            if self._endless:
                self._waiting.append((offset, kept.id, kept.rows, kept.digest))

    def _append(self, shard: Shard, first: int) -> None:
        start, stop = first - self._base, first - self._base + shard.rows
        if stop > len(self._packed):
            self._grow(max(stop, len(self._packed) * 3 // 2, 1024))
        self._packed[start:stop] = np.frombuffer(shard.values, np.uint8).reshape(shard.rows, self._row_bytes)
        self._labels[start:stop] = -1 if shard.labels is None else np.frombuffer(shard.labels, "<i4")

    def _grow(self, rows: int) -> None:
        labels = np.full(rows, -1, np.int32)
        labels[: len(self._labels)] = self._labels
        self._labels = labels
        if self._file is None and rows * self._row_bytes > self._memory_bytes:
            self._file = tempfile.TemporaryFile(prefix="gossipdbn-rows-")  # noqa: SIM115 - lives as long as the store
            self._file.write(self._packed.tobytes())
        if self._file is not None:
            self._file.truncate(rows * self._row_bytes)
            self._packed = np.memmap(self._file, np.uint8, "r+", shape=(rows, self._row_bytes))
            return
        packed = np.empty((rows, self._row_bytes), np.uint8)
        packed[: len(self._packed)] = self._packed
        self._packed = packed

    def get(self, rows: RowRange) -> tuple[AnyRows, NDArray[np.int32] | None, int]:
        """(values [n, V], labels int32 [n] or None, rows of the slot or 0 while unknown); binary values stay packed."""
        epoch, first, count = rows
        total = self.rows if self.ended else 0
        if first < self._base or first + count > self.rows:
            raise DataError(
                f"slot {self.slot}: rows {first}..{first + count - 1} are not here (have {self._base}.."
                f"{self.rows - 1}); the shards topic no longer holds what the run needs"
            )
        if epoch == 0:
            at: slice | NDArray[np.int64] = slice(first - self._base, first - self._base + count)
        else:
            if self._permuted is None or self._permuted[0] != epoch:
                self._permuted = (epoch, permutation(self._run_key, self.slot, epoch, self.rows))
            at = self._permuted[1][first : first + count]
        labels = self._labels[at] if self._limits.classes else None
        return self._unpack(self._packed[at]), labels, total

    def _unpack(self, packed: NDArray[np.uint8]) -> AnyRows:
        if self._limits.dtype == BITS:
            return PackedRows(packed, self._limits.width)
        if self._limits.dtype == FLOATS:
            return np.ascontiguousarray(packed).view("<f4")
        return np.ascontiguousarray(packed)

    def position(self, first: int) -> ShardPosition | None:
        """Where someone who needs rows from ``first`` on can begin to read (endless streams; None = at the start)."""
        if not self._endless:
            return None
        self._skip(first)
        return ShardPosition(self._tail_offset, self._tail.rows, self._tail.state())

    def _skip(self, first: int) -> None:
        while self._waiting and self._tail.rows + self._waiting[0][2] <= first:
            _, name, rows, digest = self._waiting.popleft()
            self._tail.add(Shard(name, rows, 0, 0, b"", None, digest))
            self._tail_offset = self._waiting[0][0] if self._waiting else self.next_offset

    def forget(self, position: ShardPosition | None) -> None:
        """Rows before ``position`` are in a stored snapshot's past: drop them from memory."""
        if position is None or position.row <= self._base or self._file is not None:
            return
        shift = position.row - self._base
        used = self.rows - self._base
        if shift < used // 2 and used * self._row_bytes < 64 << 20:
            return
        self._packed = self._packed[shift:used].copy()
        self._labels = self._labels[shift:used].copy()
        self._base = position.row
