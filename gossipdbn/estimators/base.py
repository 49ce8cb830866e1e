"""What all estimators share: encoding, the run key, training from rows in memory, the model."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from gossipdbn.estimators.encoding import Array, Encoding, Units
from gossipdbn.models import learners
from gossipdbn.models.dbn import train, visible_mean
from gossipdbn.models.files import Model, Provenance
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.models.supervised import Labels


def cd_rate(wanted: float | None, *, gaussian: bool) -> float:
    """Learning rate of contrastive divergence; unbounded visibles need a smaller one."""
    return wanted if wanted is not None else 0.005 if gaussian else 0.1


class Network(BaseEstimator):
    """What all estimators share: encoding, the run key, the model."""

    visible_units: Units
    random_state: Any

    def _start(self, X: Array, hidden: tuple[int, ...], **head: Any) -> Array:
        """Fix encoding, specification (``head``: its other fields) and key by the first rows; returns encoded rows."""
        if any(int(h) != h or h < 1 for h in hidden) or not hidden:
            raise ValueError(f"layer sizes must be positive integers, got {hidden}")
        self.encoding_ = Encoding.of(X, self.visible_units)
        self.spec_ = ModelSpec(X.shape[1], tuple(int(h) for h in hidden), self.encoding_.units, **head)
        self.run_key_ = int(check_random_state(self.random_state).randint(0, 2**62, dtype=np.int64))
        return self.encoding_.values(X)

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self, "parameters_")
        return self.encoding_.values(validate_data(self, X, reset=False, dtype=(np.float64, np.float32)))

    def _stream(self, phase: PhaseSpec, values: Array, labels: Labels | None) -> None:
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

    def _train(self, phases: tuple[PhaseSpec, ...], values: Array, labels: Labels | None) -> None:
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

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "parameters_")
