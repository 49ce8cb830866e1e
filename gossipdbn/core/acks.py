"""Which updates partitions need no reading: those in which, as far as anybody knows, only this worker writes.

The log says where each record that a worker sent stands. One that stands at the next offset is the next record, word
for word, and need not be fetched again: with two workers that spares the brokers a third of what updates ask of them.
The rest is caution. A record further on has others before it, and a silence may hide another's claim: either way the
partition is read again, from where its chain ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from gossipdbn.core.chain import Chain
from gossipdbn.core.events import Follow

__all__ = ["Acks"]

QUIET_S = 0.25
"""So long a partition goes unread without an acknowledgement: how much later than others its owner may be fenced."""


class Acks:
    """When, per partition, the next record was last acknowledged; a partition is read unless that is often so."""

    def __init__(self) -> None:
        self._heard_s: dict[int, float] = {}
        self._unread: set[int] = set()

    def is_next(self, partition: int, chain: Chain, offset: int, now_s: float) -> tuple[bool, list[Follow]]:
        """Whether a record acknowledged at ``offset`` is the partition's next one, and what to do about its reading."""
        if 0 <= offset < chain.offset:  # it was read before
            return False, []
        if offset != chain.offset:
            return False, self.read_on(partition, chain)
        often = now_s - self._heard_s.get(partition, -math.inf) < QUIET_S
        self._heard_s[partition] = now_s
        if not often or partition in self._unread:
            return True, []
        self._unread.add(partition)
        return True, [Follow(partition, None)]

    def read_on(self, partition: int, chain: Chain) -> list[Follow]:
        """Read the partition again, if it is not read."""
        unread = partition in self._unread
        self.forget(partition)
        return [Follow(partition, chain.offset)] if unread else []

    def quiet(self, chains: Sequence[Chain], now_s: float) -> list[Follow]:
        """Read again where nothing was acknowledged for a while."""
        silent = [p for p in self._unread if now_s - self._heard_s[p] >= QUIET_S]
        return [f for p in silent for f in self.read_on(p, chains[p])]

    def forget(self, partition: int) -> None:
        """The driver reads it again by itself."""
        self._unread.discard(partition)
        self._heard_s.pop(partition, None)
