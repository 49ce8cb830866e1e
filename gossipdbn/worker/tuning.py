"""Tau that fits a wanted share of communication, from measured seconds (H2O's target_ratio_comm_to_comp, per slot).

A round costs ``tau * k + c`` seconds: k in the kernels per minibatch, c for everything else a worker does per round
(reading and merging updates, copying parameters, quantising, sending). The share c / (tau * k + c) is the wanted one at
tau = c * (1 - share) / (share * k). What is chosen changes how many rows the next round has, which its update names;
what a round computes from its rows does not depend on any of this.
"""

from __future__ import annotations

from gossipdbn.core.plan import minibatches
from gossipdbn.core.values import Manifest

__all__ = ["TauTuner"]

RATE = 0.1
WARM_ROUNDS = 5


class TauTuner:
    """Moving means of what rounds cost on this worker; ``share`` 0 chooses nothing."""

    def __init__(self, manifest: Manifest, share: float) -> None:
        self._manifest, self._share = manifest, share
        self._other_s = 0.0
        self._round_s: float | None = None
        self._minibatch_s: dict[int, float] = {}
        self._rounds = 0

    def spent(self, seconds: float) -> None:
        """Time that was not training, of a turn in which there was something to train."""
        self._other_s += seconds

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
