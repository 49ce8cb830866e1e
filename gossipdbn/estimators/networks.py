"""Deep belief networks as a scikit-learn classifier and regressor."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.utils.multiclass import check_classification_targets

from gossipdbn.estimators.base import Network, cd_rate
from gossipdbn.estimators.encoding import Array, Units
from gossipdbn.models import reading
from gossipdbn.models.rows import AnyRows
from gossipdbn.models.spec import HiddenUnits, Loss, PhaseSpec


class _Stack(Network):
    """What classifier and regressor share: the layers and the plan of their training."""

    hidden_layer_sizes: Any
    hidden_units: HiddenUnits
    pretrain_iter: int
    pretrain_learning_rate: float | None
    pretrain_batch_size: int
    n_iter: int
    learning_rate: float
    batch_size: int
    dropout: float
    weight_decay: float

    def _plan(self) -> tuple[PhaseSpec, ...]:
        if self.hidden_units == "relu" and self.pretrain_iter:
            raise ValueError("ReLU layers cannot be pretrained by contrastive divergence: set pretrain_iter=0")
        real = self.encoding_.units == "gaussian"
        rates = [cd_rate(self.pretrain_learning_rate, gaussian=real and i == 0) for i in range(len(self.spec_.hidden))]
        pretraining = tuple(
            PhaseSpec("cd", i, self.pretrain_iter, self.pretrain_batch_size, lr=lr, lr_final=lr)
            for i, lr in enumerate(rates)
            if self.pretrain_iter
        )
        return (*pretraining, self._tuning(self.n_iter, 0.0))

    def _tuning(self, epochs: int | None, final: float) -> PhaseSpec:
        return PhaseSpec(
            learner="backprop",
            epochs=epochs,
            batch=self.batch_size,
            lr=self.learning_rate,
            lr_final=final,
            optimizer="adam",
            dropout=self.dropout,
            weight_decay=self.weight_decay,
        )

    def _streaming(self) -> PhaseSpec:
        """What `partial_fit` trains with: all layers and the head at once; backprop where layers are ReLU."""
        if self.hidden_units == "relu":
            return self._tuning(None, self.learning_rate)
        lr = cd_rate(self.pretrain_learning_rate, gaussian=self.encoding_.units == "gaussian")
        return PhaseSpec("joint", epochs=None, batch=self.pretrain_batch_size, lr=lr, lr_final=lr)

    def _hidden(self) -> tuple[int, ...]:
        if self.hidden_units not in ("binary", "relu"):
            raise ValueError(f"hidden_units={self.hidden_units!r} is unknown; choose binary or relu")
        sizes: Any = self.hidden_layer_sizes
        return (int(sizes),) if isinstance(sizes, int | np.integer) else tuple(sizes)

    def features(self, X: Any) -> Array:
        """Features of the top layer: float32 [n, hidden]."""
        values = self._rows(X)
        return np.asarray(reading.transform(self.spec_, self.parameters_, values))


class DBNClassifier(ClassifierMixin, _Stack):
    """Deep belief network: layers pretrained one by one by contrastive divergence, then backprop through all of them.

    Parameters
    ----------
    hidden_layer_sizes : hidden units of each layer, bottom up.
    hidden_units : "binary", a belief network, or "relu", rectified linear units, which need ``pretrain_iter=0``: only
        backprop trains them.
    loss : "cross_entropy", or "squared": half the squared distance of the probabilities to the true class (Brier).
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
        hidden_units: HiddenUnits = "binary",
        loss: Loss = "cross_entropy",
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
        self.hidden_units = hidden_units
        self.loss = loss
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

    def _labels(self, y: Any) -> NDArray[np.int32]:
        index = np.searchsorted(self.classes_, y)
        if (self.classes_[np.minimum(index, len(self.classes_) - 1)] != y).any():
            raise ValueError(f"y has labels outside the classes {self.classes_.tolist()}")
        return index.astype(np.int32)

    def _head(self) -> dict[str, Any]:
        if self.loss not in ("cross_entropy", "squared"):
            raise ValueError(f"loss={self.loss!r} is unknown; choose cross_entropy or squared")
        return {"classes": len(self.classes_), "hidden_units": self.hidden_units, "loss": self.loss}

    def fit(self, X: Any, y: Any) -> DBNClassifier:
        """Train from the beginning on X [n, V] and labels y [n]."""
        X, y = self._checked_pair(X, y)
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_.tolist()}: a classifier needs at least two classes")
        values = self._start(X, self._hidden(), **self._head())
        self._train(self._plan(), values, self._labels(y))
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> DBNClassifier:
        """Train all layers and the head at once over X, y, going on from earlier calls or from ``fit``.

        The first call needs ``classes`` (all labels that may come) and fixes units, means and scales.
        """
        first = not hasattr(self, "parameters_")
        X, y = self._checked_pair(X, y, reset=first)
        if first:
            if classes is None:
                raise ValueError("the first call of partial_fit needs classes: all labels that may come")
            self.classes_ = np.unique(classes)
            values = self._start(X, self._hidden(), **self._head())
        else:
            values = self.encoding_.values(X)
        self._stream(self._streaming(), values, self._labels(y))
        return self

    def predict_proba(self, X: Any) -> Array:
        """Probability of each class: float64 [n, classes], rows sum to 1."""
        values = self._rows(X)
        p = np.asarray(reading.predict_proba(self.spec_, self.parameters_, values), np.float64)
        return p / p.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> Array:
        """Most probable class of each row."""
        values = self._rows(X)
        return self.classes_[np.argmax(reading.predict_proba(self.spec_, self.parameters_, values), axis=1)]


