"""What a worker fits to measured seconds: tau, and how often its slots are snapshotted.

Tau follows a wanted share of communication (H2O's target_ratio_comm_to_comp, per slot). A round costs ``tau * k + c``
seconds: k in the kernels per minibatch, c for everything else a worker does per round (reading and merging updates,
copying parameters, quantising, sending; what Kafka's clients compute in threads of their own counts). The share
c / (tau * k + c) is the wanted one at tau = c * (1 - share) / (share * k). What is chosen changes how many rows the
next round has, which its update names; what a round computes from its rows does not depend on any of this.

The cadence of snapshots follows how often workers are expected to be lost. With C seconds of work per snapshot, k slots
and a worker lost every M seconds, a snapshot of each slot every T seconds costs k C / T of the worker's time, and a
loss costs T / 2 of it on average, to recompute: k C / T + T / (2 M) is least at T = sqrt(2 k C M) (Young, A first order
approximation to the optimum checkpoint interval, CACM 17(9), 1974; Daly, Future Generation Computer Systems 22, 2006).
"""

from __future__ import annotations

import math

from gossipdbn.core.plan import minibatches
from gossipdbn.core.values import Manifest
from gossipdbn.models.spec import parameter_count

__all__ = ["CadenceTuner", "TauTuner"]

RATE = 0.1
WARM_ROUNDS = 5
COST_RATE = 0.3
FIRST_BYTES_PER_S = 400e6
SHARE_MAX = 0.1
CADENCE_S = (0.2, 300.0)
CHANGE = 0.1


class TauTuner:
    """Moving means of what rounds cost on this worker; ``share`` 0 chooses nothing."""

    def __init__(self, manifest: Manifest, share: float) -> None:
        self._manifest, self._share = manifest, share
        self._other_s = 0.0
        self._background_s: float | None = None
        self._round_s: float | None = None
        self._minibatch_s: dict[int, float] = {}
        self._rounds = 0

    def spent(self, seconds: float, background_s: float = 0.0) -> None:
        """Time that was not training, of a turn in which there was something to train.

        ``background_s``: CPU seconds so far of threads that work beside it, which the cores lack for training.
        """
        self._other_s += seconds + background_s - (background_s if self._background_s is None else self._background_s)
        self._background_s = background_s

    def trained(self, phase: int, rows: int, seconds: float) -> int | None:
        """A round of ``rows`` rows took ``seconds`` in the kernels: the tau to go on with, or None to leave it."""
        if not self._share:
            return None
        other, self._other_s = self._other_s, 0.0
        self._rounds += 1
        if self._rounds <= WARM_ROUNDS:  # first calls load kernels and open connections
            return None
        each = seconds / max(1, minibatches(self._manifest, phase, rows))
        before = self._minibatch_s.get(phase)
        self._minibatch_s[phase] = each if before is None else before + RATE * (each - before)
        self._round_s = other if self._round_s is None else self._round_s + RATE * (other - self._round_s)
        kernel = max(self._minibatch_s[phase], 1e-9)
        return max(1, round(self._round_s * (1 - self._share) / (self._share * kernel)))


class CadenceTuner:
    """Seconds between two snapshots of a slot; ``fixed_s`` above 0 is used as it is.

    Parameters
    ----------
    failure_every_s : how often a worker is expected to be lost.

    Attributes
    ----------
    cost_s : moving mean of what a snapshot costs; until one is written, a guess from the model's size.
    every_s : the cadence. Snapshots never take more than a tenth of the worker's time, ``CADENCE_S`` bounds it.
    """

    def __init__(self, manifest: Manifest, failure_every_s: float, fixed_s: float = 0.0) -> None:
        self._failure_s, self._fixed_s = failure_every_s, fixed_s
        self._slots = 1
        self.cost_s = 16 * parameter_count(manifest.spec) / FIRST_BYTES_PER_S  # replica, residual, two moments
        self.every_s = fixed_s or self._best()

    def written(self, cost_s: float) -> None:
        """A snapshot took ``cost_s`` seconds of work."""
        self.cost_s += COST_RATE * (cost_s - self.cost_s)

    def choose(self, slots: int) -> float | None:
        """The cadence for a worker with so many slots, when it is to be another than before by a tenth or more."""
        self._slots = max(1, slots)
        best = self._best()
        if self._fixed_s or abs(best - self.every_s) < CHANGE * self.every_s:
            return None
        self.every_s = best
        return best

    def _best(self) -> float:
        work_s = self._slots * self.cost_s
        low, high = CADENCE_S
        return min(max(math.sqrt(2 * work_s * self._failure_s), work_s / SHARE_MAX, low), high)
