"""The restricted Boltzmann machine as a scikit-learn transformer."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin

from gossipdbn.estimators.base import Network, cd_rate
from gossipdbn.estimators.encoding import Array, Units
from gossipdbn.models import reading
from gossipdbn.models.files import tensor_of
from gossipdbn.models.scores import anomaly_scores
from gossipdbn.models.spec import PhaseSpec


class RBM(ClassNamePrefixFeaturesOutMixin, TransformerMixin, Network):
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
        rate = cd_rate(self.learning_rate, gaussian=self.encoding_.units == "gaussian")
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
        X = self._checked(X, reset=True)
        values = self._start(X, (self.n_components,))
        self._train((self._phase(self.n_iter),), values, None)
        return self

    def partial_fit(self, X: Any, y: Any = None) -> RBM:
        """Train once over X [n, V], going on from earlier calls or from ``fit``; the first fixes units."""
        first = not hasattr(self, "parameters_")
        X = self._checked(X, reset=first)
        values = self._start(X, (self.n_components,)) if first else self.encoding_.values(X)
        self._stream(self._phase(None), values, None)
        return self

    def transform(self, X: Any) -> Array:
        """Probabilities of the hidden units: float32 [n, n_components]."""
        values = self._rows(X)
        return np.asarray(reading.transform(self.spec_, self.parameters_, values))

    def reconstruct(self, X: Any) -> Array:
        """X after one mean-field step up and down, in its own measure: float [n, V]."""
        values = self._rows(X)
        return self.encoding_.numbers(reading.reconstruct(self.spec_, self.parameters_, values))

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
