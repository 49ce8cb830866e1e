"""Sigmoid, exponential and Bernoulli draws for sixteen lanes, the same bits on every CPU.

2**t is a degree-5 polynomial on [-1/2, 1/2] (relative error 2e-7) times an exponent built by integer shift; t is
clamped to +-126, so nothing overflows or becomes denormal. A float that was shifted by 1.5 * 2**23 carries its rounded
integer in its low bits: that replaces conversions.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.memory import broadcastf
from gossipdbn.kernels.tiers import inline
from gossipdbn.kernels.vectors import (
    bits,
    f_less,
    fadd,
    fma,
    fmax,
    fmin,
    fmul,
    from_bits,
    fsub,
    i_less,
    iadd,
    iand,
    imul,
    ior,
    isub,
    ixor,
    popcount,
    shl,
    shr,
    to_float,
    vf,
    vi,
)

f4 = np.float32
LOG2E = f4(1.4426950408889634)
NEG_LOG2E = f4(-1.4426950408889634)
ROUND = f4(12582912.0)  # 1.5 * 2**23
ROUND_BITS = 0x4B400000
_ONE = f4(1.0)
_C = tuple(f4(c) for c in (1.3398874e-3, 9.6184374e-3, 5.5503325e-2, 2.4022648e-1, 6.9314720e-1))
_C5, _C4, _C3, _C2, _C1 = _C
_LOW, _HIGH = f4(-126.0), f4(126.0)
_M1, _M2 = 0x7FEB352D, 0x846CA68B
_U16 = f4(2.0**-16)
_RANGE16 = f4(65536.0)
_TINY = f4(2.0**-60)
_ZERO = f4(0.0)
_GUESS = 0x7EF311C3
_FLOAT_BITS = 0x4B000000  # 2**23: or-ing 16 bits into it makes the float 2**23 + draw
_FLOAT_HALF = f4(8388607.5)


@inline
def exp2(t):
    """2**t for t clamped to -126..126."""
    t = fmin(fmax(t, vf(_LOW)), vf(_HIGH))
    shifted = fadd(t, vf(ROUND))
    r = fsub(t, fsub(shifted, vf(ROUND)))
    p = fma(vf(_C5), r, vf(_C4))
    p = fma(p, r, vf(_C3))
    p = fma(p, r, vf(_C2))
    p = fma(p, r, vf(_C1))
    p = fma(p, r, vf(_ONE))
    return from_bits(iadd(bits(p), shl(bits(shifted), 23)))


@inline
def reciprocal(x):
    """1 / x to about 1e-7 for 1 <= x <= 2^126, by Newton's iteration from an integer first guess.

    A hardware division takes four times as long, and hardware approximations differ between CPUs.
    """
    y = from_bits(isub(vi(_GUESS), bits(x)))
    for _ in range(3):
        y = fma(y, fma(fsub(vf(_ZERO), x), y, vf(_ONE)), y)
    return y


@inline
def sigmoid_of_exp(e):
    """1 / (1 + e)."""
    return reciprocal(fadd(e, vf(_ONE)))


@inline
def sigmoid(x):
    """1 / (1 + exp(-x))."""
    return sigmoid_of_exp(exp2(fmul(x, vf(NEG_LOG2E))))


@inline
def hash16(counter, k0, k1):
    """The 32-bit hash of `counter_rng.hash32`, sixteen lanes at once."""
    x = imul(ixor(counter, k0), vi(_M1))
    x = ixor(x, shr(x, 15))
    x = ixor(x, k1)
    x = imul(x, vi(_M2))
    return ixor(x, shr(x, 16))


@inline
def low16(h):
    """Low halves of hashes."""
    return iand(h, vi(0xFFFF))


@inline
def high16(h):
    """High halves of hashes."""
    return shr(h, 16)


@inline
def bernoulli(draw, p, one):
    """``one`` where the 16-bit draw lies below rint(65536 p), else 0."""
    limit = bits(fma(p, vf(_RANGE16), vf(ROUND)))
    return i_less(ior(draw, vi(ROUND_BITS)), limit, one)


@inline
def bernoulli_of_exp(draw, e, one):
    """``one`` where u (1 + e) < 65536, u = draw + 1/2: a draw below 1 / (1 + e) without a division."""
    u = fsub(from_bits(ior(draw, vi(_FLOAT_BITS))), vf(_FLOAT_HALF))
    return f_less(fma(u, e, u), vf(_RANGE16), one)


@inline
def unsigned8(p, scale):
    """rint(p * scale) for 0 <= p <= 1, scale <= 255, as integers."""
    return iand(bits(fma(p, scale, vf(ROUND))), vi(255))


@inline
def normal(h0, h1):
    """A normal number from two hashes: ones among 64 bits, smoothed by a 16-bit dither; sd 1 (see counter_rng)."""
    ones = iadd(popcount(h0), popcount(h1))
    dither = shr(imul(ixor(h0, shl(h1, 7)), vi(0x2C1B3C6D)), 16)
    x = fma(to_float(dither), vf(_U16), fsub(to_float(ones), vf(f4(32.5))))
    return fmul(x, vf(f4(1.0 / (16.0 + 1.0 / 12.0) ** 0.5)))


@inline
def flush(x):
    """Values below 2**-60 become +0, so that denormals never arise, whatever the CPU's mode."""
    small = i_less(iand(bits(x), vi(0x7FFFFFFF)), bits(vf(_TINY)), vi(-1))
    return from_bits(iand(bits(x), ixor(small, vi(-1))))


@inline
def at(array_address, i):
    """All lanes the float32 number i of an array."""
    return broadcastf(array_address + i * 4)
