"""Digests of parameters and of deltas: a weighted sum modulo 2**64 whose weights are products of two odd hashes.

    digest(acc) = sum acc_i * r_i,   r_i = A[i mod 1024] * B[i div 1024]

Within a stretch of 1024 indices only A is needed, one 8 kB table that stays in L1; B, computed once a stretch,
multiplies the stretch's sum. A is split in a signed low half and a high half, so sixteen values cost two products of
32 by 32 bits, one product modulo 2**32 and no 64-bit multiplication: the speed of memory. Addition modulo 2**64 has no
order, so every way of summing gives the same digest.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.memory import addr, loadi, peek, peek64
from gossipdbn.kernels.tiers import inline, kernel
from gossipdbn.kernels.vectors import (
    iadd,
    ihighest,
    imax,
    imin,
    imul,
    isub,
    isum,
    ladd,
    lsum,
    lzero,
    multiply_even,
    multiply_odd,
    vi,
)

STRETCH = 1024
_BITS = 10
_GOLDEN, _MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93
_GOLDEN_I64, _MIX_I64 = _GOLDEN - (1 << 64), _MIX - (1 << 64)
_SECOND = 1 << 40  # B hashes indices that A never does


def _hashes(first: int, count: int) -> np.ndarray:
    """Odd 64-bit hashes of ``count`` indices, as uint64."""
    x = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * np.uint64(_GOLDEN)
    return ((x ^ (x >> np.uint64(32))) * np.uint64(_MIX)) | np.uint64(1)


WEIGHTS = _hashes(0, STRETCH).view(np.int64)
"""A, int64 [1024]."""
_LOW = WEIGHTS.astype(np.int32)
_HIGH = ((WEIGHTS - _LOW) >> 32).astype(np.int32)


@inline
def stretch_weight(stretch):
    """B of a stretch, int64."""
    x = (np.int64(stretch) + _SECOND + 1) * _GOLDEN_I64
    return ((x ^ ((x >> 32) & 0xFFFFFFFF)) * _MIX_I64) | 1


@inline
def digest_values(values, first, count, index):
    """Digest of int32 ``values[first : first + count]``, the first of which has global index ``index``; int64."""
    at, low, high = addr(values), addr(_LOW), addr(_HIGH)
    total, i, end = np.int64(0), np.int64(first), np.int64(first) + count
    while i < end:
        place = index + (i - first)
        stop = min(end, i + STRETCH - (place & (STRETCH - 1)))
        j = place & (STRETCH - 1)
        low_sum, high_sum = lzero(), vi(0)
        while i + 16 <= stop:
            x, a = loadi(at + i * 4), loadi(low + j * 4)
            low_sum = ladd(low_sum, ladd(multiply_even(x, a), multiply_odd(x, a)))
            high_sum = iadd(high_sum, imul(x, loadi(high + j * 4)))
            i += 16
            j += 16
        part = lsum(low_sum) + (isum(high_sum) << 32)
        while i < stop:
            part += np.int64(values[i]) * WEIGHTS[j]
            i += 1
            j += 1
        total += part * stretch_weight(place >> _BITS)
    return total


@kernel
def digest_words(acc, index):
    """Digest of int32 values whose first has global index ``index``."""
    return digest_values(acc, 0, acc.size, index)


@inline
def digest_run(index, delta, count):
    """Digest of ``count`` deltas (int32 at address ``delta``) whose global indices, at ``index``, ascend; int64."""
    weights = addr(WEIGHTS)
    total, part, weight, edge = np.int64(0), np.int64(0), np.int64(0), np.int64(-1)
    for i in range(0, 4 * count, 4):
        place = peek(index + i)
        if place >= edge:
            total += part * weight
            stretch = place >> _BITS
            weight, edge, part = stretch_weight(stretch), (stretch + 1) << _BITS, np.int64(0)
        part += peek(delta + i) * peek64(weights + ((place & (STRETCH - 1)) << 3))
    return total + part * weight


@inline
def largest_value(values, first, stop):
    """Largest absolute value of int32 ``values[first : stop]``; 0 if there are none."""
    at, high, low = addr(values), vi(0), vi(0)
    whole = first + (stop - first) // 16 * 16
    for i in range(first, whole, 16):
        x = loadi(at + i * 4)
        high, low = imax(high, x), imin(low, x)
    m = max(ihighest(high), ihighest(isub(vi(-1), low)) + 1)
    for i in range(whole, stop):
        m = max(m, abs(np.int64(values[i])))
    return m


@kernel
def largest(acc):
    """Largest absolute value."""
    return largest_value(acc, np.int64(0), np.int64(acc.size))
