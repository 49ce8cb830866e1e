"""Contrastive divergence in float32 for real-valued visibles (Gaussian with unit variance, or mixed with binary ones).

The same steps as `contrastive`, with float32 products in a fixed order. Visible states live transposed, [visible,
rows], because the pass down has the rows in its lanes; the pass up and the gradient read them as broadcast operands,
for which any stride will do. Weights are float32 panels (see `dense`); the padding of every array stays zero.

Gaussian units are sampled: mean = a + W h, plus a normal number of the counter stream.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.activation import (
    at,
    bernoulli,
    flush,
    hash16,
    high16,
    low16,
    normal,
    sigmoid,
)
from gossipdbn.kernels.contrastive import COST, DECAY, L1, MAX_NORM, MOMENTUM, TARGET, fill_keys
from gossipdbn.kernels.counter_rng import child64
from gossipdbn.kernels.dense import block, panels_times
from gossipdbn.kernels.memory import broadcasti, loadf, loadi, peek, peekf, pokef, storef, storei, transpose16
from gossipdbn.kernels.optimise import sign
from gossipdbn.kernels.rows import fill_floats
from gossipdbn.kernels.tiers import device, inline, kernel
from gossipdbn.kernels.vectors import (
    bits,
    fadd,
    fdiv,
    fma,
    fmax,
    fmin,
    fmul,
    from_bits,
    fsqrt,
    fsub,
    fsum,
    i_less,
    iadd,
    iand,
    iota,
    vf,
    vi,
)

f4 = np.float32
_LAM_RATE = f4(0.01)
_ONE = f4(1.0)
_W_MAX = f4(64.0)
_TINY = f4(2.0**-60)
_NOISE = 1 << 30
(W, SPEED, BIAS_H, BIAS_V, SPEED_H, SPEED_V, LAM, MU_NEG, BINARY, P0, P1, ST, CH, V1, C, SAMPLES, MEAN_H0, MEAN_H1,
 DV_NEG, DH, DA, PAIR_KEYS, ROW_KEYS, ERROR, X, ADDRESSES) = range(26)
"""Addresses. W, SPEED [G, vp, 16]; P0, P1 [bp, hp]; ST, CH [hp, bp] 0.0 / 1.0; V1 [vp, bp]; X [bp, vp]; DA [vp, 16]."""


@device
def _hidden(group, a, a_row, a_k, t, p_out, negate, means, states, sample, keys, stride, visible, hidden, rows, vp, hp,
            bp):
    """Hidden probabilities of 32 units (stored negated for the model), their means, and draws in ``states``."""
    c, s = t[C], t[SAMPLES]
    w = t[W] + group * vp * 64
    for half in range(2):
        storef(means + (group + half) * 64, vf(f4(0)))
    for m in range(0, rows, 8):
        block(0, a + m * a_row, a_row, a_k, w, 64, vp * 64, visible, c, 128)
        for i in range(8):
            r = m + i
            for half in range(2):
                n = group + half
                mask = i_less(iadd(iota(), vi(n * 16)), vi(hidden if r < rows else 0), vi(-1))
                p = sigmoid(fadd(loadf(c + i * 128 + half * 64), loadf(t[BIAS_H] + n * 64)))
                p = from_bits(iand(bits(p), mask))
                total = means + n * 64
                storef(total, fadd(loadf(total), p))
                storef(p_out + r * hp * 4 + n * 64, fsub(vf(f4(0)), p) if negate else p)
                if sample:
                    pair = keys + (r >> 1) * 4
                    h = hash16(iadd(iota(), vi(n * 16)), broadcasti(pair), broadcasti(pair + stride))
                    one = bits(vf(_ONE))
                    storei(s + r * 128 + half * 64, bernoulli(high16(h) if r & 1 else low16(h), p, one))
    for half in range(2):
        total = means + (group + half) * 64
        storef(total, fmul(loadf(total), vf(f4(_ONE / f4(rows)))))
    if sample:
        for half in range(2):
            for r in range(0, rows, 16):
                for i in range(16):
                    storei(c + i * 64, loadi(s + (r + i) * 128 + half * 64) if r + i < rows else vi(0))
                transpose16(c, c)
                for i in range(16):
                    storei(states + ((group + half) * 16 + i) * bp * 4 + r * 4, loadi(c + i * 64))


@device
def _visible(t, states, keys, stride, measure, visible, hidden, rows, vp, bp):
    """Draw the visibles [visible, rows] given the states; returns the squared error of their means if measured."""
    panels_times(t[W], vp, hidden, states, bp * 4, t[V1], bp * 4, bp // 16)
    error = 0.0
    for v in range(visible):
        bias = at(t[BIAS_V], v)
        binary = peek(t[BINARY] + v * 4)
        for r in range(0, rows, 16):
            o = t[V1] + v * bp * 4 + r * 4
            valid = i_less(iadd(iota(), vi(r)), vi(rows), vi(-1))
            mean = fadd(loadf(o), bias)
            k0, k1 = loadi(keys + r * 4), loadi(keys + stride + r * 4)
            drawn = mean
            if binary:
                mean = sigmoid(mean)
                h = hash16(vi(v >> 1), k0, k1)
                drawn = from_bits(bernoulli(high16(h) if v & 1 else low16(h), mean, bits(vf(_ONE))))
            else:
                first, second = hash16(vi(_NOISE + 2 * v), k0, k1), hash16(vi(_NOISE + 2 * v + 1), k0, k1)
                drawn = fadd(mean, normal(first, second))
            if measure:
                storef(t[C], mean)
                for i in range(min(rows - r, 16)):
                    d = np.float64(peekf(t[C] + i * 4)) - np.float64(peekf(t[X] + (r + i) * vp * 4 + v * 4))
                    error += d * d
            storef(o, from_bits(iand(bits(drawn), valid)))
    return error


@inline
def _visible_means(t, rate, visible, rows, vp, bp):
    """Minus the difference of the visible means times the rate; clears the centring sums of the visible biases."""
    for v in range(0, visible, 16):
        data = vf(f4(0))
        for r in range(rows):
            data = fadd(data, loadf(t[X] + r * vp * 4 + v * 4))
        storef(t[DV_NEG] + v * 4, data)
        for i in range(16):
            storef(t[DA] + (v + i) * 64, vf(f4(0)))
    scale = f4(rate / f4(rows))
    for v in range(visible):
        model = vf(f4(0))
        for r in range(0, rows, 16):
            model = fadd(model, loadf(t[V1] + v * bp * 4 + r * 4))
        pokef(t[DV_NEG] + v * 4, f4(f4(fsum(model) - peekf(t[DV_NEG] + v * 4)) * scale))


@device
def _update(group, t, rate, options, visible, rows, vp, hp, bp):
    """Gradient and update of the weights of 32 hidden units, then their biases and running means."""
    c = t[C]
    scale, decay, l1 = f4(rate / f4(rows)), f4(-rate * options[DECAY]), f4(-rate * options[L1])
    for half in range(2):
        o = (group + half) * 64
        storef(t[DH] + o, fmul(fsub(loadf(t[MEAN_H0] + o), loadf(t[MEAN_H1] + o)), vf(rate)))
    db0, db1 = vf(f4(0)), vf(f4(0))
    for v in range(0, visible, 8):
        block(0, t[X] + v * 4, 4, vp * 4, t[P0] + group * 64, hp * 4, 64, rows, c, 128)
        block(1, t[V1] + v * bp * 4, bp * 4, 4, t[P1] + group * 64, hp * 4, 64, rows, c, 128)
        for i in range(8):
            for half in range(2):
                n = group + half
                o = (n * vp + v + i) * 64
                lam, mu = loadf(t[LAM] + n * 64), at(t[MU_NEG], v + i)
                dv = at(t[DV_NEG], v + i)
                g = fma(loadf(c + i * 128 + half * 64), vf(scale), fma(mu, loadf(t[DH] + n * 64), fmul(dv, lam)))
                a = t[DA] + (v + i) * 64
                storef(a, fma(g, lam, loadf(a)))
                if half:
                    db1 = fma(g, mu, db1)
                else:
                    db0 = fma(g, mu, db0)
                w = loadf(t[W] + o)
                p = fma(vf(options[MOMENTUM]), loadf(t[SPEED] + o), g)
                if options[DECAY] != f4(0):
                    p = fma(w, vf(decay), p)
                if options[L1] != f4(0):
                    p = fma(sign(w), vf(l1), p)
                p = flush(p)
                storef(t[SPEED] + o, p)
                storef(t[W] + o, fmin(fmax(fadd(w, p), vf(f4(-_W_MAX))), vf(_W_MAX)))
    for half in range(2):
        _hidden_bias(t, (group + half) * 64, db1 if half else db0, rate, options)


@inline
def _hidden_bias(t, o, db, rate, options):
    lam = loadf(t[LAM] + o)
    step = fadd(loadf(t[DH] + o), db)
    if options[COST] != f4(0):
        step = fma(fsub(vf(options[TARGET]), lam), vf(f4(rate * options[COST])), step)
    p = flush(fma(vf(options[MOMENTUM]), loadf(t[SPEED_H] + o), step))
    storef(t[SPEED_H] + o, p)
    storef(t[BIAS_H] + o, fadd(loadf(t[BIAS_H] + o), p))
    storef(t[LAM] + o, flush(fma(vf(_LAM_RATE), fsub(loadf(t[MEAN_H0] + o), lam), lam)))


@device
def _limit_norms(group, t, visible, vp, max_norm):
    for n in range(group, group + 2):
        square = vf(f4(0))
        for v in range(visible):
            w = loadf(t[W] + (n * vp + v) * 64)
            square = fma(w, w, square)
        limit = vf(max_norm)
        factor = fdiv(limit, fmax(fsqrt(square), limit))
        for v in range(visible):
            o = t[W] + (n * vp + v) * 64
            storef(o, fmul(loadf(o), factor))


@inline
def _visible_biases(t, visible, momentum):
    for v in range(visible):
        step = f4(f4(-peekf(t[DV_NEG] + v * 4)) - fsum(loadf(t[DA] + v * 64)))
        p = f4(f4(momentum * peekf(t[SPEED_V] + v * 4)) + step)
        if abs(p) < _TINY:
            p = f4(0)
        pokef(t[SPEED_V] + v * 4, p)
        pokef(t[BIAS_V] + v * 4, f4(peekf(t[BIAS_V] + v * 4) + p))


@kernel
def train(values, first, count, rows, x_array, t, visible, hidden, gibbs, persistent, rates, options, keys, step,
          measure):
    """Train ``count`` minibatches of ``rows`` rows, from row ``first`` of ``values`` (`rows.RowView`, float32) on.

    As `contrastive.train`, with plain learning rates. Returns the summed squared error of the last minibatch.
    """
    vp, hp, bp = (visible + 15) & -16, (hidden + 31) & -32, (rows + 15) & -16
    stride, pk, rk = bp * 4, t[PAIR_KEYS], t[ROW_KEYS]
    model = t[CH] if persistent else t[ST]
    error = 0.0
    for i in range(count):
        key = child64(child64(child64(keys[0], keys[1]), np.uint64(step + i)), keys[2])
        measured = measure and i == count - 1
        fill_floats(values, first + i * rows, rows, x_array, visible, _ONE)
        fill_keys(key, 0, (rows + 1) >> 1, pk, stride)
        for n in range(0, hp >> 4, 2):
            _hidden(n, t[X], vp * 4, 4, t, t[P0], False, t[MEAN_H0], t[ST], not persistent or measured, pk, stride,
                    visible, hidden, rows, vp, hp, bp)
        if persistent and measured:
            fill_keys(key, 2 * gibbs + 1, rows, rk, stride)
            error = _visible(t, t[ST], rk, stride, True, visible, hidden, rows, vp, bp)
        for k in range(gibbs):
            fill_keys(key, 2 * k + 1, rows, rk, stride)
            error += _visible(t, model, rk, stride, measured and k == 0 and not persistent, visible, hidden, rows,
                              vp, bp)
            fill_keys(key, 2 * k + 2, (rows + 1) >> 1, pk, stride)
            for n in range(0, hp >> 4, 2):
                _hidden(n, t[V1], 4, bp * 4, t, t[P1], True, t[MEAN_H1], model, k + 1 < gibbs or persistent, pk,
                        stride, visible, hidden, rows, vp, hp, bp)
        _visible_means(t, rates[i], visible, rows, vp, bp)
        for n in range(0, hp >> 4, 2):
            _update(n, t, rates[i], options, visible, rows, vp, hp, bp)
            if options[MAX_NORM] > f4(0):
                _limit_norms(n, t, visible, vp, options[MAX_NORM])
        _visible_biases(t, visible, options[MOMENTUM])
    return error
