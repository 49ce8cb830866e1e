"""Draws: equal to their naive twins, and as random as a statistical battery can tell.

The battery is that of NIST SP 800-22 rev. 1a (frequency, block frequency, runs, cumulative sums, spectral, serial,
approximate entropy) on the draws as the kernels take them: neighbouring rows, columns and steps.
"""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from gossipdbn.kernels import counter_rng
from tests import naive


@pytest.mark.parametrize("pair_rows", [True, False])
def test_draws_equal_their_twin_whatever_the_first_row(pair_rows):
    key = counter_rng.stream_key(5, 1, 2, 3, 4)
    assert key == naive.chain64(5, 1, 2, 3, 4)
    expected = naive.draws(key, 9, 33, pair_rows=pair_rows)
    np.testing.assert_array_equal(counter_rng.uniform16(key, 9, 33, pair_rows=pair_rows), expected)
    np.testing.assert_array_equal(counter_rng.uniform16(key, 4, 33, pair_rows=pair_rows, row0=5), expected[5:])


def test_permutation_equals_its_twin():
    for n in (0, 1, 2, 100):
        got = counter_rng.permutation(5, 1, 2, n)
        assert got.tolist() == naive.permutation(naive.chain64(5, 1, 2, 0, counter_rng.STREAM_PERMUTATION), n)
    assert got.dtype == np.int64 and sorted(got.tolist()) == list(range(100))
    assert counter_rng.permutation(5, 1, 3, 100).tolist() != got.tolist()


def test_permutations_are_uniform():
    """All 24 orders of four rows appear equally often."""
    counts = np.zeros(256)
    for epoch in range(4800):
        a, b, c, _ = counter_rng.permutation(9, 0, epoch, 4)
        counts[a * 64 + b * 8 + c] += 1
    seen = counts[counts > 0]
    assert len(seen) == 24 and stats.chisquare(seen).pvalue > 1e-3


def test_normal_equals_its_twin_and_is_normal():
    assert counter_rng.normal_int32(5, 50, 0.01).tolist() == naive.normal_int32(5, 50, 0.01)
    z = counter_rng.normal_int32(6, 400_000, 0.01) / (0.01 * 2.0**24)
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.005 and abs(stats.kurtosis(z) + 0.03) < 0.03
    assert stats.kstest(z[:20_000], "norm").pvalue > 1e-3


def streams() -> dict[str, np.ndarray]:
    """Bits [sequences, 2**16] as training consumes them."""
    n = 60
    hidden = [counter_rng.uniform16(counter_rng.stream_key(1, 0, s, 0, 0), 64, 64, pair_rows=True) for s in range(n)]
    visible = [counter_rng.uniform16(counter_rng.stream_key(1, 0, s, 0, 1), 64, 64, pair_rows=False) for s in range(n)]
    column = [
        np.concatenate(
            [
                counter_rng.uniform16(counter_rng.stream_key(1, s, t, 0, 1), 64, 2, pair_rows=False)[:, 0]
                for t in range(64)
            ]
        )
        for s in range(n)
    ]
    words = [counter_rng.bits64(counter_rng.stream_key(1, s, 0, 0, 0), 1024).view(np.uint16) for s in range(n)]
    return {
        k: np.array([to_bits(x) for x in v])
        for k, v in {"hidden": hidden, "visible": visible, "one column": column, "words": words}.items()
    }


def to_bits(x: np.ndarray) -> np.ndarray:
    return np.unpackbits(x.astype(np.uint16).reshape(-1).view(np.uint8))


def frequency(b):
    return special.erfc(abs((2.0 * b - 1).sum()) / np.sqrt(2 * b.size))


def block_frequency(b, m=128):
    p = b[: b.size // m * m].reshape(-1, m).mean(1)
    return special.gammaincc(len(p) / 2, 4 * m * ((p - 0.5) ** 2).sum() / 2)


def runs(b):
    p, v = b.mean(), 1 + (b[1:] != b[:-1]).sum()
    return special.erfc(abs(v - 2 * b.size * p * (1 - p)) / (2 * np.sqrt(2 * b.size) * p * (1 - p)))


def cumulative_sums(b):
    n = b.size
    z = np.abs(np.cumsum(2.0 * b - 1)).max()
    k = np.arange((-n / z + 1) // 4, (n / z - 1) // 4 + 1)
    one = (stats.norm.cdf((4 * k + 1) * z / np.sqrt(n)) - stats.norm.cdf((4 * k - 1) * z / np.sqrt(n))).sum()
    k = np.arange((-n / z - 3) // 4, (n / z - 1) // 4 + 1)
    two = (stats.norm.cdf((4 * k + 3) * z / np.sqrt(n)) - stats.norm.cdf((4 * k + 1) * z / np.sqrt(n))).sum()
    return 1 - one + two


def spectral(b):
    n = b.size
    m = np.abs(np.fft.rfft(2.0 * b - 1))[: n // 2]
    d = ((m < np.sqrt(np.log(1 / 0.05) * n)).sum() - 0.95 * n / 2) / np.sqrt(n * 0.95 * 0.05 / 4)
    return special.erfc(abs(d) / np.sqrt(2))


def patterns(b, m):
    if m == 0:
        return np.array([b.size])
    x = np.concatenate([b, b[: m - 1]]).astype(np.int64)
    code = sum(x[i : i + b.size] << i for i in range(m))
    return np.bincount(code, minlength=1 << m)


def serial(b, m=5):
    psi = [(2.0**k / b.size) * (patterns(b, k) ** 2.0).sum() - b.size for k in (m, m - 1, m - 2)]
    return special.gammaincc(2 ** (m - 2), (psi[0] - psi[1]) / 2)


def approximate_entropy(b, m=5):
    phi = []
    for k in (m, m + 1):
        c = patterns(b, k) / b.size
        phi.append((c[c > 0] * np.log(c[c > 0])).sum())
    return special.gammaincc(2 ** (m - 1), b.size * (np.log(2) - (phi[0] - phi[1])))


BATTERY = [frequency, block_frequency, runs, cumulative_sums, spectral, serial, approximate_entropy]


@pytest.fixture(scope="module")
def sequences():
    return streams()


@pytest.mark.parametrize("test", BATTERY, ids=lambda t: t.__name__)
def test_statistical_battery(test, sequences):
    """No more sequences below 1 % than chance allows (SP 800-22, 4.2.1), and p-values that are uniform (4.2.2)."""
    for name, bits in sequences.items():
        p = np.array([test(b) for b in bits])
        assert stats.binomtest(int((p < 0.01).sum()), len(p), 0.01, alternative="greater").pvalue > 1e-4, name
        histogram = np.histogram(p, bins=10, range=(0, 1))[0]
        assert stats.chisquare(histogram).pvalue > 1e-4, (name, histogram)


def test_neighbouring_streams_are_independent():
    """Correlation between draws of adjacent rows, columns, steps, slots and streams is within chance."""

    def field(slot, step, stream):
        return (
            counter_rng.uniform16(counter_rng.stream_key(2, slot, step, 0, stream), 200, 500, pair_rows=stream == 0)
            / 65536.0
        )

    a = field(0, 0, 0)
    others = [field(0, 1, 0), field(1, 0, 0), field(0, 0, 1), np.roll(a, 1, 0), np.roll(a, 1, 1), np.roll(a, 2, 0)]
    for b in others:
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / np.sqrt(a.size)
    assert stats.chisquare(np.histogram(a, 256, (0, 1))[0]).pvalue > 1e-4
