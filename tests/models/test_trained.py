"""Where a round leaves what it trained: the same numbers as in the vector, and the start is only read."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from gossipdbn.core import rounds
from gossipdbn.core.chain import Chain
from gossipdbn.core.values import Manifest, RowRange
from gossipdbn.errors import LocalProtocolError
from gossipdbn.kernels import workspaces
from gossipdbn.models import learners, reading
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout, parameter_count, phase_tensors

BINARY, GREY = ModelSpec(37, (21, 18), "binary", 3), ModelSpec(37, (21, 18), "grey", 3)
FLOATS = ModelSpec(37, (21, 18), "gaussian", 3)


@pytest.mark.parametrize("spec", [BINARY, GREY, FLOATS], ids=lambda s: s.visible_units)
@pytest.mark.parametrize("weight_bits", [16, 8])
@pytest.mark.parametrize(("learner", "layer"), [("cd", 0), ("cd", 1), ("pcd", 1), ("backprop", 0), ("joint", 0)])
@pytest.mark.parametrize("rows", [0, 25])
def test_a_round_left_in_place_is_the_round_written_back(spec, weight_bits, learner, layer, rows) -> None:
    phase = PhaseSpec(learner, layer, batch=10, tau=3, lr=0.1, weight_bits=weight_bits, optimizer="adam")
    rng = np.random.default_rng(0)
    top = {"binary": 1, "grey": 127, "gaussian": 1}[spec.visible_units]
    values = (rng.random((rows, 37)) * top).round().astype(np.float32 if spec is FLOATS else np.uint8)
    labels = (np.arange(rows) % 3).astype(np.int32)
    mean = np.full(37, 0.4, np.float32)
    context = learners.RoundContext(3, 1, 20, 4, mean, np.full(-(-rows // 10), 0.1, np.float32))
    start = learners.initial_parameters(spec, 3, mean)
    expected, states = start.copy(), [learners.new_state(spec, phase) for _ in range(2)]
    stats = learners.train_round(spec, phase, expected, states[0], values, labels, context)

    given: list[np.ndarray] = []

    def scratch() -> np.ndarray:
        given.append(start.copy())
        return given[-1]

    start.flags.writeable = False
    same, trained = learners.train(spec, phase, start, scratch, states[1], values, labels, context)
    assert same == stats and len(given) <= 1
    if learner in ("cd", "pcd") and (layer or spec is not FLOATS):
        assert not given
    assert sorted(trained.tensors) == list(phase_tensors(spec, phase))
    for t in layout(spec):
        flat = expected[t.offset : t.offset + t.size]
        now = trained.tensors.get(t.id, start[t.offset : t.offset + t.size])
        if now.ndim == 3:
            now = now.transpose(1, 0, 2).reshape(now.shape[1], -1)[: t.shape[0], : t.shape[1]].reshape(-1)
        np.testing.assert_array_equal(now, flat)
    for name, array in states[0].items():
        np.testing.assert_array_equal(states[1][name], array)


@pytest.mark.parametrize("spec", [BINARY, GREY, FLOATS], ids=lambda s: s.visible_units)
@pytest.mark.parametrize("weight_bits", [16, 8])
@pytest.mark.parametrize("labelled", [True, False])
def test_a_live_round_is_its_minibatches_one_by_one(spec, weight_bits, labelled) -> None:
    """Whatever stays unpacked from one minibatch to the next, rounds of one minibatch read the same."""
    phase = PhaseSpec("joint", epochs=None, batch=10, tau=4, lr=0.1, weight_bits=weight_bits, max_norm=0.5)
    rng = np.random.default_rng(1)
    top = {"binary": 1, "grey": 127, "gaussian": 1}[spec.visible_units]
    values = (rng.random((35, 37)) * top).round().astype(np.float32 if spec is FLOATS else np.uint8)
    labels = (np.arange(35) % 3).astype(np.int32) if labelled else None
    mean, rates = np.full(37, 0.4, np.float32), np.array([0.1, 0.09, 0.08, 0.07], np.float32)
    start = learners.initial_parameters(spec, 3, mean)
    whole, apart = start.copy(), start.copy()
    states = [learners.new_state(spec, phase) for _ in range(2)]
    context = learners.RoundContext(3, 1, 20, 4, mean, rates)
    learners.train_round(spec, phase, whole, states[0], values, labels, context)
    for i in range(4):
        at = slice(10 * i, 10 * i + 10)
        context = learners.RoundContext(3, 1, 20 + i, 4, mean, rates[i : i + 1])
        some = None if labels is None else labels[at]
        learners.train_round(spec, phase, apart, states[1], values[at], some, context)
    np.testing.assert_array_equal(whole, apart)
    assert not np.array_equal(whole, start)
    for name, array in states[0].items():
        np.testing.assert_array_equal(states[1][name], array)


@pytest.mark.parametrize("spec", [BINARY, FLOATS], ids=lambda s: s.visible_units)
def test_threads_that_read_a_model_at_once_do_not_disturb_each_other(spec) -> None:
    rng = np.random.default_rng(2)
    theta = rng.integers(-(1 << 25), 1 << 25, parameter_count(spec)).astype(np.int32)
    rows = [(rng.random((3000, 37)) < 0.5).astype(np.float32 if spec is FLOATS else np.uint8) for _ in range(4)]
    expected = [reading.transform(spec, theta, x) for x in rows]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for got, want in zip(pool.map(lambda x: reading.transform(spec, theta, x), rows), expected, strict=True):
                np.testing.assert_array_equal(got, want)


def test_a_round_trained_in_workspaces_has_no_vector() -> None:
    phase = PhaseSpec("cd", 0, batch=10, tau=1)
    mean = np.full(37, 0.4, "<f4").tobytes()
    manifest = Manifest(run="r", slots=1, spec=BINARY, phases=(phase,), run_key=1, visible_mean=mean)
    state = rounds.fresh_state(manifest, 0, Chain(slots=1))
    job = rounds.begin(state, rounds.initial_parameters(manifest), (0, 0), RowRange(0, 0, 10))
    rounds.run(manifest, job, np.ones((10, 37), np.uint8), None, 0)
    with pytest.raises(LocalProtocolError, match="as one vector"):
        _ = job.parameters


def test_a_workspace_is_handed_on_once() -> None:
    workspaces.clear()
    mean = np.full(37, 0.4, np.float32)
    phase = PhaseSpec("cd", 0, batch=10)
    context = learners.RoundContext(3, 1, 20, 4, mean, np.full(1, 0.1, np.float32))
    state, start = learners.new_state(BINARY, phase), np.zeros(parameter_count(BINARY), np.int32)
    rows = np.ones((10, 37), np.uint8)
    _, trained = learners.train(BINARY, phase, start, start.copy, state, rows, None, context)
    trained.give_back()
    trained.give_back()
    first, second = (workspaces.take(True, 37, 21) for _ in range(2))
    assert first is not second
