"""Where a round leaves what it trained: the same numbers as in the vector, and the start is only read."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.kernels import workspaces
from gossipdbn.models import learners
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
