"""Payloads that travel through the store: written before their update is sent, fetched before it is judged.

Both happen in the background: a store that is slow or down holds up the slots and partitions concerned, and nothing
else. Order is kept per slot: an update is sent when its payload is stored and all earlier ones of its slot are sent.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from gossipdbn.core.events import Hold, Publish
from gossipdbn.core.values import Payload
from gossipdbn.errors import SnapshotError, StoreError
from gossipdbn.ports import SnapshotStore
from gossipdbn.wire.messages import payload_name
from gossipdbn.worker.recover import fetch_payload

__all__ = ["Held", "Outbox"]

logger = logging.getLogger("gossipdbn.worker")
RETRY_S = 0.5
TELL_S = 30.0


@dataclass(slots=True)
class _Waiting:
    effect: Publish
    stored: Future[None] | None
    retry_at_s: float = 0.0


class Outbox:
    """Updates on their way to the log.

    Parameters
    ----------
    send : gives (slot, record) to the log's writer. pool : where payloads are written.
    """

    def __init__(self, store: SnapshotStore, pool: Executor, send: Callable[[int, bytes], None]) -> None:
        self._store, self._pool, self._send = store, pool, send
        self._queues: dict[int, deque[_Waiting]] = {}
        self._told_s = -TELL_S

    def publish(self, effect: Publish) -> None:
        """Send, now or as soon as the payload and everything before it are out."""
        queue = self._queues.get(effect.slot)
        if effect.spill is None and not queue:
            self._send(effect.slot, effect.raw)
            return
        self._queues.setdefault(effect.slot, deque()).append(_Waiting(effect, self._store_payload(effect)))

    def drop(self, slot: int) -> None:
        """The slot's owner gave its state up: what is not sent will never be."""
        self._queues.pop(slot, None)

    def turn(self, now_s: float) -> None:
        """Send what has become ready; try again what the store did not take."""
        for slot, queue in list(self._queues.items()):
            while queue and self._ready(slot, queue[0], now_s):
                effect = queue.popleft().effect
                self._send(slot, effect.raw)
                if self._queues.get(slot) is not queue:  # that send failed, and the slot was dropped
                    break
            if not queue and self._queues.get(slot) is queue:
                del self._queues[slot]

    def _store_payload(self, effect: Publish) -> Future[None] | None:
        if effect.spill is None:
            return None
        ref, data = effect.spill
        return self._pool.submit(self._store.put, payload_name(ref), data)

    def _ready(self, slot: int, waiting: _Waiting, now_s: float) -> bool:
        if waiting.effect.spill is None:
            return True
        if waiting.stored is None:
            if now_s >= waiting.retry_at_s:
                waiting.stored = self._store_payload(waiting.effect)
            return False
        if not waiting.stored.done():
            return False
        try:
            waiting.stored.result()
        except (StoreError, SnapshotError) as e:
            waiting.stored, waiting.retry_at_s = None, now_s + RETRY_S
            if now_s - self._told_s >= TELL_S:
                self._told_s = now_s
                logger.warning("slot %d waits: the payload of its update is not stored: %s", slot, e)
            return False
        return True


@dataclass(slots=True)
class _Fetch:
    hold: Hold
    payload: Future[Payload | None] | None
    retry_at_s: float = 0.0
    told: bool = False


class Held:
    """Partitions that are stopped at an undecided record, and the payloads they wait for."""

    def __init__(self, store: SnapshotStore, pool: Executor) -> None:
        self._store, self._pool = store, pool
        self._fetches: dict[int, _Fetch] = {}

    def __contains__(self, partition: int) -> bool:
        return partition in self._fetches

    @property
    def holds(self) -> list[Hold]:
        """The records that their partitions are stopped at."""
        return [f.hold for f in self._fetches.values()]

    def add(self, hold: Hold) -> None:
        """Stop a partition; a payload that is in the store already comes with the next ``turn``."""
        self._fetches[hold.partition] = _Fetch(hold, self._fetch(hold), told=hold.wants is None)
        if hold.wants is None:
            logger.warning("updates partition %d waits at offset %d: %s", hold.partition, hold.offset, hold.reason)

    def turn(self, now_s: float) -> Iterator[tuple[Hold, Payload]]:
        """Records that can be judged now; their partitions are no longer held."""
        for partition, fetch in list(self._fetches.items()):
            hold = fetch.hold
            if fetch.payload is None:
                if hold.wants is not None and now_s >= fetch.retry_at_s:
                    fetch.payload = self._fetch(hold)
                continue
            if not fetch.payload.done():
                continue
            payload = fetch.payload.result()
            if payload is not None:
                del self._fetches[partition]
                yield hold, payload
                continue
            fetch.payload, fetch.retry_at_s = None, now_s + RETRY_S
            if not fetch.told:
                fetch.told = True
                logger.warning("updates partition %d waits at offset %d: %s", partition, hold.offset, hold.reason)

    def _fetch(self, hold: Hold) -> Future[Payload | None] | None:
        return None if hold.wants is None else self._pool.submit(fetch_payload, self._store, hold.wants)
