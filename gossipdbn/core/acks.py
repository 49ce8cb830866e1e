"""Which updates partitions need no reading: those in which, as far as anybody knows, only this worker writes.

The log says where each record that a worker sent stands. One that stands at the next offset is the next record, word
for word, and need not be fetched again: with two workers that spares the brokers a third of what updates ask of them.
The rest is caution. A record further on has others before it, and a silence may hide another's claim: either way the
partition is read again, from where its chain ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from gossipdbn.core.chain import Chain
from gossipdbn.core.events import Follow

__all__ = ["Acks"]

QUIET_S = 0.25
"""So long a partition goes unread without an acknowledgement: how much later than others its owner is fenced."""


class Acks:
    """Since when, per partition that is not read, nothing was acknowledged."""

    def __init__(self) -> None:
        self._heard_s: dict[int, float] = {}

    def is_next(self, partition: int, chain: Chain, offset: int, now_s: float) -> tuple[bool, list[Follow]]:
        """Whether a record acknowledged at ``offset`` is the partition's next one, and what to do about its reading."""
        if 0 <= offset < chain.offset:  # it was read before
            return False, []
        if offset != chain.offset:
            return False, self.read_on(partition, chain)
        stop = [] if partition in self._heard_s else [Follow(partition, None)]
        self._heard_s[partition] = now_s
        return True, stop

    def read_on(self, partition: int, chain: Chain) -> list[Follow]:
        """Read the partition again, if it is not read."""
        return [] if self._heard_s.pop(partition, None) is None else [Follow(partition, chain.offset)]

    def quiet(self, chains: Sequence[Chain], now_s: float) -> list[Follow]:
        """Read again where nothing was acknowledged for a while."""
        silent = [p for p, heard_s in self._heard_s.items() if now_s - heard_s >= QUIET_S]
        return [f for p in silent for f in self.read_on(p, chains[p])]

    def forget(self, partition: int) -> None:
        """The driver reads it again by itself."""
        self._heard_s.pop(partition, None)
