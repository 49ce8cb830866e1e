"""Slow, obvious twins of the float32 learners: real-valued contrastive divergence and backprop."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.naive import below, chain, chain64, child64, draws, exp2, f4, flush, fma, hash32, sigmoid
from tests.naive_learning import Options, lane_tree

Floats = NDArray[np.float32]
LOG2E = f4(1.4426950408889634)
ONE = f4(1)


@dataclass
class RealLayer:
    """One RBM with float32 weights and the optimiser's memory."""

    w: Floats
    a: Floats
    b: Floats
    speed: Floats
    speed_a: Floats
    speed_b: Floats
    lam: Floats
    mu: Floats
    binary: NDArray[np.bool_]


def add_rows(x: Floats) -> Floats:
    total = np.zeros(x.shape[1:], f4)
    for row in x:
        total = total + row
    return total


def normals(stream: int, rows: int, columns: int) -> Floats:
    out = np.empty((rows, columns), f4)
    for r in range(rows):
        key = child64(stream, r)
        for c in range(columns):
            h0, h1 = hash32((1 << 30) + 2 * c, key), hash32((1 << 30) + 2 * c + 1, key)
            ones = h0.bit_count() + h1.bit_count()
            dither = (((h0 ^ (h1 << 7)) & 0xFFFFFFFF) * 0x2C1B3C6D & 0xFFFFFFFF) >> 16
            x = fma(f4(dither), f4(2.0**-16), f4(ones) - f4(32.5))
            out[r, c] = x * f4(1.0 / (16.0 + 1.0 / 12.0) ** 0.5)
    return out


def visible(m: RealLayer, states: Floats, stream: int) -> tuple[Floats, Floats]:
    """Means and draws of the visibles [rows, visible]."""
    mean = (chain(m.w, np.ascontiguousarray(states.T)) + m.a[:, None]).T
    n, v = mean.shape
    p = sigmoid(np.ascontiguousarray(mean))
    binary = below(draws(stream, n, v, pair_rows=False), p).astype(f4)
    return np.where(m.binary, p, mean), np.where(m.binary, binary, mean + normals(stream, n, v)).astype(f4)


def real_minibatch(m: RealLayer, x: Floats, rate: float, o: Options, key: int, chains: Floats | None) -> float:
    """One minibatch of centred CD-k or PCD-k; returns the squared error."""
    n, hidden = x.shape[0], m.w.shape[1]
    rate = f4(rate)
    p0 = sigmoid(chain(x, m.w) + m.b)
    states = below(draws(child64(key, 0), n, hidden, pair_rows=True), p0).astype(f4)
    negative = states if chains is None else chains.astype(f4)
    mean, _ = visible(m, states, 0)
    error = float(((mean.astype(np.float64) - x) ** 2).sum())
    v, p1 = x, p0
    for t in range(o.k):
        _, v = visible(m, negative, child64(key, 2 * t + 1))
        p1 = sigmoid(chain(v, m.w) + m.b)
        negative = below(draws(child64(key, 2 * t + 2), n, hidden, pair_rows=True), p1).astype(f4)
    if chains is not None:
        chains[:] = negative
    _real_update(m, x, v, p0, p1, rate, o)
    return error


