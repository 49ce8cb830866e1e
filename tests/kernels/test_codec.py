"""The codec: equal to its naive twin, linear digests, and no input that breaks the reader."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

from gossipdbn.kernels import codec
from tests import naive

SHAPES = [
    (20, 50, 1.0),
    (1, 500, 1.0),
    (500, 10, 1.0),
    (3, 1, 1.0),
    (7, 17, 1.0),
    (5, 33, 4.0),
    (40, 100, 0.01),
    (30, 3, 1e3),
]


def deltas(rows: int, cols: int, spread: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    d = (rng.standard_t(3, (rows, cols)) * 2000 * spread).astype(np.int32)
    d[rows // 2] = 0
    d[: rows // 3] //= 300
    return d


@pytest.mark.parametrize(("rows", "cols", "spread"), SHAPES)
@pytest.mark.parametrize("e_max", [4, -12])
def test_ternary_equals_its_twin(rows, cols, spread, e_max):
    d = deltas(rows, cols, spread)
    residual = d.copy()
    data = codec.quantise(codec.TERNARY, residual, e_max)
    assert data == naive.encode_ternary(d, e_max)
    shifts, codes = naive.ternary_codes(d, e_max)
    sent = codes << np.maximum(np.array(shifts), 0)[:, None]
    np.testing.assert_array_equal(residual, d - sent)
    codec.check(codec.TERNARY, data, rows, cols, e_max)
    np.testing.assert_array_equal(codec.decode(codec.TERNARY, data, rows, cols), sent)


@pytest.mark.parametrize(("rows", "cols", "spread"), SHAPES)
def test_int8_equals_its_twin(rows, cols, spread):
    d = deltas(rows, cols, spread)
    residual = d.copy()
    data = codec.quantise(codec.INT8, residual, 4)
    expected, sent = naive.encode_int8(d, 4)
    assert data == expected
    np.testing.assert_array_equal(residual, d - sent)
    np.testing.assert_array_equal(codec.decode(codec.INT8, data, rows, cols), sent)


@pytest.mark.parametrize("kind", [codec.EXACT, codec.TERNARY, codec.INT8])
def test_nothing_is_lost_and_digests_add_up(kind):
    d = deltas(60, 70, 1.0)
    residual = d.copy()
    data = codec.quantise(kind, residual, 4)
    sent = codec.decode(kind, data, 60, 70)
    np.testing.assert_array_equal(sent + residual, d)
    acc = np.random.default_rng(1).integers(-(2**29), 2**29, 60 * 70).astype(np.int32)
    before = codec.digest(acc, 11)
    codec.apply(kind, data, acc, 60, 70)
    assert codec.delta_digest(kind, data, 60, 70, 11) == naive.digest(sent, 11) == codec.digest(sent, 11)
    assert codec.digest(acc, 11) == (before + codec.delta_digest(kind, data, 60, 70, 11)) % 2**64
    assert codec.max_abs(acc) == np.abs(acc.astype(np.int64)).max()


def test_exact_leaves_nothing():
    d = deltas(9, 5, 1.0)
    residual = d.copy()
    assert codec.quantise(codec.EXACT, residual, 0) == d.astype("<i4").tobytes()
    assert not residual.any()


def test_accumulators_wrap():
    acc = np.full(4, 2**31 - 1, np.int32)
    d = np.full((1, 4), 2**30, np.int32)
    codec.apply(codec.EXACT, codec.quantise(codec.EXACT, d, 0), acc, 1, 4)
    np.testing.assert_array_equal(acc, np.full(4, 2**31 - 1 + 2**30 - 2**32))


@pytest.mark.parametrize("divisor", [1, 2, 3, 4, 7, 1000])
def test_fold_equals_its_twin(divisor):
    rng = np.random.default_rng(2)
    now, begin = (rng.integers(-(2**31), 2**31, 5000).astype(np.int32) for _ in range(2))
    begin[:2000] = now[:2000] - rng.integers(-50, 50, 2000).astype(np.int32)
    residual = rng.integers(-(2**30), 2**30, 5000).astype(np.int32)
    expected = residual.copy()
    naive.fold(expected, now, begin, divisor)
    codec.fold(residual, now, begin, divisor)
    np.testing.assert_array_equal(residual, expected)


def test_ties_go_to_even_for_powers_of_two():
    residual = np.zeros(6, np.int32)
    codec.fold(residual, np.array([1, 3, 5, -1, -3, 2], np.int32), np.zeros(6, np.int32), 2)
    assert residual.tolist() == [0, 2, 2, 0, -2, 1]


def test_five_percent_of_a_layer_fits_in_17500_bytes():
    rng = np.random.default_rng(3)
    d = np.where(rng.random((784, 500)) < 0.05, rng.choice([-9000, 9000], (784, 500)), 0).astype(np.int32)
    data = codec.quantise(codec.TERNARY, d, 4)
    assert len(data) <= 17_500
    assert not d.any() or np.abs(d).max() < 9000
    empty = codec.quantise(codec.TERNARY, np.zeros((784, 500), np.int32), 4)
    assert len(empty) <= 400


def test_largest_residuals():
    d = np.array([[2**30, -(2**30), 1, 0]], np.int32)
    for e_max in (6, 0, -17):
        for kind in (codec.TERNARY, codec.INT8):
            residual = d.copy()
            data = codec.quantise(kind, residual, e_max)
            codec.check(kind, data, 1, 4, e_max)
            sent = codec.decode(kind, data, 1, 4)
            np.testing.assert_array_equal(sent.astype(np.int64) + residual, d)
            assert np.abs(sent.astype(np.int64)).max() <= 2.0 ** (24 + e_max)


def test_scale_bound_is_checked():
    d = np.array([[2**28, 5]], np.int32)
    for kind in (codec.TERNARY, codec.INT8):
        data = codec.quantise(kind, d.copy(), 6)
        codec.check(kind, data, 1, 2, 6)
        with pytest.raises(ValueError, match="out of bounds"):
            codec.check(kind, data, 1, 2, 0)
    with pytest.raises(ValueError, match="beyond"):
        codec.check(codec.EXACT, np.array([-(2**31)], "<i4").tobytes(), 1, 1, 4)


@pytest.mark.parametrize("kind", [codec.EXACT, codec.TERNARY, codec.INT8])
def test_every_truncation_and_extension_is_refused(kind):
    data = codec.quantise(kind, deltas(12, 20, 1.0), 4)
    for cut in range(len(data)):
        with pytest.raises(ValueError, match="update"):
            codec.check(kind, data[:cut], 12, 20, 4)
    with pytest.raises(ValueError, match="update"):
        codec.check(kind, data + b"\0", 12, 20, 4)


def test_unknown_codec_and_bounds_are_refused():
    with pytest.raises(ValueError, match="unknown codec"):
        codec.check(3, b"", 1, 1, 4)
    with pytest.raises(ValueError, match="exponent bound"):
        codec.check(codec.TERNARY, b"", 1, 1, 9)
    with pytest.raises(ValueError, match="accumulator"):
        codec.apply(codec.EXACT, b"", np.zeros(3, np.int32), 1, 1)


def test_mutated_bytes_never_break_the_reader():
    """Flipped, cut and random bytes: a ValueError, or a valid update whose codes stay inside the slice."""
    rng = np.random.default_rng(4)
    rows, cols = 30, 40
    good = [codec.quantise(k, deltas(rows, cols, s, int(s * 9)), 4) for k in (1, 2) for s in (0.01, 1.0, 50.0)]
    accepted = 0
    for i in range(30_000):
        data = bytearray(good[i % len(good)])
        if i % 5 == 0:
            data = bytearray(rng.integers(0, 256, int(rng.integers(0, 400)), np.uint8).tobytes())
        for _ in range(int(rng.integers(1, 4))):
            if data:
                data[int(rng.integers(len(data)))] = int(rng.integers(256))
        if i % 7 == 0:
            data = data[: int(rng.integers(len(data) + 1))]
        kind = 1 + (i % len(good) >= 3)
        try:
            codec.check(kind, bytes(data), rows, cols, 4)
        except ValueError:
            continue
        accepted += 1
        guarded = np.full(rows * cols + 64, 77, np.int32)
        guarded[32:-32] = 0
        codec.apply(kind, bytes(data), guarded[32:-32], rows, cols)
        assert (guarded[:32] == 77).all() and (guarded[-32:] == 77).all()
        assert codec.max_abs(guarded[32:-32]) <= 2**28
    assert accepted > 100


def test_an_absurd_count_costs_nothing():
    """A header that promises 2**40 codes is refused at once, without memory for them."""
    head = bytes([20]) + b"\x01" + b"\0" * 14
    data = head + b"\xff\xff\xff\xff\xff\x7f"
    tracemalloc.start()
    with pytest.raises(ValueError, match="update"):
        codec.check(codec.TERNARY, data, 30, 40, 4)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
