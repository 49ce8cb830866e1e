"""Tau and the cadence of snapshots follow measured costs within bounds; what a round computes depends on neither."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core import plan
from gossipdbn.core.values import Manifest
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.worker.tuning import CADENCE_S, WARM_ROUNDS, CadenceTuner, TauTuner


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


def test_what_other_threads_compute_is_part_of_the_cost():
    tuner, chosen = TauTuner(_manifest(), 0.05), None
    for i in range(200):
        tuner.spent(0.0005, 7.0 + 0.0005 * i)  # the first is the CPU time they had used before
        chosen = tuner.trained(0, 1000, 0.01)
    assert chosen == 19


def test_a_share_of_zero_leaves_tau_alone():
    assert _settled(TauTuner(_manifest(), 0.0), 0.001, 0.1) is None


def test_the_first_rounds_are_not_measured():
    tuner = TauTuner(_manifest(), 0.05)
    assert [tuner.trained(0, 1000, 9.0) for _ in range(WARM_ROUNDS)] == [None] * WARM_ROUNDS
    assert tuner.trained(0, 1000, 0.01) is not None


@pytest.mark.parametrize(
    ("slots", "phase", "batch", "tau", "expected"),
    [
        (1, 0, 100, 10, (5, 40)),
        (4, 0, 100, 10, (5, 20)),  # 8,000 rows between merges
        (32, 0, 100, 10, (5, 10)),  # the plan asks for more than is safe: it gets what it asks for, and no more
        (1, 1, 100, 10, (5, 20)),  # backprop: 1,000 rows
        (4, 1, 100, 10, (5, 10)),
        (1, 0, 100, 1, (1, 4)),
    ],
)
def test_bounds_keep_learning_safe(slots, phase, batch, tau, expected):
    assert plan.tau_bounds(_manifest(slots, batch=batch, tau=tau), phase) == expected


def _cadence(cost_s, failure_s, slots=1, fixed_s=0.0):
    tuner = CadenceTuner(_manifest(), failure_s, fixed_s)
    for _ in range(100):
        tuner.written(cost_s)
        tuner.choose(slots)
    return tuner.every_s


@pytest.mark.parametrize(
    ("cost_s", "failure_s", "slots"), [(0.02, 1800, 1), (0.02, 1800, 4), (0.3, 60, 1), (2.0, 3600, 2)]
)
def test_the_cadence_is_where_snapshots_and_recomputation_cost_least(cost_s, failure_s, slots):
    def lost(every_s):
        return slots * cost_s / every_s + every_s / (2 * failure_s)

    chosen = _cadence(cost_s, failure_s, slots)
    grid = np.geomspace(0.1, 10_000, 2000)
    assert lost(chosen) < 1.01 * min(lost(t) for t in grid)


def test_the_cadence_is_bounded_and_leaves_nine_tenths_of_the_time_to_training():
    assert _cadence(1e-6, 1.0) == CADENCE_S[0]
    assert _cadence(1.0, 1e9) == CADENCE_S[1]
    assert _cadence(0.5, 2.0) == pytest.approx(5.0, rel=0.1)  # by the square root it would be 1.4
    assert _cadence(0.5, 2.0, fixed_s=0.7) == 0.7


def test_the_cadence_changes_only_when_it_matters():
    tuner = CadenceTuner(_manifest(), 100.0)
    tuner.written(1.0)
    first = tuner.choose(1)
    assert first is not None and tuner.choose(1) is None
    tuner.written(1.1 * tuner.cost_s)
    assert tuner.choose(1) is None and tuner.every_s == first
    assert tuner.choose(4) == pytest.approx(2 * first, rel=0.05)
