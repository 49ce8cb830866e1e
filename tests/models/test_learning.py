"""A small slice of the learning benchmarks: exact likelihoods must stay where they are."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def learning() -> Any:
    """The benchmark script as a module."""
    spec = importlib.util.spec_from_file_location("learning_bars", ROOT / "benchmarks" / "learning.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["learning_bars"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("task", "least"), [("bars-and-stripes", -4.6), ("digits", -20.0), ("cardio", 0.85)])
def test_short_training_reaches(learning: Any, task: str, least: float) -> None:
    result = learning.measure(task, learning.Settings(seed=1, quick=True))
    assert result.value >= least
    assert result.met == (round(result.value, 3) >= result.bar)


def test_the_data_of_the_bars_is_what_it_says(learning: Any) -> None:
    rows = learning.bars_and_stripes(4)
    assert rows.shape == (30, 16)
    train, test = learning.binary_table(None, "mushrooms")
    assert train.shape == (2000, 112) and test.shape == (5624, 112) and train.max() == 1
    with pytest.raises(learning.Missing, match="--data"):
        learning.binary_table(None, "nowhere")


def test_area_under_the_curve_counts_pairs(learning: Any) -> None:
    rng = np.random.default_rng(0)
    score, anomaly = rng.integers(0, 9, 60).astype(float), rng.integers(0, 2, 60)
    pairs = [(a > b) + 0.5 * (a == b) for a in score[anomaly == 1] for b in score[anomaly == 0]]
    assert learning.auc(score, anomaly) == pytest.approx(np.mean(pairs))
