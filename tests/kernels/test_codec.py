"""The codec: equal to its naive twin, linear digests, and no input that breaks the reader."""

from __future__ import annotations

import copy
import pickle
import threading
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
    codec.read(codec.TERNARY, data, rows, cols, e_max)
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
    read = codec.read(kind, data, 60, 70, 4, 11)
    padded = np.concatenate([np.zeros(11, np.int32), acc])
    codec.merge(padded, [read])
    acc = padded[11:].copy()
    assert read.digest == naive.digest(sent, 11) == codec.digest(sent, 11)
    assert codec.digest(acc, 11) == (before + read.digest) % 2**64
    assert codec.max_abs(acc) == np.abs(acc.astype(np.int64)).max()


def test_exact_leaves_nothing():
    d = deltas(9, 5, 1.0)
    residual = d.copy()
    assert codec.quantise(codec.EXACT, residual, 0) == d.astype("<i4").tobytes()
    assert not residual.any()


def test_accumulators_wrap():
    acc = np.full(4, 2**31 - 1, np.int32)
    d = np.full((1, 4), 2**30, np.int32)
    codec.merge(acc, [codec.read(codec.EXACT, codec.quantise(codec.EXACT, d, 0), 1, 4)])
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
            codec.read(kind, data, 1, 4, e_max)
            sent = codec.decode(kind, data, 1, 4)
            np.testing.assert_array_equal(sent.astype(np.int64) + residual, d)
            assert np.abs(sent.astype(np.int64)).max() <= 2.0 ** (24 + e_max)


def test_scale_bound_is_checked():
    d = np.array([[2**28, 5]], np.int32)
    for kind in (codec.TERNARY, codec.INT8):
        data = codec.quantise(kind, d.copy(), 6)
        codec.read(kind, data, 1, 2, 6)
        with pytest.raises(ValueError, match="out of bounds"):
            codec.read(kind, data, 1, 2, 0)
    with pytest.raises(ValueError, match="beyond"):
        codec.read(codec.EXACT, np.array([-(2**31)], "<i4").tobytes(), 1, 1, 4)


@pytest.mark.parametrize("kind", [codec.EXACT, codec.TERNARY, codec.INT8])
def test_every_truncation_and_extension_is_refused(kind):
    data = codec.quantise(kind, deltas(12, 20, 1.0), 4)
    for cut in range(len(data)):
        with pytest.raises(ValueError, match="update"):
            codec.read(kind, data[:cut], 12, 20, 4)
    with pytest.raises(ValueError, match="update"):
        codec.read(kind, data + b"\0", 12, 20, 4)


def test_unknown_codec_and_bounds_are_refused():
    with pytest.raises(ValueError, match="unknown codec"):
        codec.read(3, b"", 1, 1, 4)
    with pytest.raises(ValueError, match="exponent bound"):
        codec.read(codec.TERNARY, b"", 1, 1, 9)
    with pytest.raises(ValueError, match="accumulator"):
        codec.merge(np.zeros(3, np.int32), [codec.read(codec.EXACT, bytes(8), 1, 2, base=2)])


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
            read = codec.read(kind, bytes(data), rows, cols, 4, 32)
        except ValueError:
            continue
        accepted += 1
        guarded = np.full(rows * cols + 64, 77, np.int32)
        guarded[32:-32] = 0
        codec.merge(guarded, [read])
        assert (guarded[:32] == 77).all() and (guarded[-32:] == 77).all()
        assert codec.max_abs(guarded[32:-32]) <= 2**28
    assert accepted > 100


@pytest.mark.parametrize("kind", [codec.TERNARY, codec.INT8])
def test_what_is_accepted_is_the_only_encoding_of_its_value(kind):
    """Whatever mutated bytes decode to, encoding those deltas gives these bytes back."""
    rng = np.random.default_rng(5)
    rows, cols = 9, 40
    good = [codec.quantise(kind, deltas(rows, cols, s, i), 4) for i, s in enumerate((0.01, 1.0, 50.0) * 4)]
    accepted = 0
    for i in range(20_000):
        data = bytearray(good[i % len(good)])
        for _ in range(int(rng.integers(1, 3))):
            data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
        try:
            sent = codec.decode(kind, bytes(data), rows, cols)
        except ValueError:
            continue
        accepted += 1
        assert codec.quantise(kind, sent.copy(), 6) == data
    assert accepted > 500


