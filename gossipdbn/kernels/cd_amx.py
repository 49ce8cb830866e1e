"""The three passes of contrastive divergence for AMX, with the same bits as `cd_panels`.

A tile product keeps one of the two 512-bit ports busy for 16 cycles, so the products of one block are interleaved with
what follows from the sums of the block before (sigmoid, draws, update): after every single product a share of the
previous block's work, cut into units of four rows x 16 lanes, is done. After four products in a row the units would
find that port taken for 64 cycles, and their queue full. Sums go through two scratches in turn.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.amx import quarter_bu, quarter_ub, store4, zero4
from gossipdbn.kernels.cd_epilogue import hidden_quad, probability_row, update_quad, visible_quad
from gossipdbn.kernels.cd_panels import visible_out
from gossipdbn.kernels.memory import loadf, loadi, prefetch, storef, storei, transpose16, transpose_bytes4
from gossipdbn.kernels.tiers import device, inline
from gossipdbn.kernels.vectors import iadd, vf, vi

f4 = np.float32


@inline
def _hidden_unit(u, c, n, m, scale, nb, p_out, samples, sums, keys, keys_stride, sample, shift, rows, bp):
    """Unit ``u`` of 8 of a block of 32 rows x 16 hiddens whose sums lie at ``c``."""
    o = c + (u >> 2) * 2048 + (u & 3) * 256
    r = m + u * 4
    if r < rows:
        out = p_out + (n * (bp >> 2) + (r >> 2)) * 64
        t = hidden_quad(o, o + 1024, 64, scale, loadf(nb + n * 64), r, rows, n * 16, keys, keys_stride, out,
                        samples + r * 64 + (n & 3) * 16, sample, shift)
        storei(sums + n * 64, iadd(loadi(sums + n * 64), t))


@device
def panel_hidden(panel, x, hi, lo, scale, nb, p_out, states, samples, sums, keys, keys_stride, c, sample, shift,
                 visible, rows, vp, hp, bp):
    """As `cd_panels.panel_hidden`."""
    products = ((visible + 63) >> 6) * 4
    plane = (vp >> 2) * 64
    for n in range(panel * 4, panel * 4 + 4):
        storei(sums + n * 64, vi(0))
    blocks = 4 * ((rows + 31) >> 5)
    for j in range(blocks + 1):  # the panel's four groups for 32 rows, then the next 32
        n, m = panel * 4 + (j & 3), (j >> 2) * 32
        pn, pm = panel * 4 + ((j - 1) & 3), ((j - 1) >> 2) * 32
        before = c + ((j + 1) & 1) * 4096
        both = m + 16 < rows
        zero4()
        u, due = 0, 0
        for p in range(products):
            if j < blocks:
                a = x + m * vp + (p >> 2) * 64
                b = n * plane + (p >> 2) * 1024
                quarter_ub(p & 3, a, a + 16 * vp, vp, hi + b, lo + b, both, shift == 0)
            if j > 0:
                due += 8
                while due >= products:
                    _hidden_unit(u, before, pn, pm, scale, nb, p_out, samples, sums, keys, keys_stride, sample, shift,
                                 rows, bp)
                    u += 1
                    due -= products
        store4(c + (j & 1) * 4096)
    if sample:
        for g in range((rows + 15) >> 4):
            transpose16(samples + g * 1024, states + (g * (hp >> 2) + panel * 16) * 64)


@device
def pass_probabilities(x, hi, lo, scale, nb, p_out, features, c, visible, hidden, rows, vp):
    """As `cd_panels.pass_probabilities`."""
    products = ((visible + 63) >> 6) * 4
    plane = (vp >> 2) * 64
    row_blocks = (rows + 31) >> 5
    blocks = ((hidden + 15) >> 4) * row_blocks
    for j in range(blocks + 1):
        n, m = j // row_blocks, (j % row_blocks) * 32
        pn, pm = (j - 1) // row_blocks, ((j - 1) % row_blocks) * 32
        before = c + ((j + 1) & 1) * 4096
        count = hidden - pn * 16
        zero4()
        u, due = 0, 0
        for p in range(products):
            if j < blocks:
                a = x + m * vp + (p >> 2) * 64
                b = n * plane + (p >> 2) * 1024
                quarter_ub(p & 3, a, a + 16 * vp, vp, hi + b, lo + b, m + 16 < rows, True)
            if j > 0:
                due += 8
                while due >= products:
                    for i in range(u * 4, min(u * 4 + 4, rows - pm)):
                        o = before + (i >> 4) * 2048 + (i & 15) * 64
                        at = (pm + i) * hidden + pn * 16
                        probability_row(o, o + 1024, scale, loadf(nb + pn * 64), count,
                                        p_out + at * 4 if p_out else 0, features + at if features else 0)
                    u += 1
                    due -= products
        store4(c + (j & 1) * 4096)


@inline
def _unpack_unit(u, hi, lo, v, out, vp, hp):
    """Unit ``u``: four visible rows x 64 hiddens of one plane, from quads to rows of bytes.

    The order is plane, then quad of rows, then 64 hiddens.
    """
    wide = hp >> 6
    h = u % wide
    q = (u // wide) & 3
    low = u // (wide * 4)
    source = (lo if low else hi) + ((h * 4) * (vp >> 2) + (v >> 2) + q) * 64
    step = (vp >> 2) * 64
    d = out + low * 16 * hp + q * 4 * hp + h * 64
    transpose_bytes4(source, step, d, hp, 0)
    prefetch(source + 256)


@inline
def _visible_unit(u, c, v, g, scale, nb, x, words, counts, keys, keys_stride, x_scale, measure, shift, rows, bp):
    """Unit ``u`` of 8 of a block of 16 visibles x 32 rows; returns the measured error."""
    n = g + (u >> 2)
    y = v + (u & 3) * 4
    if n * 16 >= rows:
        return np.int64(0)
    o = c + (u >> 2) * 1024 + (u & 3) * 256
    at = y * bp + n * 16
    word, error = visible_quad(o, o + 2048, 64, scale, nb, y, n * 16, rows, loadi(keys + n * 64),
                               loadi(keys + keys_stride + n * 64), x + at, bp, measure, x_scale, shift)
    storei(words + (n * 16 + ((y & 63) >> 2)) * 64, word)
    s = counts + (y >> 2) * 64
    storei(s, iadd(loadi(s), word))
    return error


@device
def pass_visible(hi, lo, planes, states, nb, v1, v1t, negative, x, words, counts, sums, keys, keys_stride, c, scale,
                 x_scale, measure, shift, visible, rows, vp, hp, bp):
    """As `cd_panels.pass_visible`."""
    error = np.int64(0)
    groups = (rows + 15) >> 4
    products = (hp >> 6) * 4
    units = products if shift else 2 * products  # of unpacking: one or two planes, four quads
    blocks = (groups + 1) >> 1
    for q in range(vp >> 2):
        storei(counts + q * 64, vi(0))
    for i in range(groups * 16):
        storei(words + i * 64, vi(0))
    for u in range(units):
        _unpack_unit(u, hi, lo, 0, planes, vp, hp)
    v_blocks = (visible + 15) >> 4
    total = v_blocks * blocks
    pv, w, unpack_due = np.int64(0), np.int64(0), np.int64(0)
    for j in range(total + 1):
        v, g = (j // blocks) * 16, (j % blocks) * 2
        pv, pg = ((j - 1) // blocks) * 16, ((j - 1) % blocks) * 2
        before = c + ((j + 1) & 1) * 4096
        a = planes + ((v >> 4) & 1) * 32 * hp
        following = planes + (((v >> 4) + 1) & 1) * 32 * hp
        s = states + g * (hp >> 2) * 64
        pair = g + 1 < groups
        zero4()
        if g == 0:
            w, unpack_due = 0, 0
        u, due = 0, 0
        for p in range(products):
            if j < total:
                b = s + (p >> 2) * 1024
                quarter_bu(p & 3, a + (p >> 2) * 64, a + 16 * hp + (p >> 2) * 64, hp, b, b + (hp >> 2) * 64,
                           shift == 0, pair)
            if j > 0:
                due += 8
                while due >= products:
                    error += _visible_unit(u, before, pv, pg, scale, nb, x, words, counts, keys, keys_stride, x_scale,
                                           measure, shift, rows, bp)
                    u += 1
                    due -= products
            if v + 16 < visible:
                unpack_due += units
                while unpack_due >= blocks * products:
                    _unpack_unit(w, hi, lo, v + 16, following, vp, hp)
                    w += 1
                    unpack_due -= blocks * products
        if pg + 2 >= groups and pv & 63 == 48 and j > 0:
            visible_out(pv & -64, words, v1, v1t, negative, before, rows, vp, bp)
        store4(c + (j & 1) * 4096)
    if pv & 63 != 48:  # the last, incomplete, 64 visibles: words of earlier ones must not show
        for q in range(((pv & 63) >> 2) + 4, 16):
            for g in range(groups):
                storei(words + (g * 16 + q) * 64, vi(0))
        visible_out(pv & -64, words, v1, v1t, negative, c, rows, vp, bp)
    return error


@inline
def _update_unit(u, c, v, n, master, speed, hi, lo, mu_neg, dv_neg, dh, lam, db, da, scale, momentum, decay, l1,
                 shift, visible, vp):
    """Unit ``u`` of 16 of a block of 32 visibles x 32 hiddens: one group of hiddens, then the other."""
    y = v + (u & 7) * 4
    if y < visible:
        g = n + (u >> 3)
        m = g * vp + y
        o = c + (u & 4) * 512 + (u >> 3) * 1024 + (u & 3) * 256
        following = m + 32  # the next 32 visibles of this group
        for i in range(0, 256, 64):
            prefetch(master + following * 64 + i)
        prefetch(speed + following * 32)
        prefetch(speed + following * 32 + 64)
        prefetch(hi + following * 16)
        prefetch(lo + following * 16)
        d = update_quad(o, 64, y, master + m * 64, speed + m * 32, hi + m * 16, lo + m * 16, mu_neg, dv_neg,
                        loadf(dh + g * 64), loadf(lam + g * 64), loadf(db + g * 64), da + y * 64, scale, momentum,
                        decay, l1, shift)
        storef(db + g * 64, d)


@device
def panel_update(panel, xt, v1t, p0, p1, grey, master, speed, hi, lo, mu_neg, dv_neg, dh, lam, db, da, scale,
                 momentum, decay, l1, c, shift, visible, rows, vp, bp):
    """As `cd_panels.panel_update`."""
    products = ((rows + 63) >> 6) * 8
    plane = (bp >> 2) * 64
    for n in range(panel * 4, panel * 4 + 4):
        storef(db + n * 64, vf(f4(0)))
    blocks = 2 * ((visible + 31) >> 5)
    for j in range(blocks + 1):  # all hiddens of 32 visibles, then the next 32
        n, v = panel * 4 + (j & 1) * 2, (j >> 1) * 32
        pn, pv = panel * 4 + ((j - 1) & 1) * 2, ((j - 1) >> 1) * 32
        before = c + ((j + 1) & 1) * 4096
        zero4()
        u, due = 0, 0
        for p in range(products):
            if j < blocks:
                first = p < products >> 1
                i = (p if first else p - (products >> 1)) >> 2
                a = (xt if first else v1t) + v * bp + i * 64
                b = (p0 if first else p1) + n * plane + i * 1024
                quarter_bu(p & 3, a, a + 16 * bp, bp, b, b + plane, True, True)
            if j > 0:
                due += 16
                while due >= products:
                    _update_unit(u, before, pv, pn, master, speed, hi, lo, mu_neg, dv_neg, dh, lam, db, da, scale,
                                 momentum, decay, l1, shift, visible, vp)
                    u += 1
                    due -= products
        store4(c + (j & 1) * 4096)
