"""Numbers to visible units and back, as the estimators' first rows fix it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Units = Literal["auto", "binary", "grey", "gaussian"]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How numbers become visible units; fitted on the first rows seen."""

    units: Literal["binary", "grey", "gaussian"]
    mean: Array
    scale: Array

    @staticmethod
    def of(X: Array, units: Units) -> Encoding:
        if units not in ("auto", "binary", "grey", "gaussian"):
            raise ValueError(f"visible_units={units!r} is unknown; choose auto, binary, grey or gaussian")
        chosen = units
        if chosen == "auto":
            inside = X.min() >= 0 and X.max() <= 1
            chosen = "gaussian" if not inside else "binary" if np.isin(X, (0, 1)).all() else "grey"
        if chosen != "gaussian":
            return Encoding(chosen, np.zeros(X.shape[1]), np.ones(X.shape[1]))
        scale = X.std(axis=0, dtype=np.float64)
        return Encoding(chosen, X.mean(axis=0, dtype=np.float64), np.where(scale > 1e-12, scale, 1.0))

    def values(self, X: Array) -> Array:
        """Rows as the kernels take them; ValueError for values outside the units' range."""
        if self.units == "gaussian":
            return np.ascontiguousarray((X - self.mean) / self.scale, np.float32)
        if X.size and (X.min() < 0 or X.max() > 1):
            raise ValueError(
                f"X has values outside 0..1, which {self.units} units cannot take; use visible_units='gaussian'"
            )
        if self.units == "binary" and not np.isin(X, (0, 1)).all():
            raise ValueError("X has values that are neither 0 nor 1; use visible_units='grey' or 'gaussian'")
        return np.ascontiguousarray(np.rint(X * (127 if self.units == "grey" else 1)), np.uint8)

    def numbers(self, again: Array) -> Array:
        """Reconstructed units in the numbers' own measure."""
        return again * self.scale + self.mean if self.units == "gaussian" else again