def test_blocks_as_planes_and_as_gaps():
    """Dense blocks are planes, sparse ones gaps, in any mixture; scales far apart are escaped."""
    rng = np.random.default_rng(6)
    for cols in (1, 7, 8, 16, 40, 333):
        d = np.zeros((24, cols), np.int32)
        for r, density in enumerate(np.linspace(0, 1, 24)):
            d[r] = np.where(rng.random(cols) < density, rng.choice([-1, 1], cols), 0) << int(rng.integers(0, 20))
        data = codec.quantise(codec.TERNARY, d.copy(), 4)
        assert data == naive.encode_ternary(d, 4)
        np.testing.assert_array_equal(codec.decode(codec.TERNARY, data, 24, cols), d)


def test_one_pass_of_many_updates_equals_one_after_the_other():
    rng = np.random.default_rng(7)
    rows, cols, size = 300, 500, 1000 + 300 * 500
    batch = []
    for i in range(9):
        d = np.where(rng.random((rows, cols)) < 0.02 * i, rng.integers(-9000, 9000, (rows, cols)), 0).astype(np.int32)
        kind = (codec.TERNARY, codec.TERNARY, codec.INT8, codec.EXACT)[i % 4]
        batch.append(codec.read(kind, codec.quantise(kind, d, 4), rows, cols, 4, 250 * (i % 4)))
    batch.append(codec.read(codec.EXACT, b"", 0, 5))
    together, apart = (rng.integers(-(2**31), 2**31, size).astype(np.int32) for _ in range(2))
    apart[:] = together
    codec.merge(together, batch)
    for d in batch:
        codec.merge(apart, [d])
    np.testing.assert_array_equal(together, apart)


@pytest.mark.parametrize("kind", [codec.EXACT, codec.TERNARY, codec.INT8])
def test_negated_deltas_take_back_what_was_added(kind):
    rng = np.random.default_rng(9)
    d = np.where(rng.random((40, 70)) < np.linspace(0, 1, 40)[:, None], rng.integers(-(2**29), 2**29, (40, 70)), 0)
    read = codec.read(kind, codec.quantise(kind, d.astype(np.int32), 4), 40, 70, 4, 10)
    acc = rng.integers(-(2**31), 2**31, 10 + 40 * 70).astype(np.int32)
    before, digest = acc.copy(), codec.digest(acc)
    codec.merge(acc, [read])
    assert not np.array_equal(acc, before)
    opposite = read.negated()
    assert (read.digest + opposite.digest) % 2**64 == 0 and opposite.nbytes == read.nbytes
    codec.merge(acc, [opposite])
    np.testing.assert_array_equal(acc, before)
    assert codec.digest(acc) == digest
    codec.merge(acc, [opposite.negated(), opposite])  # the first ones are as they were
    np.testing.assert_array_equal(acc, before)


def test_decoded_deltas_are_not_copied():
    read = codec.read(codec.TERNARY, codec.quantise(codec.TERNARY, deltas(5, 5, 1.0), 4), 5, 5)
    for copying in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="addresses"):
            copying(read)


