"""Slow, obvious twins of the learners: contrastive divergence (integer and float32) and backprop, by minibatch.

Arrays are plain [visible, hidden]; what the kernels keep in panels is only permuted. Float sums follow the order that
the numerics version fixes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tests.naive import (
    NEG_LOG2E,
    below,
    below_of_exp,
    chain64,
    child64,
    draws,
    exp2,
    f4,
    flush,
    fma,
    reciprocal,
)

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
WEIGHT_LIMIT = 32639 << 12


@dataclass
class Layer:
    """One RBM with integer masters (units 2^-24) and the optimiser's memory."""

    w: Ints
    a: Ints
    b: Ints
    speed: Floats
    speed_a: Floats
    speed_b: Floats
    lam: Floats
    mu: Floats


@dataclass
class Options:
    """Options of contrastive divergence."""

    momentum: float = 0.0
    decay: float = 0.0
    l1: float = 0.0
    target: float = 0.0
    cost: float = 0.0
    max_norm: float = 0.0
    k: int = 1
    shift: int = 0


def planes(w: Ints) -> tuple[Ints, Ints]:
    t = (np.clip(w, -WEIGHT_LIMIT, WEIGHT_LIMIT) + 2048) >> 12
    hi = (t + 128) >> 8
    return hi, t - 256 * hi


def scaled_bias(b: Ints) -> Floats:
    return b.astype(f4) * f4(NEG_LOG2E * f4(2.0**-24))


def log2_odds(x: Ints, w: Ints, bias: Ints, one: int, shift: int = 0) -> Floats:
    """-log2(e) times the pre-activation of x [n, k] against w [k, m]; with ``shift`` against 8-bit weights."""
    if shift:
        t = np.clip((np.clip(w, -WEIGHT_LIMIT, WEIGHT_LIMIT) + (1 << (shift - 1))) >> shift, -127, 127)
        unit = f4(f4(f4(NEG_LOG2E * f4(2.0**-24)) * f4(2.0**shift)) / f4(one))
        return fma((x @ t).astype(f4), unit, scaled_bias(bias))
    scale = f4(f4(NEG_LOG2E * f4(2.0**-12)) / f4(one))
    hi, lo = planes(w)
    return fma((x @ hi).astype(f4), f4(scale * f4(256)), fma((x @ lo).astype(f4), scale, scaled_bias(bias)))


def settle(p: Floats) -> Floats:
    p = np.minimum(np.maximum(p, f4(-(2.0**28))), f4(2.0**28))
    return (p + f4(49152)) - f4(49152)


def bfloat16(p: Floats) -> Floats:
    bits = p.view(np.uint32).astype(np.uint64)
    return (((bits + 0x8000) >> 16) << 16).astype(np.uint32).view(f4)


def moved(w: Ints, p: Floats) -> Ints:
    return np.clip(w + np.rint(p).astype(np.int64), -(2**30), 2**30)


def lane_tree(lanes: Floats) -> Floats:
    """Sum over the last axis of 16 in the fixed order of halves."""
    while lanes.shape[-1] > 1:
        n = lanes.shape[-1] // 2
        lanes = lanes[..., :n] + lanes[..., n:]
    return lanes[..., 0]


def cd_minibatch(m: Layer, x: Ints, one: int, rate: float, o: Options, key: int, chains: Ints | None) -> int:
    """One minibatch of centred CD-k, or PCD-k with ``chains`` [rows, hidden] (changed); returns the error in 1/1024."""
    n, hidden = x.shape[0], m.w.shape[1]
    rate = f4(f4(rate) * f4(2.0**24))
    persistent = chains is not None
    p0 = reciprocal(exp2(log2_odds(x, m.w, m.b, one, o.shift)) + f4(1))
    states = below(draws(child64(key, 0), n, hidden, pair_rows=True), p0).astype(np.int64)
    error = 0
    negative = chains if chains is not None else states
    if persistent:
        error = squared_error(m, states, x, one, o.shift)
    v = x
    p1 = p0
    for t in range(o.k):
        e = exp2(log2_odds(negative, m.w.T, m.a, 1, o.shift))
        if t == 0 and not persistent:
            error = squared_error(m, states, x, one, o.shift)
        v = below_of_exp(draws(child64(key, 2 * t + 1), n, m.w.shape[0], pair_rows=False), e).astype(np.int64)
        p1 = reciprocal(exp2(log2_odds(v, m.w, m.b, 1, o.shift)) + f4(1))
        negative = below(draws(child64(key, 2 * t + 2), n, hidden, pair_rows=True), p1).astype(np.int64)
    if chains is not None:
        chains[:] = negative
    update(m, x, v, quantised(p0), quantised(p1), one, rate, o)
    return error


