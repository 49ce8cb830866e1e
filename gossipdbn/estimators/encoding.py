"""Numbers to visible units and back, as the estimators' first rows fix it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gossipdbn.models.rows import AnyRows, PackedRows, SparseRows

Units = Literal["auto", "binary", "grey", "gaussian"]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Encoding:
    """How numbers become visible units; fitted on the first rows seen."""

    units: Literal["binary", "grey", "gaussian"]
    mean: Array
    scale: Array

    @staticmethod
    def of(X: Any, units: Units) -> Encoding:
        """From the first rows: an array, a CSR matrix, or `PackedRows`."""
        if units not in ("auto", "binary", "grey", "gaussian"):
            raise ValueError(f"visible_units={units!r} is unknown; choose auto, binary, grey or gaussian")
        if isinstance(X, PackedRows):
            if units not in ("auto", "binary"):
                raise ValueError(f"packed rows are binary, visible_units is {units!r}")
            return Encoding("binary", np.zeros(X.width), np.ones(X.width))
        chosen = units
        if chosen == "auto":
            inside = X.min() >= 0 and X.max() <= 1
            chosen = "gaussian" if not inside else "binary" if np.isin(_held(X), (0, 1)).all() else "grey"
        if chosen != "gaussian":
            return Encoding(chosen, np.zeros(X.shape[1]), np.ones(X.shape[1]))
        mean, scale = _moments(X)
        return Encoding(chosen, mean, np.where(scale > 1e-12, scale, 1.0))

    def values(self, X: Any) -> AnyRows:
        """Rows as the kernels take them; ValueError for values outside the units' range."""
        if isinstance(X, PackedRows):
            if self.units != "binary":
                raise ValueError(f"packed rows are binary, the visible units are {self.units}")
            return X
        held = _held(X)
        if self.units == "gaussian":
            if held is X:
                return np.ascontiguousarray((X - self.mean) / self.scale, np.float32)
            at = X.indices
            data = ((held - self.mean[at]) / self.scale[at]).astype(np.float32)
            return SparseRows.of(_same_places(X, data), ((0.0 - self.mean) / self.scale).astype(np.float32))
        if held.size and (held.min() < 0 or held.max() > 1):
            raise ValueError(
                f"X has values outside 0..1, which {self.units} units cannot take; use visible_units='gaussian'"
            )
        if self.units == "binary" and not np.isin(held, (0, 1)).all():
            raise ValueError("X has values that are neither 0 nor 1; use visible_units='grey' or 'gaussian'")
        data = np.ascontiguousarray(np.rint(held * (127 if self.units == "grey" else 1)), np.uint8)
        return data if held is X else SparseRows.of(_same_places(X, data))

    def numbers(self, again: Array) -> Array:
        """Reconstructed units in the numbers' own measure."""
        return again * self.scale + self.mean if self.units == "gaussian" else again


def canonical(X: Any) -> Any:
    """A CSR matrix with one entry a place; anything else as it is."""
    if not hasattr(X, "indptr") or X.has_canonical_format:
        return X
    X = X.copy()
    X.sum_duplicates()
    return X


def _held(X: Any) -> Array:
    """The numbers that are there: all of an array, the stored ones of a CSR matrix."""
    return X.data if hasattr(X, "indptr") else X


def _same_places(X: Any, data: Array) -> Any:
    return type(X)((data, X.indices, X.indptr), shape=X.shape)


def _moments(X: Any) -> tuple[Array, Array]:
    """Mean and standard deviation of each column (float64), the same bits for an array and a CSR matrix."""
    if not hasattr(X, "indptr"):
        return X.mean(axis=0, dtype=np.float64), X.std(axis=0, dtype=np.float64)
    n = X.shape[0]
    mean = _folded(X, lambda block: block) / n
    return mean, np.sqrt(_folded(X, lambda block: np.square(block - mean)) / n)


def _folded(X: Any, of: Callable[[Array], Array]) -> Array:
    """Sum of each column of a function of the rows in numpy's order, a block at a time where that order allows it."""
    total = np.zeros(X.shape[1])
    if X.shape[1] == 1:
        return np.add.reduce(of(X.toarray().astype(np.float64)), axis=0)
    for first in range(0, X.shape[0], 1024):
        block = of(X[first : first + 1024].toarray().astype(np.float64))
        total = np.add.reduce(np.concatenate((total[None], block)), axis=0)
    return total