@pytest.mark.parametrize("kind", [codec.EXACT, codec.TERNARY, codec.INT8])
@pytest.mark.parametrize(("rows", "cols"), [(30, 21), (2, 3), (1, 100)])
def test_folding_and_encoding_at_once_equals_one_after_the_other(kind, rows, cols):
    rng = np.random.default_rng(8)
    now, start = (rng.integers(-(2**31), 2**31, rows * cols).astype(np.int32) for _ in range(2))
    start[: rows * cols // 2] = now[: rows * cols // 2] - rng.integers(-5000, 5000, rows * cols // 2).astype(np.int32)
    once, twice = (np.full((rows, cols), 77, np.int32) for _ in range(2))
    codec.fold(twice.reshape(-1), now, start, 3)
    expected = codec.quantise(kind, twice, 4)
    assert codec.fold_and_quantise(kind, once, now, start, 3, 4) == expected
    np.testing.assert_array_equal(once, twice)


@pytest.mark.parametrize("kind", [codec.EXACT, codec.TERNARY, codec.INT8])
@pytest.mark.parametrize("divisor", [1, 3, 4])
@pytest.mark.parametrize(("rows", "cols"), [(1, 1), (3, 5), (5, 16), (16, 31), (17, 20), (50, 100)])
def test_what_was_trained_in_tiles_is_folded_as_if_it_lay_in_order(kind, divisor, rows, cols):
    rng = np.random.default_rng(rows + cols)
    tall, wide = -(-rows // 64) * 64, -(-cols // 64) * 64
    now = np.zeros((tall, wide), np.int32)
    now[:rows, :cols] = rng.integers(-(2**26), 2**26, (rows, cols))
    start = (now[:rows, :cols] - rng.integers(-90_000, 90_000, (rows, cols))).astype(np.int32).reshape(-1)
    tiles = np.ascontiguousarray(now.reshape(tall, wide // 16, 16).transpose(1, 0, 2))
    guarded, other = np.full(rows * cols + 64, 77, np.int32), np.full((rows, cols), 77, np.int32)
    inside = guarded[32:-32].reshape(rows, cols)
    expected = codec.fold_and_quantise(kind, other, now[:rows, :cols].reshape(-1), start, divisor, 4)
    assert codec.fold_and_quantise(kind, inside, tiles, start, divisor, 4) == expected
    np.testing.assert_array_equal(inside, other)
    assert (guarded[:32] == 77).all() and (guarded[-32:] == 77).all()


def test_tiles_of_another_layer_are_refused():
    residual, start = np.zeros((20, 40), np.int32), np.zeros(800, np.int32)
    for shape in ((2, 64, 16), (3, 16, 16)):
        with pytest.raises(ValueError, match="tiles of"):
            codec.fold_and_quantise(codec.TERNARY, residual, np.zeros(shape, np.int32), start, 1, 4)


@pytest.mark.parametrize("size", [0, 1, 40, 4096, 9000])
def test_a_digest_and_the_largest_value_are_measured_together(size):
    acc = np.random.default_rng(size).integers(-(2**31), 2**31, size).astype(np.int32)
    assert codec.measured(acc) == (codec.digest(acc), codec.max_abs(acc))


@pytest.mark.parametrize("kind", [codec.TERNARY, codec.INT8])
@pytest.mark.parametrize(("rows", "cols"), [(3, 5), (4, 4), (1, 17), (7, 37), (5, 64)])
def test_nothing_beside_a_residual_is_touched(kind, rows, cols):
    guarded = np.full(rows * cols + 64, 77, np.int32)
    inside = guarded[32:-32].reshape(rows, cols)
    inside[:] = deltas(rows, cols, 1.0)
    codec.quantise(kind, inside, 4)
    assert (guarded[:32] == 77).all() and (guarded[-32:] == 77).all()


@pytest.mark.parametrize("base", [0, 1, 1000, 1023, 5000])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 40, 1024, 3000])
def test_digest_equals_its_twin(base, size):
    acc = np.random.default_rng(9).integers(-(2**31), 2**31, size).astype(np.int32)
    assert codec.digest(acc, base) == naive.digest(acc, base)
    assert codec.max_abs(acc) == np.abs(acc.astype(np.int64)).max(initial=0)


def test_largest_magnitude_is_found_everywhere():
    for value in (-(2**31), 2**31 - 1, -1):
        for place in (0, 5, 20, 36):
            acc = np.zeros(37, np.int32)
            acc[place] = value
            assert codec.max_abs(acc) == abs(value)


def test_weights_of_a_digest_are_odd_and_differ():
    weights = [naive.weight(i) for i in range(5000)]
    assert all(w & 1 for w in weights) and len(set(weights)) == 5000


def test_tensors_that_places_cannot_count_are_refused():
    with pytest.raises(ValueError, match="are coded"):
        codec.read(codec.TERNARY, bytes(100), 1 << 20, 1 << 10)
    with pytest.raises(ValueError, match="are coded"):
        codec.read(codec.INT8, bytes(100), 1, 1 << 21)


def test_an_absurd_count_costs_nothing():
    """A header that promises 2**40 codes is refused at once, without memory for them."""
    head = bytes([20]) + b"\x01" + b"\0" * 14
    data = head + b"\xff\xff\xff\xff\xff\x7f"
    tracemalloc.start()
    with pytest.raises(ValueError, match="update"):
        codec.read(codec.TERNARY, data, 30, 40, 4)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


def test_threads_that_read_and_free_do_not_disturb_each_other():
    """Scratch memory that is freed before its last use shows as wrong digests, or ends the process."""
    rng = np.random.default_rng(4)
    updates = []
    for density in (0.02, 0.05, 0.08):
        large = np.where(rng.random((300, 500)) < density, rng.choice([-40_000, 40_000], (300, 500)), 9_000)
        data = codec.quantise(codec.TERNARY, large.astype(np.int32), 4)
        updates.append((data, codec.read(codec.TERNARY, data, 300, 500, 4, 0).digest))
    wrong: list[int] = []

    def read(first: int) -> None:
        for i in range(2_000):
            data, digest = updates[(first + i) % len(updates)]
            if codec.read(codec.TERNARY, data, 300, 500, 4, 0).digest != digest:
                wrong.append(i)

    readers = [threading.Thread(target=read, args=(i,)) for i in range(3)]
    for t in readers:
        t.start()
    while any(t.is_alive() for t in readers):
        np.empty(int(rng.integers(1_000, 200_000)), np.int32).fill(-1)
    assert not wrong
