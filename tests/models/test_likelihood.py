"""Partition functions and likelihoods against sums written out in full."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from gossipdbn.errors import ConfigError
from gossipdbn.models import likelihood as lk
from gossipdbn.models.spec import ModelSpec, parameter_count


def _rbm(visible: int, hidden: int, seed: int = 0, scale: float = 1.0, gaussian: tuple[int, ...] = ()) -> lk.Rbm:
    rng = np.random.default_rng(seed)
    mask = np.zeros(visible, np.bool_)
    mask[list(gaussian)] = True
    return lk.Rbm(rng.normal(0, scale, (visible, hidden)), rng.normal(0, 1, visible), rng.normal(0, 1, hidden), mask)


def _energy(rbm: lk.Rbm, v: np.ndarray, h: np.ndarray) -> float:
    total = -rbm.hidden_bias @ h - v @ rbm.weights @ h
    for i in range(len(v)):
        total += 0.5 * (v[i] - rbm.visible_bias[i]) ** 2 if rbm.gaussian[i] else -rbm.visible_bias[i] * v[i]
    return float(total)


def _bits(n: int) -> np.ndarray:
    return np.array(list(product((0.0, 1.0), repeat=n)))


@pytest.mark.parametrize(("visible", "hidden"), [(5, 4), (4, 6), (1, 1)])
def test_log_partition_and_likelihood_equal_the_full_sum(visible: int, hidden: int) -> None:
    rbm = _rbm(visible, hidden, scale=2.0)
    weights = np.array([[np.exp(-_energy(rbm, v, h)) for h in _bits(hidden)] for v in _bits(visible)])
    z = lk.log_partition(rbm)
    assert z.value == pytest.approx(np.log(weights.sum()), abs=1e-10)
    rows = _bits(visible)[:: 2 if visible > 1 else 1]
    p = weights.sum(1)[:: 2 if visible > 1 else 1] / weights.sum()
    assert lk.log_likelihood(rbm, rows, z.value) == pytest.approx(np.log(p).mean(), abs=1e-10)


def test_both_enumerations_agree() -> None:
    rbm = _rbm(13, 14, scale=0.5)
    swapped = lk.Rbm(rbm.weights.T, rbm.hidden_bias, rbm.visible_bias, np.zeros(14, np.bool_))
    assert lk.log_partition(rbm).value == pytest.approx(lk.log_partition(swapped).value, abs=1e-9)


def test_gaussian_partition_equals_quadrature() -> None:
    rbm = _rbm(2, 2, seed=4, gaussian=(0,))
    grid = np.linspace(-14, 14, 4001)
    total = 0.0
    for binary in (0.0, 1.0):
        rows = np.column_stack((grid, np.full_like(grid, binary)))
        total += np.exp(-lk.free_energy(rbm, rows)).sum() * (grid[1] - grid[0])
    assert lk.log_partition(rbm).value == pytest.approx(np.log(total), abs=1e-8)


@pytest.mark.parametrize("gaussian", [(), (0, 3), tuple(range(8))])
def test_annealing_from_both_sides_brackets_the_truth(gaussian: tuple[int, ...]) -> None:
    rbm = _rbm(8, 5, seed=1, scale=0.6, gaussian=gaussian)
    exact = lk.log_partition(rbm).value
    mean = np.where(rbm.gaussian, rbm.visible_bias, 0.5)
    betas = np.linspace(0, 1, 400)
    forward = lk.annealed(rbm, mean, chains=300, betas=betas)
    start = np.random.default_rng(5).integers(0, 2, (300, 8)).astype(np.float64)
    reverse = lk.annealed_reverse(rbm, mean, start, burn_in=200, betas=betas)
    for estimate in (forward, reverse):
        assert estimate.value == pytest.approx(exact, abs=0.12)
        assert estimate.low - 0.02 <= exact <= estimate.high + 0.02
    fast = lk.annealed(rbm, mean, chains=300, betas=betas, dtype=np.float32)
    assert fast.value == pytest.approx(exact, abs=0.12)


def test_default_temperatures_are_those_of_the_paper() -> None:
    betas = lk.temperatures()
    assert len(betas) == 14_500
    assert betas[0] == 0 and betas[-1] == 1
    assert (np.diff(betas) > 0).all()


def test_gibbs_samples_have_the_models_probabilities() -> None:
    rbm = _rbm(3, 3, seed=2, scale=0.7)
    log_p = -lk.free_energy(rbm, _bits(3)) - lk.log_partition(rbm).value
    v = lk.gibbs(rbm, np.zeros((40_000, 3)), 60)
    seen = np.bincount((v @ np.array([4, 2, 1])).astype(int), minlength=8) / len(v)
    np.testing.assert_allclose(seen, np.exp(log_p), atol=0.012)


def test_pseudo_likelihood_equals_the_conditionals() -> None:
    rbm = _rbm(6, 4, seed=7)
    rows = np.random.default_rng(0).integers(0, 2, (20, 6)).astype(np.float64)
    want = 0.0
    for i in range(6):
        other = rows.copy()
        other[:, i] = 1 - other[:, i]
        f, g = -lk.free_energy(rbm, rows), -lk.free_energy(rbm, other)
        want += float((f - np.logaddexp(f, g)).mean())
    assert lk.pseudo_log_likelihood(rbm, rows) == pytest.approx(want, abs=1e-10)
    many = np.repeat(rows, 400, 0)
    assert lk.pseudo_log_likelihood(rbm, many, bits=3) == pytest.approx(want, rel=0.05)
    with pytest.raises(ConfigError, match="binary visibles"):
        lk.pseudo_log_likelihood(_rbm(3, 2, gaussian=(1,)), rows[:, :3])


def test_layers_are_cut_out_of_the_flat_vector() -> None:
    spec = ModelSpec(4, (3, 2), "mixed", 0, (1,))
    flat = np.arange(parameter_count(spec), dtype=np.int32) << 20
    bottom, top = lk.rbm_of(spec, flat), lk.rbm_of(spec, flat, 1)
    assert bottom.gaussian.tolist() == [True, False, True, True]
    assert not top.gaussian.any()
    assert bottom.weights[1, 2] == 5 / 16
    assert top.hidden_bias[-1] == (parameter_count(spec) - 1) / 16
    with pytest.raises(ConfigError, match="layers 0 to 1"):
        lk.rbm_of(spec, flat, 2)
    with pytest.raises(ConfigError, match="annealed"):
        lk.log_partition(_rbm(40, 30))


def test_rows_are_read_in_the_units_of_the_energy() -> None:
    grey, binary = ModelSpec(2, (2,), "grey"), ModelSpec(2, (2,), "binary")
    rows = np.array([[0, 127]], np.uint8)
    assert lk.unit_values(grey, rows).tolist() == [[0.0, 1.0]]
    assert lk.unit_values(binary, np.array([[0, 1]], np.uint8)).tolist() == [[0.0, 1.0]]
    assert lk.unit_values(binary, rows, 1).tolist() == [[0.0, 1.0]]
