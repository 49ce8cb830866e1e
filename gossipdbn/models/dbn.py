"""Training on one machine, without a log: the plan's phases over rows in memory, with the kernels of the slots.

This is what one slot does when it is alone (S = 1, exact codec): rounds of tau minibatches, epochs counted through all
phases, epoch 0 in the order of the rows, later ones permuted by (run key, slot 0, epoch). A gossip run with one slot
and the exact codec gives the same integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.kernels.counter_rng import permutation
from gossipdbn.models.learners import RoundContext, RoundStats, initial_parameters, new_state, train_round
from gossipdbn.models.rows import AnyRows, PackedRows, SparseRows, as_rows, blocks, dense
from gossipdbn.models.schedule import learning_rates
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.models.supervised import Labels

GREY_TOP = 127


@dataclass(frozen=True, slots=True)
class RoundReport:
    """What one round did: indices of phase and epoch (counted through all phases), rows so far in all, its numbers."""

    phase: int
    epoch: int
    rows_done: int
    stats: RoundStats


def check_rows(spec: ModelSpec, values: AnyRows, labels: Labels | None = None) -> None:
    """Raise DataError unless rows and labels are what the specification says."""
    wanted = np.dtype(np.uint8 if spec.integer_rows else np.float32)
    if len(values.shape) != 2 or values.shape[1] != spec.visible or values.dtype != wanted:
        raise DataError(f"rows are {values.dtype} {values.shape}, wanted are {wanted} [n, {spec.visible}]")
    top = GREY_TOP if spec.visible_units == "grey" else 1
    if not isinstance(values, PackedRows):  # bits are always in range
        held = values.data if isinstance(values, SparseRows) else values
        if bool((held > top).any() if spec.integer_rows else not np.isfinite(held).all()):
            _refuse(values, top if spec.integer_rows else None)
    if labels is not None and len(labels) != len(values):
        raise DataError(f"{len(labels)} labels for {len(values)} rows")
    if spec.targets:
        return
    if labels is not None and len(labels) and (labels.max() >= spec.classes or labels.min() < -1):
        row = int(np.argmax((labels >= spec.classes) | (labels < -1)))
        raise DataError(f"row {row}: label {labels[row]} is outside 0 to {spec.classes - 1} (-1: missing)")


def _refuse(values: AnyRows, top: int | None) -> None:
    """Name the first value above ``top``, or not finite."""
    first = 0
    for block in blocks(values):
        bad = ~np.isfinite(block) if top is None else block > top
        if bad.any():
            row, column = (int(i) for i in np.argwhere(bad)[0])
            limits = "finite" if top is None else f"0 to {top}"
            raise DataError(f"row {first + row}, column {column}: {block[row, column]} is not {limits}")
        first += len(block)


def visible_mean(spec: ModelSpec, values: AnyRows) -> NDArray[np.float32]:
    """Mean of each visible unit as float32 [V], in model units (0..1 for binary and grey); exact sums for integers."""
    if not len(values):
        raise DataError("there are no rows to take means of: give at least one")
    if isinstance(values, np.ndarray) and not spec.integer_rows:
        return np.asarray(values.mean(0, dtype=np.float64), np.float32)
    if not spec.integer_rows:
        return (_column_sums(values) / len(values)).astype(np.float32)
    top = GREY_TOP if spec.visible_units == "grey" else 1
    total = np.zeros(spec.visible, np.int64)
    for block in blocks(values):
        total += block.sum(0, dtype=np.int64)
    return np.asarray(total / (len(values) * top), np.float32)


def _column_sums(values: AnyRows) -> NDArray[np.float64]:
    """Sum of each column in numpy's order: row after row, but a single column in pairs (float64 [V])."""
    if values.shape[1] == 1:
        return np.asarray(dense(values).sum(0, dtype=np.float64))
    total = np.zeros(values.shape[1])
    for block in blocks(values):
        total = np.add.reduce(np.concatenate((total[None], block), dtype=np.float64), axis=0)
    return total


def _rounds(phase: PhaseSpec, begin: int, rows: int, run_key: int) -> Iterator[tuple[int, int, NDArray[np.int64]]]:
    """(epoch, first row, which rows) of every round of a phase whose first epoch is ``begin``."""
    for epoch in range(begin, begin + (phase.epochs or 0)):
        order = np.arange(rows) if epoch == 0 else permutation(run_key, 0, epoch, rows)
        for first in range(0, rows, phase.tau * phase.batch):
            yield epoch, first, order[first : first + phase.tau * phase.batch]


def train(
    spec: ModelSpec,
    phases: Sequence[PhaseSpec],
    values: AnyRows,
    labels: Labels | None = None,
    *,
    run_key: int = 0,
    mean: NDArray[np.float32] | None = None,
    parameters: NDArray[np.int32] | None = None,
    on_round: Callable[[RoundReport], None] | None = None,
) -> NDArray[np.int32]:
    """Train all phases over rows in memory.

    Parameters
    ----------
    values : [n, V], uint8 (binary 0/1, grey 0..127) or float32, in any form that `models.rows` knows.
    labels : int32 [n], -1 where missing; float32 [n, targets], NaN where missing.
    run_key : key of every random draw, the initial weights' too.
    mean : float32 [V] for centring and initial biases; taken from the rows when None.
    parameters : int32 [P] to start from; the initial ones when None.

    Returns
    -------
    int32 [P] in units 2^-24.

    Raises
    ------
    ConfigError : a phase is endless. DataError : rows or labels do not fit.
    """
    values = as_rows(values)
    check_rows(spec, values, labels)
    if any(p.epochs is None for p in phases):
        raise ConfigError("an endless phase needs a stream of rows: give the phase a number of epochs")
    mean = visible_mean(spec, values) if mean is None else mean
    theta = initial_parameters(spec, run_key, mean) if parameters is None else parameters.copy()
    step = done = begin = 0
    for i, phase in enumerate(phases):
        state = new_state(spec, phase)
        for epoch, first, pick in _rounds(phase, begin, len(values), run_key):
            n = -(-len(pick) // phase.batch)
            rates = learning_rates(phase, epoch, begin, first, len(pick), len(values))
            context = RoundContext(run_key, 0, step, 1, mean, rates)
            chosen = None if labels is None else labels[pick]
            stats = train_round(spec, phase, theta, state, values[pick], chosen, context)
            step += n
            done += len(pick)
            if on_round is not None:
                on_round(RoundReport(i, epoch, done, stats))
        begin += phase.epochs or 0
    return theta
