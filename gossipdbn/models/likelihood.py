"""How well an RBM explains rows: partition functions, log-likelihood, pseudo-likelihood. float64 throughout.

This is measurement, not training: it may use BLAS and numpy's generators, and its last bits may differ between
machines. A model trained with the centred gradient is a plain RBM, so its parameters are used as they are.

With visibles v, hiddens h, weights W, biases a and b the energy is ``-a'v - b'h - v'Wh`` for Bernoulli visibles; each
Gaussian visible (unit variance) has ``(v_i - a_i)^2 / 2`` in place of ``-a_i v_i`` (Krizhevsky 2009). Never compare
likelihoods of rows that were made binary in different ways, and print forward and reverse estimates side by side: the
forward one tends to be too small, the reverse one too large.

References
----------
Salakhutdinov & Murray, On the quantitative analysis of deep belief networks, ICML 2008.
Burda, Grosse & Salakhutdinov, Accurate and conservative estimates of MRF log-likelihood, AISTATS 2015 (reverse chains).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import ConfigError
from gossipdbn.models.spec import UNIT, ModelSpec, layout, require_energy

F64 = NDArray[np.float64]

ENUMERATED_UNITS_MAX = 24
"""Largest number of units whose 2^n states `log_partition` goes through."""

_LOG_2PI = float(np.log(2 * np.pi))


@dataclass(frozen=True, slots=True, eq=False)
class Rbm:
    """One layer as float64: weights [V, H], visible_bias [V], hidden_bias [H]; gaussian bool [V]: the real visibles."""

    weights: F64
    visible_bias: F64
    hidden_bias: F64
    gaussian: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class LogPartition:
    """A log partition function in nats: the estimate and its three-sigma bounds (equal to it when it is exact)."""

    value: float
    low: float
    high: float
    chains: int = 0
    temperatures: int = 0


def rbm_of(spec: ModelSpec, parameters: NDArray[np.int32], layer: int = 0) -> Rbm:
    """A layer of a model as an `Rbm`; raises ConfigError when there is no such layer, or it is none."""
    require_energy(spec)
    if not 0 <= layer < len(spec.hidden):
        raise ConfigError(f"there is no layer {layer}: the model has layers 0 to {len(spec.hidden) - 1}")
    w, a, b = (
        (parameters[t.offset : t.offset + t.size].astype(np.float64) * UNIT).reshape(t.shape)
        for t in layout(spec)[3 * layer : 3 * layer + 3]
    )
    gaussian = np.zeros(len(a), np.bool_)
    if layer == 0 and not spec.integer_rows:
        gaussian[:] = True
        gaussian[list(spec.binary_columns)] = False
    return Rbm(w, a, b, gaussian)


def unit_values(spec: ModelSpec, values: NDArray[Any], layer: int = 0) -> F64:
    """Rows as the energy reads them: 0/1 as they are, grey levels and features divided by 127, reals as they are."""
    grey = values.dtype == np.uint8 and (layer > 0 or spec.visible_units == "grey")
    return values.astype(np.float64) / (127.0 if grey else 1.0)


def softplus(x: F64) -> F64:
    """log(1 + exp(x)) without overflow."""
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def sigmoid(x: F64) -> F64:
    """1 / (1 + exp(-x)) without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def log_mean_exp(x: F64) -> float:
    """Log of the mean of exp(x)."""
    top = float(np.max(x))
    return top + float(np.log(np.mean(np.exp(x - top))))


def free_energy(rbm: Rbm, values: F64) -> F64:
    """-log of the sum over all hidden states of exp(-energy), per row [n], in nats."""
    return _visible_energy(rbm, values) - softplus(values @ rbm.weights + rbm.hidden_bias).sum(1)


def _visible_energy(rbm: Rbm, values: F64) -> F64:
    g = rbm.gaussian
    real = 0.5 * np.square(values[:, g] - rbm.visible_bias[g]).sum(1)
    return np.asarray(real - values[:, ~g] @ rbm.visible_bias[~g])


def _states(n: int, start: int, stop: int) -> F64:
    codes = np.arange(start, stop, dtype=np.int64)[:, None]
    return ((codes >> np.arange(n)) & 1).astype(np.float64)


