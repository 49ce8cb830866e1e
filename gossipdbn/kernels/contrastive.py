"""Contrastive divergence in exact integers: many minibatches of CD-k or PCD-k in one call.

One minibatch is: visible sums and transposes (`load_rows`), hidden probabilities and draws panel by panel, k passes
visible/hidden, and then, fused per panel of 64 hidden units while its weights are near: the model's hidden
probabilities, gradient and update, the biases, and the *next* minibatch's hidden probabilities with the new weights.

The gradient is the centred one of Melchior, Fischer and Wiskott (JMLR 17:99, 2016)::

    dW = (<v0 h0> - <vk hk>) - mu (h0 - hk)' - (v0 - vk) lam'      da = v0 - vk - dW lam      db = h0 - hk - dW' mu

with h probabilities in 1/255; everything up to the float32 update is an exact integer.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels import cd_layout as lay
from gossipdbn.kernels.activation import NEG_LOG2E, flush
from gossipdbn.kernels.cd_epilogue import bias_step
from gossipdbn.kernels.cd_layout import clipped, refresh_quads
from gossipdbn.kernels.cd_panels import sum_counts
from gossipdbn.kernels.counter_rng import child64
from gossipdbn.kernels.memory import load8u, loadf, loadi, poke, storef, storei, transpose16, transpose_bytes4
from gossipdbn.kernels.rows import fill_bytes
from gossipdbn.kernels.tiers import TIER, device, inline, kernel
from gossipdbn.kernels.vectors import (
    fadd,
    fdiv,
    fma,
    fmax,
    fmin,
    fmul,
    fsqrt,
    fsub,
    iadd,
    imul,
    isub,
    to_float,
    to_int,
    vf,
    vi,
)

if TIER == "amx":
    from gossipdbn.kernels.amx import begin, finish
    from gossipdbn.kernels.cd_amx import panel_hidden, panel_update, pass_visible
else:
    from gossipdbn.kernels.cd_panels import begin, finish, panel_hidden, panel_update, pass_visible

f4 = np.float32
_UNIT = f4(2.0**-24)
_NB_UNIT = f4(NEG_LOG2E * _UNIT)
_PLANE_UNIT = f4(NEG_LOG2E * f4(2.0**-12))
_LAM_RATE = f4(0.01)
_ONE = f4(1.0)
MOMENTUM, DECAY, L1, TARGET, COST, MAX_NORM = range(6)
"""Places in the options array (float32)."""

_MASTER, _HI, _LO, _SPEED = lay.MASTER, lay.HI, lay.LO, lay.SPEED
_X, _XT, _P0, _P1, _ST, _CH, _V1, _V1T = lay.X, lay.XT, lay.P0, lay.P1, lay.ST, lay.CH, lay.V1, lay.V1T
_SAMPLES, _PLANES, _C, _WORDS, _COUNTS = lay.SAMPLES, lay.PLANES, lay.C, lay.WORDS, lay.COUNTS
_SUM_X, _SUM_V, _SUM_H0, _SUM_H1 = lay.SUM_X, lay.SUM_V, lay.SUM_H0, lay.SUM_H1
_BIAS_H, _BIAS_V, _SPEED_H, _SPEED_V = lay.BIAS_H, lay.BIAS_V, lay.SPEED_H, lay.SPEED_V
_NB_H, _NB_V, _LAM, _MU_NEG, _DV_NEG = lay.NB_H, lay.NB_V, lay.LAM, lay.MU_NEG, lay.DV_NEG
_DH, _DA, _DB, _PAIR_KEYS, _ROW_KEYS = lay.DH, lay.DA, lay.DB, lay.PAIR_KEYS, lay.ROW_KEYS
_LOW, _S32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@device
def fill_keys(key, stream, count, out, stride):
    """Keys of rows (or pairs of rows) 0..count-1 of a stream: low words at ``out``, high words ``stride`` behind."""
    base = child64(key, np.uint64(stream))
    for i in range(count):
        k = child64(base, np.uint64(i))
        poke(out + i * 4, np.int64(k & _LOW))
        poke(out + stride + i * 4, np.int64(k >> _S32))


@device
def load_rows(values, first, rows, x_array, slot, x, xt, sums, scratch, visible, vp, bp):
    """One minibatch of rows, padded, transposed, and its column sums."""
    fill_bytes(values, first, rows, x_array[slot], visible)
    for v in range(0, visible, 16):
        total = vi(0)
        for r in range(rows):
            total = iadd(total, load8u(x + r * vp + v))
        storei(sums + v * 4, total)
    for v in range(0, visible, 64):
        for g in range(0, (rows + 15) >> 4, 4):
            for n in range(4):
                for i in range(16):  # rows behind the last are zeros
                    storei(scratch + n * 1024 + i * 64, loadi(x + ((g + n) * 16 + i) * vp + v))
                transpose16(scratch + n * 1024, scratch + n * 1024)
            for q in range(16):
                transpose_bytes4(scratch + q * 64, 1024, xt + (v + 4 * q) * bp + g * 16, bp, 0)


@inline
def visible_difference(t, sum_x, xs, factor, visible):
    """Minus (mean v0 - mean vk) times the rate, from exact sums; clears the centring sums of the visible biases."""
    sum_counts(t[_COUNTS], t[_SUM_V], visible)
    for v in range(0, visible, 16):
        n = isub(imul(loadi(t[_SUM_V] + v * 4), vi(xs)), loadi(sum_x + v * 4))
        storef(t[_DV_NEG] + v * 4, fmul(to_float(n), vf(factor)))
        for i in range(16):
            storef(t[_DA] + (v + i) * 64, vf(f4(0)))


@inline
def visible_biases(t, visible, momentum):
    """a += rate * (v0 - vk - dW lam)."""
    c = t[_C]
    for v in range(0, visible, 16):
        transpose16(t[_DA] + v * 64, c)
        n = 8
        while n:
            for i in range(n):
                storef(c + i * 64, fadd(loadf(c + i * 64), loadf(c + (i + n) * 64)))
            n >>= 1
        step = fsub(fsub(vf(f4(0)), loadf(t[_DV_NEG] + v * 4)), loadf(c))
        b = bias_step(t[_BIAS_V] + v * 4, t[_SPEED_V] + v * 4, step, momentum)
        storef(t[_NB_V] + v * 4, fmul(to_float(b), vf(_NB_UNIT)))


@inline
def hidden_biases(t, panel, options, rate, mean):
    """b += rate * (h0 - hk - dW' mu + cost (target - lam)), and the running means lam of the panel."""
    for n in range(panel * 4, panel * 4 + 4):
        o = n * 64
        lam = loadf(t[_LAM] + o)
        step = fadd(loadf(t[_DH] + o), loadf(t[_DB] + o))
        if options[COST] != f4(0):
            step = fma(fsub(vf(options[TARGET]), lam), vf(f4(rate * options[COST])), step)
        b = bias_step(t[_BIAS_H] + o, t[_SPEED_H] + o, step, options[MOMENTUM])
        storef(t[_NB_H] + o, fmul(to_float(b), vf(_NB_UNIT)))
        h0 = fmul(to_float(loadi(t[_SUM_H0] + o)), vf(mean))
        storef(t[_LAM] + o, flush(fma(vf(_LAM_RATE), fsub(h0, lam), lam)))


@device
def limit_norms(panel, master, hi, lo, shift, visible, vp, max_norm):
    """Shrink the weights of every hidden unit of the panel whose Euclidean norm exceeds ``max_norm``."""
    for n in range(panel * 4, panel * 4 + 4):
        square = vf(f4(0))
        for v in range(visible):
            w = fmul(to_float(loadi(master + (n * vp + v) * 64)), vf(_UNIT))
            square = fma(w, w, square)
        limit = vf(max_norm)
        # a unit within the limit gets limit / limit = 1 exactly
        norm = fsqrt(square)
        factor = fmin(fdiv(limit, fmax(norm, limit)), vf(_ONE))
        for v in range(0, visible, 4):
            at = n * vp + v
            for i in range(4):
                m = master + (at + i) * 64
                storei(m, clipped(to_int(fmul(to_float(loadi(m)), factor))))
            refresh_quads(master + at * 64, hi + at * 16, lo + at * 16, shift)


@inline
def operand_unit(shift):
    """What one step of an operand contributes to -log2(e) times a pre-activation."""
    return f4(_NB_UNIT * f4(1 << shift)) if shift else _PLANE_UNIT


@kernel
def prepare_biases(t, visible, hidden):
    """Scaled biases of both sides from their masters."""
    for v in range(0, visible, 16):
        storef(t[_NB_V] + v * 4, fmul(to_float(loadi(t[_BIAS_V] + v * 4)), vf(_NB_UNIT)))
    for h in range(0, (hidden + 63) & -64, 16):
        storef(t[_NB_H] + h * 4, fmul(to_float(loadi(t[_BIAS_H] + h * 4)), vf(_NB_UNIT)))


@kernel
def train(values, first, count, rows, x_array, t, visible, hidden, xs, shift, gibbs, persistent, rates, options, keys,
          step, measure):
    """Train ``count`` minibatches of ``rows`` rows each, starting at row ``first`` of ``values`` (`rows.RowView`).

    t : addresses of the workspace. xs : the byte that means 1. shift : 0, or `cd_layout.one_plane_shift` of 8-bit
    weights. rates : float32, learning rate times 2^24 of each minibatch. options : float32, see MOMENTUM... keys :
    uint64 (run key, slot, layer). step : counter of the first minibatch. measure : whether to measure the
    reconstruction of the last minibatch.
    Returns its summed squared error in units 1/1024 (int64).
    """
    vp, hp, bp = (visible + 63) & -64, (hidden + 63) & -64, (rows + 63) & -64
    panels = hp >> 6
    scale_1, scale_x = operand_unit(shift), f4(operand_unit(shift) / f4(xs))
    per_row = f4(_ONE / f4(rows))
    mean = f4(per_row / f4(255))
    grey = xs != 1
    pk, rk, key_stride = t[_PAIR_KEYS], t[_ROW_KEYS], bp * 4
    model_keys = pk + bp * 2
    model = t[_CH] if persistent else t[_ST]
    error = np.int64(0)
    begin(t[_C])
    for i in range(-1, count):
        following = i + 1 < count
        here, there = i & 1, (i + 1) & 1
        x, xt, sum_x = t[_X] + there * bp * vp, t[_XT] + there * vp * bp, t[_SUM_X] + there * vp * 4
        key = child64(child64(child64(keys[0], keys[1]), np.uint64(step + i)), keys[2])
        next_key = child64(child64(child64(keys[0], keys[1]), np.uint64(step + i + 1)), keys[2])
        measured = measure and i == count - 1
        xt_here = t[_XT] + here * vp * bp
        rate = f4(0)
        if i >= 0:
            rate = rates[i]
            if persistent and measured:
                fill_keys(key, 2 * gibbs + 1, rows, rk, key_stride)
                error = pass_visible(t[_HI], t[_LO], t[_PLANES], t[_ST], t[_NB_V], t[_V1], t[_V1T], -xs, xt_here,
                                     t[_WORDS], t[_COUNTS], t[_SUM_V], rk, key_stride, t[_C], scale_1,
                                     f4(_ONE / f4(xs)), True, shift, visible, rows, vp, hp, bp)
            for k in range(gibbs):
                fill_keys(key, 2 * k + 1, rows, rk, key_stride)
                error += pass_visible(t[_HI], t[_LO], t[_PLANES], model, t[_NB_V], t[_V1], t[_V1T], -xs, xt_here,
                                      t[_WORDS], t[_COUNTS], t[_SUM_V], rk, key_stride, t[_C], scale_1,
                                      f4(_ONE / f4(xs)), measured and k == 0 and not persistent, shift, visible, rows,
                                      vp, hp, bp)
                if k + 1 < gibbs:
                    fill_keys(key, 2 * k + 2, (rows + 1) >> 1, model_keys, key_stride)
                    for n in range(panels):
                        panel_hidden(n, t[_V1], t[_HI], t[_LO], scale_1, t[_NB_H], t[_P1], model, t[_SAMPLES],
                                     t[_SUM_H1], model_keys, key_stride, t[_C], True, shift, visible, rows, vp, hp, bp)
            visible_difference(t, t[_SUM_X] + here * vp * 4, xs, f4(rate * f4(per_row / f4(xs))), visible)
            if persistent:
                fill_keys(key, 2 * gibbs, (rows + 1) >> 1, model_keys, key_stride)
        if following:
            load_rows(values, first + (i + 1) * rows, rows, x_array, there, x, xt, sum_x, t[_C], visible, vp, bp)
            fill_keys(next_key, 0, (rows + 1) >> 1, pk, key_stride)
        sample_next = not persistent or (measure and i + 1 == count - 1)
        for n in range(panels):
            if i >= 0:
                panel_hidden(n, t[_V1], t[_HI], t[_LO], scale_1, t[_NB_H], t[_P1], model, t[_SAMPLES], t[_SUM_H1],
                             model_keys, key_stride, t[_C], persistent, shift, visible, rows, vp, hp, bp)
                for g in range(n * 4, n * 4 + 4):
                    d = isub(loadi(t[_SUM_H0] + g * 64), loadi(t[_SUM_H1] + g * 64))
                    storef(t[_DH] + g * 64, fmul(to_float(d), vf(f4(rate * mean))))
                panel_update(n, xt_here, t[_V1T], t[_P0], t[_P1], grey, t[_MASTER], t[_SPEED], t[_HI], t[_LO],
                             t[_MU_NEG], t[_DV_NEG], t[_DH], t[_LAM], t[_DB], t[_DA],
                             f4(rate * f4(mean / f4(xs))), options[MOMENTUM],
                             f4(-f4(rate * _UNIT) * options[DECAY]), f4(-rate * options[L1]), t[_C],
                             shift, visible, rows, vp, bp)
                hidden_biases(t, n, options, rate, mean)
                if options[MAX_NORM] > f4(0):
                    limit_norms(n, t[_MASTER], t[_HI], t[_LO], shift, visible, vp, options[MAX_NORM])
            if following:
                panel_hidden(n, x, t[_HI], t[_LO], scale_x, t[_NB_H], t[_P0], t[_ST], t[_SAMPLES], t[_SUM_H0], pk,
                             key_stride, t[_C], sample_next, shift, visible, rows, vp, hp, bp)
        if i >= 0:
            visible_biases(t, visible, options[MOMENTUM])
    finish()
    return error
