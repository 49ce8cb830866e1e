"""The three passes of contrastive divergence for vector units (VNNI, AVX-512, AVX2, any CPU).

A *panel* is 64 hidden units. Loop order: within a panel all rows of the minibatch pass by, so the panel's weights
(100 kB for 784 visibles) stay near; the two products of a block go to a scratch of 4 kB and are used up at once.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.cd_epilogue import hidden_quad, probability_row, update_quad, visible_quad
from gossipdbn.kernels.memory import loadf, loadi, poke, storef, storei, transpose16, transpose_bytes4
from gossipdbn.kernels.tiers import WIDE, device, inline
from gossipdbn.kernels.tiles import BU, BUS, UB, block8, tile
from gossipdbn.kernels.vectors import iadd, iand, isum, shr, vf, vi

f4 = np.float32


@inline
def begin(scratch):
    """Vector units need no preparation."""


@inline
def finish():
    """Nor anything afterwards."""


@device
def pass_probabilities(x, hi, lo, scale, nb, p_out, features, c, visible, hidden, rows, vp):
    """Hidden probabilities of rows of bytes: float32 [rows, hidden], or bytes in 1/127; address 0: unwanted."""
    plane, steps = (vp >> 2) * 64, (visible + 3) >> 2
    groups = (hidden + 15) >> 4
    for n in range(0, groups, 2):
        for m in range(0, rows, 8):
            block8(UB, 0, x + m * vp, vp, 4, hi + n * plane, 64, plane, steps, c, 128)
            block8(UB, 0, x + m * vp, vp, 4, lo + n * plane, 64, plane, steps, c + 1024, 128)
            for g in range(n, min(n + 2, groups)):
                bias = loadf(nb + g * 64)
                for i in range(min(rows - m, 8)):
                    o = c + i * 128 + (g - n) * 64
                    at = (m + i) * hidden + g * 16
                    probability_row(o, o + 1024, scale, bias, hidden - g * 16, p_out + at * 4 if p_out else 0,
                                    features + at if features else 0)


@device
def panel_hidden(panel, x, hi, lo, scale, nb, p_out, states, samples, sums, keys, keys_stride, c, sample, shift,
                 visible, rows, vp, hp, bp):
    """Hidden probabilities of 64 units given the rows at ``x``; with ``sample`` also their draws in ``states``."""
    steps = (visible + 3) >> 2
    plane = (vp >> 2) * 64
    for n in range(panel * 4, panel * 4 + 4, 2):
        t0 = vi(0)
        t1 = vi(0)
        nb0, nb1 = loadf(nb + n * 64), loadf(nb + n * 64 + 64)
        for m in range(0, rows, 8):
            block8(UB, 0, x + m * vp, vp, 4, hi + n * plane, 64, plane, steps, c, 128)
            if shift == 0:
                block8(UB, 0, x + m * vp, vp, 4, lo + n * plane, 64, plane, steps, c + 1024, 128)
            for i in range(0, 8, 4):
                o = c + i * 128
                out = p_out + (n * (bp >> 2) + ((m + i) >> 2)) * 64
                at = samples + (m + i) * 64 + (n & 3) * 16
                t0 = iadd(t0, hidden_quad(o, o + 1024, 128, scale, nb0, m + i, rows, n * 16, keys, keys_stride,
                                          out, at, sample, shift))
                t1 = iadd(t1, hidden_quad(o + 64, o + 1088, 128, scale, nb1, m + i, rows, n * 16 + 16, keys,
                                          keys_stride, out + (bp >> 2) * 64, at + 16, sample, shift))
        storei(sums + n * 64, t0)
        storei(sums + n * 64 + 64, t1)
    if sample:
        for g in range((rows + 15) >> 4):
            transpose16(samples + g * 1024, states + (g * (hp >> 2) + panel * 16) * 64)


@inline
def unpack_rows(plane, v, out, vp, hp):
    """Sixteen visible rows of one plane, from quads of four rows to rows of bytes."""
    step = (vp >> 2) * 64
    for h in range(hp >> 6):
        for k in range(4):
            source = plane + h * 4 * step + ((v >> 2) + k) * 64
            transpose_bytes4(source, step, out + 4 * k * hp + h * 64, hp, 0)


@device
def visible_out(v, words, v1, v1t, negative, c, rows, vp, bp):
    """Words of quads of 64 visibles to rows of bytes in ``v1``, and transposed, 1 as ``negative``, in ``v1t``."""
    groups = (rows + 15) >> 4
    for g in range(groups):
        transpose16(words + g * 1024, c)
        for i in range(16):
            storei(v1 + (g * 16 + i) * vp + v, loadi(c + i * 64))
    for g in range(0, groups, 4):
        for q in range(16):
            transpose_bytes4(words + (g * 16 + q) * 64, 1024, v1t + (v + 4 * q) * bp + g * 16, bp, negative)


@device
def pass_visible(hi, lo, planes, states, nb, v1, v1t, negative, x, words, counts, sums, keys, keys_stride, c, scale,
                 x_scale, measure, shift, visible, rows, vp, hp, bp):
    """Draw the visibles given the states; returns the summed squared error in units 1/1024 when it is measured."""
    error = np.int64(0)
    groups = (rows + 15) >> 4
    zero = vi(0)
    for v in range(0, visible, 16):
        if v & 63 == 0:
            for i in range(groups * 16):
                storei(words + i * 64, zero)
        unpack_rows(hi, v, planes, vp, hp)
        if shift == 0:
            unpack_rows(lo, v, planes + 16 * hp, vp, hp)
        for q in range(4):
            storei(counts + ((v >> 2) + q) * 64, zero)
        for m in range(0, 16, 8):
            a = planes + m * hp
            for g in range(0, groups, 2):
                pair = min(groups - g, 2)
                states_at = states + g * (hp >> 2) * 64
                if pair == 2 or not WIDE:
                    block8(BUS, 0, a, hp, 4, states_at, 64, (hp >> 2) * 64, hp >> 2, c, 128)
                    if shift == 0:
                        block8(BUS, 0, a + 16 * hp, hp, 4, states_at, 64, (hp >> 2) * 64, hp >> 2, c + 1024, 128)
                else:
                    tile(BUS, 8, 1, 0, 0, a, hp, 4, states_at, 64, 0, hp >> 2, c, 128, 0, 0)
                    if shift == 0:
                        tile(BUS, 8, 1, 0, 0, a + 16 * hp, hp, 4, states_at, 64, 0, hp >> 2, c + 1024, 128, 0, 0)
                for n in range(pair):
                    k0 = loadi(keys + (g + n) * 64)
                    k1 = loadi(keys + keys_stride + (g + n) * 64)
                    for i in range(0, 8, 4):
                        y = v + m + i
                        o = c + i * 128 + n * 64
                        at = y * bp + (g + n) * 16
                        word, e = visible_quad(o, o + 1024, 128, scale, nb, y, (g + n) * 16, rows, k0, k1, x + at, bp,
                                               measure, x_scale, shift)
                        error += e
                        storei(words + ((g + n) * 16 + ((y & 63) >> 2)) * 64, word)
                        s = counts + (y >> 2) * 64
                        storei(s, iadd(loadi(s), word))
        if v & 63 == 48 or v + 16 >= visible:
            visible_out(v & -64, words, v1, v1t, negative, c, rows, vp, bp)
    return error


@inline
def sum_counts(counts, sums, visible):
    """Visible sums int32 from the byte counters of quads."""
    for q in range((visible + 3) >> 2):
        w = loadi(counts + q * 64)
        for j in range(4):
            poke(sums + (q * 4 + j) * 4, isum(iand(shr(w, 8 * j), vi(255))))


@device
def panel_update(panel, xt, v1t, p0, p1, grey, master, speed, hi, lo, mu_neg, dv_neg, dh, lam, db, da, scale,
                 momentum, decay, l1, c, shift, visible, rows, vp, bp):
    """Gradient and update of the weights of 64 hidden units; their centring sums go to ``db`` and ``da``."""
    steps = (rows + 3) >> 2
    plane = (bp >> 2) * 64
    for n in range(panel * 4, panel * 4 + 4, 2):
        dh0, dh1 = loadf(dh + n * 64), loadf(dh + n * 64 + 64)
        lam0, lam1 = loadf(lam + n * 64), loadf(lam + n * 64 + 64)
        db0, db1 = vf(f4(0)), vf(f4(0))
        for v in range(0, visible, 8):
            if grey:
                block8(BU, 0, xt + v * bp, bp, 4, p0 + n * plane, 64, plane, steps, c, 128)
                block8(BU, 1, v1t + v * bp, bp, 4, p1 + n * plane, 64, plane, steps, c, 128)
            else:
                block8(BUS, 0, xt + v * bp, bp, 4, p0 + n * plane, 64, plane, steps, c, 128)
                block8(BUS, 1, v1t + v * bp, bp, 4, p1 + n * plane, 64, plane, steps, c, 128)
            for i in range(0, 8, 4):
                y = v + i
                m = n * vp + y
                db0 = update_quad(c + i * 128, 128, y, master + m * 64, speed + m * 32, hi + m * 16, lo + m * 16,
                                  mu_neg, dv_neg, dh0, lam0, db0, da + y * 64, scale, momentum, decay, l1, shift)
                m += vp
                db1 = update_quad(c + i * 128 + 64, 128, y, master + m * 64, speed + m * 32, hi + m * 16, lo + m * 16,
                                  mu_neg, dv_neg, dh1, lam1, db1, da + y * 64, scale, momentum, decay, l1, shift)
        storef(db + n * 64, db0)
        storef(db + n * 64 + 64, db1)
