"""What the parts of ``cluster.py`` share: rows, a folder with a broker, quantiles, the machine's load."""

from __future__ import annotations

import contextlib
import os
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gossipdbn.testing import RunHarness

SHAPE = {"visible": 784, "visible_units": "grey"}


def grey(rows: int, visible: int = 784) -> np.ndarray:
    """Rows as grey as MNIST's: a fifth of the pixels lit, ten prototypes."""
    rng = np.random.default_rng(0)
    prototypes = (rng.random((10, visible)) < 0.2) * rng.integers(40, 128, (10, visible))
    noise = rng.random((rows, visible)) < 0.05
    return np.where(noise, 0, prototypes[rng.integers(0, 10, rows)]).astype(np.uint8)


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile in milliseconds."""
    at = np.percentile(np.array(seconds) * 1000, [50, 90, 99])
    return {"p50_ms": round(float(at[0]), 2), "p90_ms": round(float(at[1]), 2), "p99_ms": round(float(at[2]), 2)}


class Tools:
    """What parts share: a folder, a broker, and how long and often to measure."""

    def __init__(self, folder: Path, bootstrap: str, repeats: int, seconds: float, minutes: float) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        self.repeats, self.seconds, self.minutes = repeats, seconds, minutes
        self._runs: list[RunHarness] = []

    def run(self, **options: Any) -> RunHarness:
        """A run on the broker."""
        options.setdefault("visible", 96)
        folder = self.folder / f"run{len(self._runs)}"
        self._runs.append(RunHarness(self.bootstrap, folder, name="bench", snapshot_every_s=5.0, **options))
        return self._runs[-1]

    def close(self) -> None:
        """End what still runs."""
        for run in self._runs:
            with contextlib.suppress(Exception):
                run.close()


@contextlib.contextmanager
def load_watched() -> Iterator[dict[str, float]]:
    """Mean number of other runnable processes while the block runs."""
    facts: dict[str, float] = {}
    samples: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1.0):
            samples.append(os.getloadavg()[0])

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    began = time.monotonic()
    yield facts
    stop.set()
    thread.join()
    facts |= {"load_mean": round(statistics.mean(samples or [0.0]), 2), "wall_s": round(time.monotonic() - began, 1)}
