"""A manifest that no run can have is refused before anything is indexed or allocated by it."""

from __future__ import annotations

import msgspec
import pytest

from gossipdbn.core.values import manifest_from_json, manifest_json
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from tests.core.making import a_manifest

M = a_manifest()


def test_a_manifest_survives_its_json():
    assert manifest_from_json(manifest_json(M)) == M
    assert manifest_json(manifest_from_json(manifest_json(M))) == manifest_json(M)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"spec": ModelSpec(0, (2,))}, "0 visible"),
        ({"spec": ModelSpec(3, ())}, "hidden units"),
        ({"spec": ModelSpec(3, (2, 0))}, "hidden units"),
        ({"spec": ModelSpec(3, (2,), binary_columns=(3,))}, "binary_columns"),
        ({"visible_mean": b"123"}, "3 bytes of means"),
        ({"codec": 9}, "codec 9"),
        ({"e_max": 7}, "e_max 7"),
        ({"phases": ()}, "no phases"),
        ({"gate": -1}, "negative gate"),
        ({"phases": (PhaseSpec("cd", batch=0),)}, "minibatches of 0"),
        ({"phases": (PhaseSpec("cd", batch=1 << 20, tau=2),)}, "are allowed"),
        ({"phases": (PhaseSpec("cd", epochs=None), PhaseSpec("cd"))}, "endless and not the last"),
        ({"phases": (PhaseSpec("cd", epochs=0),)}, "0 epochs"),
        ({"phases": (PhaseSpec("cd", layer=1),)}, "layer 1"),
        ({"phases": (PhaseSpec("backprop"),)}, "needs classes"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(fields, says):
    values = {f: getattr(M, f) for f in M.__struct_fields__} | fields
    with pytest.raises(ValueError, match=says):
        manifest_from_json(msgspec.json.encode(type(M)(**values)))


def test_another_format_is_the_callers_to_name():
    values = {f: getattr(M, f) for f in M.__struct_fields__} | {"format": 2, "phases": ()}
    assert manifest_from_json(msgspec.json.encode(type(M)(**values))).format == 2


def test_noise_is_refused():
    with pytest.raises(ValueError, match="."):
        manifest_from_json(b"noise")
