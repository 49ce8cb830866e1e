"""Payloads that were lost and are computed again: back into the store, under their names."""

from __future__ import annotations

import logging
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from gossipdbn.core.values import PayloadRef
from gossipdbn.errors import SnapshotError, StoreError
from gossipdbn.ports import SnapshotStore
from gossipdbn.wire.messages import payload_name

__all__ = ["PutBack"]

logger = logging.getLogger("gossipdbn.worker")
RETRY_S = 0.5


@dataclass(slots=True)
class _Found:
    data: bytes
    stored: Future[None] | None = None
    retry_at_s: float = 0.0


class PutBack:
    """Stores payloads in the background, and tries until they are there."""

    def __init__(self, store: SnapshotStore, pool: Executor) -> None:
        self._store, self._pool = store, pool
        self._found: dict[PayloadRef, _Found] = {}

    def keep(self, ref: PayloadRef, data: bytes) -> None:
        """Put it into the store."""
        self._found.setdefault(ref, _Found(data))

    def turn(self, now_s: float) -> None:
        """See what is stored; try again what the store did not take."""
        for ref, found in list(self._found.items()):
            if found.stored is None:
                if now_s >= found.retry_at_s:
                    found.stored = self._pool.submit(self._store.put, payload_name(ref), found.data)
            elif found.stored.done():
                self._answered(ref, found, found.stored, now_s)

    def _answered(self, ref: PayloadRef, found: _Found, stored: Future[None], now_s: float) -> None:
        try:
            stored.result()
        except (StoreError, SnapshotError) as e:
            found.stored, found.retry_at_s = None, now_s + RETRY_S
            logger.info("payload %s is not stored yet: %s", ref.sha256.hex()[:12], e)
            return
        del self._found[ref]
        logger.warning("payload %s is back in the store, %d bytes", ref.sha256.hex()[:12], len(found.data))
