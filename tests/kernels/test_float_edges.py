"""The float32 paths at their edges: huge weights and activations, dead units, missing targets, memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gossipdbn.core.values import Manifest, manifest_from_json, manifest_json
from gossipdbn.errors import ConfigError, DataError
from gossipdbn.kernels import workspaces
from gossipdbn.kernels.backprop import RELU_MAX
from gossipdbn.models import learners, reading
from gossipdbn.models.scores import anomaly_scores
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout, parameter_count

f4 = np.float32
SGD = PhaseSpec("backprop", batch=10, lr=0.1, momentum=0.9)
ADAM = PhaseSpec("backprop", batch=10, lr=0.1, optimizer="adam")


def train(spec, phase, p, x, y, lr=None):
    state = learners.new_state(spec, phase)
    rates = np.full(-(-len(x) // phase.batch), phase.lr if lr is None else lr, f4)
    ctx = learners.RoundContext(1, 0, 0, 1, np.full(spec.visible, 0.5, f4), rates)
    return learners.train_round(spec, phase, p, state, x, y, ctx), state


def relu(hidden=(20, 20), **head):
    return ModelSpec(30, hidden, "gaussian", hidden_units="relu", **head)


@pytest.mark.parametrize("phase", [SGD, ADAM])
@pytest.mark.parametrize("weight", [2**27, 2**30, -(2**30)])  # 8 and +-64
@pytest.mark.parametrize("head", [{"targets": 3, "loss": "squared"}, {"classes": 3}, {"classes": 3, "loss": "squared"}])
def test_what_diverges_saturates_and_stays_finite(phase, weight, head):
    """Weights at their limit, activations of 1e4 and far beyond, through eight layers, and a huge learning rate."""
    spec = relu((20,) * 8, **head)
    p = np.full(parameter_count(spec), weight, np.int32)
    x = np.full((50, 30), 10.0, f4)
    y = np.full((50, 3), -1e4, f4) if spec.targets else np.zeros(50, np.int32)
    for lr in (1.0, 10.0):
        stats, state = train(spec, phase, p, x, y, lr)
        assert np.isfinite(stats.loss)
        assert all(np.isfinite(v).all() for v in state.values())
        assert np.abs(p.astype(np.int64)).max() <= 2**30
    assert np.isfinite(reading.predict_outputs(spec, p, x)).all()
    assert reading.transform(spec, p, x).max() <= RELU_MAX


@pytest.mark.parametrize("learner", ["cd", "pcd"])
@pytest.mark.parametrize("units", ["gaussian", "mixed"])
def test_contrastive_divergence_of_real_rows_saturates(learner, units):
    """Weights at +-64, rows of 1e4, a constant column, a row of zeros and a huge learning rate: all stays finite."""
    spec = ModelSpec(33, (40,), units, 0, (0, 5) if units == "mixed" else ())
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(25, 33)) * 1e4).astype(f4)
    x[:, list(spec.binary_columns)] = x[:, list(spec.binary_columns)] > 0
    x[:, 7], x[3] = 1e4, 0
    p = rng.choice([-(2**30), 2**27, 2**30], parameter_count(spec)).astype(np.int32)
    for lr in (0.1, 10.0):
        stats, state = train(spec, PhaseSpec(learner, batch=10, momentum=0.9, k=2), p, x, None, lr)
        assert np.isfinite(stats.reconstruction_error)
        assert all(np.isfinite(v).all() for v in state.values())
        assert np.abs(p.astype(np.int64)).max() <= 2**30
    h = reading.transform(spec, p, x)
    assert ((h >= 0) & (h <= 1)).all() and np.isfinite(reading.free_energy(spec, p, x)).all()


def test_units_that_never_fire_stay_as_they_are():
    """With negative biases and rows of zeros nothing below the head moves."""
    spec = relu(targets=2, loss="squared")
    p = learners.initial_parameters(spec, 1, np.zeros(30, f4))
    for t in layout(spec):
        if t.name.endswith("hidden_bias"):
            p[t.offset : t.offset + t.size] = -(2**20)
    before, x = p.copy(), np.zeros((25, 30), f4)
    assert not reading.transform(spec, p, x).any()
    train(spec, SGD, p, x, np.ones((25, 2), f4))
    changed = {t.name for t in layout(spec) if (p != before)[t.offset : t.offset + t.size].any()}
    assert changed == {"head.bias"}


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
@pytest.mark.parametrize("hidden_units", ["binary", "relu"])
@pytest.mark.parametrize("n", [1, 25])
def test_constant_columns_and_zero_rows(units, hidden_units, n):
    spec = ModelSpec(33, (1, 17), units, hidden_units=hidden_units, loss="squared", targets=1)
    kind = np.uint8 if spec.integer_rows else f4
    for fill in (0, 1):
        p = learners.initial_parameters(spec, 1, np.full(33, float(fill), f4))
        x = np.full((n, 33), fill * (127 if units == "grey" else 1), kind)
        stats, state = train(spec, ADAM, p, x, np.full((n, 1), 0.25, f4), 0.01)
        assert np.isfinite(stats.loss) and all(np.isfinite(v).all() for v in state.values())
        said = reading.predict_outputs(spec, p, x)
        assert said.shape == (n, 1) and (said == said[0]).all()


def test_rows_without_targets_teach_nothing():
    spec = relu(targets=2, loss="squared")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(20, 30)).astype(f4), rng.normal(size=(20, 2)).astype(f4)
    y[::2, 1] = np.nan
    p = learners.initial_parameters(spec, 1, np.zeros(30, f4))
    q, r = p.copy(), p.copy()
    train(spec, replace(SGD, batch=20), q, x, y)
    train(spec, replace(SGD, batch=10), r, x[1::2], y[1::2])
    assert np.abs(q.astype(np.int64) - r).max() <= 64 and not np.array_equal(p, q)  # sums of other lengths: rounding
    stats, _ = train(spec, SGD, p.copy(), x, np.full_like(y, np.nan))
    assert stats.loss == 0.0


def test_what_no_model_can_be_is_refused():
    x = np.zeros((4, 30), f4)
    for spec, phase, words in [
        (relu(classes=2), PhaseSpec("cd"), "cd cannot train ReLU"),
        (relu(classes=2), PhaseSpec("joint"), "joint cannot train ReLU"),
        (relu(), SGD, "without classes or targets"),
        (relu(classes=2, targets=2, loss="squared"), SGD, "2 classes and 2 targets"),
        (relu(targets=2), SGD, "with the loss squared"),
    ]:
        with pytest.raises(ConfigError, match=words):
            learners.new_state(spec, phase)
    spec = relu(targets=2, loss="squared")
    p = learners.initial_parameters(spec, 1, np.zeros(30, f4))
    for y, words in [
        (np.zeros((4, 3), f4), "takes float32"),
        (np.zeros(4, np.int32), "takes float32"),
        (np.full((4, 2), np.inf, f4), "infinite"),
    ]:
        with pytest.raises(DataError, match=words):
            train(spec, SGD, p, x, y)
    for read in (reading.reconstruct, reading.free_energy, reading.features, anomaly_scores):
        with pytest.raises(ConfigError, match="no Boltzmann machine"):
            read(spec, p, x)
    with pytest.raises(ConfigError, match="no classes"):
        reading.predict_proba(spec, p, x)


def test_manifests_from_before_these_fields_mean_what_they_meant():
    spec = ModelSpec(3, (2,), "binary", 2)
    manifest = Manifest(run="r", slots=1, spec=spec, phases=(SGD,), run_key=1, visible_mean=bytes(12))
    text = manifest_json(manifest)
    old = text.replace(b'"hidden_units":"binary",', b"").replace(b'"loss":"cross_entropy",', b"")
    old = old.replace(b'"targets":0,', b"")
    assert len(old) < len(text) - 50 and manifest_from_json(old) == manifest
    assert manifest_json(manifest_from_json(old)) == text
    for changed, words in [
        (replace(spec, targets=2, classes=0, loss="squared"), "class labels alone"),
        (replace(spec, hidden_units="relu"), None),
    ]:
        other = manifest_json(Manifest(
            run="r", slots=1, spec=changed, phases=(SGD,), run_key=1, visible_mean=bytes(12)
        ))  # fmt: skip
        if words is None:
            assert manifest_from_json(other).spec == changed
        else:
            with pytest.raises(ValueError, match=words):
                manifest_from_json(other)
    relu_cd = Manifest(
        run="r", slots=1, spec=replace(spec, hidden_units="relu"), phases=(PhaseSpec("cd"), SGD), run_key=1,
        visible_mean=bytes(12),
    )  # fmt: skip
    with pytest.raises(ValueError, match="cannot train ReLU"):
        manifest_from_json(manifest_json(relu_cd))


@pytest.fixture
def guarded(monkeypatch):
    """Every workspace made in the test lies between canaries; returns a check, and a way to guard other arrays."""
    blocks: list[tuple[np.ndarray, int, int]] = []

    def guard(array: np.ndarray) -> np.ndarray:
        block = np.full(array.nbytes + 512, 0xA5, np.uint8)
        start = 128 + (-(block.ctypes.data + 128)) % 64
        inner = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
        inner[...] = array
        blocks.append((block, start, array.nbytes))
        return inner

    def check() -> None:
        assert blocks
        for block, start, size in blocks:
            assert (block[:start] == 0xA5).all() and (block[start + size :] == 0xA5).all()

    monkeypatch.setattr(workspaces, "aligned", lambda shape, kind: guard(np.zeros(shape, kind)))
    monkeypatch.setattr(workspaces, "_POOL", {})
    return guard, check


@pytest.mark.parametrize(("v", "h", "rows"), [(1, 1, 1), (15, 63, 17), (64, 64, 64), (65, 129, 33), (130, 20, 100)])
@pytest.mark.parametrize("learner", ["cd", "pcd", "softmax", "squared", "targets"])
def test_no_float_kernel_touches_memory_outside_its_arrays(guarded, v, h, rows, learner):
    guard, check = guarded
    rng = np.random.default_rng(0)
    head = {
        "softmax": {"classes": h, "hidden_units": "relu"}, "squared": {"classes": h, "loss": "squared"},
        "targets": {"targets": h, "loss": "squared", "hidden_units": "relu"},
    }.get(learner, {})  # fmt: skip
    spec = ModelSpec(v, (h, v) if head else (h,), "gaussian", **head)
    options = {"dropout": 0.3} if head else {"max_norm": 1.0, "sparsity_cost": 0.1, "sparsity_target": 0.1, "k": 2}
    phase = PhaseSpec("backprop" if head else learner, batch=rows, weight_decay=1e-3, l1=1e-3, **options)
    p = guard(learners.initial_parameters(spec, 1, np.zeros(v, f4)))
    state = {name: guard(array) for name, array in learners.new_state(spec, phase).items()}
    x = guard(rng.normal(size=(3 * rows + 1, v)).astype(f4))
    y = rng.normal(size=(len(x), h)).astype(f4) if spec.targets else rng.integers(-1, h, len(x)).astype(np.int32)
    ctx = learners.RoundContext(1, 0, 0, 1, np.zeros(v, f4), np.full(4, 0.01, f4))
    learners.train_round(spec, phase, p, state, x, guard(y), ctx)
    if head:
        reading.predict_outputs(spec, p, x)
    else:
        reading.free_energy(spec, p, x)
        reading.reconstruct(spec, p, x)
    reading.transform(spec, p, x)
    check()


def test_biases_that_are_no_numbers_go_to_a_limit_and_others_by_what_they_gained():
    old = np.array([5, -5, 1 << 29, -(1 << 31), 7, 7, 0], np.int32)
    now = np.array([np.nan, np.nan, 33.0, 0.0, np.inf, -np.inf, 2.0**-24], np.float32)
    workspaces.gained(old, now)
    top = 1 << 30
    assert old.tolist() == [-top, top, (1 << 29) + (1 << 24), -(1 << 29), (1 << 29) + 7, 7 - (1 << 29), 1]
