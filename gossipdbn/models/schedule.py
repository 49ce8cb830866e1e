"""The learning-rate schedule: one formula for runs on a log and for training in memory, so both give the same bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossipdbn.models.spec import PhaseSpec

__all__ = ["learning_rates"]


def learning_rates(phase: PhaseSpec, epoch: int, begin: int, first: int, count: int, total: int) -> NDArray[np.float32]:
    """Learning rate of every minibatch of ``count`` rows, linear from ``lr`` to ``lr_final`` over the phase.

    Parameters
    ----------
    epoch, begin : epoch of the rows and first epoch of the phase, counted through all phases.
    first, total : first of the rows in its epoch, rows of an epoch. Epoch 0 knows no total (rows still arrive, and the
        rate must not depend on when the end mark is read): there, progress counts whole epochs only.
    """
    n = -(-count // phase.batch)
    if phase.epochs is None or phase.lr == phase.lr_final:
        return np.full(n, phase.lr, np.float32)
    inside = (first + phase.batch * np.arange(n, dtype=np.float64)) / total if epoch > 0 else np.zeros(n)
    done = np.minimum((epoch - begin + inside) / phase.epochs, 1.0)
    return (phase.lr + (phase.lr_final - phase.lr) * done).astype(np.float32)
