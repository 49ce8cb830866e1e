"""Tau follows measured costs within bounds, and what a round computes does not depend on it."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core import plan
from gossipdbn.core.values import Manifest
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.worker.tuning import WARM_ROUNDS, TauTuner


def _manifest(slots=4, **phase):
    phases = (PhaseSpec("cd", epochs=2, **{"batch": 100, "tau": 10, **phase}), PhaseSpec("backprop", batch=50, tau=10))
    return Manifest(
        run="r", slots=slots, spec=ModelSpec(8, (4,), "binary", 2), phases=phases, run_key=1,
        visible_mean=np.full(8, 0.5, "<f4").tobytes(), numerics=NUMERICS, round_rows_max=16_000,
    )  # fmt: skip


def _settled(tuner, kernel_s, other_s, tau=10, rounds=200):
    chosen = None
    for _ in range(rounds):
        tuner.spent(other_s)
        chosen = tuner.trained(0, 100 * tau, kernel_s * tau)
    return chosen


@pytest.mark.parametrize(
    ("kernel_s", "other_s", "expected"), [(0.001, 0.001, 19), (0.001, 0.0005, 10), (0.01, 0.001, 2)]
)
def test_tau_is_where_the_share_is_the_wanted_one(kernel_s, other_s, expected):
    tau = _settled(TauTuner(_manifest(), 0.05), kernel_s, other_s)
    assert tau == expected
    assert other_s / (tau * kernel_s + other_s) <= 0.055


def test_a_share_of_zero_leaves_tau_alone():
    assert _settled(TauTuner(_manifest(), 0.0), 0.001, 0.1) is None


def test_the_first_rounds_are_not_measured():
    tuner = TauTuner(_manifest(), 0.05)
    assert [tuner.trained(0, 1000, 9.0) for _ in range(WARM_ROUNDS)] == [None] * WARM_ROUNDS
    assert tuner.trained(0, 1000, 0.01) is not None


@pytest.mark.parametrize(
    ("slots", "phase", "batch", "tau", "expected"),
    [
        (4, 0, 100, 10, (5, 40)),
        (8, 0, 100, 10, (5, 20)),  # 16,000 rows between merges
        (32, 0, 100, 10, (5, 10)),  # the plan asks for more than is safe: it gets what it asks for, and no more
        (4, 1, 100, 10, (5, 20)),  # backprop: 4,000 rows
        (1, 0, 100, 1, (1, 4)),
    ],
)
def test_bounds_keep_learning_safe(slots, phase, batch, tau, expected):
    assert plan.tau_bounds(_manifest(slots, batch=batch, tau=tau), phase) == expected
