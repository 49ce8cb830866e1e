"""Every learner equals its naive twin bit for bit, whatever the shape, the units, the options and the batch."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.kernels import cd_layout
from gossipdbn.models import learners, reading
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout
from tests import naive, naive_dense, naive_learning

f4 = np.float32
UNIT = f4(2.0**-24)


def rows_of(spec: ModelSpec, n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if spec.visible_units == "binary":
        return (rng.random((n, spec.visible)) < 0.3).astype(np.uint8)
    if spec.visible_units == "grey":
        return rng.integers(0, 128, (n, spec.visible)).astype(np.uint8)
    x = rng.normal(size=(n, spec.visible)).astype(f4)
    x[:, list(spec.binary_columns)] = x[:, list(spec.binary_columns)] > 0
    return x


def start(spec: ModelSpec, x: np.ndarray, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Parameters far from their initial values, and the means of the rows."""
    one = 127 if spec.visible_units == "grey" else 1
    mean = (x.mean(0) / one).astype(f4)
    rng = np.random.default_rng(3)
    p = learners.initial_parameters(spec, 7, mean)
    for t in layout(spec):
        sd = spread if t.name.endswith("weights") else 0.3
        p[t.offset : t.offset + t.size] += (rng.normal(size=t.size) * sd * 2.0**24).astype(np.int32)
    return p, mean


def context(step: int, mean: np.ndarray, batches: int, lr: float, slots: int = 2) -> learners.RoundContext:
    return learners.RoundContext(3, 1, step, slots, mean, np.full(batches, lr, f4))


def options_of(phase: PhaseSpec) -> naive_learning.Options:
    return naive_learning.Options(
        phase.momentum,
        phase.weight_decay,
        phase.l1,
        phase.sparsity_target,
        phase.sparsity_cost,
        phase.max_norm,
        phase.k,
    )


CD = [
    (37, 21, "binary", 53, 0.3, PhaseSpec("cd", batch=10, momentum=0.5)),
    (37, 21, "grey", 53, 0.3, PhaseSpec("cd", batch=10, momentum=0.9, weight_decay=1e-3, l1=1e-3, k=3)),
    (1, 1, "binary", 3, 0.3, PhaseSpec("cd", batch=1, momentum=0.9)),
    (130, 70, "grey", 99, 0.3, PhaseSpec("pcd", batch=33, sparsity_cost=0.1, sparsity_target=0.2, max_norm=2.0, k=2)),
    (64, 64, "binary", 128, 8.0, PhaseSpec("pcd", batch=64)),
    (17, 100, "binary", 30, 0.3, PhaseSpec("pcd", batch=7)),
    (70, 130, "grey", 101, 2.0, PhaseSpec("cd", batch=101, lr=1.0)),
    (70, 130, "grey", 99, 0.3, PhaseSpec("cd", batch=40, momentum=0.5, weight_bits=8)),
    (37, 21, "binary", 53, 8.0, PhaseSpec("pcd", batch=17, k=2, max_norm=3.0, weight_bits=8)),
    (1, 1, "binary", 3, 0.3, PhaseSpec("cd", batch=1, momentum=0.9, weight_bits=8)),
]


