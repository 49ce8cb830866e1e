"""Payloads that the store has lost: recomputed from the log like any round, and put back under their names.

A partition whose next update names a payload that is not to be had is stopped for every reader, at its owner as well
and for whoever shall own it next. Whoever still has the payload stores it again; else any worker recomputes the slot's
rounds up to that update, from a snapshot or from the start of the log: the bytes are named by their sha256, so it does
not matter who, or how many. Hosts of the slot begin after a while, others after three times as long.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import Executor, Future

from gossipdbn.core.events import Hold, Recover
from gossipdbn.core.host import Host
from gossipdbn.core.resume import beyond
from gossipdbn.core.values import PayloadRef
from gossipdbn.errors import LogError, SnapshotError, StoreError
from gossipdbn.ports import SnapshotStore
from gossipdbn.wire.messages import RunWire, payload_name
from gossipdbn.worker.recover import Recovery

__all__ = ["Mender"]

logger = logging.getLogger("gossipdbn.worker")
OTHERS_WAIT = 3
AGAIN_S = 60.0


class Mender:
    """Recomputes what partitions wait for, a round per turn.

    Parameters
    ----------
    recovery : makes a recovery, which gives ``keep`` the payloads that it recomputed.
    after_s : how long a slot's host waits for a payload before it does something about it.
    """

    def __init__(
        self,
        host: Host,
        wire: RunWire,
        store: SnapshotStore,
        pool: Executor,
        recovery: Callable[[Recover], Recovery],
        after_s: float,
    ) -> None:
        self._host, self._wire, self._store, self._pool = host, wire, store, pool
        self._recovery, self._after_s = recovery, after_s
        self._since_s: dict[int, tuple[Hold, float]] = {}
        self._under_way: dict[int, Recovery] = {}
        self._found: dict[PayloadRef, tuple[bytes, Future[None] | None]] = {}

    def turn(self, holds: list[Hold], now_s: float) -> bool:
        """One round more for one of the partitions that wait; whether there is more to do at once."""
        self._put_back()
        slots = self._host.replica.manifest.slots
        waiting = {h.partition: h for h in holds if h.wants is not None and h.partition < slots}
        for partition in [p for p, (hold, _) in self._since_s.items() if waiting.get(p) != hold]:
            del self._since_s[partition]
            self._under_way.pop(partition, None)
        for partition, hold in waiting.items():
            since_s = self._since_s.setdefault(partition, (hold, now_s))[1]
            patience_s = self._after_s * (1 if partition in self._host.slots else OTHERS_WAIT)
            if partition not in self._under_way and now_s - since_s >= patience_s and hold.wants not in self._found:
                self._begin(hold)
        if self._under_way:
            self._advance(*next(iter(self._under_way.items())), now_s)
        return bool(self._under_way)

    def _begin(self, hold: Hold) -> None:
        payload = self._host.under_way(hold.partition, hold.raw)
        if payload is not None:
            self.keep(*self._wire.pack_payload(payload))
            return
        logger.warning("partition %d: recomputing a payload that is gone (%s)", hold.partition, hold.reason)
        effect = beyond(hold.partition, self._host.replica.chains[hold.partition], hold.raw)
        self._under_way[hold.partition] = self._recovery(effect)

    def _advance(self, partition: int, recovery: Recovery, now_s: float) -> None:
        try:
            outcome = recovery.advance()
        except (LogError, StoreError) as e:
            logger.info("partition %d: recomputing its payload waits: %s", partition, e)
            self._again(partition, now_s)
            return
        if outcome is None:
            return
        if outcome.state is None:
            logger.warning("partition %d: its payload cannot be recomputed here: %s", partition, outcome.reason)
            self._again(partition, now_s + AGAIN_S)
            return
        del self._under_way[partition]

    def _again(self, partition: int, from_s: float) -> None:
        """Begin anew, some time later."""
        del self._under_way[partition]
        self._since_s[partition] = (self._since_s[partition][0], from_s)

    def keep(self, ref: PayloadRef, data: bytes) -> None:
        """Put it back into the store, and try until it is there."""
        self._found[ref] = (data, None)

    def _put_back(self) -> None:
        for ref, (data, stored) in list(self._found.items()):
            if stored is not None and not stored.done():
                continue
            try:
                if stored is not None:
                    stored.result()
                    del self._found[ref]
                    logger.warning("payload %s is back in the store, %d bytes", ref.sha256.hex()[:12], len(data))
                    continue
            except (StoreError, SnapshotError) as e:
                logger.info("payload %s is not stored yet: %s", ref.sha256.hex()[:12], e)
            self._found[ref] = (data, self._pool.submit(self._store.put, payload_name(ref), data))
