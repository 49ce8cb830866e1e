"""What an update costs: written, read and added; a part of ``benchmarks/kernels.py``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gossipdbn.adapters.heap import return_memory
from gossipdbn.kernels import codec as c
from gossipdbn.kernels.workspaces import IntegerSpace

ROWS, COLS = 784, 500
Candidate = Callable[[], object]


def codec(
    medians: Callable[[dict[str, Candidate]], dict[str, float]], steps: Candidate, count: int
) -> dict[str, float]:
    """Updates of 784 x 500 with 5 % of their codes not zero, beside ``count`` CD-1 steps of 100 rows.

    ``encode``: a residual quantised and coded; ``fold_and_encode``: the same after a round's progress was added to it.
    ``read``: everything checked, decoded and digested. ``merge``: one decoded update added to the accumulators;
    ``merge_8`` eight in one pass. ``digest``: of the accumulators in memory. ``operands``: the layer's two planes made
    anew from the accumulators (once a round).
    """
    return_memory()  # as in a worker
    rng = np.random.default_rng(0)
    large, small = rng.choice([-40_000, 40_000], (ROWS, COLS)), rng.integers(-30_000, 30_000, (ROWS, COLS))
    d = np.where(rng.random((ROWS, COLS)) < 0.05, large, small).astype(np.int32)
    start, zero = np.zeros(d.size, np.int32), np.zeros(d.shape, np.int32)
    residual, now, acc = zero.copy(), d.reshape(-1), np.zeros(d.size, np.int32)
    data = c.quantise(c.TERNARY, d.copy(), 4)
    update, *eight = (
        c.read(c.TERNARY, c.quantise(c.TERNARY, np.roll(d, 97 * i, 1), 4), ROWS, COLS, 4) for i in range(9)
    )
    space = IntegerSpace.new(ROWS, COLS)
    biases = np.zeros(ROWS, np.int32), np.zeros(COLS, np.int32)

    def encode() -> None:
        np.copyto(residual, d)
        c.quantise(c.TERNARY, residual, 4)

    def fold_and_encode() -> None:
        np.copyto(residual, zero)
        c.fold_and_quantise(c.TERNARY, residual, now, start, 1, 4)

    t = medians(
        {
            "encode": encode,
            "fold_and_encode": fold_and_encode,
            "copy": lambda: np.copyto(residual, zero),
            "read": lambda: c.read(c.TERNARY, data, ROWS, COLS, 4),
            "merge": lambda: c.merge(acc, [update]),
            "merge_8": lambda: c.merge(acc, eight),
            "digest": lambda: c.digest(acc),
            "operands": lambda: space.load(acc, *biases, None),
            "steps": steps,
        }
    )
    step, copy = t.pop("steps") / count, t.pop("copy")
    t["encode"], t["fold_and_encode"] = t["encode"] - copy, t["fold_and_encode"] - copy
    t["read_and_merge"] = t["read"] + t["merge"]
    head = {
        "density": round(float(update.index.size / d.size), 4),
        "bytes": len(data),
        "cd1_step_us": round(step * 1e6),
    }
    return head | {
        key: value
        for name, seconds in t.items()
        for key, value in ((f"{name}_us", round(seconds * 1e6)), (f"{name}_of_step", round(seconds / step, 3)))
    }