class DBNRegressor(RegressorMixin, MultiOutputMixin, _Stack):
    """Deep belief network with linear outputs: pretrained layer by layer, then backprop of half the squared error.

    Targets are standardised here, each by itself, and come back in their own measure.

    Parameters
    ----------
    hidden_layer_sizes, hidden_units, pretrain_iter, pretrain_learning_rate, pretrain_batch_size, n_iter, learning_rate,
    batch_size, dropout, weight_decay, visible_units, random_state : as for `DBNClassifier`.

    Attributes
    ----------
    target_mean_, target_scale_ : float64 [targets]. parameters_ : int32 [P], exact, in units 2^-24.
    spec_ : the model's specification.
    """

    def __init__(
        self,
        hidden_layer_sizes: tuple[int, ...] = (256, 256),
        *,
        hidden_units: HiddenUnits = "binary",
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
        self.hidden_units = hidden_units
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

    def _begin(self, X: Any, y: Array) -> AnyRows:
        """Fix the targets' measure and the network by the first rows; returns them encoded."""
        table = y.reshape(len(y), -1).astype(np.float64)
        scale = table.std(axis=0)
        self.target_mean_, self.target_scale_ = table.mean(axis=0), np.where(scale > 1e-12, scale, 1.0)
        self.single_target_ = y.ndim == 1
        head = {"targets": table.shape[1], "loss": "squared", "hidden_units": self.hidden_units}
        return self._start(X, self._hidden(), **head)

    def _targets(self, y: Array) -> NDArray[np.float32]:
        table = y.reshape(len(y), -1)
        if table.shape[1] != self.spec_.targets:
            raise ValueError(f"y has {table.shape[1]} targets, the network was begun with {self.spec_.targets}")
        return np.ascontiguousarray((table - self.target_mean_) / self.target_scale_, np.float32)

    def fit(self, X: Any, y: Any) -> DBNRegressor:
        """Train from the beginning on X [n, V] and numbers y [n] or [n, targets]."""
        X, y = self._checked_pair(X, y, multi_output=True, y_numeric=True)
        values = self._begin(X, y)
        self._train(self._plan(), values, self._targets(y))
        return self

    def partial_fit(self, X: Any, y: Any) -> DBNRegressor:
        """Train once over X, y, going on from earlier calls or from ``fit``; the first fixes units and measures."""
        first = not hasattr(self, "parameters_")
        X, y = self._checked_pair(X, y, reset=first, multi_output=True, y_numeric=True)
        values = self._begin(X, y) if first else self.encoding_.values(X)
        self._stream(self._streaming(), values, self._targets(y))
        return self

    def predict(self, X: Any) -> Array:
        """Targets of each row in their own measure: float64 [n], or [n, targets] when y had columns."""
        values = self._rows(X)
        said = reading.predict_outputs(self.spec_, self.parameters_, values)
        out = said * self.target_scale_ + self.target_mean_
        return out[:, 0] if self.single_target_ else out