def _real_update(m: RealLayer, x: Floats, v: Floats, p0: Floats, p1: Floats, rate: np.float32, o: Options) -> None:
    n, (visible_units, hidden) = x.shape[0], m.w.shape
    per_row = f4(f4(1) / f4(n))
    h0, h1 = add_rows(p0) * per_row, add_rows(p1) * per_row
    padded = np.zeros((-(-n // 16) * 16, visible_units), f4)
    padded[:n] = v
    model = lane_tree(add_rows(padded.reshape(-1, 16, visible_units)).T)
    dv_neg = (model - add_rows(x)) * f4(rate / f4(n))
    dh = (h0 - h1) * rate
    s = chain(v.T, -p1, chain(x.T, p0))
    mu_neg = -m.mu
    g = fma(s, f4(rate / f4(n)), fma(mu_neg[:, None], dh, dv_neg[:, None] * m.lam))
    db = np.zeros(hidden, f4)
    for i in range(visible_units):
        db = fma(g[i], mu_neg[i], db)
    lanes = np.zeros((visible_units, 16), f4)
    for j in range(0, hidden, 16):
        width = min(16, hidden - j)
        lanes[:, :width] = fma(g[:, j : j + width], m.lam[j : j + width], lanes[:, :width])
    p = fma(f4(o.momentum), m.speed, g)
    if o.decay:
        p = fma(m.w, f4(-rate * f4(o.decay)), p)
    if o.l1:
        p = fma(np.sign(m.w), f4(-rate * f4(o.l1)), p)
    m.speed = flush(p)
    m.w = np.clip(m.w + m.speed, f4(-64), f4(64))
    step = dh + db
    if o.cost:
        step = fma(f4(o.target) - m.lam, f4(rate * f4(o.cost)), step)
    m.speed_b = flush(fma(f4(o.momentum), m.speed_b, step))
    m.b = m.b + m.speed_b
    m.lam = flush(fma(f4(0.01), h0 - m.lam, m.lam))
    m.speed_a = flush(f4(o.momentum) * m.speed_a + (-dv_neg - lane_tree(lanes)))
    m.a = m.a + m.speed_a
    if o.max_norm:
        square = np.zeros(hidden, f4)
        for i in range(visible_units):
            square = fma(m.w[i], m.w[i], square)
        m.w = m.w * (f4(o.max_norm) / np.maximum(np.sqrt(square), f4(o.max_norm)))


@dataclass
class Dense:
    """One dense layer with its optimiser's moments."""

    w: Floats
    b: Floats
    moments: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("m", "v"):
            self.moments[name] = np.zeros_like(self.w)
            self.moments["bias_" + name] = np.zeros_like(self.b)


@dataclass
class Optimiser:
    """Adam or momentum."""

    adam: bool = True
    momentum: float = 0.0
    decay: float = 0.0
    l1: float = 0.0
    dropout: float = 0.0
    power1: np.float32 = ONE
    power2: np.float32 = ONE


def rsqrt(x: Floats) -> Floats:
    y = (0x5F3759DF - (x.view(np.int32) >> 1)).astype(np.int32).view(f4)
    half = x * f4(0.5)
    for _ in range(3):
        y = y * (f4(1.5) - half * (y * y))
    return y


def stepped(
    w: Floats, g: Floats, layer: Dense, prefix: str, rate: np.float32, eps2: np.float32, o: Optimiser
) -> Floats:
    g = flush(g)
    if not prefix:
        if o.decay:
            g = fma(w, f4(o.decay), g)
        if o.l1:
            g = fma(np.sign(w), f4(o.l1), g)
    m, v = layer.moments[prefix + "m"], layer.moments[prefix + "v"]
    if o.adam:
        m[:] = flush(fma(f4(0.9), m, f4(0.1) * g))
        v[:] = flush(fma(f4(0.999), v, f4(0.001) * (g * g)))
        return w - (rate * m) * rsqrt(v + eps2)
    m[:] = flush(fma(f4(o.momentum), m, g))
    return w - rate * m


def softmax(logits: Floats) -> Floats:
    n, classes = logits.shape
    e = exp2((logits - logits.max(1, keepdims=True)) * LOG2E)
    lanes = np.zeros((n, 16), f4)
    for c in range(0, classes, 16):
        width = min(16, classes - c)
        lanes[:, :width] = lanes[:, :width] + e[:, c : c + width]
    return e / lane_tree(lanes)[:, None]


def forward(
    layers: list[Dense], x: Floats, o: Optimiser, key: int, *, relu: bool = False, linear: bool = False
) -> tuple[list[Floats], list[Floats]]:
    """Activations of every layer (the last: probabilities, or numbers if ``linear``) and slopes of the hidden ones."""
    acts, slopes = [], []
    keep = f4(1.0 - o.dropout)
    for n, layer in enumerate(layers):
        pre = chain(acts[-1] if acts else x, layer.w) + layer.b
        if n + 1 == len(layers):
            acts.append(pre if linear else softmax(pre))
            break
        if relu:
            p = np.where(flush(pre) > 0, np.minimum(flush(pre), f4(65536)), f4(0))
            s = ((p > 0) & (p < 65536)).astype(f4)
        else:
            p = flush(sigmoid(pre))
            s = p * (f4(1) - p)
        if o.dropout:
            stream = chain64(key, n, 1 << 20)
            kept = draws(stream, *p.shape, pair_rows=True) < int(f4(keep * f4(65536)))
            scale = f4(f4(1) / keep)
            p, s = np.where(kept, p * scale, f4(0)), np.where(kept, s * scale, f4(0))
        acts.append(p)
        slopes.append(s)
    return acts, slopes


def head_delta(acts: Floats, labels: NDArray[np.generic], loss: str, share: np.float32) -> tuple[Floats, float]:
    """Delta and summed loss of known rows: cross-entropy, Brier's score, or squared distance to numbers."""
    rows = np.arange(len(acts))
    if loss == "targets":
        e = acts - labels
        return flush(np.clip(e, f4(-(2.0**20)), f4(2.0**20)) * share), float((e.astype(float) ** 2).sum() / 2)
    one = np.zeros_like(acts)
    one[rows, labels] = 1
    e = acts - one
    if loss == "squared":
        lanes = np.zeros((len(acts), 16), f4)
        for c in range(0, acts.shape[1], 16):
            width = min(16, acts.shape[1] - c)
            lanes[:, :width] = fma(acts[:, c : c + width], e[:, c : c + width], lanes[:, :width])
        inner = lane_tree(lanes)[:, None]
        return flush((acts * (e - inner)) * share), float((e.astype(float) ** 2).sum() / 2)
    delta = flush(acts * share)
    delta[rows, labels] = e[rows, labels] * share
    return delta, float(-np.log(acts[rows, labels].astype(float)).sum())


def backprop_minibatch(
    layers: list[Dense], x: Floats, labels: NDArray[np.generic], rate: float, o: Optimiser, key: int,
    *, relu: bool = False, loss: str = "cross_entropy",
) -> float:  # fmt: skip
    """One minibatch; rows whose label is -1, or some target NaN, are left out. Returns the mean loss."""
    acts, slopes = forward(layers, x, o, key, relu=relu, linear=loss == "targets")
    known = ~np.isnan(labels).any(1) if loss == "targets" else labels >= 0
    if not known.any():
        return 0.0
    share = f4(f4(1) / f4(known.sum()))
    delta = np.zeros_like(acts[-1])
    delta[known], total = head_delta(acts[-1][known], labels[known], loss, share)
    rate, eps2 = f4(rate), f4(0)
    if o.adam:
        o.power1, o.power2 = f4(o.power1 * f4(0.9)), f4(o.power2 * f4(0.999))
        left = f4(f4(1) - o.power2)
        rate = f4(f4(rate * np.sqrt(left)) / f4(f4(1) - o.power1))
        eps2 = f4(f4(1e-16) * left)
    for n in range(len(layers) - 1, -1, -1):
        layer = layers[n]
        under = acts[n - 1] if n else x
        following = chain(layer.w, np.ascontiguousarray(delta.T)).T * slopes[n - 1] if n else delta
        if relu:
            following = np.clip(following, f4(-(2.0**20)), f4(2.0**20))
        following = flush(following)
        gw, gb = chain(np.ascontiguousarray(under.T), delta), add_rows(delta)
        layer.w = stepped(layer.w, gw, layer, "", rate, eps2, o)
        layer.b = stepped(layer.b, gb, layer, "bias_", rate, eps2, o)
        delta = following
    return total / int(known.sum())
