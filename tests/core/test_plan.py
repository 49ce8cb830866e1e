"""Rows, passes and rates are functions of the manifest and the slot's own chain."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core import plan
from gossipdbn.core.plan import Close, Wait
from gossipdbn.core.values import CLOSES_PHASE, DONE, RowRange
from gossipdbn.models.spec import PhaseSpec
from tests.core.making import a_manifest

M = a_manifest()  # two passes, then one; minibatches of two
ENDLESS = a_manifest(phases=(PhaseSpec("joint", 0, None, 2, 2),))


@pytest.mark.parametrize(
    ("phase", "cursor", "known", "ended", "patient", "expected"),
    [
        (0, (0, 0), 0, False, True, Wait("rows")),
        (0, (0, 0), 1, False, False, Wait("rows")),
        (0, (0, 0), 3, False, True, Wait("rows")),
        (0, (0, 0), 3, False, False, RowRange(0, 0, 2)),
        (0, (0, 0), 4, False, True, RowRange(0, 0, 4)),
        (0, (0, 4), 5, True, True, RowRange(0, 4, 1)),
        (0, (0, 5), 5, False, False, Wait("rows")),
        (0, (0, 5), 5, True, True, RowRange(1, 0, 4)),
        (0, (1, 5), 5, True, True, Close(CLOSES_PHASE)),
        (1, (1, 5), 5, True, True, RowRange(2, 0, 4)),
        (1, (2, 5), 5, True, True, Close(DONE)),
        (0, (0, 0), 0, True, True, Close(CLOSES_PHASE)),
        (1, (0, 0), 0, True, True, Close(DONE)),
        # an owner that resumed reads its rows anew: until it has them all, later passes have no order yet
        (0, (1, 2), 4, False, False, Wait("the end mark of its rows")),
        (0, (0, 4), 0, False, False, Wait("rows")),
        (0, (0, 4), 2, False, False, Wait("rows")),
    ],
)
def test_what_comes_next(phase, cursor, known, ended, patient, expected):
    assert plan.next_rows(M, phase, cursor, known, ended, 4, patient) == expected


def test_an_endless_phase_ends_only_with_its_end_mark():
    assert plan.epoch_bound(ENDLESS, 0) is None
    assert plan.next_rows(ENDLESS, 0, (0, 4), 4, False, 4, False) == Wait("rows")
    assert plan.next_rows(ENDLESS, 0, (0, 4), 4, True, 4) == Close(DONE)


def test_passes_count_through_all_phases():
    assert [plan.epoch_begin(M, p) for p in (0, 1)] == [0, 2]
    assert [plan.epoch_bound(M, p) for p in (0, 1)] == [2, 3]
    assert plan.minibatches(M, 0, 5) == 3
    assert plan.progress(0, (1, 5)) < plan.progress(0, (2, 0)) < plan.progress(1, (0, 0))


def test_rates_fall_linearly_and_epoch_0_knows_no_total():
    m = a_manifest(phases=(PhaseSpec("cd", 0, 2, 2, 2, lr=1.0, lr_final=0.0),))
    assert np.allclose(plan.learning_rates(m, 0, RowRange(0, 4, 4), 0), [1.0, 1.0])
    assert np.allclose(plan.learning_rates(m, 0, RowRange(1, 0, 4), 8), [0.5, 0.375])
    assert plan.learning_rates(ENDLESS, 0, RowRange(0, 0, 3), 0).tolist() == np.full(2, 0.05, np.float32).tolist()
    assert plan.learning_rates(m, 0, RowRange(1, 6, 2), 8).dtype == np.float32
