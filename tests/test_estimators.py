"""scikit-learn's own checks, and what the estimators promise beyond them."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import parametrize_with_checks

from gossipdbn import estimators
from gossipdbn.estimators import RBM, DBNClassifier, DBNRegressor
from gossipdbn.models.dbn import train, visible_mean
from gossipdbn.models.files import load_model, save_model
from gossipdbn.models.reading import predict_proba
from gossipdbn.models.spec import ModelSpec, PhaseSpec


@parametrize_with_checks([
    RBM(n_components=8, n_iter=2, random_state=0),
    DBNClassifier((16,), pretrain_iter=1, n_iter=40, learning_rate=0.01, batch_size=10, random_state=0),
    DBNRegressor((16,), hidden_units="relu", pretrain_iter=0, n_iter=60, learning_rate=0.01, batch_size=10,
                 random_state=0),
])  # fmt: skip
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def digits() -> Any:
    X, y = load_digits(return_X_y=True)
    return train_test_split(X / 16, y, random_state=0, test_size=0.3)


def test_features_of_an_rbm_help_a_linear_classifier(digits: Any) -> None:
    X, T, y, t = digits
    rbm = RBM(128, batch_size=10, n_iter=40, random_state=1)
    pipeline = make_pipeline(rbm, LinearDiscriminantAnalysis()).fit(X, y)
    assert rbm.spec_.visible_units == "grey"
    assert pipeline.score(T, t) > 0.9
    again = rbm.reconstruct(T)
    assert np.square(again - T).mean() < 0.5 * np.square(X.mean(0) - T).mean()
    assert list(rbm.get_feature_names_out()[:2]) == ["rbm0", "rbm1"]
    assert rbm.components_.shape == (128, 64) and rbm.intercept_hidden_.shape == (128,)
    assert rbm.intercept_visible_.shape == (64,)


def test_scores_tell_noise_from_digits(digits: Any) -> None:
    X, T, _, _ = digits
    noise = np.random.default_rng(0).permuted(T, axis=1)
    for kind in ("grey", "gaussian"):
        rbm = RBM(64, visible_units=kind, random_state=0).fit(X)
        assert (rbm.score_samples(T)[:, None] > rbm.score_samples(noise)[None, :300]).mean() > 0.95
        assert (rbm.anomaly_scores(T)[1][:, None] < rbm.anomaly_scores(noise)[1][None, :300]).mean() > 0.9


def test_a_deep_network_names_digits_and_is_the_same_every_time(digits: Any, tmp_path: Path) -> None:
    X, T, y, t = digits
    names = np.array([f"digit {i}" for i in range(10)])
    settings: dict[str, Any] = {"random_state": 3}
    first = DBNClassifier((64, 64), **settings).fit(X, names[y])
    assert (first.predict(T) == names[t]).mean() > 0.94
    assert first.features(T).shape == (len(T), 64)
    second = DBNClassifier((64, 64), **settings).fit(X, names[y])
    np.testing.assert_array_equal(first.parameters_, second.parameters_)
    save_model(tmp_path / "m.safetensors", first.to_model())
    model = load_model(tmp_path / "m.safetensors")
    assert model.classes == tuple(names)
    p = predict_proba(model.spec, model.parameters, np.rint(T * 127).astype(np.uint8))
    np.testing.assert_array_equal(names[p.argmax(1)], first.predict(T))


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("hidden_units", ["binary", "relu"])
def test_every_loss_and_kind_of_unit_learns_digits(digits: Any, loss: Any, hidden_units: Any) -> None:
    X, T, y, t = digits
    passes = 5 if hidden_units == "binary" else 0
    network = DBNClassifier(
        (64,), hidden_units=hidden_units, loss=loss, pretrain_iter=passes, n_iter=50, random_state=0
    ).fit(X, y)
    assert network.score(T, t) > 0.94
    assert network.features(T).shape == (len(T), 64)


@pytest.mark.parametrize("hidden_units", ["binary", "relu"])
def test_numbers_are_regressed_in_their_own_measure(hidden_units: Any, tmp_path: Path) -> None:
    X, y = load_diabetes(return_X_y=True)
    both = np.column_stack((y, 1000 - 3 * y))
    network = DBNRegressor(
        (32,), hidden_units=hidden_units, pretrain_iter=0, n_iter=60, weight_decay=0.01, random_state=0
    ).fit(X[:300], both[:300])
    said = network.predict(X[300:])
    assert said.shape == (142, 2) and network.score(X[300:], both[300:]) > 0.35
    model = network.to_model()
    save_model(tmp_path / "m.safetensors", model)
    again = load_model(tmp_path / "m.safetensors")
    assert again.spec == model.spec and again.provenance.extra["target_mean"] == network.target_mean_.tolist()
    one = DBNRegressor(
        (32,), hidden_units=hidden_units, pretrain_iter=0, pretrain_learning_rate=0.05, random_state=0
    )
    for _ in range(60):
        one.partial_fit(X[:300], y[:300])
    assert one.predict(X[300:]).shape == (142,)
    assert one.score(X[300:], y[300:]) > 0.3
    with pytest.raises(ValueError, match="2 targets, the network was begun with 1"):
        one.partial_fit(X, both)


def test_relu_layers_are_not_pretrained() -> None:
    X = np.random.default_rng(0).normal(size=(30, 4))
    with pytest.raises(ValueError, match="pretrain_iter=0"):
        DBNClassifier((3,), hidden_units="relu").fit(X, [0, 1] * 15)
    with pytest.raises(ValueError, match="choose binary or relu"):
        DBNRegressor((3,), hidden_units="tanh").fit(X, X[:, 0])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose cross_entropy or squared"):
        DBNClassifier((3,), loss="hinge").fit(X, [0, 1] * 15)  # type: ignore[arg-type]


def test_streams_of_batches_learn_too(digits: Any) -> None:
    X, T, y, t = digits
    stream = DBNClassifier((64,), pretrain_batch_size=10, random_state=0)
    for _ in range(40):
        for i in range(0, len(X), 200):
            stream.partial_fit(X[i : i + 200], y[i : i + 200], classes=range(10))
    assert stream.score(T, t) > 0.85
    rbm = RBM(32, random_state=0)
    before = rbm.partial_fit(X[:200]).parameters_.copy()
    rbm.partial_fit(X[200:400])
    assert rbm.step_ == 20 and not np.array_equal(before, rbm.parameters_)
    np.testing.assert_array_equal(RBM(32, random_state=0).partial_fit(X[:200]).parameters_, before)


def test_units_are_found_and_kept() -> None:
    rng = np.random.default_rng(0)
    binary, grey, real = rng.integers(0, 2, (30, 4)), rng.random((30, 4)), rng.normal(5, 3, (30, 4))
    for X, units in ((binary, "binary"), (grey, "grey"), (real, "gaussian")):
        assert RBM(3, n_iter=1).fit(X).spec_.visible_units == units
    with pytest.raises(ValueError, match=r"outside 0\.\.1"):
        RBM(3, n_iter=1).fit(grey).transform(real)
    with pytest.raises(ValueError, match="neither 0 nor 1"):
        RBM(3, n_iter=1, visible_units="binary").fit(grey)
    with pytest.raises(ValueError, match="choose auto"):
        RBM(3, visible_units="words").fit(grey)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="positive integers"):
        RBM(0).fit(grey)
    with pytest.raises(ValueError, match="needs classes"):
        DBNClassifier().partial_fit(grey, [0] * 30)
    with pytest.raises(ValueError, match="outside the classes"):
        DBNClassifier((3,)).partial_fit(grey, [7] * 30, classes=[0, 1])


def test_an_rbm_is_the_single_machine_trainer() -> None:
    X = np.random.default_rng(1).integers(0, 2, (150, 9))
    rbm = RBM(
        5, n_iter=3, persistent=True, learning_rate=0.1, final_learning_rate=0.0, momentum=0.0, random_state=9
    ).fit(X)
    spec, rows = ModelSpec(9, (5,), "binary"), X.astype(np.uint8)
    phase = PhaseSpec("pcd", epochs=3, batch=20, lr=0.1, lr_final=0.0, momentum=0.0)
    want = train(spec, (phase,), rows, run_key=rbm.run_key_, mean=visible_mean(spec, rows))
    np.testing.assert_array_equal(rbm.parameters_, want)


def test_without_scikit_learn_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    spec = importlib.util.spec_from_file_location("estimators_alone", estimators.__file__)
    assert spec is not None and spec.loader is not None
    with pytest.raises(ImportError, match=r"pip install 'gossipdbn\[sklearn\]'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
