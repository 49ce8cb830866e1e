"""What happens at the edges: weights at their limit, huge activations, empty and constant rows, chunking, memory."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.errors import ConfigError, DataError, LocalProtocolError
from gossipdbn.kernels import cd_layout, contrastive, workspaces
from gossipdbn.kernels.cd_layout import WEIGHT_LIMIT
from gossipdbn.kernels.rows import dense_view
from gossipdbn.models import learners, reading
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout, parameter_count, phase_tensors

f4 = np.float32


def ctx(mean, batches, lr=0.1, step=0):
    return learners.RoundContext(1, 0, step, 1, mean, np.full(batches, lr, f4))


def train(spec, phase, p, x, lr=0.1, labels=None):
    mean = np.full(spec.visible, 0.5, f4)
    state = learners.new_state(spec, phase)
    stats = learners.train_round(spec, phase, p, state, x, labels, ctx(mean, -(-len(x) // phase.batch), lr))
    return stats, state


@pytest.mark.parametrize("units", ["binary", "grey"])
def test_weights_saturate_and_activations_do_not_wrap(units):
    """Weights far beyond +-7.97 act and end as +-7.97; activations beyond 1e4 give probabilities 0 and 1."""
    spec = ModelSpec(2000, (20,), units)
    p = np.zeros(parameter_count(spec), np.int32)
    w = p[: 2000 * 20].reshape(2000, 20)
    w[:, :10] = 2**29
    w[:, 10:] = -(2**29)
    x = np.full((5, 2000), 127 if units == "grey" else 1, np.uint8)
    h = reading.transform(spec, p, x)
    assert (h[:, :10] == 1).all() and (h[:, 10:] < 1e-30).all()
    train(spec, PhaseSpec("cd", batch=5), p, x)
    assert np.abs(w).max() == WEIGHT_LIMIT


def test_huge_learning_rates_saturate():
    spec = ModelSpec(30, (20,), "binary")
    p = learners.initial_parameters(spec, 1, np.full(30, 0.5, f4))
    x = (np.random.default_rng(0).random((200, 30)) < 0.5).astype(np.uint8)
    train(spec, PhaseSpec("cd", batch=10, momentum=0.99), p, x, lr=1e6)
    assert np.abs(p[: 30 * 20]).max() <= WEIGHT_LIMIT and np.abs(p.astype(np.int64)).max() <= 2**30


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
@pytest.mark.parametrize("fill", [0, 1])
def test_constant_rows_stay_finite(units, fill):
    spec = ModelSpec(33, (17,), units)
    p = learners.initial_parameters(spec, 1, np.full(33, float(fill), f4))
    kind = np.uint8 if spec.integer_rows else f4
    x = np.full((25, 33), fill * (127 if units == "grey" else 1), kind)
    stats, state = train(spec, PhaseSpec("cd", batch=10, momentum=0.9), p, x)
    assert np.isfinite(stats.reconstruction_error)
    assert all(np.isfinite(v).all() for v in state.values() if v.dtype == f4)


def test_velocity_never_becomes_denormal():
    """Without any gradient momentum fades to exactly zero."""
    spec = ModelSpec(20, (20,), "binary")
    p = np.zeros(parameter_count(spec), np.int32)
    phase = PhaseSpec("cd", batch=10, momentum=0.5)
    state = learners.new_state(spec, phase)
    state["layer0.speed"][0, :10] = 0x3F80  # 20 rows of the first 16 hidden units
    state["layer0.hidden_speed"][:20] = 1.0
    mean = np.zeros(20, f4)
    for r in range(30):
        learners.train_round(spec, phase, p, state, np.zeros((100, 20), np.uint8), None, ctx(mean, 10, 0.0, r * 10))
    for name in ("layer0.hidden_speed", "layer0.visible_speed"):
        v = np.abs(state[name])
        assert ((v == 0) | (v > 1e-30)).all()
    assert not (state["layer0.speed"] & 0x7FFF).any()


def test_one_call_or_many_give_the_same_bits():
    """Minibatches of one round equal the same minibatches one call at a time."""
    spec = ModelSpec(70, (40,), "grey")
    x = np.random.default_rng(0).integers(0, 128, (230, 70)).astype(np.uint8)
    mean = (x.mean(0) / 127).astype(f4)
    for phase in (PhaseSpec("cd", batch=20, momentum=0.9), PhaseSpec("pcd", batch=20, k=2)):
        a = learners.initial_parameters(spec, 5, mean)
        b = a.copy()
        state_a, state_b = learners.new_state(spec, phase), learners.new_state(spec, phase)
        learners.train_round(spec, phase, a, state_a, x, None, ctx(mean, 12))
        for i in range(12):
            learners.train_round(spec, phase, b, state_b, x[i * 20 : i * 20 + 20], None, ctx(mean, 1, step=i))
        np.testing.assert_array_equal(a, b)
        assert all((state_a[k] == state_b[k]).all() for k in state_a)


@pytest.mark.parametrize(("v", "h", "rows"), [(1, 1, 1), (15, 63, 17), (64, 64, 64), (65, 129, 33), (130, 20, 100)])
@pytest.mark.parametrize("persistent", [False, True])
def test_no_kernel_touches_memory_outside_its_arrays(v, h, rows, persistent):
    """Canaries around every array of a workspace, and the padding inside them, survive training."""
    space = workspaces.IntegerSpace(v, h, cd_layout.Weights.new(v, h))
    batch = cd_layout.Batch.new(v, h, rows)
    vp, hp = cd_layout.padded(v), cd_layout.padded(h)
    state = {
        cd_layout.SPEED: np.zeros((hp // 16, vp // 2, 16, 2), np.uint16),
        cd_layout.SPEED_H: np.zeros(hp, f4),
        cd_layout.SPEED_V: np.zeros(vp, f4),
        cd_layout.LAM: np.zeros(hp, f4),
    }
    guarded, raw = {}, []
    for part in (space.weights.arrays, batch.arrays, state):
        for name, array in part.items():
            block = np.full(array.nbytes + 256, 0xA5, np.uint8)
            start = 128 + (-(block.ctypes.data + 128)) % 64
            inner = block[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
            inner[...] = array
            part[name] = guarded[name] = inner
            raw.append((block, start, array.nbytes))
    w = np.random.default_rng(0).integers(-(2**24), 2**24, v * h).astype(np.int32)
    space.load(w, np.zeros(v, np.int32), np.zeros(h, np.int32), None)
    space.center(np.full(v, 0.5, f4))
    table = cd_layout.addresses(guarded)
    x = (np.random.default_rng(1).random((3 * rows, v)) < 0.5).astype(np.uint8)
    rates = np.full(3, 0.1 * 2.0**24, f4)
    contrastive.train(
        dense_view(x), 0, 3, rows, guarded[cd_layout.X], table, v, h, 1, 0, 2, persistent, rates,
        np.array([0.5, 1e-3, 1e-3, 0.1, 0.1, 1.0], f4), np.array([1, 0, 0], np.uint64), 0, True,
    )  # fmt: skip
    for block, start, size in raw:
        assert (block[:start] == 0xA5).all() and (block[start + size :] == 0xA5).all()
    master = guarded[cd_layout.MASTER]
    assert not master[:, v:].any() and not master.transpose(1, 0, 2).reshape(vp, hp)[:, h:].any()
    assert not guarded[cd_layout.V1T][v:].any() and not guarded[cd_layout.V1][rows:].any()


def test_each_learner_touches_only_its_tensors_and_rounds_may_be_empty():
    spec = ModelSpec(30, (20, 12), "binary", 4)
    x = (np.random.default_rng(0).random((33, 30)) < 0.3).astype(np.uint8)
    labels = (np.arange(33) % 5 - 1).astype(np.int32)
    for phase in (
        PhaseSpec("cd", 1, batch=10), PhaseSpec("pcd", 0, batch=10), PhaseSpec("joint", batch=10),
        PhaseSpec("backprop", batch=10, optimizer="adam", lr=0.01),
    ):  # fmt: skip
        p = learners.initial_parameters(spec, 1, x.mean(0).astype(f4))
        q = p.copy()
        empty, _ = train(spec, phase, q, x[:0], labels=labels[:0])
        assert empty == learners.RoundStats(0, 0.0, 0.0, 0, 0) and (p == q).all()
        stats, _ = train(spec, phase, q, x, labels=labels)
        assert stats.rows == 33 and stats.minibatches == 4
        changed = {t.id for t in layout(spec) if (p != q)[t.offset : t.offset + t.size].any()}
        assert changed == set(phase_tensors(spec, phase))


def test_rows_without_labels_teach_the_head_nothing():
    spec = ModelSpec(30, (20,), "binary", 4)
    p = learners.initial_parameters(spec, 1, np.full(30, 0.5, f4))
    q = p.copy()
    train(
        spec,
        PhaseSpec("backprop", batch=10, optimizer="adam"),
        q,
        np.zeros((20, 30), np.uint8),
        labels=np.full(20, -1, np.int32),
    )
    assert (p == q).all()


def test_clear_errors():
    spec = ModelSpec(30, (20,), "binary", 4)
    p = learners.initial_parameters(spec, 1, np.full(30, 0.5, f4))
    cd = PhaseSpec("cd", batch=10)
    x = np.zeros((20, 30), np.uint8)
    with pytest.raises(DataError, match="uint8"):
        train(spec, cd, p, x.astype(f4))
    with pytest.raises(DataError, match="rows are"):
        train(spec, cd, p, x[:, :29])
    with pytest.raises(DataError, match="labels lie in"):
        train(spec, cd, p, x, labels=np.full(20, 9, np.int32))
    with pytest.raises(DataError, match="needs labels"):
        train(spec, PhaseSpec("backprop", batch=10), p, x)
    with pytest.raises(LocalProtocolError, match="learning rates"):
        learners.train_round(spec, cd, p, learners.new_state(spec, cd), x, None, ctx(np.zeros(30, f4), 5))
    for wrong in (
        PhaseSpec("cd", 3),
        PhaseSpec("cd", batch=5000),
        PhaseSpec("cd", k=0),
        PhaseSpec("backprop", max_norm=1.0),
    ):
        with pytest.raises(ConfigError):
            learners.new_state(spec, wrong)
    with pytest.raises(DataError, match="data means"):
        learners.initial_parameters(spec, 1, np.full(30, np.nan, f4))
