"""scikit-learn estimators over the same kernels: an RBM and a deep belief network, trained on one machine.

They follow scikit-learn's conventions (``check_estimator`` passes), so pipelines, grid searches and pickled-free model
files work: ``to_model`` gives the `gossipdbn.models.files.Model` that ``save_model`` writes and the command line reads.
Results depend on data, settings and ``random_state`` alone, bit for bit, on any CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from gossipdbn.models import learners
from gossipdbn.models.dbn import train, visible_mean
from gossipdbn.models.files import Model, Provenance, tensor_of
from gossipdbn.models.scores import anomaly_scores
from gossipdbn.models.spec import ModelSpec, PhaseSpec

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils import check_random_state
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as e:
    raise ImportError("gossipdbn.estimators needs scikit-learn 1.6 or newer: pip install 'gossipdbn[sklearn]'") from e

__all__ = ["RBM", "DBNClassifier"]

Units = Literal["auto", "binary", "grey", "gaussian"]
Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Encoding:
    """How numbers become visible units; fitted on the first rows seen."""

    units: Literal["binary", "grey", "gaussian"]
    mean: Array
    scale: Array

    @staticmethod
    def of(X: Array, units: Units) -> _Encoding:
        if units not in ("auto", "binary", "grey", "gaussian"):
            raise ValueError(f"visible_units={units!r} is unknown; choose auto, binary, grey or gaussian")
        chosen = units
        if chosen == "auto":
            inside = X.min() >= 0 and X.max() <= 1
            chosen = "gaussian" if not inside else "binary" if np.isin(X, (0, 1)).all() else "grey"
        if chosen != "gaussian":
            return _Encoding(chosen, np.zeros(X.shape[1]), np.ones(X.shape[1]))
        scale = X.std(axis=0, dtype=np.float64)
        return _Encoding(chosen, X.mean(axis=0, dtype=np.float64), np.where(scale > 1e-12, scale, 1.0))

    def values(self, X: Array) -> Array:
        """Rows as the kernels take them; ValueError for values outside the units' range."""
        if self.units == "gaussian":
            return np.ascontiguousarray((X - self.mean) / self.scale, np.float32)
        if X.size and (X.min() < 0 or X.max() > 1):
            raise ValueError(
                f"X has values outside 0..1, which {self.units} units cannot take; use visible_units='gaussian'"
            )
        if self.units == "binary" and not np.isin(X, (0, 1)).all():
            raise ValueError("X has values that are neither 0 nor 1; use visible_units='grey' or 'gaussian'")
        return np.ascontiguousarray(np.rint(X * (127 if self.units == "grey" else 1)), np.uint8)

    def numbers(self, again: Array) -> Array:
        """Reconstructed units in the numbers' own measure."""
        return again * self.scale + self.mean if self.units == "gaussian" else again


def _rate(wanted: float | None, *, gaussian: bool) -> float:
    """Learning rate of contrastive divergence; unbounded visibles need a smaller one."""
    return wanted if wanted is not None else 0.005 if gaussian else 0.1


class _Network(BaseEstimator):
    """What both estimators share: encoding, the run key, the model."""

    visible_units: Units
    random_state: Any

    def _start(self, X: Array, hidden: tuple[int, ...], classes: int) -> Array:
        """Fix encoding, specification and key by the first rows; returns the encoded rows."""
        if any(int(h) != h or h < 1 for h in hidden) or not hidden:
            raise ValueError(f"layer sizes must be positive integers, got {hidden}")
        self.encoding_ = _Encoding.of(X, self.visible_units)
        self.spec_ = ModelSpec(X.shape[1], tuple(int(h) for h in hidden), self.encoding_.units, classes)
        self.run_key_ = int(check_random_state(self.random_state).randint(0, 2**62, dtype=np.int64))
        return self.encoding_.values(X)

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self, "parameters_")
        return self.encoding_.values(validate_data(self, X, reset=False, dtype=(np.float64, np.float32)))

    def _stream(self, phase: PhaseSpec, values: Array, labels: NDArray[np.int32] | None) -> None:
        """One round over the rows of a `partial_fit` call, going on where the last one ended."""
        if not hasattr(self, "parameters_"):
            self.mean_, self.step_ = visible_mean(self.spec_, values), 0
            self.parameters_ = learners.initial_parameters(self.spec_, self.run_key_, self.mean_)
        if not hasattr(self, "state_"):
            self.state_ = learners.new_state(self.spec_, phase)
        n = -(-len(values) // phase.batch)
        rates = np.full(n, phase.lr, np.float32)
        context = learners.RoundContext(self.run_key_, 0, self.step_, 1, self.mean_, rates)
        self.stats_ = learners.train_round(self.spec_, phase, self.parameters_, self.state_, values, labels, context)
        self.step_ += n

    def _train(self, phases: tuple[PhaseSpec, ...], values: Array, labels: NDArray[np.int32] | None) -> None:
        """Train from the beginning; whatever an earlier stream left behind is dropped."""
        if hasattr(self, "state_"):
            del self.state_
        steps: list[int] = []
        self.mean_ = visible_mean(self.spec_, values)
        self.parameters_ = train(
            self.spec_,
            phases,
            values,
            labels,
            run_key=self.run_key_,
            mean=self.mean_,
            on_round=lambda report: steps.append(report.stats.minibatches),
        )
        self.step_ = sum(steps)

    def to_model(self) -> Model:
        """The trained model, for `gossipdbn.models.files.save_model`."""
        check_is_fitted(self, "parameters_")
        names = tuple(str(c) for c in getattr(self, "classes_", ()))
        extra = {"mean": self.encoding_.mean.tolist(), "scale": self.encoding_.scale.tolist()}
        return Model(self.spec_, self.parameters_.copy(), {}, names, Provenance(extra=extra))

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "parameters_")


class RBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _Network):
    """Restricted Boltzmann machine trained by (persistent) contrastive divergence with the centred gradient.

    Parameters
    ----------
    n_components : number of hidden units.
    learning_rate : None takes 0.1, or 0.005 for Gaussian units. final_learning_rate : reached linearly at the last
        row of ``fit``; None keeps it constant.
    batch_size : rows per minibatch. n_iter : passes over the rows.
    persistent : keep Gibbs chains between minibatches (PCD, Tieleman 2008): for densities; CD for features.
    k : Gibbs steps per gradient. momentum, weight_decay : the usual.
    visible_units : "binary" (0 and 1), "grey" (0..1), "gaussian" (any numbers, standardised here) or "auto".
    random_state : seed of initial weights and all draws.

    Attributes
    ----------
    components_ : float32 [n_components, n_features]; intercept_hidden_, intercept_visible_ : float32 biases.
    parameters_ : int32 [P], the exact parameters in units 2^-24. spec_ : the model's specification.

    References
    ----------
    Melchior, Fischer & Wiskott, How to center deep Boltzmann machines, JMLR 17:99, 2016.
    """

    def __init__(
        self,
        n_components: int = 256,
        *,
        learning_rate: float | None = None,
        final_learning_rate: float | None = None,
        batch_size: int = 20,
        n_iter: int = 20,
        persistent: bool = False,
        k: int = 1,
        momentum: float = 0.5,
        weight_decay: float = 0.0,
        visible_units: Units = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.learning_rate = learning_rate
        self.final_learning_rate = final_learning_rate
        self.batch_size = batch_size
        self.n_iter = n_iter
        self.persistent = persistent
        self.k = k
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.visible_units = visible_units
        self.random_state = random_state

    def _phase(self, epochs: int | None) -> PhaseSpec:
        rate = _rate(self.learning_rate, gaussian=self.encoding_.units == "gaussian")
        final = rate if self.final_learning_rate is None or epochs is None else self.final_learning_rate
        return PhaseSpec(
            learner="pcd" if self.persistent else "cd",
            epochs=epochs,
            batch=self.batch_size,
            lr=rate,
            lr_final=final,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            k=self.k,
        )

    def fit(self, X: Any, y: Any = None) -> RBM:
        """Train from the beginning on X [n, V]."""
        X = validate_data(self, X, dtype=(np.float64, np.float32))
        values = self._start(X, (self.n_components,), 0)
        self._train((self._phase(self.n_iter),), values, None)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> RBM:
        """Train once over X [n, V], going on from earlier calls or from ``fit``; the first fixes units."""
        first = not hasattr(self, "parameters_")
        X = validate_data(self, X, reset=first, dtype=(np.float64, np.float32))
        values = self._start(X, (self.n_components,), 0) if first else self.encoding_.values(X)
        self._stream(self._phase(None), values, None)
        return self

    def transform(self, X: Any) -> Array:
        """Probabilities of the hidden units: float32 [n, n_components]."""
        values = self._rows(X)
        return np.asarray(learners.transform(self.spec_, self.parameters_, values))

    def reconstruct(self, X: Any) -> Array:
        """X after one mean-field step up and down, in its own measure: float [n, V]."""
        values = self._rows(X)
        return self.encoding_.numbers(learners.reconstruct(self.spec_, self.parameters_, values))

    def score_samples(self, X: Any) -> Array:
        """Minus the free energy of each row [n]: log-likelihood up to a constant; the lower, the stranger."""
        return -self.anomaly_scores(X)[0].astype(np.float64)

    def anomaly_scores(self, X: Any) -> tuple[Array, Array]:
        """(free energy, reconstruction error) of each row; the higher, the stranger. Look at both."""
        values = self._rows(X)
        return anomaly_scores(self.spec_, self.parameters_, values)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags

    @property
    def components_(self) -> Array:
        return tensor_of(self.spec_, self.parameters_, "layer0.weights").T

    @property
    def intercept_hidden_(self) -> Array:
        return tensor_of(self.spec_, self.parameters_, "layer0.hidden_bias")

    @property
    def intercept_visible_(self) -> Array:
        return tensor_of(self.spec_, self.parameters_, "layer0.visible_bias")

    @property
    def _n_features_out(self) -> int:
        return self.spec_.hidden[0]


class DBNClassifier(ClassifierMixin, _Network):
    """Deep belief network: layers pretrained one by one by contrastive divergence, then backprop through all of them.

    Parameters
    ----------
    hidden_layer_sizes : hidden units of each layer, bottom up.
    pretrain_iter, pretrain_learning_rate : passes over the rows and learning rate per layer (0 passes: none; rate
        None: 0.1, or 0.005 for a Gaussian first layer).
    n_iter, learning_rate : passes of fine-tuning by Adam (Kingma & Ba 2015), its rate, falling linearly to 0.
    pretrain_batch_size, batch_size : rows per minibatch of either. dropout : share of hidden units left out.
    weight_decay : L2 in fine-tuning. visible_units, random_state : as for `RBM`.

    Attributes
    ----------
    classes_ : labels. parameters_ : int32 [P], exact, in units 2^-24. spec_ : the model's specification.

    References
    ----------
    Hinton, Osindero & Teh, A fast learning algorithm for deep belief nets, Neural Computation 18, 2006.
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (256, 256),
        *,
        pretrain_iter: int = 20,
        pretrain_learning_rate: float | None = None,
        pretrain_batch_size: int = 20,
        n_iter: int = 50,
        learning_rate: float = 0.003,
        batch_size: int = 20,
        dropout: float = 0.0,
        weight_decay: float = 0.0,
        visible_units: Units = "auto",
        random_state: Any = None,
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.pretrain_iter = pretrain_iter
        self.pretrain_learning_rate = pretrain_learning_rate
        self.pretrain_batch_size = pretrain_batch_size
        self.n_iter = n_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.dropout = dropout
        self.weight_decay = weight_decay
        self.visible_units = visible_units
        self.random_state = random_state

    def _plan(self) -> tuple[PhaseSpec, ...]:
        real = self.encoding_.units == "gaussian"
        rates = [_rate(self.pretrain_learning_rate, gaussian=real and i == 0) for i in range(len(self.spec_.hidden))]
        pretraining = tuple(
            PhaseSpec("cd", i, self.pretrain_iter, self.pretrain_batch_size, lr=lr, lr_final=lr)
            for i, lr in enumerate(rates)
            if self.pretrain_iter
        )
        tuning = PhaseSpec(
            learner="backprop",
            epochs=self.n_iter,
            batch=self.batch_size,
            lr=self.learning_rate,
            lr_final=0.0,
            optimizer="adam",
            dropout=self.dropout,
            weight_decay=self.weight_decay,
        )
        return (*pretraining, tuning)

    def _labels(self, y: Any) -> NDArray[np.int32]:
        index = np.searchsorted(self.classes_, y)
        if (self.classes_[np.minimum(index, len(self.classes_) - 1)] != y).any():
            raise ValueError(f"y has labels outside the classes {self.classes_.tolist()}")
        return index.astype(np.int32)

    def _hidden(self) -> tuple[int, ...]:
        sizes: Any = self.hidden_layer_sizes
        return (int(sizes),) if isinstance(sizes, int | np.integer) else tuple(sizes)

    def fit(self, X: Any, y: Any) -> DBNClassifier:
        """Train from the beginning on X [n, V] and labels y [n]."""
        X, y = validate_data(self, X, y, dtype=(np.float64, np.float32))
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_.tolist()}: a classifier needs at least two classes")
        values = self._start(X, self._hidden(), len(self.classes_))
        self._train(self._plan(), values, self._labels(y))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> DBNClassifier:
        """Train all layers and the head at once over X, y, going on from earlier calls or from ``fit``.

        The first call needs ``classes`` (all labels that may come) and fixes units, means and scales.
        """
        first = not hasattr(self, "parameters_")
        X, y = validate_data(self, X, y, reset=first, dtype=(np.float64, np.float32))
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs classes: all labels that may come")
            self.classes_ = np.unique(classes)
            values = self._start(X, self._hidden(), len(self.classes_))
        else:
            values = self.encoding_.values(X)
        lr = _rate(self.pretrain_learning_rate, gaussian=self.encoding_.units == "gaussian")
        phase = PhaseSpec("joint", epochs=None, batch=self.pretrain_batch_size, lr=lr, lr_final=lr)
        self._stream(phase, values, self._labels(y))
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probability of each class: float64 [n, classes], rows sum to 1."""
        values = self._rows(X)
        p = np.asarray(learners.predict_proba(self.spec_, self.parameters_, values), np.float64)
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> Array:
        """Most probable class of each row."""
        values = self._rows(X)
        return self.classes_[np.argmax(learners.predict_proba(self.spec_, self.parameters_, values), axis=1)]

    def features(self, X: Any) -> Array:
        """Features of the top layer: float32 [n, hidden]."""
        values = self._rows(X)
        return np.asarray(learners.transform(self.spec_, self.parameters_, values))
