"""What all estimators share: encoding, the run key, training from rows in memory, the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from gossipdbn.estimators.encoding import Encoding, Units, canonical
from gossipdbn.models import learners
from gossipdbn.models.dbn import train, visible_mean
from gossipdbn.models.files import Model, Provenance
from gossipdbn.models.rows import AnyRows, PackedRows
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.models.supervised import Labels

NUMBERS = (np.float64, np.float32)


def cd_rate(wanted: float | None, *, gaussian: bool) -> float:
    """Learning rate of contrastive divergence; unbounded visibles need a smaller one."""
    return wanted if wanted is not None else 0.005 if gaussian else 0.1


class Network(BaseEstimator):
    """What all estimators share: encoding, the run key, the model."""

    visible_units: Units
    random_state: Any

    def _start(self, X: Any, hidden: tuple[int, ...], **head: Any) -> AnyRows:
        """Fix encoding, specification (``head``: its other fields) and key by the first rows; returns encoded rows."""
        if any(int(h) != h or h < 1 for h in hidden) or not hidden:
            raise ValueError(f"layer sizes must be positive integers, got {hidden}")
        self.encoding_ = Encoding.of(X, self.visible_units)
        self.spec_ = ModelSpec(X.shape[1], tuple(int(h) for h in hidden), self.encoding_.units, **head)
        self.run_key_ = int(check_random_state(self.random_state).randint(0, 2**62, dtype=np.int64))
        return self.encoding_.values(X)

    def _rows(self, X: Any) -> AnyRows:
        check_is_fitted(self, "parameters_")
        return self.encoding_.values(self._checked(X, reset=False))

    def _checked(self, X: Any, *, reset: bool) -> Any:
        """Rows as scikit-learn checks them: an array, or a CSR matrix; packed rows have only a width to check."""
        if not isinstance(X, PackedRows):
            return canonical(validate_data(self, X, reset=reset, dtype=NUMBERS, accept_sparse="csr"))
        self._check_packed(X, reset=reset)
        return X

    def _check_packed(self, X: PackedRows, *, reset: bool) -> None:
        if not len(X):
            raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
        if reset:
            self.n_features_in_ = X.width
        elif self.n_features_in_ != X.width:
            raise ValueError(f"X has {X.width} features, but {type(self).__name__} expects {self.n_features_in_}")

    def _checked_pair(self, X: Any, y: Any, *, reset: bool = True, **options: Any) -> tuple[Any, Any]:
        """Rows and their labels or targets; ``options`` as for scikit-learn's ``validate_data``."""
        if not isinstance(X, PackedRows):
            X, y = validate_data(self, X, y, reset=reset, dtype=NUMBERS, accept_sparse="csr", **options)
            return canonical(X), y
        self._check_packed(X, reset=reset)
        y = check_array(y, ensure_2d=False, dtype="numeric" if options.get("y_numeric") else None)
        check_consistent_length(X, y)
        return X, y if options.get("multi_output") else column_or_1d(y, warn=True)

    def _stream(self, phase: PhaseSpec, values: AnyRows, labels: Labels | None) -> None:
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

    def _train(self, phases: tuple[PhaseSpec, ...], values: AnyRows, labels: Labels | None) -> None:
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
        if hasattr(self, "target_mean_"):
            extra |= {"target_mean": self.target_mean_.tolist(), "target_scale": self.target_scale_.tolist()}
        return Model(self.spec_, self.parameters_.copy(), {}, names, Provenance(extra=extra))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "parameters_")
