"""Training on one machine: which rows come when, at which rate, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.kernels.counter_rng import permutation
from gossipdbn.models import dbn
from gossipdbn.models.dbn import RoundReport, check_rows, train, visible_mean
from gossipdbn.models.learners import RoundContext, RoundStats, initial_parameters, new_state, train_round
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout

SPEC = ModelSpec(6, (5, 4), "binary", 3)
PHASES = (
    PhaseSpec("cd", 0, epochs=2, batch=4, tau=3, lr=0.1, lr_final=0.0),
    PhaseSpec("pcd", 1, epochs=1, batch=5, tau=2, lr=0.05, lr_final=0.05),
    PhaseSpec("backprop", epochs=2, batch=4, tau=10, lr=0.01, lr_final=0.0, optimizer="adam"),
)
ROWS = np.random.default_rng(0).integers(0, 2, (30, 6), dtype=np.uint8)
LABELS = (np.arange(30) % 3).astype(np.int32)


def test_rows_come_in_order_first_then_permuted_with_falling_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []

    def watch(
        spec: Any, phase: PhaseSpec, p: Any, state: Any, values: Any, labels: Any, ctx: RoundContext
    ) -> RoundStats:
        seen.append((phase.learner, values.copy(), labels.copy(), ctx.step, list(ctx.learning_rates), ctx.slots))
        return train_round(spec, phase, p, state, values, labels, ctx)

    monkeypatch.setattr(dbn, "train_round", watch)
    reports: list[RoundReport] = []
    train(SPEC, PHASES, ROWS, LABELS, run_key=5, on_round=reports.append)
    assert [len(s[1]) for s in seen] == [12, 12, 6, 12, 12, 6, 10, 10, 10, 30, 30]
    assert [s[3] for s in seen] == [0, 3, 6, 8, 11, 14, 16, 18, 20, 22, 30]
    for epoch, first in ((0, 0), (1, 3), (2, 6), (3, 9), (4, 10)):
        order = np.arange(30) if epoch == 0 else permutation(5, 0, epoch, 30)
        np.testing.assert_array_equal(seen[first][1], ROWS[order][: len(seen[first][1])])
        np.testing.assert_array_equal(seen[first][2], LABELS[order][: len(seen[first][1])])
    assert seen[0][4] == pytest.approx([0.1] * 3) and seen[2][4] == pytest.approx([0.1] * 2)
    assert seen[4][4] == pytest.approx([0.1 * (1 - (1 + i / 30) / 2) for i in (12, 16, 20)], rel=1e-5)
    assert seen[7][4] == pytest.approx([0.05] * 2)
    assert [(r.phase, r.epoch, r.rows_done) for r in reports[-2:]] == [(2, 3, 120), (2, 4, 150)]


def test_it_is_the_rounds_of_a_single_slot() -> None:
    mean = visible_mean(SPEC, ROWS)
    phase = PHASES[0]
    theta, state, step = initial_parameters(SPEC, 7, mean), new_state(SPEC, phase), 0
    for epoch in range(2):
        rows = ROWS if epoch == 0 else ROWS[permutation(7, 0, 1, 30)]
        for first in range(0, 30, 12):
            part = rows[first : first + 12]
            n = -(-len(part) // 4)
            inside = (first + 4 * np.arange(n)) / 30 if epoch else np.zeros(n)
            rates = (0.1 - 0.1 * (epoch + inside) / 2).astype(np.float32)
            train_round(SPEC, phase, theta, state, part, None, RoundContext(7, 0, step, 1, mean, rates))
            step += n
    np.testing.assert_array_equal(train(SPEC, (phase,), ROWS, run_key=7), theta)
    for t in layout(SPEC)[3:]:
        at = slice(t.offset, t.offset + t.size)
        np.testing.assert_array_equal(theta[at], initial_parameters(SPEC, 7, mean)[at])


def test_training_goes_on_from_given_parameters_and_leaves_them_alone() -> None:
    first = train(SPEC, PHASES[:1], ROWS, run_key=1)
    kept = first.copy()
    second = train(SPEC, PHASES[2:], ROWS, LABELS, run_key=1, parameters=first)
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)


def test_means_are_in_units_of_the_model() -> None:
    assert visible_mean(ModelSpec(2, (1,), "grey"), np.array([[127, 0], [0, 127]], np.uint8)).tolist() == [0.5, 0.5]
    assert visible_mean(ModelSpec(2, (1,)), np.array([[1, 0], [1, 1]], np.uint8)).tolist() == [1.0, 0.5]
    assert visible_mean(ModelSpec(1, (1,), "gaussian"), np.array([[-1], [2]], np.float32)).tolist() == [0.5]
    with pytest.raises(DataError, match="no rows"):
        visible_mean(SPEC, ROWS[:0])


def test_what_does_not_fit_is_refused_with_its_place() -> None:
    with pytest.raises(DataError, match=r"wanted are uint8 \[n, 6\]"):
        check_rows(SPEC, ROWS.astype(np.float32))
    bad = ROWS.copy()
    bad[3, 4] = 2
    with pytest.raises(DataError, match="row 3, column 4: 2 is not 0 to 1"):
        check_rows(SPEC, bad)
    real = np.zeros((3, 2), np.float32)
    real[1, 1] = np.nan
    with pytest.raises(DataError, match="row 1, column 1: nan is not finite"):
        check_rows(ModelSpec(2, (1,), "gaussian"), real)
    with pytest.raises(DataError, match="29 labels for 30 rows"):
        check_rows(SPEC, ROWS, LABELS[1:])
    with pytest.raises(DataError, match="row 2: label 3 is outside 0 to 2"):
        check_rows(SPEC, ROWS, np.where(np.arange(30) == 2, 3, LABELS).astype(np.int32))
    with pytest.raises(ConfigError, match="endless"):
        train(SPEC, (PhaseSpec("joint", epochs=None),), ROWS, LABELS)
