"""How unusual a row is to a model: two scores, always given together.

The free energy is the model's own measure (minus the log-likelihood up to a constant), but it can invert when unusual
rows form a dense cluster of their own; the reconstruction score then still tells them. Both grow with strangeness.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossipdbn.models import reading
from gossipdbn.models.likelihood import unit_values
from gossipdbn.models.rows import AnyRows, as_rows, blocks
from gossipdbn.models.spec import ModelSpec, layout, parameter_count, require_energy


class AnomalyScores(NamedTuple):
    """Per row: ``free_energy`` float32 [n] in nats, ``reconstruction`` float32 [n], mean squared error per visible."""

    free_energy: NDArray[np.float32]
    reconstruction: NDArray[np.float32]


def bottom(spec: ModelSpec, parameters: NDArray[np.int32]) -> tuple[ModelSpec, NDArray[np.int32]]:
    """The first layer alone, as a model of its own; ConfigError when it is no Boltzmann machine."""
    require_energy(spec)
    one = ModelSpec(spec.visible, spec.hidden[:1], spec.visible_units, 0, spec.binary_columns)
    assert layout(one)[-1].name == layout(spec)[2].name
    return one, parameters[: parameter_count(one)]


def reconstruction_error(spec: ModelSpec, parameters: NDArray[np.int32], values: AnyRows) -> NDArray[np.float32]:
    """Mean squared difference per visible between rows and their reconstruction by the first layer: float32 [n]."""
    one, weights = bottom(spec, parameters)
    parts = [np.zeros(0, np.float32)]
    for block in blocks(as_rows(values)):
        again = reading.reconstruct(one, weights, block)
        parts.append(np.square(unit_values(spec, block) - again).mean(1).astype(np.float32))
    return np.concatenate(parts)


def anomaly_scores(spec: ModelSpec, parameters: NDArray[np.int32], values: AnyRows) -> AnomalyScores:
    """Both scores of rows [n, V] of any form by the first layer; the higher, the stranger."""
    energy = reading.free_energy(spec, parameters, values)
    return AnomalyScores(np.asarray(energy, np.float32), reconstruction_error(spec, parameters, values))
