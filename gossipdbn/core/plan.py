"""The plan: which rows a slot trains next, in which phase, at which learning rate.

Everything here is a function of the manifest and the slot's own chain, never of time or of other slots (protocol
section 7). Epochs count through all phases: with 5 epochs in phase 0, phase 1 begins at epoch 5.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core.values import CLOSES_PHASE, DONE, Manifest, RowRange
from gossipdbn.models import schedule

__all__ = [
    "Close",
    "Cursor",
    "Wait",
    "epoch_begin",
    "epoch_bound",
    "learning_rates",
    "minibatches",
    "next_rows",
    "progress",
    "tau_bounds",
]

ROWS_IN_ROUNDS = {"cd": 8_000, "pcd": 8_000, "joint": 8_000, "backprop": 1_000}
"""Rows that all slots together may train between two merges, when tau is chosen by measurement.

Measured on MNIST, 4 slots (``benchmarks/cluster.py learning``): with these, test errors are those of the plan's tau;
with twice as many rows, and four times in backprop, they were a fifth higher.
"""

Cursor = tuple[int, int]
"""(epoch, next row of that epoch)."""


@dataclass(frozen=True, slots=True)
class Close:
    """The slot owes no more rows in this phase: publish its closing update (CLOSES_PHASE or DONE)."""

    closing: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do yet; ``why`` shows in the status."""

    why: str


def epoch_bound(manifest: Manifest, phase: int) -> int | None:
    """First epoch that no longer belongs to ``phase``; None when the phase is endless."""
    epochs = manifest.phases[phase].epochs
    return None if epochs is None else epoch_begin(manifest, phase) + epochs


def epoch_begin(manifest: Manifest, phase: int) -> int:
    """First epoch of ``phase``; an endless phase before it counts as one pass."""
    return sum(1 if p.epochs is None else p.epochs for p in manifest.phases[:phase])


def minibatches(manifest: Manifest, phase: int, rows: int) -> int:
    """How many minibatches ``rows`` rows are (the last may be short)."""
    return -(-rows // manifest.phases[phase].batch)


def next_rows(
    manifest: Manifest, phase: int, cursor: Cursor, known: int, ended: bool, round_rows: int, patient: bool = True
) -> RowRange | Close | Wait:
    """What a slot does next.

    Parameters
    ----------
    known : distinct rows of its partition read so far; ``ended``: the end mark was read, so ``known`` is all.
    round_rows : rows of a full round (tau * batch). A round never crosses an epoch.
    patient : wait for a full round while more rows may come; else take whole minibatches that are there.
    """
    spec = manifest.phases[phase]
    epoch, first = cursor
    if ended and first >= known > 0:
        epoch, first = epoch + 1, 0
    bound = epoch_bound(manifest, phase)
    if bound is None and ended:
        bound = epoch_begin(manifest, phase) + 1
    if ended and (known == 0 or (bound is not None and epoch >= bound)):
        return Close(DONE if phase == len(manifest.phases) - 1 else CLOSES_PHASE)
    if epoch > 0 and not ended:
        return Wait("the end mark of its rows")  # the order of later epochs depends on how many rows there are
    there = known - first
    if there >= round_rows or (ended and there > 0):
        return RowRange(epoch, first, min(round_rows, there))
    whole = there // spec.batch * spec.batch
    if not patient and whole > 0:
        return RowRange(epoch, first, whole)
    return Wait("rows")


def learning_rates(manifest: Manifest, phase: int, rows: RowRange, total: int) -> NDArray[np.float32]:
    """Learning rate of every minibatch of a round; ``total`` is the slot's number of rows (unused in epoch 0)."""
    spec, begin = manifest.phases[phase], epoch_begin(manifest, phase)
    return schedule.learning_rates(spec, rows.epoch, begin, rows.first, rows.count, total)


def tau_bounds(manifest: Manifest, phase: int) -> tuple[int, int]:
    """Smallest and largest tau that may be chosen for a phase: half to four times the plan's, while learning is safe.

    Above the plan's own tau, slots * batch * tau stays within ``ROWS_IN_ROUNDS`` and a round within the manifest's
    ``round_rows_max``.
    """
    spec = manifest.phases[phase]
    safe = min(ROWS_IN_ROUNDS[spec.learner] // manifest.slots, manifest.round_rows_max) // spec.batch
    return -(-spec.tau // 2), max(spec.tau, min(4 * spec.tau, safe))


def progress(phase: int, cursor: Cursor) -> tuple[int, int, int]:
    """A key that orders slots by how far they are in the plan: the smallest is furthest behind."""
    return (phase, *cursor)
