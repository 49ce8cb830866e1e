"""What stands in for training and for the rows' owner: cheap, exact, and different whenever any input differs."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core.rounds import RoundJob, ShardPosition
from gossipdbn.core.values import Manifest, RowRange
from gossipdbn.errors import DataError, RemoteProtocolError
from gossipdbn.kernels.counter_rng import permutation
from gossipdbn.models.learners import RoundStats
from gossipdbn.models.rows import AnyRows, dense
from gossipdbn.models.spec import ModelSpec, PhaseSpec, trained_tensors
from gossipdbn.wire.shards import ShardLimits, ShardSequence, dtype_code, open_shard, unpack

__all__ = ["RowView", "train"]


@lru_cache(maxsize=256)
def _changed(spec: ModelSpec, phase: PhaseSpec) -> NDArray[np.int64]:
    return np.concatenate([np.arange(at.start, at.stop) for _, at, _ in trained_tensors(spec, phase)])


def train(
    manifest: Manifest, job: RoundJob, values: AnyRows, _labels: NDArray[np.int32] | None, total_rows: int
) -> RoundStats:
    """An abstract round: every changed parameter moves by a non-zero hash of all inputs of the round.

    The learner's memory is one more array beside those of the real learners, moved on by the same hash.
    """
    h = hashlib.blake2b(digest_size=32)
    h.update(job.parameters.data)
    for name in sorted(job.optimiser):
        h.update(name.encode())
        h.update(np.ascontiguousarray(job.optimiser[name]).data)
    h.update(np.ascontiguousarray(dense(values)).data)
    h.update(repr((tuple(job.rows), job.slot, job.phase, job.step, total_rows if job.rows.epoch else 0)).encode())
    seed = h.digest()
    at = _changed(manifest.spec, manifest.phases[job.phase])
    draws = np.frombuffer(hashlib.shake_128(seed).digest(2 * at.size), "<i2").astype(np.int32)
    job.parameters[at] += (draws * 2 + 1) * 32  # odd multiples: never zero
    job.optimiser["memory"] = np.frombuffer(seed[:8], np.uint8).copy()
    return RoundStats(rows=job.rows.count, reconstruction_error=0.0, loss=0.0, correct=0, minibatches=1)


class RowView:
    """The rows of one slot as read so far from its partition, through the production's shard decoder."""

    def __init__(self, manifest: Manifest, slot: int, position: ShardPosition | None = None) -> None:
        self.slot, self.next_offset = slot, 0
        self._manifest = manifest
        spec = manifest.spec
        self._limits = ShardLimits(spec.visible, dtype_code(spec.visible_units), spec.classes)
        self._sequence = ShardSequence()
        self._rows: list[np.ndarray] = []
        self._labels: list[int] = []
        self.problem = ""

    @property
    def rows(self) -> int:
        """Distinct rows so far."""
        return self._sequence.rows

    @property
    def ended(self) -> bool:
        """Whether the end mark was read."""
        return self._sequence.ended

    def feed(self, raw: bytes) -> None:
        """The next record of the partition; raises DataError when the source was changed."""
        self.next_offset += 1
        try:
            message = open_shard(raw, self._limits)
        except RemoteProtocolError:
            return
        kept = self._sequence.add(message)
        if kept is not None:
            values, labels = unpack(kept)
            self._rows.extend(values)
            self._labels.extend([] if labels is None else labels.tolist())

    def get(self, rows: RowRange) -> tuple[np.ndarray, NDArray[np.int32] | None, int]:
        """Rows of a round, in the order of their epoch."""
        epoch, first, count = rows
        if first + count > self.rows or (epoch and not self.ended):
            raise DataError(f"slot {self.slot}: rows {first}..{first + count - 1} of pass {epoch} are not here")
        order = permutation(self._manifest.run_key, self.slot, epoch, self.rows) if epoch else range(self.rows)
        at = [order[i] for i in range(first, first + count)]
        labels = np.array([self._labels[i] for i in at], np.int32) if self._labels else None
        return np.array([self._rows[i] for i in at]), labels, self.rows if self.ended else 0
