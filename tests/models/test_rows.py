"""Packed and sparse rows give the bits of dense ones, in every learner and reader, and touch no other memory."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp

from gossipdbn.errors import DataError
from gossipdbn.estimators import RBM, DBNClassifier, DBNRegressor
from gossipdbn.kernels import rows
from gossipdbn.models import learners, reading
from gossipdbn.models.dbn import train, visible_mean
from gossipdbn.models.rows import PackedRows, SparseRows, as_rows, blocks, row_view
from gossipdbn.models.scores import anomaly_scores
from gossipdbn.models.spec import ModelSpec, PhaseSpec

f4 = np.float32


def rows_of(units: str, n: int, v: int, seed: int = 0) -> np.ndarray:
    """Mostly zeros, with a row and a column of nothing else where there is room."""
    rng = np.random.default_rng(seed)
    on = rng.random((n, v)) < 0.2
    x = {
        "binary": on.astype(np.uint8),
        "grey": (rng.integers(0, 128, (n, v)) * on).astype(np.uint8),
        "gaussian": (rng.normal(size=(n, v)) * on).astype(f4),
    }[units]
    if n > 2 and v > 2:
        x[n // 2] = 0
        x[:, v // 2] = 0
    return x


def forms(units: str, x: np.ndarray) -> list:
    sparse = [sp.csr_matrix(x), sp.csr_array(x), SparseRows.of(sp.csr_array(x))]
    return [*sparse, PackedRows(np.packbits(x, axis=1), x.shape[1])] if units == "binary" else sparse


PLANS = [
    (PhaseSpec("cd", batch=10, momentum=0.9), {}),
    (PhaseSpec("pcd", batch=7, k=2), {}),
    (PhaseSpec("cd", 1, batch=10), {}),
    (PhaseSpec("joint", batch=10), {"classes": 3}),
    (PhaseSpec("backprop", batch=10, optimizer="adam", dropout=0.2, lr=0.01), {"classes": 3}),
    (PhaseSpec("backprop", batch=10, lr=0.01), {"targets": 2, "loss": "squared", "hidden_units": "relu"}),
]


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
@pytest.mark.parametrize(("phase", "head"), PLANS)
def test_every_learner_gives_the_same_bits(units, phase, head):
    spec = ModelSpec(77, (21, 12), units, **head)
    x = rows_of(units, 53, 77)
    mean = visible_mean(spec, x)
    y = np.zeros((53, 2), f4) if spec.targets else np.arange(53, dtype=np.int32) % 3
    got = []
    for form in [x, *forms(units, x)]:
        p = learners.initial_parameters(spec, 1, mean)
        state = learners.new_state(spec, phase)
        ctx = learners.RoundContext(1, 0, 3, 1, mean, np.full(-(-53 // phase.batch), 0.05, f4))
        stats = learners.train_round(spec, phase, p, state, form, y if spec.outputs else None, ctx)
        got.append((stats, p.tobytes(), {k: v.tobytes() for k, v in state.items()}))
    assert all(g == got[0] for g in got)


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
@pytest.mark.parametrize("v", [1, 7, 8, 77])
def test_every_reader_gives_the_same_bits(units, v):
    spec = ModelSpec(v, (20, 12), units, 3)
    x = rows_of(units, 300, v)
    p = learners.initial_parameters(spec, 1, visible_mean(spec, x))
    for form in forms(units, x):
        for read in (
            reading.transform, reading.features, reading.predict_proba, reading.free_energy, reading.reconstruct,
            lambda *a: np.stack(anomaly_scores(*a)), lambda *a: reading.features(*a, 0),
        ):  # fmt: skip
            np.testing.assert_array_equal(read(spec, p, form), read(spec, p, x))
        np.testing.assert_array_equal(visible_mean(spec, as_rows(form)), visible_mean(spec, x))


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
@pytest.mark.parametrize("v", [1, 40])
def test_a_whole_plan_gives_the_same_bits(units, v):
    """Epochs of permuted rows, more rows than one block of the means."""
    spec = ModelSpec(v, (5,), units, 2)
    x = rows_of(units, 2100, v)
    y = (np.arange(2100) % 2).astype(np.int32)
    plan = (PhaseSpec("cd", epochs=2, batch=100, lr=0.01), PhaseSpec("backprop", epochs=1, batch=100))
    want = train(spec, plan, x, y)
    for form in forms(units, x):
        np.testing.assert_array_equal(train(spec, plan, form, y), want)


@pytest.mark.parametrize("units", ["binary", "grey", "gaussian"])
def test_estimators_take_every_form(units):
    X = rows_of(units, 1500, 30).astype(np.float64)
    if units == "grey":
        X /= 127
    y = np.arange(1500) % 3
    made = [sp.csr_matrix(X), sp.csr_array(X.astype(f4)), sp.coo_array(X)]
    made += [PackedRows(np.packbits(X.astype(np.uint8), axis=1), 30)] if units == "binary" else []
    for Z in made:
        D = X.astype(f4) if Z.dtype == f4 else X
        rbm, like = (RBM(9, n_iter=2, random_state=0).fit(A) for A in (Z, D))
        np.testing.assert_array_equal(rbm.parameters_, like.parameters_)
        assert rbm.spec_.visible_units == units
        for name in ("transform", "reconstruct", "score_samples"):
            np.testing.assert_array_equal(getattr(rbm, name)(Z), getattr(like, name)(D))
        rbm.partial_fit(Z)
        like.partial_fit(D)
        np.testing.assert_array_equal(rbm.parameters_, like.parameters_)
        for kind in (DBNClassifier, DBNRegressor):
            a, b = (kind((8,), pretrain_iter=1, n_iter=1, random_state=0).fit(A, y) for A in (Z, D))
            np.testing.assert_array_equal(a.predict(Z), b.predict(D))
        a, b = (DBNClassifier((8,), random_state=0).partial_fit(A, y, classes=[0, 1, 2]) for A in (Z, D))
        np.testing.assert_array_equal(a.predict_proba(Z), b.predict_proba(D))


def test_estimators_refuse_what_packed_rows_cannot_be():
    bits = PackedRows(np.zeros((4, 2), np.uint8), 11)
    with pytest.raises(ValueError, match="packed rows are binary"):
        RBM(3, visible_units="grey").fit(bits)
    rbm = RBM(3, n_iter=1).fit(bits)
    with pytest.raises(ValueError, match="X has 12 features, but RBM expects 11"):
        rbm.transform(PackedRows(np.zeros((4, 2), np.uint8), 12))
    with pytest.raises(ValueError, match="0 sample"):
        rbm.transform(bits[:0])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        DBNClassifier((3,)).fit(bits, [0, 1])
    grey = RBM(3, n_iter=1).fit(np.full((4, 11), 0.5))
    with pytest.raises(ValueError, match="the visible units are grey"):
        grey.transform(bits)


def test_rows_are_cut_and_picked_as_arrays_are():
    x = rows_of("gaussian", 40, 13)
    picks = [slice(0, 40), slice(5, 17), slice(30, 99), slice(7, 3), slice(None, None, 3), slice(0, 0)]
    picks += [np.array([3, 3, 0, 39, -1]), np.zeros(0, np.int64)]
    for form in (SparseRows.of(sp.csr_array(x), np.full(13, 2, f4)), SparseRows.of(sp.csr_array(x))):
        whole = form.dense()
        np.testing.assert_array_equal(whole, np.where(x == 0, form.rest, x))
        for pick in picks:
            np.testing.assert_array_equal(form[pick].dense(), whole[pick])
            np.testing.assert_array_equal(form[pick][1:3].dense(), whole[pick][1:3])
    b = rows_of("binary", 40, 13)
    packed = PackedRows(np.packbits(b, axis=1), 13)
    for pick in picks:
        np.testing.assert_array_equal(packed[pick].dense(), b[pick])
    assert [len(part) for part in blocks(np.zeros((2049, 1), f4))] == [1024, 1024, 1]


def test_bits_behind_the_last_unit_mean_nothing():
    x = rows_of("binary", 30, 77)
    bits = np.packbits(x, axis=1)
    bits[:, -1] |= 0b111
    spec = ModelSpec(77, (20,), "binary", 2)
    p = learners.initial_parameters(spec, 1, visible_mean(spec, x))
    for read in (reading.transform, reading.free_energy, reading.predict_proba):
        np.testing.assert_array_equal(read(spec, p, PackedRows(bits, 77)), read(spec, p, x))


def test_duplicates_add_up_and_explicit_zeros_are_zeros():
    m = sp.csr_array((np.ones(3, f4), np.array([2, 2, 0]), np.array([0, 2, 3, 3])), shape=(3, 4))
    np.testing.assert_array_equal(as_rows(m).dense(), m.toarray())
    assert m.nnz == 3  # the caller's matrix stays as it was
    z = sp.csr_array((np.array([0, 1], np.uint8), np.array([1, 3]), np.array([0, 2])), shape=(1, 4))
    np.testing.assert_array_equal(as_rows(z).dense(), [[0, 0, 0, 1]])


def test_rows_that_are_no_rows_are_refused():
    x = rows_of("binary", 5, 9)
    spec = ModelSpec(9, (3,), "grey")
    p = learners.initial_parameters(spec, 1, np.full(9, 0.5, f4))
    bad = sp.csr_array(x)
    bad.indices = bad.indices + 7
    bad.has_canonical_format = True
    for values, words in [
        (sp.csc_array(x), r"convert it with tocsr\(\)"),
        (sp.csr_array(x.astype(np.float64)), "hold float64"),
        (sp.csr_array(x.astype(f4)), r"rows are float32 \[5, 9\]; this model takes uint8"),
        (sp.csr_array(x[:, :8]), r"takes uint8 \[n, 9\]"),
        (PackedRows(np.packbits(x, axis=1), 9), "packed bits"),
        (bad, "a column outside 0 to 8"),
    ]:
        with pytest.raises(DataError, match=words):
            reading.transform(spec, p, values)
    with pytest.raises(DataError, match=r"9 units: uint8 \[n, 2\]"):
        PackedRows(np.zeros((3, 1), np.uint8), 9)
    for units, x, words in [
        ("grey", np.array([[0, 200]], np.uint8), "row 0, column 1: 200 is not 0 to 127"),
        ("gaussian", np.array([[0, 1], [np.inf, 0]], f4), "row 1, column 0: inf is not finite"),
    ]:
        for form in (x, sp.csr_array(x)):
            with pytest.raises(DataError, match=words):
                train(ModelSpec(2, (1,), units), (PhaseSpec("cd"),), form)


@pytest.mark.parametrize("v", [1, 7, 8, 9, 63, 64, 65, 130])
def test_copies_fill_their_columns_and_nothing_else(v):
    """Canaries in every place of the buffer that is not the row's; the naive copy is numpy's."""
    bits, real = rows_of("binary", 9, v, 1), rows_of("gaussian", 9, v, 2)
    bits[3], real[4] = 1, 1.5
    scale = f4(1 / 127)
    for x, form in [(b, f) for b in (bits, real) for f in (b, *forms("binary" if b is bits else "gaussian", b))]:
        out = np.full((8, v + 5), 7.5, f4)
        rows.floats_of(row_view(as_rows(form)), 2, 6, v, scale, out)
        np.testing.assert_array_equal(out[:6, :v], x[2:8].astype(f4) * scale)
        assert (out[6:] == 7.5).all() and (out[:, v:] == 7.5).all()
    vp = -(-v // 64) * 64
    for form in forms("binary", bits):
        block = np.full((11, vp), 0xA5, np.uint8)
        block[1:10] = 0
        view = row_view(as_rows(form))
        rows.fill_bytes(view, 1, 8, block[1:], v)
        np.testing.assert_array_equal(block[1:9, :v], bits[1:])
        assert (block[[0, 10]] == 0xA5).all() and not block[1:10, v:].any() and not block[9].any()
