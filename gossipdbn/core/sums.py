"""Parameters to which updates are added: not one by one, but many in one pass when somebody looks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels import codec
from gossipdbn.kernels.codec import Deltas

__all__ = ["Sum"]

UNMERGED_MAX = 64  # tensors' deltas that wait to be added in one pass


class Sum:
    """An integer sum of updates. ``start`` int32 [P] is added to in place.

    It can be lent with more in it than others see: an owner's updates on their way through the log. They stay in the
    array when it is given back, because mostly they have come back when it is lent again; who looks takes them out.
    """

    def __init__(self, start: NDArray[np.int32]) -> None:
        self._acc = start
        self._lent = 0
        self._beyond: list[Deltas] = []
        self._unmerged: list[Deltas] = []
        self._unmerged_bytes = 0

    @property
    def total(self) -> NDArray[np.int32]:
        """The sum so far, int32 [P]."""
        return self._with(())

    def lend(self, beyond: Sequence[Deltas] = ()) -> NDArray[np.int32]:
        """The sum so far and what is ``beyond`` it, in an array that does not change before it is given back as often
        as it was lent.
        """
        lent = self._with(beyond)
        self._lent += 1
        return lent

    def give_back(self, lent: NDArray[np.int32]) -> None:
        """Somebody is done with it."""
        self._lent -= lent is self._acc and self._lent > 0

    def add(self, deltas: Sequence[Deltas]) -> None:
        """Keep an update's deltas until somebody looks, but never more bytes than the parameters have."""
        self._unmerged += deltas
        self._unmerged_bytes += sum(d.nbytes for d in deltas)
        if len(self._unmerged) >= UNMERGED_MAX or self._unmerged_bytes > self._acc.nbytes:
            _ = self.total

    def _with(self, beyond: Sequence[Deltas]) -> NDArray[np.int32]:
        inside, wanted = Counter(self._beyond), Counter([*self._unmerged, *beyond])
        changes = [*(wanted - inside).elements(), *(d.negated() for d in (inside - wanted).elements())]
        if changes:
            if self._lent:  # somebody computes with it: go on with a copy
                self._acc, self._lent = self._acc.copy(), 0
            codec.merge(self._acc, changes)
        self._beyond = list(beyond)
        self._unmerged.clear()
        self._unmerged_bytes = 0
        return self._acc
