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
from gossipdbn.kernels.cd_layout import LIMIT, clipped, store_planes
from gossipdbn.kernels.memory import (
    broadcasti,
    load8u,
    loadf,
    loadi,
    store8,
    store8_first,
    storef,
    storef_first,
    storei,
)
from gossipdbn.kernels.tiers import inline
from gossipdbn.kernels.vectors import (
    bits,
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
    imax,
    imin,
    ior,
    iota,
    isub,
    isum,
    sar,
    shl,
    shr,
    to_float,
    to_int,
    vf,
    vi,
)

f4 = np.float32
_127 = f4(127.0)
_255 = f4(255.0)
_256 = f4(256.0)
_STEP_MAX = f4(2.0**28)
_GRID = f4(49152.0)
_ERROR_UNIT = f4(1024.0)


@inline
def preactivation(hi, lo, scale, nb):
    """-log2(e) times the pre-activation from the sums of both planes; ``scale`` is that of the low plane."""
    return fma(to_float(hi), vf(f4(scale * _256)), fma(to_float(lo), vf(scale), nb))


@inline
def joined(hi, lo, scale, nb, shift):
    """`preactivation` of the sums at ``hi`` and ``lo``; of the one plane at ``hi`` with 8-bit weights (``shift``)."""
    if shift:
        return fma(to_float(loadi(hi)), vf(scale), nb)
    return preactivation(loadi(hi), loadi(lo), scale, nb)


@inline
def hidden_quad(hi, lo, stride, scale, nb, row, rows, column, keys, keys_stride, p_out, samples, sample, shift):
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
                p = sigmoid_of_exp(exp2(joined(hi + o, lo + o, scale, nb, shift)))
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
def probability_row(hi, lo, scale, nb, count, p_out, features):
    """One row x 16 hiddens (the first ``count`` of them): probabilities, and as bytes in 1/127; address 0: unwanted."""
    p = sigmoid_of_exp(exp2(preactivation(loadi(hi), loadi(lo), scale, nb)))
    if p_out:
        if count >= 16:
            storef(p_out, p)
        else:
            storef_first(p_out, p, count)
    if features:
        q = unsigned8(p, vf(_127))
        if count >= 16:
            store8(features, q)
        else:
            store8_first(features, q, count)


@inline
def visible_quad(hi, lo, stride, scale, nb, v, row, rows, k0, k1, x, x_stride, measure, x_scale, shift):
    """Four visibles x 16 rows: draws as one word of quads; and the summed error, if measured."""
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
            e = exp2(joined(hi + o, lo + o, scale, at(nb, v + i + j), shift))
            drawn = iand(bernoulli_of_exp(high16(h) if j else low16(h), e, one), valid)
            word = ior(word, shl(drawn, 8 * (i + j)))
            if measure:
                d = fma(to_float(load8u(x + (i + j) * x_stride)), vf(f4(-x_scale)), sigmoid_of_exp(e))
                square = isub(bits(fma(fmul(d, d), vf(_ERROR_UNIT), vf(ROUND))), vi(ROUND_BITS))
                error = iadd(error, iand(square, valid))
    return word, isum(error) if measure else np.int64(0)


@inline
def _step(sums, v, speed, w, mu_neg, dv_neg, dh, lam, db, da, scale, momentum, decay, l1):
    """The step of one row of 16 weights from its exact gradient sums; and the centring sum of the hidden biases."""
    mu = at(mu_neg, v)
    g = fma(to_float(loadi(sums)), vf(scale), fma(mu, dh, fmul(at(dv_neg, v), lam)))
    storef(da, fma(g, lam, loadf(da)))
    p = fma(vf(momentum), speed, g)
    if decay != f4(0) or l1 != f4(0):
        p = fma(to_float(w), vf(decay), p)
        p = fma(_sign(w), vf(l1), p)
    return settle(p), fma(g, mu, db)


@inline
def update_quad(sums, stride, v, master, speed, hi, lo, mu_neg, dv_neg, dh, lam, db, da, scale, momentum, decay, l1,
                shift):
    """Four visibles x 16 hiddens of the weight update.

    From the exact gradient sums to the new masters and their planes; adds this block's share to ``db`` (returned) and
    ``da`` (in memory), the centring terms of the biases.
    """
    s01, s23 = loadi(speed), loadi(speed + 64)
    w0, w1, w2, w3 = loadi(master), loadi(master + 64), loadi(master + 128), loadi(master + 192)
    upper = vi(-65536)
    p0, db = _step(sums, v, from_bits(shl(s01, 16)), w0, mu_neg, dv_neg, dh, lam, db, da, scale, momentum, decay, l1)
    p1, db = _step(sums + stride, v + 1, from_bits(iand(s01, upper)), w1, mu_neg, dv_neg, dh, lam, db, da + 64, scale,
                   momentum, decay, l1)
    p2, db = _step(sums + 2 * stride, v + 2, from_bits(shl(s23, 16)), w2, mu_neg, dv_neg, dh, lam, db, da + 128,
                   scale, momentum, decay, l1)
    p3, db = _step(sums + 3 * stride, v + 3, from_bits(iand(s23, upper)), w3, mu_neg, dv_neg, dh, lam, db, da + 192,
                   scale, momentum, decay, l1)
    storei(speed, _bfloat16_pair(p0, p1))
    storei(speed + 64, _bfloat16_pair(p2, p3))
    w0, w1, w2, w3 = clipped(iadd(w0, to_int(p0))), clipped(iadd(w1, to_int(p1))), clipped(
        iadd(w2, to_int(p2))), clipped(iadd(w3, to_int(p3)))
    storei(master, w0)
    storei(master + 64, w1)
    storei(master + 128, w2)
    storei(master + 192, w3)
    store_planes(w0, w1, w2, w3, hi, lo, shift)
    return db


@inline
def _bfloat16_pair(p, q):
    """Upper halves of two floats, rounded half away from zero, as the halves of one word."""
    half = vi(0x8000)
    return ior(shr(iadd(bits(p), half), 16), iand(iadd(bits(q), half), vi(-65536)))


@inline
def settle(p):
    """A step in units 2^-24: saturated at +-2^28 and rounded to 1/256.

    Adding and subtracting 1.5 * 2^15 does that (coarser above 2^14), so no velocity ever becomes denormal.
    """
    p = fmin(fmax(p, vf(f4(-_STEP_MAX))), vf(_STEP_MAX))
    return fsub(fadd(p, vf(_GRID)), vf(_GRID))


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
