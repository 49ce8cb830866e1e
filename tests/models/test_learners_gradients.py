"""The gradients are the true ones: finite differences for backprop, enumeration for contrastive divergence."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from gossipdbn.models import learners, reading
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout

f4 = np.float32
UNIT = 2.0**-24


def tensors(spec: ModelSpec, p: np.ndarray) -> dict[str, np.ndarray]:
    return {t.name: p[t.offset : t.offset + t.size].reshape(t.shape) * UNIT for t in layout(spec)}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def start(spec: ModelSpec) -> np.ndarray:
    p = learners.initial_parameters(spec, 3, np.full(spec.visible, 0.4, f4))
    return p + (np.random.default_rng(1).normal(size=p.size) * 0.4 / UNIT).astype(np.int32)


HEADS = [
    {"classes": 3},
    {"classes": 3, "hidden_units": "relu"},
    {"classes": 3, "loss": "squared"},
    {"targets": 2, "loss": "squared"},
    {"targets": 2, "loss": "squared", "hidden_units": "relu"},
]


@pytest.mark.parametrize("head", HEADS)
def test_backprop_follows_the_slope_of_the_loss(head):
    spec = ModelSpec(7, (6, 5), "gaussian", **head)
    p = start(spec)
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(9, 7)).astype(f4), rng.integers(0, 3, 9).astype(np.int32)
    targets = rng.normal(size=(9, 2)).astype(f4)
    on = sigmoid if spec.hidden_units == "binary" else lambda a: np.maximum(a, 0)

    def loss(values: np.ndarray) -> float:
        t = tensors(spec, values)
        h = on(x.astype(float) @ t["layer0.weights"] + t["layer0.hidden_bias"])
        h = on(h @ t["layer1.weights"] + t["layer1.hidden_bias"])
        z = h @ t["head.weights"] + t["head.bias"]
        if spec.targets:
            return float(np.square(z - targets).sum(1).mean() / 2)
        probability = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        if spec.loss == "squared":
            return float(np.square(probability - np.eye(3)[y]).sum(1).mean() / 2)
        return float(-np.log(probability[np.arange(9), y]).mean())

    phase = PhaseSpec("backprop", batch=9, momentum=0.0)
    q = p.copy()
    ctx = learners.RoundContext(1, 0, 0, 1, np.zeros(7, f4), np.full(1, 0.5, f4))
    labels = targets if spec.targets else y
    stats = learners.train_round(spec, phase, q, learners.new_state(spec, phase), x, labels, ctx)
    assert abs(stats.loss - loss(p.astype(float))) < 1e-5
    gradient = (p.astype(float) - q) * UNIT / 0.5
    for i in range(p.size):
        step = np.zeros(p.size)
        step[i] = 1e-4 / UNIT
        slope = (loss(p + step) - loss(p - step)) / 2e-4
        assert abs(slope - gradient[i]) < 2e-5 * max(1.0, abs(slope)), i


def test_free_energy_equals_enumeration():
    spec = ModelSpec(6, (5,), "binary")
    p = start(spec)
    t = tensors(spec, p.astype(float))
    v = np.array(list(itertools.product((0, 1), repeat=6)), np.uint8)
    h = np.array(list(itertools.product((0, 1), repeat=5)), float)
    energy = v @ t["layer0.weights"] @ h.T + (v @ t["layer0.visible_bias"])[:, None] + h @ t["layer0.hidden_bias"]
    np.testing.assert_allclose(reading.free_energy(spec, p, v), -np.log(np.exp(energy).sum(1)), atol=1e-5)


def test_contrastive_divergence_climbs_the_likelihood():
    """With long chains the summed centred steps equal the exact centred gradient, found by enumeration."""
    spec = ModelSpec(5, (4,), "binary")
    p = start(spec)
    t = tensors(spec, p.astype(float))
    w, a, b = t["layer0.weights"], t["layer0.visible_bias"], t["layer0.hidden_bias"]
    rng = np.random.default_rng(3)
    x = (rng.random((400, 5)) < [0.1, 0.3, 0.5, 0.7, 0.9]).astype(np.uint8)
    mu = x.mean(0).astype(f4).astype(float)
    states = np.array(list(itertools.product((0, 1), repeat=5)), float)
    free = states @ a + np.log1p(np.exp(states @ w + b)).sum(1)
    weight = np.exp(free - free.max())
    weight /= weight.sum()
    h0, hm = sigmoid(x @ w + b), sigmoid(states @ w + b)
    dh, dv = h0.mean(0) - weight @ hm, x.mean(0) - weight @ states
    plain = x.T @ h0 / len(x) - states.T @ (weight[:, None] * hm)
    count, lr, lam = 500, 1e-4, np.full(4, 0.5)
    sums = [np.zeros((5, 4)), np.zeros(5), np.zeros(4)]
    for _ in range(count):
        dw = plain - np.outer(mu, dh) - np.outer(dv, lam)
        for total, step in zip(sums, (dw, dv - dw @ lam, dh - mu @ dw), strict=True):
            total += step
        lam += 0.01 * (h0.mean(0) - lam)
    phase = PhaseSpec("cd", batch=400, momentum=0.0, k=20)
    q = p.copy()
    ctx = learners.RoundContext(1, 0, 0, 1, mu.astype(f4), np.full(count, lr, f4))
    learners.train_round(spec, phase, q, learners.new_state(spec, phase), np.tile(x, (count, 1)), None, ctx)
    moved = tensors(spec, (q.astype(float) - p) / (lr * count))
    for name, total in zip(("weights", "visible_bias", "hidden_bias"), sums, strict=True):
        np.testing.assert_allclose(moved[f"layer0.{name}"], total / count, atol=0.012, err_msg=name)


def test_learning_lowers_the_error_of_every_learner():
    """Two clusters of rows are learnt by every learner and unit type within a few rounds."""
    rng = np.random.default_rng(4)
    y = rng.integers(0, 2, 400).astype(np.int32)
    centre = rng.random((2, 40)) < 0.5
    bits = centre[y] ^ (rng.random((400, 40)) < 0.05)
    for units in ("binary", "grey", "gaussian"):
        x = {"binary": bits.astype(np.uint8), "grey": (bits * 127).astype(np.uint8)}.get(units)
        x = (bits * 2.0 - 1).astype(f4) if x is None else x
        spec = ModelSpec(40, (30,), units, 2)
        mean = (x.mean(0) / (127 if units == "grey" else 1)).astype(f4)
        for learner, lr in (("cd", 0.05), ("pcd", 0.02), ("joint", 0.05)):
            p = learners.initial_parameters(spec, 5, mean)
            phase = PhaseSpec(learner, batch=20, lr=lr)
            state = learners.new_state(spec, phase)
            errors = []
            for r in range(15):
                ctx = learners.RoundContext(
                    5, 0, r * 20, 1, mean, np.full(20, lr * (0.3 if units == "gaussian" else 1), f4)
                )
                errors.append(learners.train_round(spec, phase, p, state, x, y, ctx).reconstruction_error)
            assert errors[-1] < 0.6 * errors[0], (units, learner, errors)
        p = learners.initial_parameters(spec, 5, mean)
        phase = PhaseSpec("backprop", batch=20, optimizer="adam")
        state = learners.new_state(spec, phase)
        for r in range(10):
            ctx = learners.RoundContext(5, 0, r * 20, 1, mean, np.full(20, 0.01, f4))
            learners.train_round(spec, phase, p, state, x, y, ctx)
        assert (reading.predict_proba(spec, p, x).argmax(1) == y).mean() > 0.99