@pytest.mark.parametrize(("v", "h", "units", "n", "spread", "phase"), CD)
def test_integer_contrastive_divergence(v, h, units, n, spread, phase):
    spec = ModelSpec(v, (h,), units)
    x = rows_of(spec, n, 1)
    p, mean = start(spec, x, spread)
    p = np.clip(p, -(1 << 30), 1 << 30)
    w, a, b = (p[t.offset : t.offset + t.size].astype(np.int64) for t in layout(spec))
    m = naive_learning.Layer(
        w.reshape(v, h), a, b, np.zeros((v, h), f4), np.zeros(v, f4), np.zeros(h, f4), np.full(h, 0.5, f4), mean
    )
    chains = np.zeros((phase.batch, h), np.int64)
    options = options_of(phase)
    if phase.weight_bits == 8:  # 127 steps reach a quarter beyond the largest weight
        options.shift = next(s for s in range(1, 32) if 127 << s >= np.abs(w).max() * 5 // 4)
    state = learners.new_state(spec, phase)
    batches = -(-n // phase.batch)
    stats = learners.train_round(spec, phase, p, state, x, None, context(5, mean, batches, phase.lr))
    error, last = 0, 1
    for i in range(batches):
        part = x[i * phase.batch : (i + 1) * phase.batch].astype(np.int64)
        key = naive_learning.minibatch_key(3, 1, 5 + i, 0)
        keep = chains[: len(part)] if phase.learner == "pcd" else None
        one = 127 if units == "grey" else 1
        error = naive_learning.cd_minibatch(m, part, one, f4(f4(phase.lr) * 2.0), options, key, keep)
        last = len(part)
    np.testing.assert_array_equal(p, np.concatenate([m.w.reshape(-1), m.a, m.b]))
    assert stats.reconstruction_error == error / 1024 / last
    speed = state["layer0.speed"].transpose(1, 3, 0, 2).reshape(cd_layout.padded(v), -1)[:v, :h].astype(np.uint32)
    np.testing.assert_array_equal((speed << 16).view(f4), m.speed)
    np.testing.assert_array_equal(state["layer0.lam"][:h], m.lam)
    np.testing.assert_array_equal(state["layer0.hidden_speed"][:h], m.speed_b)
    np.testing.assert_array_equal(state["layer0.visible_speed"][:v], m.speed_a)
    if phase.learner == "pcd":
        np.testing.assert_array_equal(state["layer0.chains"], chains)


REAL = [
    (19, 21, "gaussian", 23, PhaseSpec("cd", batch=10, momentum=0.5, lr=0.01)),
    (33, 40, "mixed", 20, PhaseSpec("pcd", batch=7, momentum=0.9, lr=0.01, weight_decay=1e-3, l1=1e-3, k=2)),
    (5, 3, "mixed", 9, PhaseSpec("cd", batch=17, sparsity_cost=0.1, sparsity_target=0.2, max_norm=0.5)),
    (1, 1, "gaussian", 1, PhaseSpec("pcd", batch=1)),
]


@pytest.mark.parametrize(("v", "h", "units", "n", "phase"), REAL)
def test_real_contrastive_divergence(v, h, units, n, phase):
    binary = tuple(range(0, v, 3)) if units == "mixed" else ()
    spec = ModelSpec(v, (h,), units, 0, binary)
    x = rows_of(spec, n, 2)
    p, mean = start(spec, x, 0.3)
    w, a, b = (p[t.offset : t.offset + t.size].astype(f4) * UNIT for t in layout(spec))
    mask = np.zeros(v, bool)
    mask[list(binary)] = True
    m = naive_dense.RealLayer(
        w.reshape(v, h), a, b, np.zeros((v, h), f4), np.zeros(v, f4), np.zeros(h, f4), np.full(h, 0.5, f4), mean, mask
    )
    before = np.concatenate([m.w.reshape(-1), m.a, m.b])
    chains = np.zeros((phase.batch, h), f4)
    state = learners.new_state(spec, phase)
    batches = -(-n // phase.batch)
    q = p.copy()
    stats = learners.train_round(spec, phase, q, state, x, None, context(5, mean, batches, phase.lr))
    error, last = 0.0, 1
    for i in range(batches):
        part = x[i * phase.batch : (i + 1) * phase.batch]
        key = naive_learning.minibatch_key(3, 1, 5 + i, 0)
        keep = chains[: len(part)] if phase.learner == "pcd" else None
        error = naive_dense.real_minibatch(m, part, f4(f4(phase.lr) * 2.0), options_of(phase), key, keep)
        last = len(part)
    after = np.concatenate([m.w.reshape(-1), m.a, m.b])
    np.testing.assert_array_equal(q, p + np.rint((after - before) * f4(2.0**24)).astype(np.int64))
    assert stats.reconstruction_error == pytest.approx(error / last, rel=1e-9)
    vp = state["layer0.speed"].shape[1]
    np.testing.assert_array_equal(state["layer0.speed"].transpose(1, 0, 2).reshape(vp, -1)[:v, :h], m.speed)
    if phase.learner == "pcd":
        np.testing.assert_array_equal(state["layer0.chains"], chains)


SGD = PhaseSpec("backprop", batch=7, lr=0.1, momentum=0.9, weight_decay=1e-3, l1=1e-4, dropout=0.3)
ADAM = PhaseSpec("backprop", batch=10, lr=0.01, optimizer="adam")
DROPOUT = PhaseSpec("backprop", batch=33, lr=0.01, optimizer="adam", dropout=0.5)
STACK = (35, 18)
BACKPROP = [
    (ADAM, ModelSpec(21, STACK, "grey", 3)),
    (SGD, ModelSpec(21, STACK, "binary", 3)),
    (DROPOUT, ModelSpec(21, STACK, "gaussian", 40)),
    (ADAM, ModelSpec(21, STACK, "grey", 3, hidden_units="relu")),
    (SGD, ModelSpec(21, STACK, "binary", 3, hidden_units="relu")),
    (DROPOUT, ModelSpec(21, (35, 18, 50), "gaussian", 40, hidden_units="relu", loss="squared")),
    (ADAM, ModelSpec(21, STACK, "grey", 19, loss="squared")),
    (SGD, ModelSpec(21, STACK, "gaussian", 2, loss="squared")),
    (SGD, ModelSpec(21, STACK, "gaussian", loss="squared", targets=2, hidden_units="relu")),
    (ADAM, ModelSpec(21, STACK, "binary", loss="squared", targets=35)),
    (PhaseSpec("backprop", batch=1, lr=0.1), ModelSpec(1, (1,), "gaussian", loss="squared", targets=1)),
    (PhaseSpec("backprop", batch=1, lr=0.1), ModelSpec(1, (1,), "binary", 1, hidden_units="relu")),
]


def goals(spec: ModelSpec, n: int) -> np.ndarray:
    """Labels with some missing, or targets in sixteenths with some missing."""
    rng = np.random.default_rng(5)
    if not spec.targets:
        return rng.integers(-1, spec.classes, n).astype(np.int32)
    y = rng.integers(-40, 40, (n, spec.targets)).astype(f4) / f4(16)
    y[rng.integers(0, n, 3), rng.integers(0, spec.targets, 3)] = np.nan
    return y


def dense_layers(spec: ModelSpec, p: np.ndarray) -> list[tuple[naive_dense.Dense, str, str]]:
    """The stack as twins with the names of their tensors."""
    t = {t.name: p[t.offset : t.offset + t.size].astype(f4).reshape(t.shape) * UNIT for t in layout(spec)}
    names = [(f"layer{n}.weights", f"layer{n}.hidden_bias") for n in range(len(spec.hidden))]
    return [(naive_dense.Dense(t[w], t[b]), w, b) for w, b in [*names, ("head.weights", "head.bias")]]


@pytest.mark.parametrize(("phase", "spec"), BACKPROP)
def test_backprop(phase, spec):
    n = 33
    x = rows_of(spec, n, 4)
    labels = goals(spec, n)
    p, mean = start(spec, x, 0.3)
    layers = dense_layers(spec, p)
    before = {name: a.copy() for layer, w, b in layers for name, a in ((w, layer.w), (b, layer.b))}
    o = naive_dense.Optimiser(phase.optimizer == "adam", phase.momentum, phase.weight_decay, phase.l1, phase.dropout)
    batches = -(-n // phase.batch)
    q = p.copy()
    state = learners.new_state(spec, phase)
    stats = learners.train_round(spec, phase, q, state, x, labels, context(5, mean, batches, phase.lr))
    real = x.astype(f4) * f4(1 / 127) if spec.visible_units == "grey" else x.astype(f4)
    loss = "targets" if spec.targets else spec.loss
    losses = 0.0
    for i in range(batches):
        s = slice(i * phase.batch, (i + 1) * phase.batch)
        known = int((~np.isnan(labels[s]).any(1) if spec.targets else labels[s] >= 0).sum())
        losses += known * naive_dense.backprop_minibatch(
            [layer for layer, _, _ in layers], real[s], labels[s], phase.lr, o, naive.chain64(3, 1, 5 + i),
            relu=spec.hidden_units == "relu", loss=loss,
        )  # fmt: skip
    for layer, w, b in layers:
        for t in layout(spec):
            if t.name in (w, b):
                now = layer.w if t.name == w else layer.b
                step = np.clip((now - before[t.name]) * f4(2.0**24), -(2.0**29), 2.0**29)  # a round moves no further
                part = slice(t.offset, t.offset + t.size)
                wanted = p[part] + np.rint(step).astype(np.int64).reshape(-1)
                np.testing.assert_array_equal(q[part], np.clip(wanted, -(1 << 30), 1 << 30), err_msg=t.name)
    known = int((~np.isnan(labels).any(1) if spec.targets else labels >= 0).sum())
    assert stats.loss == pytest.approx(losses / max(known, 1), rel=1e-6)
    assert stats.minibatches == batches and 0 <= stats.correct <= known


@pytest.mark.parametrize("hidden_units", ["binary", "relu"])
@pytest.mark.parametrize(
    "head", [{"classes": 3}, {"classes": 20, "loss": "squared"}, {"targets": 4, "loss": "squared"}]
)
def test_outputs_and_features_of_a_stack(hidden_units, head):
    spec = ModelSpec(21, (35, 18), "grey", hidden_units=hidden_units, **head)
    x = rows_of(spec, 300, 6)
    p, _ = start(spec, x, 0.3)
    layers = [layer for layer, _, _ in dense_layers(spec, p)]
    relu = hidden_units == "relu"
    real = x.astype(f4) * f4(1 / 127)
    acts, _ = naive_dense.forward(layers, real, naive_dense.Optimiser(), 0, relu=relu, linear=bool(spec.targets))
    np.testing.assert_array_equal(reading.predict_outputs(spec, p, x), acts[-1])
    if relu:
        for n in (1, 2):
            np.testing.assert_array_equal(reading.transform(spec, p, x, n), acts[n - 1])


def test_features_of_integer_layers():
    spec = ModelSpec(37, (21, 70), "grey")
    x = rows_of(spec, 300, 7)
    p, _ = start(spec, x, 0.3)
    below = x.astype(np.int64)
    for n in range(2):
        w, b = (
            p[t.offset : t.offset + t.size].astype(np.int64) for t in (layout(spec)[3 * n], layout(spec)[3 * n + 2])
        )
        shape = layout(spec)[3 * n].shape
        t = naive_learning.log2_odds(below, w.reshape(shape), b, 127)
        probability = naive.reciprocal(naive.exp2(t) + f4(1))
        below = np.rint(probability.astype(np.float64) * 127.0).astype(np.int64)
    np.testing.assert_array_equal(reading.transform(spec, p, x), probability)
    np.testing.assert_array_equal(reading.features(spec, p, x), below)