def quantised(p: Floats) -> Ints:
    return np.rint(p.astype(np.float64) * 255.0).astype(np.int64)


def squared_error(m: Layer, states: Ints, x: Ints, one: int, shift: int) -> int:
    mean = reciprocal(exp2(log2_odds(states, m.w.T, m.a, 1, shift)) + f4(1))
    d = fma(x.astype(f4), -f4(f4(1) / f4(one)), mean)
    return int(np.rint((d * d).astype(np.float64) * 1024.0).sum())


def update(m: Layer, x: Ints, v: Ints, q0: Ints, q1: Ints, one: int, rate: np.float32, o: Options) -> None:
    n, (visible, hidden) = x.shape[0], m.w.shape
    per_row = f4(f4(1) / f4(n))
    mean = f4(per_row / f4(255))
    dv_neg = (one * v.sum(0) - x.sum(0)).astype(f4) * f4(rate * f4(per_row / f4(one)))
    dh = (q0.sum(0) - q1.sum(0)).astype(f4) * f4(rate * mean)
    sums = x.T @ q0 - one * (v.T @ q1)
    mu_neg = -m.mu
    g = fma(
        sums.astype(f4),
        f4(rate * f4(mean / f4(one))),
        fma(mu_neg[:, None], dh[None, :], dv_neg[:, None] * m.lam[None, :]),
    )
    db = np.zeros(hidden, f4)
    for i in range(visible):
        db = fma(g[i], mu_neg[i], db)
    lanes = np.zeros((visible, 16), f4)
    for j in range(0, hidden, 16):
        width = min(16, hidden - j)
        lanes[:, :width] = fma(g[:, j : j + width], m.lam[j : j + width], lanes[:, :width])
    da = lane_tree(lanes)
    p = fma(f4(o.momentum), m.speed, g)
    if o.decay or o.l1:
        p = fma(m.w.astype(f4), f4(-f4(rate * f4(2.0**-24)) * f4(o.decay)), p)
        p = fma(np.sign(m.w).astype(f4), f4(-rate * f4(o.l1)), p)
    p = settle(p)
    m.speed = bfloat16(p)
    m.w = np.clip(m.w + np.rint(p).astype(np.int64), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    step = dh + db
    if o.cost:
        step = fma(f4(o.target) - m.lam, f4(rate * f4(o.cost)), step)
    m.speed_b = settle(fma(f4(o.momentum), m.speed_b, step))
    m.b = moved(m.b, m.speed_b)
    m.speed_a = settle(fma(f4(o.momentum), m.speed_a, (f4(0) - dv_neg) - da))
    m.a = moved(m.a, m.speed_a)
    h0 = q0.sum(0).astype(f4) * mean
    m.lam = flush(fma(f4(0.01), h0 - m.lam, m.lam))
    if o.max_norm:
        square = np.zeros(hidden, f4)
        for i in range(visible):
            u = m.w[i].astype(f4) * f4(2.0**-24)
            square = fma(u, u, square)
        factor = f4(o.max_norm) / np.maximum(np.sqrt(square), f4(o.max_norm))
        m.w = np.clip(np.rint(m.w.astype(f4) * factor).astype(np.int64), -WEIGHT_LIMIT, WEIGHT_LIMIT)


def minibatch_key(run_key: int, slot: int, step: int, layer: int) -> int:
    return chain64(run_key, slot, step, layer)