def log_partition(rbm: Rbm) -> LogPartition:
    """The exact log partition function by going through all states of the smaller side.

    Raises ConfigError when that side has more than `ENUMERATED_UNITS_MAX` units (Gaussian visibles cannot be
    enumerated): use `annealed` then.
    """
    visible, hidden = rbm.weights.shape
    by_visible = visible < hidden and not rbm.gaussian.any()
    n = visible if by_visible else hidden
    if n > ENUMERATED_UNITS_MAX:
        raise ConfigError(f"2^{n} states are too many to enumerate: use annealed importance sampling")
    parts = []
    block = 1 << 12
    for start in range(0, 1 << n, block):
        states = _states(n, start, min(start + block, 1 << n))
        logs = -free_energy(rbm, states) if by_visible else _log_hidden_marginal(rbm, states)
        parts.append(log_mean_exp(logs) + np.log(len(logs)))
    total = np.asarray(parts)
    value = log_mean_exp(total) + float(np.log(len(total)))
    return LogPartition(value, value, value)


def _log_hidden_marginal(rbm: Rbm, hidden: F64) -> F64:
    """Log of the sum (integral) over visibles of exp(-energy), per hidden state [n]."""
    g, drive = rbm.gaussian, hidden @ rbm.weights.T
    binary = softplus(drive[:, ~g] + rbm.visible_bias[~g]).sum(1)
    real = (drive[:, g] * rbm.visible_bias[g] + 0.5 * np.square(drive[:, g]) + 0.5 * _LOG_2PI).sum(1)
    return np.asarray(hidden @ rbm.hidden_bias + binary + real)


def log_likelihood(rbm: Rbm, values: F64, log_z: float) -> float:
    """Mean log-likelihood per row in nats (a density for Gaussian visibles)."""
    return float(np.mean(-free_energy(rbm, values))) - log_z


def temperatures(low: int = 500, middle: int = 4000, high: int = 10000) -> F64:
    """Inverse temperatures of Salakhutdinov & Murray: `low` to 0.5, `middle` from there to 0.9, `high` to 1."""
    parts = (np.linspace(0, 0.5, low, endpoint=False), np.linspace(0.5, 0.9, middle, endpoint=False))
    return np.concatenate((*parts, np.linspace(0.9, 1.0, high)))


def base_bias(rbm: Rbm, visible_mean: F64) -> F64:
    """Visible biases of the base-rate model that annealing starts from: logits of smoothed means, means where real."""
    p = np.clip(visible_mean, 0.01, 0.99)
    return np.where(rbm.gaussian, visible_mean, np.log(p / (1 - p)))


class _Path:
    """The distributions between base-rate model (beta 0) and RBM (beta 1), with one Gibbs transition at each."""

    def __init__(self, rbm: Rbm, base: F64, rng: np.random.Generator, dtype: type[np.floating[Any]]) -> None:
        self.rng, self.dtype, self.gaussian = rng, dtype, rbm.gaussian
        self.all_binary = not rbm.gaussian.any()
        self.w = rbm.weights.astype(dtype)
        self.wt = np.ascontiguousarray(self.w.T)
        self.a, self.b, self.base = (x.astype(dtype) for x in (rbm.visible_bias, rbm.hidden_bias, base))
        g = rbm.gaussian
        hidden = rbm.weights.shape[1]
        self.log_z_base = float(
            softplus(base[~g]).sum() + (0.5 * _LOG_2PI + 0.5 * base[g] ** 2).sum() + hidden * np.log(2)
        )
        # The path leaves out the constant a^2 / 2 of real visibles; it is put back at the end.
        self.constant = -0.5 * float(np.square(rbm.visible_bias[g]).sum())

    def first(self, n: int) -> Any:
        return self._visible(np.broadcast_to(self.base, (n, len(self.base))))

    def _visible(self, x: Any) -> Any:
        if self.all_binary:
            return (self.rng.random(x.shape, dtype=self.dtype) < sigmoid(x)).astype(self.dtype)
        binary = (self.rng.random(x.shape) < sigmoid(x)).astype(self.dtype)
        return np.where(self.gaussian, x + self.rng.standard_normal(x.shape), binary).astype(self.dtype)

    def gain(self, v: Any, drive: Any, old: float, new: float) -> F64:
        """Log p*_new(v) - log p*_old(v) per chain; ``drive`` = v W + b."""
        up = softplus(new * drive).sum(1, dtype=np.float64) - softplus(old * drive).sum(1, dtype=np.float64)
        return np.asarray((new - old) * (v @ (self.a - self.base)) + up)

    def move(self, drive: Any, beta: float) -> Any:
        """One Gibbs step at ``beta``."""
        beta = self.dtype(beta)  # type: ignore[assignment]
        h = (self.rng.random(drive.shape, dtype=self.dtype) < sigmoid(beta * drive)).astype(self.dtype)
        return self._visible((1 - beta) * self.base + beta * (self.a + h @ self.wt))


