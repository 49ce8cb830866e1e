"""Random numbers without state: every draw is a hash of where it is used.

A *stream key* is a 64-bit hash of (run key, slot, step, layer, stream). From it each row (or pair of rows) of a
minibatch gets two 32-bit keys by splitmix64, and each draw hashes its column between those two keys. So the bits
depend neither on batching nor on threads, tiers or hosting, and a snapshot holds only counters.

Scalar functions live here; :mod:`gossipdbn.kernels.activation` has the same 32-bit hash for 16 lanes.
The 64-bit mixer is splitmix64 (Steele, Lea, Flood, OOPSLA 2014), the 32-bit one follows Wellons' lowbias32:
the first key takes the place of its first shift, the second is added between its two multiplications.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels.tiers import inline, kernel

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S32 = np.uint64(30), np.uint64(27), np.uint64(31), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)
_MASK = (1 << 64) - 1

STREAM_HIDDEN, STREAM_VISIBLE = 0, 1
"""Streams 2 t and 2 t + 1 draw the hidden and visible states of Gibbs step t."""
STREAM_DROPOUT, STREAM_WEIGHTS, STREAM_PERMUTATION = 1 << 20, 1 << 21, 1 << 22


@inline
def mix64(z):  # type: ignore[no-untyped-def]
    """The finaliser of splitmix64 (uint64 -> uint64, a bijection)."""
    z = (z ^ (z >> _S30)) * _M1
    z = (z ^ (z >> _S27)) * _M2
    return z ^ (z >> _S31)


@inline
def child64(key, i):  # type: ignore[no-untyped-def]
    """Number ``i`` (uint64) of the splitmix64 sequence seeded with ``key`` (uint64)."""
    return mix64(key + (i + _ONE) * _GOLDEN)


@inline
def hash32(counter, k0, k1):  # type: ignore[no-untyped-def]
    """32 random bits (uint32) of a counter between two keys (all uint32)."""
    x = np.uint32(counter ^ k0)
    x = np.uint32(x * np.uint32(0x7FEB352D))
    x = np.uint32(x ^ (x >> np.uint32(15)))
    x = np.uint32(x ^ k1)
    x = np.uint32(x * np.uint32(0x846CA68B))
    return np.uint32(x ^ (x >> np.uint32(16)))


def stream_key(run_key: int, slot: int, step: int, layer: int, stream: int) -> int:
    """The 64-bit key of all draws of one stream in one minibatch.

    Parameters
    ----------
    run_key : unsigned 64-bit key of the run. slot, step, layer, stream : non-negative counters below 2**64.
    """
    key = run_key & _MASK
    for word in (slot, step, layer, stream):
        z = (key + ((word & _MASK) + 1) * 0x9E3779B97F4A7C15) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        key = z ^ (z >> 31)
    return key


@kernel
def _bits64(key, out):  # type: ignore[no-untyped-def]
    for i in range(out.size):
        out[i] = child64(key, np.uint64(i))


def bits64(key: int, n: int) -> NDArray[np.uint64]:
    """The first ``n`` words of the sequence of a stream key; for tests and statistics."""
    out = np.empty(n, np.uint64)
    _bits64(np.uint64(key), out)
    return out


@kernel
def _uniform16(key, pair_rows, row0, out):  # type: ignore[no-untyped-def]
    for r in range(out.shape[0]):
        row = row0 + r
        k = child64(key, np.uint64(row >> 1 if pair_rows else row))
        k0, k1 = np.uint32(k & _LOW), np.uint32(k >> _S32)
        for c in range(out.shape[1]):
            h = hash32(np.uint32(c if pair_rows else c >> 1), k0, k1)
            high = (row & 1) if pair_rows else (c & 1)
            out[r, c] = np.uint16(h >> np.uint32(16)) if high else np.uint16(h & np.uint32(0xFFFF))


def uniform16(key: int, rows: int, columns: int, *, pair_rows: bool, row0: int = 0) -> NDArray[np.uint16]:
    """Draws 0..65535 of a stream at rows ``row0``... and columns 0... (uint16 [rows, columns]).

    Hidden streams take both halves of one hash for a pair of rows (``pair_rows``), visible streams for a pair of
    columns: what each kernel has side by side in registers.
    """
    out = np.empty((rows, columns), np.uint16)
    _uniform16(np.uint64(key), pair_rows, row0, out)
    return out


@kernel
def _permutation(key, out):  # type: ignore[no-untyped-def]
    n = out.size
    for i in range(n):
        out[i] = i
    for i in range(n - 1, 0, -1):
        # Lemire's multiply-shift keeps the high part; its bias (below n / 2**32) is the same everywhere
        j = np.int64(((child64(key, np.uint64(i)) >> _S32) * np.uint64(i + 1)) >> _S32)
        t = out[i]
        out[i] = out[j]
        out[j] = t


def permutation(run_key: int, slot: int, epoch: int, n: int) -> NDArray[np.int64]:
    """The order in which a slot trains its ``n`` rows in an epoch (Fisher-Yates, int64 [n]; n < 2**32)."""
    out = np.empty(n, np.int64)
    _permutation(np.uint64(stream_key(run_key, slot, epoch, 0, STREAM_PERMUTATION)), out)
    return out


@inline
def _popcount(x):  # type: ignore[no-untyped-def]
    x = x - ((x >> _ONE) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * np.uint64(0x0101010101010101)) >> np.uint64(56))


@kernel
def _normal(key, multiplier, out):  # type: ignore[no-untyped-def]
    for i in range(out.size):
        bits = _popcount(child64(key, np.uint64(2 * i)))
        dither = np.int64(child64(key, np.uint64(2 * i + 1)) >> np.uint64(48))
        x = (bits - 32) * 65536 + dither - 32768
        out[i] = np.int32((x * multiplier + (1 << 23)) >> 24)


_NORMAL_SD = (16.0 + 1.0 / 12.0) ** 0.5 * 65536.0


def normal_int32(key: int, n: int, sigma: float) -> NDArray[np.int32]:
    """``n`` normal draws of standard deviation ``sigma`` in parameter units 2**-24 (int32 [n]).

    The number of ones among 64 random bits, smoothed by a uniform 16-bit dither: excess kurtosis -0.03, |x| < 8.1
    sigma, and integer arithmetic only, so the same on every machine.
    """
    out = np.empty(n, np.int32)
    _normal(np.uint64(key), round(sigma * 2.0**24 / _NORMAL_SD * 2.0**24), out)
    return out
