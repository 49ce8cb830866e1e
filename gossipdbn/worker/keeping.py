"""Snapshots on their way to the store: copied to a file between two rounds, stored by a thread of their own."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import time
from collections import deque
from collections.abc import Container, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import BinaryIO

import numpy as np

from gossipdbn.core.chain import Chain
from gossipdbn.core.events import Snapshot
from gossipdbn.core.values import Manifest, SnapshotAnnounced
from gossipdbn.errors import GossipDbnError, StoreError
from gossipdbn.ports import SnapshotStore
from gossipdbn.wire.snapshots import announce, chain_room, write_chain, write_snapshot
from gossipdbn.worker.tuning import CadenceTuner

__all__ = ["SnapshotWriter"]

logger = logging.getLogger("gossipdbn.worker")


@dataclass(frozen=True, slots=True)
class _Copy:
    """A snapshot in a file without a name. ``snapshot`` without its arrays; ``problem``: why there is no file."""

    snapshot: Snapshot
    spool: BinaryIO
    cost_s: float
    problem: str = ""


class SnapshotWriter:
    """Stores one snapshot after another; no copy lies in memory meanwhile. ``cadence`` learns what each cost.

    A store that takes none is told of once, and once more when every slot has one in it again.
    """

    def __init__(
        self, store: SnapshotStore, manifest: Manifest, pool: ThreadPoolExecutor, cadence: CadenceTuner
    ) -> None:
        self._store, self._manifest, self._pool, self.cadence = store, manifest, pool, cadence
        self._copies: dict[int, _Copy] = {}
        self._under_way: deque[tuple[Snapshot, Future[tuple[SnapshotAnnounced, float]]]] = deque()
        self._without: set[int] = set()  # slots whose newest snapshot was not written
        self._missed = 0  # snapshots that were not written since the warning

    @property
    def busy(self) -> bool:
        """Whether a snapshot is not stored yet, or stored and not told of."""
        return bool(self._under_way)

    def copy(self, snapshot: Snapshot) -> None:
        """Write the snapshot to a temporary file, as fast as memory; its arrays are free then."""
        began = time.thread_time()
        self.drop(snapshot.slot)
        spool: BinaryIO = io.BytesIO()
        problem = ""
        try:
            spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives until it is stored
            write_snapshot(self._manifest, snapshot, spool, chain_room(self._manifest))
        except OSError as e:
            problem = f"the temporary folder took no snapshot: {e.strerror}"
        none = np.empty(0, np.int32)
        light = replace(snapshot, parameters=none, state=replace(snapshot.state, residual=none, optimiser={}))
        self._copies[snapshot.slot] = _Copy(light, spool, time.thread_time() - began, problem)

    def write(self, slot: int, chain: Chain) -> None:
        """Begin to store the slot's copy; ``done`` tells. ``chain``: where the slot's partition stands."""
        copied = self._copies.pop(slot)
        chains = (*copied.snapshot.chains[:slot], chain, *copied.snapshot.chains[slot + 1 :])
        copied = replace(copied, snapshot=replace(copied.snapshot, chains=chains))
        every_ms = round(1000 * self.cadence.every_s)
        self._under_way.append((copied.snapshot, self._pool.submit(self._write, copied, chain, every_ms)))

    def drop(self, slot: int) -> None:
        """The slot's copy, if there is one, will never be whole."""
        copied = self._copies.pop(slot, None)
        if copied is not None:
            copied.spool.close()

    def done(self, hosted: Container[int]) -> Iterator[tuple[Snapshot, SnapshotAnnounced | None]]:
        """Snapshots (without their arrays) that are in the store, or could not be written (None).

        ``hosted`` : the worker's slots; one that has left is not waited for before all is well again.
        """
        while self._under_way and self._under_way[0][1].done():
            snapshot, future = self._under_way.popleft()
            try:
                message, cost_s = future.result()
            except GossipDbnError as e:
                self._not_written(snapshot.slot, e)
                yield snapshot, None
                continue
            self._written(snapshot.slot, hosted)
            self.cadence.written(cost_s)
            yield snapshot, message

    def delete(self, name: str) -> None:
        """Remove an old snapshot, some time."""
        self._pool.submit(self._delete, name)

    def _not_written(self, slot: int, why: GossipDbnError) -> None:
        if not self._missed:
            logger.warning("snapshot of slot %d was not written; training goes on without: %s", slot, why)
        else:
            logger.debug("snapshot of slot %d was not written either: %s", slot, why)
        self._missed += 1
        self._without.add(slot)

    def _written(self, slot: int, hosted: Container[int]) -> None:
        if not self._missed:
            return
        self._without = {s for s in self._without if s != slot and s in hosted}
        if not self._without:
            logger.warning("snapshots are written again, after %d that were not", self._missed)
            self._missed = 0

    def _write(self, copied: _Copy, chain: Chain, every_ms: int) -> tuple[SnapshotAnnounced, float]:
        began = time.thread_time()  # waiting for a disk or a network keeps nobody from training
        with copied.spool as spool:
            if copied.problem:
                raise StoreError(copied.problem, retryable=True)
            write_chain(copied.snapshot.slot, chain, spool)
            message = announce(self._manifest, copied.snapshot, spool, every_ms)
            self._store.put(message.name, spool)
        return message, copied.cost_s + time.thread_time() - began

    def _delete(self, name: str) -> None:
        with contextlib.suppress(StoreError):
            self._store.delete(name)
