"""Memory that is freed goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

# Large arrays with small ones between them, then only the small ones: what a heap cannot give back by itself.
PROGRAM = """
import sys, numpy as np, psutil
from gossipdbn.adapters.heap import return_memory
if sys.argv[1] == "yes":
    assert return_memory()
np.ones(30 << 20, np.uint8)  # its end raises glibc's limit for mapped blocks
before = psutil.Process().memory_info().rss
large, small = [], []
for _ in range(10):
    large.append(np.ones(8 << 20, np.uint8))
    small.append([bytes(500) for _ in range(40)])
del large
print(psutil.Process().memory_info().rss - before)
"""


def _left(setting: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, setting], capture_output=True, text=True, check=True)
    return int(done.stdout)


READ = """
import numpy as np
from gossipdbn.adapters.heap import return_memory
from gossipdbn.kernels import codec
return_memory()
residual = np.zeros((4096, 4096), np.int32)
residual.reshape(-1)[::12] = 1 << 14
codec.read(codec.TERNARY, codec.quantise(codec.TERNARY, residual, 6), 4096, 4096)
"""


def test_an_update_of_more_than_a_million_codes_is_read_from_memory_that_is_still_there() -> None:
    subprocess.run([sys.executable, "-c", READ], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="the settings are glibc's")
def test_large_arrays_leave_nothing_behind() -> None:
    assert _left("no") > 40 << 20
    assert _left("yes") < 4 << 20
