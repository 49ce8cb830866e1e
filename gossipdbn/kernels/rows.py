"""The rows that kernels read, in three forms, copied one minibatch at a time into padded buffers.

Dense rows are arrays as they are. Packed rows hold eight binary units in a byte, most significant bit first
(``numpy.packbits``). Sparse rows are compressed (CSR): the stored entries of row r are ``indptr[r]`` to
``indptr[r + 1]``, everything else in the row is ``rest`` (zeros, or what zero became when columns were standardised).

No form is ever expanded beyond the minibatch at hand, and what lands in the buffer is the same byte for byte, so the
form of the rows cannot show in any result.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels.tiers import device, kernel

AnyArray = NDArray[np.generic]
DENSE, PACKED, SPARSE = range(3)
f4 = np.float32
_NO_INDICES, _NO_STARTS = np.zeros(0, np.int32), np.zeros(1, np.int64)
_NO_REST = {np.dtype(kind): np.zeros(0, kind) for kind in (np.uint8, np.float32)}
_SPREAD, _BITS = np.uint64(0x8040201008040201), np.uint64(0x0101010101010101)
_SEVEN = np.uint64(7)


class RowView(NamedTuple):
    """Rows as a kernel's argument; nothing is checked below this point.

    form : DENSE, PACKED or SPARSE. data : uint8 or float32, [n, visible], or bits [n, ceil(visible / 8)], or stored
    entries [1, count]. indices : int32 [count], columns of the entries, each within the row and once.
    indptr : int64 [n + 1]. rest : [visible], of data's type.
    """

    form: int
    data: AnyArray
    indices: NDArray[np.int32]
    indptr: NDArray[np.int64]
    rest: AnyArray


def dense_view(values: AnyArray) -> RowView:
    """Rows uint8 or float32 [n, visible]."""
    return RowView(DENSE, np.ascontiguousarray(values), _NO_INDICES, _NO_STARTS, _NO_REST[values.dtype])


def packed_view(bits: NDArray[np.uint8]) -> RowView:
    """Rows of bits, uint8 [n, ceil(visible / 8)]."""
    return RowView(PACKED, np.ascontiguousarray(bits), _NO_INDICES, _NO_STARTS, _NO_REST[bits.dtype])


def sparse_view(
    data: AnyArray, indices: NDArray[np.int32], indptr: NDArray[np.int64], rest: AnyArray
) -> RowView:
    """Compressed rows."""
    return RowView(SPARSE, np.ascontiguousarray(data).reshape(1, -1), np.ascontiguousarray(indices), indptr, rest)


@device
def fill_bytes(source, first, rows, out, visible):
    """Rows ``first``... of uint8 data into ``out`` uint8 [rows or more, visible rounded up to 64].

    Columns behind ``visible`` keep their zeros.
    """
    if source.form == DENSE:
        for r in range(rows):
            for v in range(visible):
                out[r, v] = source.data[first + r, v]
    elif source.form == PACKED:
        words = out.view(np.uint64)
        for r in range(rows):
            for j in range((visible + 7) >> 3):
                byte = np.uint64(source.data[first + r, j])
                left = visible - 8 * j
                if left < 8:  # bits behind the last unit mean nothing
                    byte &= np.uint64((0xFF00 >> left) & 0xFF)
                words[r, j] = ((byte * _SPREAD) >> _SEVEN) & _BITS
    else:
        for r in range(rows):
            for v in range(visible):
                out[r, v] = source.rest[v]
            for k in range(source.indptr[first + r], source.indptr[first + r + 1]):
                out[r, source.indices[k]] = source.data[0, k]


@device
def fill_floats(source, first, rows, out, visible, scale):
    """Rows ``first``... as float32 times ``scale`` into ``out`` [rows or more, visible or more]."""
    if source.form == DENSE:
        for r in range(rows):
            for v in range(visible):
                out[r, v] = f4(f4(source.data[first + r, v]) * scale)
    elif source.form == PACKED:
        for r in range(rows):
            for v in range(visible):
                bit = (np.int64(source.data[first + r, v >> 3]) >> (7 - (v & 7))) & 1
                out[r, v] = f4(f4(bit) * scale)
    else:
        for r in range(rows):
            for v in range(visible):
                out[r, v] = f4(f4(source.rest[v]) * scale)
            for k in range(source.indptr[first + r], source.indptr[first + r + 1]):
                out[r, source.indices[k]] = f4(f4(source.data[0, k]) * scale)


@kernel
def floats_of(source, first, rows, visible, scale, out):
    """`fill_floats`, called from Python."""
    fill_floats(source, first, rows, out, visible, scale)
