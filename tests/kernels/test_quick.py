"""Numba is loaded without scipy, and is as able as before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRAIN = """
import sys
running = "coverage" in sys.modules
import numpy as np
from gossipdbn.models import learners
from gossipdbn.models.spec import ModelSpec, PhaseSpec

learners.warm(ModelSpec(8, (4,), "binary", 2), [PhaseSpec("cd"), PhaseSpec("backprop")])
loaded = {"scipy", "sklearn", "pandas", "pyarrow", "pyspark", "confluent_kafka"} & set(sys.modules)
assert not loaded, loaded
assert ("coverage" in sys.modules) == running
import gc

assert gc.isenabled()
"""
PRODUCT = """
import numba
from numba.np import arraymath, linalg

assert arraymath._HAVE_BLAS and arraymath.ensure_blas is linalg.ensure_blas
assert linalg.ensure_blas.__module__ == "numba.np.linalg"
product = numba.njit(lambda a, b: np.dot(a, b))
a = np.arange(6.0).reshape(2, 3)
assert (product(a, a.T.copy()) == a @ a.T).all()
import coverage
"""


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parent.parent.parent, capture_output=True, text=True,
        timeout=590, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_first_batch_loads_nothing_that_it_does_not_use():
    run(TRAIN)


def test_numba_still_multiplies_matrices_for_others():
    run(TRAIN + PRODUCT)


def test_a_numba_that_was_there_before_is_left_alone():
    run("import numba.np.arraymath, numpy as np\nimport gossipdbn.kernels.tiers\n" + PRODUCT)
