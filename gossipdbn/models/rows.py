"""Rows in memory: dense arrays, bits, or compressed sparse rows; whoever reads them gets the same results.

Dense rows are plain arrays. `PackedRows` are binary rows at an eighth of the bytes; `SparseRows` hold what is not zero
(``scipy.sparse`` CSR matrices and arrays become them without a copy of their entries). Both are taken wherever dense
rows are, are cut and picked along rows as arrays are, and are never made dense as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import DataError
from gossipdbn.kernels import rows
from gossipdbn.kernels.rows import RowView

__all__ = ["AnyRows", "PackedRows", "SparseRows", "as_rows", "blocks", "dense", "row_view"]

BLOCK_ROWS = 1024
Pick = slice | NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """Binary rows as ``numpy.packbits(values, axis=1)`` packs them.

    Parameters
    ----------
    bits : uint8 [n, ceil(width / 8)]; bits behind the last unit mean nothing. width : visible units.

    Raises
    ------
    DataError : the array has another shape or type.
    """

    bits: NDArray[np.uint8]
    width: int

    def __post_init__(self) -> None:
        if self.bits.ndim != 2 or self.bits.dtype != np.uint8 or self.bits.shape[1] != (self.width + 7) // 8:
            wanted = f"uint8 [n, {(self.width + 7) // 8}]"
            raise DataError(f"packed rows are {self.bits.dtype} {list(self.bits.shape)}; {self.width} units: {wanted}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.bits.shape[0], self.width

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.uint8)

    def __len__(self) -> int:
        return self.bits.shape[0]

    def __getitem__(self, pick: Pick) -> PackedRows:
        return PackedRows(self.bits[pick], self.width)

    def dense(self) -> NDArray[np.uint8]:
        """All rows, uint8 0/1 [n, width]."""
        return np.unpackbits(self.bits, axis=1, count=self.width)

    def view(self) -> RowView:
        """As kernels read them."""
        return rows.packed_view(self.bits)


@dataclass(frozen=True, slots=True, eq=False)
class SparseRows:
    """Compressed rows (CSR): row r has the entries ``indptr[r]`` to ``indptr[r + 1]``, in any order, no column twice.

    Parameters
    ----------
    data : uint8 or float32 [count]. indices : int32 [count], the columns. indptr : int64 [n + 1], from 0 on.
    rest : of data's type, [width]: what entries that are not stored mean.

    Use `of`, which checks; kernels trust what is here.
    """

    data: NDArray[np.uint8] | NDArray[np.float32]
    indices: NDArray[np.int32]
    indptr: NDArray[np.int64]
    rest: NDArray[np.uint8] | NDArray[np.float32]

    @classmethod
    def of(cls, matrix: Any, rest: NDArray[Any] | None = None) -> SparseRows:
        """From a CSR matrix or array of scipy (data uint8 or float32); entries of one place are added up.

        Raises
        ------
        DataError : other data, or an index outside the matrix.
        """
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        n, width = matrix.shape
        data, starts = np.asarray(matrix.data), np.asarray(matrix.indptr, np.int64)
        if data.dtype not in (np.uint8, np.float32):
            raise DataError(f"sparse rows hold {data.dtype}; wanted are uint8 or float32")
        if rest is None:
            rest = np.zeros(width, data.dtype)
        columns = np.asarray(matrix.indices)
        if starts.shape != (n + 1,) or starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] > len(data):
            raise DataError("sparse rows: the row starts do not ascend from 0 to the number of entries")
        count = int(starts[-1])
        data, columns = data[:count], columns[:count]
        if len(columns) != count or (count and not 0 <= columns.min() <= columns.max() < width):
            raise DataError(f"sparse rows: a column outside 0 to {width - 1}")
        return cls(data, columns.astype(np.int32, copy=False), starts, rest)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.indptr) - 1, len(self.rest)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.data.dtype

    def __len__(self) -> int:
        return len(self.indptr) - 1

    def __getitem__(self, pick: Pick) -> SparseRows:
        if isinstance(pick, slice):
            first, stop, step = pick.indices(len(self))
            if step == 1:
                starts = self.indptr[first : max(first, stop) + 1]
                part = slice(int(starts[0]), int(starts[-1]))
                return SparseRows(self.data[part], self.indices[part], starts - starts[0], self.rest)
            pick = np.arange(first, stop, step)
        begin = self.indptr[:-1][pick]
        lengths = self.indptr[1:][pick] - begin
        starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))
        at = np.repeat(begin - starts[:-1], lengths) + np.arange(int(starts[-1]))
        return SparseRows(self.data[at], self.indices[at], starts, self.rest)

    def dense(self) -> NDArray[Any]:
        """All rows as one array [n, width]."""
        out = np.tile(self.rest, (len(self), 1))
        out[np.repeat(np.arange(len(self)), np.diff(self.indptr)), self.indices] = self.data
        return out

    def view(self) -> RowView:
        """As kernels read them."""
        return rows.sparse_view(self.data, self.indices, self.indptr, self.rest)


AnyRows = NDArray[np.uint8] | NDArray[np.float32] | PackedRows | SparseRows
"""What learners and readers of models take; a CSR matrix of scipy too, by way of `as_rows`."""


def as_rows(values: Any) -> AnyRows:
    """Rows as they are, or those of a CSR matrix or array of scipy.

    Raises
    ------
    DataError : a sparse matrix of another format or with data other than uint8 or float32.
    """
    kind = getattr(values, "format", None)
    if kind is None or isinstance(values, np.ndarray):
        return values
    if kind != "csr":
        raise DataError(f"a sparse matrix of format {kind!r}; convert it with tocsr()")
    return SparseRows.of(values)


def row_view(values: AnyRows) -> RowView:
    """Rows of any form as kernels read them."""
    return values.view() if isinstance(values, PackedRows | SparseRows) else rows.dense_view(values)


def dense(values: AnyRows) -> NDArray[Any]:
    """Rows of any form as an array [n, width]; for a few rows at a time."""
    return values.dense() if isinstance(values, PackedRows | SparseRows) else values


def blocks(values: AnyRows) -> Iterator[NDArray[Any]]:
    """The rows as dense arrays of at most BLOCK_ROWS rows, one after another."""
    for first in range(0, len(values), BLOCK_ROWS):
        yield dense(values[first : first + BLOCK_ROWS])