def annealed(
    rbm: Rbm,
    visible_mean: F64,
    *,
    chains: int = 100,
    betas: F64 | None = None,
    seed: int = 0,
    dtype: type[np.floating[Any]] = np.float64,
) -> LogPartition:
    """Annealed importance sampling from the base-rate model of the data's means to the RBM.

    Parameters
    ----------
    visible_mean : float64 [V], means of the data per visible unit (0..1 for Bernoulli ones).
    chains, betas, seed : number of chains, inverse temperatures from 0 to 1 (default: `temperatures()`), seed.
    dtype : of states and products; float32 is faster and costs about 0.01 nats with the default schedule.
    """
    betas = temperatures() if betas is None else betas
    path = _Path(rbm, base_bias(rbm, visible_mean), np.random.Generator(np.random.Philox(seed)), dtype)
    v = path.first(chains)
    log_w = np.zeros(chains)
    for old, new in pairwise(betas):
        drive = v @ path.w + path.b
        log_w += path.gain(v, drive, float(old), float(new))
        v = path.move(drive, float(new))
    offset = path.log_z_base + path.constant
    return _summary(log_w, offset, 1, chains, len(betas))


def annealed_reverse(
    rbm: Rbm,
    visible_mean: F64,
    start: F64,
    *,
    burn_in: int = 1000,
    betas: F64 | None = None,
    seed: int = 0,
    dtype: type[np.floating[Any]] = np.float64,
) -> LogPartition:
    """Annealing from (nearly) model samples down to the base-rate model; its estimate tends to be too large.

    Parameters
    ----------
    start : float64 [chains, V], rows from which ``burn_in`` Gibbs steps lead to model samples; the bound is as good as
        these samples are.
    """
    betas = temperatures() if betas is None else betas
    path = _Path(rbm, base_bias(rbm, visible_mean), np.random.Generator(np.random.Philox(seed)), dtype)
    v = start.astype(dtype)
    for _ in range(burn_in):
        v = path.move(v @ path.w + path.b, 1.0)
    log_w = np.zeros(len(v))
    for old, new in zip(betas[:0:-1], betas[-2::-1], strict=True):
        drive = v @ path.w + path.b
        log_w += path.gain(v, drive, float(old), float(new))
        v = path.move(drive, float(new))
    offset = path.log_z_base + path.constant
    return _summary(log_w, offset, -1, len(v), len(betas))


def _summary(log_w: F64, offset: float, sign: int, chains: int, steps: int) -> LogPartition:
    """Offset + sign * log mean w with three standard errors of the mean weight on either side."""
    middle = log_mean_exp(log_w)
    w = np.exp(log_w - middle)
    error = 3 * float(w.std(ddof=1)) / np.sqrt(chains) if chains > 1 else np.inf
    upper = middle + float(np.log1p(error))
    lower = middle + float(np.log1p(-error)) if error < 1 else -np.inf
    low, high = sorted((offset + sign * lower, offset + sign * upper))
    return LogPartition(offset + sign * middle, low, high, chains, steps)


def gibbs(rbm: Rbm, start: F64, steps: int, seed: int = 0) -> F64:
    """Samples [n, V] after ``steps`` Gibbs steps of the RBM from the rows ``start``."""
    zero = np.zeros_like(rbm.visible_bias)
    path = _Path(rbm, zero, np.random.Generator(np.random.Philox(seed)), np.float64)
    v = start.astype(np.float64)
    for _ in range(steps):
        v = path.move(v @ path.w + path.b, 1.0)
    return np.asarray(v)


def pseudo_log_likelihood(rbm: Rbm, values: F64, *, bits: int | None = None, seed: int = 0) -> float:
    """Mean over rows of the sum over visibles of log p(v_i | all others), in nats (Besag 1975).

    ``bits`` = how many random visibles per row to look at (scaled up to all); None = every one. Binary rows only:
    raises ConfigError for Gaussian visibles.
    """
    if rbm.gaussian.any():
        raise ConfigError(
            "pseudo-likelihood is defined here for binary visibles only: use the exact or annealed likelihood"
        )
    n, visible = values.shape
    drive = values @ rbm.weights + rbm.hidden_bias
    now = softplus(drive).sum(1)
    rng = np.random.Generator(np.random.Philox(seed))
    picks = np.arange(visible)[:, None] if bits is None else rng.integers(0, visible, (bits, n))
    total = np.zeros(n)
    rows = np.arange(n)
    for pick in picks:
        i = np.broadcast_to(pick, n)
        step = 1.0 - 2.0 * values[rows, i]
        flipped = step * rbm.visible_bias[i] + softplus(drive + step[:, None] * rbm.weights[i]).sum(1) - now
        total -= softplus(flipped)
    return float(total.mean()) * visible / len(picks)
