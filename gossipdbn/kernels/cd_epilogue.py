"""What happens to the exact integer products of contrastive divergence: sigmoid, draws, and the update of the weights.

Each function takes a small block of int32 sums that a product has just left in a scratch (one for each plane) and does
all that follows for those outputs, so that nothing is written out and read again. The order of every float operation
is fixed here and belongs to the numerics version; tiers differ only in how they get the sums.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.activation import (
    ROUND,
    ROUND_BITS,
    at,
    bernoulli,
    bernoulli_of_exp,
    exp2,
    hash16,
    high16,
    low16,
    sigmoid_of_exp,
    unsigned8,
)
from gossipdbn.kernels.cd_layout import LIMIT, operand
from gossipdbn.kernels.tiers import inline
from gossipdbn.kernels.vectors import (
    bits,
    broadcasti,
    fma,
    fmax,
    fmin,
    fmul,
    from_bits,
    fsub,
    i_less,
    iadd,
    iand,
    imax,
    imin,
    ior,
    iota,
    isub,
    isum,
    ixor,
    load8u,
    load16u,
    loadf,
    loadi,
    prefetch,
    sar,
    shl,
    shr,
    store8,
    store16,
    storef,
    storei,
    to_float,
    to_int,
    vf,
    vi,
)

f4 = np.float32
_255 = f4(255.0)
_256 = f4(256.0)
_STEP_MAX = f4(2.0**28)
_STEP_MIN_BITS = int(np.float32(2.0**-8).view(np.int32))
_ERROR_UNIT = f4(1024.0)


@inline
def preactivation(hi, lo, scale, nb):
    """-log2(e) times the pre-activation from the sums of both planes; ``scale`` is that of the low plane."""
    return fma(to_float(hi), vf(f4(scale * _256)), fma(to_float(lo), vf(scale), nb))


@inline
def hidden_quad(hi, lo, stride, scale, nb, row, rows, column, keys, keys_stride, p_out, samples, sample):
    """Four rows x 16 hiddens: probabilities as one word of quads, draws as bytes; returns the sum over the rows."""
    total = vi(0)
    word = vi(0)
    one = vi(1)
    lane = iadd(iota(), vi(column))
    for i in range(0, 4, 2):
        h = vi(0)
        if sample:
            pair = keys + ((row + i) >> 1) * 4
            h = hash16(lane, broadcasti(pair), broadcasti(pair + keys_stride))
        for j in range(2):
            if row + i + j < rows:
                o = (i + j) * stride
                p = sigmoid_of_exp(exp2(preactivation(loadi(hi + o), loadi(lo + o), scale, nb)))
                q = unsigned8(p, vf(_255))
                total = iadd(total, q)
                word = ior(word, shl(q, 8 * (i + j)))
                if sample:
                    store8(samples + (i + j) * 64, bernoulli(high16(h) if j else low16(h), p, one))
            elif sample:
                store8(samples + (i + j) * 64, vi(0))
    storei(p_out, word)
    return total


@inline
def visible_quad(hi, lo, stride, scale, nb, v, row, rows, k0, k1, negative, transposed, t_stride, x, measure, x_scale):
    """Four visibles x 16 rows: draws, transposed as 0 / -xs and as one word of quads; and the error, if measured."""
    word = vi(0)
    error = vi(0)
    one = vi(1)
    valid = vi(-1)
    if row + 16 > rows:
        valid = i_less(iadd(iota(), vi(row)), vi(rows), vi(-1))
    for i in range(0, 4, 2):
        h = hash16(vi((v + i) >> 1), k0, k1)
        for j in range(2):
            o = (i + j) * stride
            e = exp2(preactivation(loadi(hi + o), loadi(lo + o), scale, at(nb, v + i + j)))
            drawn = iand(bernoulli_of_exp(high16(h) if j else low16(h), e, one), valid)
            store8(transposed + (i + j) * t_stride, iand(isub(vi(0), drawn), negative))
            word = ior(word, shl(drawn, 8 * (i + j)))
            if measure:
                d = fma(to_float(load8u(x + (i + j) * t_stride)), vf(f4(-x_scale)), sigmoid_of_exp(e))
                square = isub(bits(fma(fmul(d, d), vf(_ERROR_UNIT), vf(ROUND))), vi(ROUND_BITS))
                error = iadd(error, iand(square, valid))
    return word, isum(error) if measure else np.int64(0)


@inline
def update_quad(sums, stride, v, master, speed, hi, lo, mu_neg, dv_neg, dh, lam, db, da, scale, momentum, decay, l1):
    """Four visibles x 16 hiddens of the weight update.

    From the exact gradient sums to the new masters and their planes; adds this block's share to ``db`` (returned) and
    ``da`` (in memory), the centring terms of the biases.
    """
    high = vi(0)
    low = vi(0)
    for i in range(3, -1, -1):
        mu = at(mu_neg, v + i)
        g = fma(to_float(loadi(sums + i * stride)), vf(scale), fma(mu, dh, fmul(at(dv_neg, v + i), lam)))
        a = da + i * 64
        storef(a, fma(g, lam, loadf(a)))
        db = fma(g, mu, db)
        m = master + i * 64
        s = speed + i * 32
        w = loadi(m)
        p = fma(vf(momentum), from_bits(shl(load16u(s), 16)), g)
        if decay != f4(0):
            p = fma(to_float(w), vf(decay), p)
        if l1 != f4(0):
            p = fma(_sign(w), vf(l1), p)
        p = settle(p)
        pb = bits(p)
        store16(s, shr(iadd(pb, iadd(vi(0x7FFF), iand(shr(pb, 16), vi(1)))), 16))
        w = imin(imax(iadd(w, to_int(p)), vi(-LIMIT)), vi(LIMIT))
        storei(m, w)
        t = operand(w)
        high = ior(shl(high, 8), iand(sar(iadd(t, vi(128)), 8), vi(255)))
        low = ior(shl(low, 8), iand(t, vi(255)))
    storei(hi, high)
    storei(lo, low)
    return db


@inline
def settle(p):
    """A step in units 2^-24: saturated at +-2^28, and 0 when below 2^-8 (so no velocity ever becomes denormal)."""
    p = fmin(fmax(p, vf(f4(-_STEP_MAX))), vf(_STEP_MAX))
    small = i_less(iand(bits(p), vi(0x7FFFFFFF)), vi(_STEP_MIN_BITS), vi(-1))
    return from_bits(iand(bits(p), ixor(small, vi(-1))))


@inline
def _sign(w):
    return to_float(ior(sar(w, 31), i_less(vi(0), w, vi(1))))


@inline
def bias_step(bias, speed, step, momentum):
    """Sixteen biases (int32 at ``bias``) moved by ``step`` with momentum; returns the new values."""
    p = settle(fma(vf(momentum), loadf(speed), step))
    storef(speed, p)
    b = imin(imax(iadd(loadi(bias), to_int(p)), vi(-LIMIT)), vi(LIMIT))
    storei(bias, b)
    return b
