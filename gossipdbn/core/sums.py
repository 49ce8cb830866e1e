"""Parameters to which updates are added: not one by one, but many in one pass when somebody looks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels import codec
from gossipdbn.kernels.codec import Deltas

__all__ = ["Sum"]

UNMERGED_MAX = 64  # tensors' deltas that wait to be added in one pass


class Sum:
    """An integer sum of updates. ``start`` int32 [P] is added to in place."""

    def __init__(self, start: NDArray[np.int32]) -> None:
        self._acc = start
        self._lent = 0
        self._beyond: tuple[Deltas, ...] = ()  # what is in ``_acc`` only while it is lent
        self._unmerged: list[Deltas] = []
        self._unmerged_bytes = 0

    @property
    def total(self) -> NDArray[np.int32]:
        """The sum so far, int32 [P]."""
        if self._lent and (self._unmerged or self._beyond):  # somebody computes with it: go on with a copy
            self._acc, self._lent = self._acc.copy(), 0
            self._take_out()
        if self._unmerged:
            codec.merge(self._acc, self._unmerged)
            self._unmerged.clear()
            self._unmerged_bytes = 0
        return self._acc

    def _take_out(self) -> None:
        if self._beyond:
            codec.merge(self._acc, [d.negated() for d in self._beyond])
            self._beyond = ()

    def lend(self, beyond: Sequence[Deltas] = ()) -> NDArray[np.int32]:
        """The sum so far and what is ``beyond`` it, which others do not see, in an array that does not change before
        it is given back as often as it was lent.
        """
        total = self.total
        if beyond and self._lent:
            total = self._acc = total.copy()
            self._lent = 0
        if beyond:
            self._beyond = tuple(beyond)
            codec.merge(total, self._beyond)
        self._lent += 1
        return total

    def give_back(self, lent: NDArray[np.int32]) -> None:
        """Somebody is done with it."""
        if lent is self._acc and self._lent:
            self._lent -= 1
            self._take_out()

    def add(self, deltas: Sequence[Deltas]) -> None:
        """Keep an update's deltas until somebody looks, but never more bytes than the parameters have."""
        self._unmerged += deltas
        self._unmerged_bytes += sum(d.nbytes for d in deltas)
        if len(self._unmerged) >= UNMERGED_MAX or self._unmerged_bytes > self._acc.nbytes:
            _ = self.total
