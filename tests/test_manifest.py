"""From a configuration to the manifest of a run, and of its child."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.config import loads
from gossipdbn.core.values import Manifest, manifest_from_json, manifest_json
from gossipdbn.errors import ConfigError
from gossipdbn.launch.runs import build_manifest
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.replay.fork import child_manifest
from gossipdbn.schema import SchemaConfig, fit

CONFIG = """
[source]
kind = "csv"
path = "rows"
[model]
hidden = [8, 4]
classes = 2
hidden_units = "relu"
loss = "squared"
[train]
epochs = 0
"""


def manifest() -> Manifest:
    table = {"a": np.arange(20) % 3 * 0.7, "b": np.arange(20.0), "c": np.array(["x", "y"] * 10, object)}
    return build_manifest(loads(CONFIG), fit(table, SchemaConfig(label="c")), "r", "", 0)


def test_units_and_loss_of_the_configuration_are_the_runs():
    made = manifest()
    assert (made.spec.hidden_units, made.spec.loss, made.spec.classes) == ("relu", "squared", 2)
    assert [p.learner for p in made.phases] == ["backprop"]
    read = manifest_from_json(manifest_json(made))
    assert (read.spec, read.phases) == (made.spec, made.phases)
    assert manifest_json(read) == manifest_json(made)


def test_a_child_cannot_be_planned_as_its_parents_units_cannot_be_trained():
    origin: dict[str, object] = {"run": "r", "version": [0], "digest": "0" * 16, "parameters": "0" * 64}
    child, _ = child_manifest(manifest(), "child", origin)
    assert child.spec.hidden_units == "relu"
    for learner in ("cd", "joint"):
        with pytest.raises(ConfigError, match=f"phase 0 \\({learner}, layer 0\\) does not fit"):
            child_manifest(manifest(), "child", origin, phases=[PhaseSpec(learner)])
