"""Int8 codes, sixteen at a time, and adding decoded updates to the accumulators.

Several updates are added in one pass: a stretch of the accumulators stays in the cache while every update's codes that
fall into it are added, so memory is walked once and not once per update.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.digests import digest_values, largest_value
from gossipdbn.kernels.masks import leading_zeros
from gossipdbn.kernels.memory import addr, load8s, loadi, peek, poke, store8, storei
from gossipdbn.kernels.tiers import inline, kernel
from gossipdbn.kernels.vectors import iabs, iadd, iand, ihighest, imax, imin, isub, sar, shl, vi

SCALE, OUTSIDE, HEADER = 1, 2, 3
_PIECE = 1 << 16  # accumulators, 256 kB: half of the smallest second-level cache in use
_NEAR = 1 << 12  # where they are read twice: 16 kB, half of a first-level cache


@kernel
def encode_int8(residual, rows, cols, shift_max, out):
    """Write scales, then codes, of int32 [rows, cols] to ``out``; what is not encoded stays in ``residual``."""
    at, codes = addr(residual), addr(out) + rows
    for r in range(rows):
        first, end = r * cols, (r + 1) * cols
        whole = first + cols // 16 * 16
        high = vi(0)
        for i in range(first, whole, 16):
            high = imax(high, iabs(loadi(at + i * 4)))
        m = ihighest(high)
        for i in range(whole, end):
            m = max(m, abs(np.int64(residual[i])))
        shift = min(max(np.int64(57) - leading_zeros(m), 0), shift_max)  # least with m < 128 << shift
        if shift < shift_max and m > 127 << shift:
            shift += 1
        out[r] = np.uint8(shift)
        bias, odd = vi(((np.int64(1) << shift) >> 1) - 1), vi(1)
        if shift == 0:
            bias, odd = vi(0), vi(0)
        for i in range(first, whole, 16):
            x = loadi(at + i * 4)
            q = sar(iadd(iadd(x, bias), iand(sar(x, shift), odd)), shift)  # nearest, ties to even
            q = imax(imin(q, vi(127)), vi(-127))
            store8(codes + i, q)
            storei(at + i * 4, isub(x, shl(q, shift)))
        for i in range(whole, end):
            x = np.int64(residual[i])
            q = x if shift == 0 else (x + ((1 << shift) >> 1) - 1 + ((x >> shift) & 1)) >> shift
            q = min(max(q, -127), 127)
            out[rows + i] = np.uint8(q & 255)
            residual[i] = np.int32(x - (q << shift))


@kernel
def read_int8(data, rows, cols, shift_max, base):
    """Check scales and codes: (status, digest of the deltas), ``base`` being the tensor's first global index."""
    codes = addr(data) + rows
    block = np.empty(cols + 16, np.int32)
    total = np.int64(0)
    for r in range(rows):
        if data[r] > shift_max:
            return SCALE, np.int64(0)
        high = vi(0)
        whole = cols // 16 * 16
        for i in range(0, whole, 16):
            x = load8s(codes + r * cols + i)
            high = imax(high, iabs(x))
            storei(addr(block) + i * 4, x)
        m = ihighest(high)
        for i in range(whole, cols):
            block[i] = np.int8(data[rows + r * cols + i])
            m = max(m, abs(np.int64(block[i])))
        if m > 127:
            return OUTSIDE, np.int64(0)
        if data[r] > 0 and m < 64:  # a smaller scale would have done
            return HEADER, np.int64(0)
        total += digest_values(block, 0, cols, base + r * cols) << np.int64(data[r])
    return 0, total


@kernel
def add_int8(acc, data, rows, cols):
    """Add the deltas of checked scales and codes to int32 [rows * cols], modulo 2**32."""
    at, codes = addr(acc), addr(data) + rows
    for r in range(rows):
        shift = np.int64(data[r])
        whole = r * cols + cols // 16 * 16
        for i in range(r * cols, whole, 16):
            storei(at + i * 4, iadd(loadi(at + i * 4), shl(load8s(codes + i), shift)))
        for i in range(whole, (r + 1) * cols):
            acc[i] = np.int32(np.int64(acc[i]) + (np.int64(np.int8(data[rows + i])) << shift))


@inline
def _add(acc, index, delta, count):
    for i in range(0, 4 * count, 4):
        at = acc + (peek(index + i) << 2)
        poke(at, peek(at) + peek(delta + i))


@inline
def _add_below(acc, runs, edge):
    """Add what of the runs lies below ``edge``, and take it off them."""
    for r in range(runs.shape[0]):
        index, delta, left = runs[r]
        low, high = np.int64(0), left  # how many lie below the edge
        if left > 0 and peek(index + (left - 1) * 4) >= edge:
            while low < high:
                middle = (low + high) >> 1
                if peek(index + middle * 4) < edge:
                    low = middle + 1
                else:
                    high = middle
        _add(acc, index, delta, high)
        runs[r, 0] += high * 4
        runs[r, 1] += high * 4
        runs[r, 2] -= high


@kernel
def add_runs(acc, runs):
    """Add several runs in one pass over the accumulators.

    ``runs``: int64 [n, 3], addresses of ascending indices and of deltas, and how many; used up.
    """
    for edge in range(_PIECE, acc.size + _PIECE, _PIECE):
        _add_below(addr(acc), runs, edge)


@kernel
def survey(acc):
    """(digest, largest magnitude) of accumulators, in one pass."""
    total, high = np.int64(0), np.int64(0)
    for first in range(0, acc.size, _NEAR):
        count = min(_NEAR, acc.size - first)
        total += digest_values(acc, first, count, first)
        high = max(high, largest_value(acc, first, first + count))
    return total, high
