"""Model files: exact, atomic, and refused when anything is wrong with them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load as load_tensors

from gossipdbn.errors import ConfigError, SnapshotCorrupt, SnapshotIncompatible, SnapshotMissing, StoreError
from gossipdbn.models.files import HEADER_BYTES_MAX, Model, Provenance, dumps, load_model, loads, save_model
from gossipdbn.models.spec import ModelSpec, parameter_count


def _model() -> Model:
    spec = ModelSpec(5, (4, 3), "mixed", 2, (0, 2))
    rng = np.random.default_rng(3)
    return Model(
        spec,
        rng.integers(-(2**30), 2**30, parameter_count(spec), dtype=np.int32),
        {"columns": ["a", "b"]},
        ("no", "yes"),
        Provenance("r1", (3, 4, 0), "00ff", 1, (("numpy", "2"),), {"test_error": 0.25}),
    )


def _with_header(data: bytes, change: dict[str, object]) -> bytes:
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    for k, v in change.items():
        if v is None:
            del header[k]
        else:
            header[k] = v
    raw = json.dumps(header).encode()
    return len(raw).to_bytes(8, "little") + raw + data[8 + n :]


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    model = _model()
    path = tmp_path / "new" / "model.safetensors"
    save_model(path, model)
    back = load_model(path)
    assert back.spec == model.spec
    np.testing.assert_array_equal(back.parameters, model.parameters)
    assert (back.schema, back.classes, back.provenance) == (model.schema, model.classes, model.provenance)
    assert [p.name for p in path.parent.iterdir()] == ["model.safetensors"]
    assert not back.parameters.flags.writeable
    np.testing.assert_array_equal(back.tensor("layer1.hidden_bias"), model.tensor("layer1.hidden_bias"))
    with pytest.raises(ConfigError, match=r"head\.bias"):
        back.tensor("layer9.weights")


def test_other_software_can_read_the_integers() -> None:
    model = _model()
    tensors = load_tensors(dumps(model))
    np.testing.assert_array_equal(tensors["layer0.weights"].ravel(), model.parameters[:20])
    assert tensors["head.bias"].dtype == np.int32


def test_any_flipped_byte_is_noticed() -> None:
    data = dumps(_model())
    for i in range(0, len(data), 7):
        broken = bytearray(data)
        broken[i] ^= 0x10
        try:
            back = loads(bytes(broken), "m")
        except (SnapshotCorrupt, SnapshotIncompatible):
            continue
        # Only spaces that pad the header may change without a trace.
        assert broken[i] in b"\x30\x10" and _equal(back)


def _equal(back: Model) -> bool:
    return bool(np.array_equal(back.parameters, _model().parameters)) and back.spec == _model().spec


def test_cut_short_foreign_and_newer_files_are_refused_with_the_reason() -> None:
    data = dumps(_model())
    n = int.from_bytes(data[:8], "little")
    meta = json.loads(data[8 : 8 + n])["__metadata__"]
    for cut in (0, 4, 8, 40, len(data) - 4):
        with pytest.raises(SnapshotCorrupt, match=r"m\.st"):
            loads(data[:cut], "m.st")
    with pytest.raises(SnapshotCorrupt, match="header"):
        loads((HEADER_BYTES_MAX + 1).to_bytes(8, "little") + data[8:], "m")
    with pytest.raises(SnapshotCorrupt, match="no gossipdbn model"):
        loads(_with_header(data, {"__metadata__": {"format": "pt"}}), "m")
    with pytest.raises(SnapshotCorrupt, match=r"layer0\.weights"):
        loads(_with_header(data, {"layer0.weights": {"dtype": "F32", "shape": [5, 4], "data_offsets": [0, 80]}}), "m")
    newer = json.dumps({**json.loads(meta["gossipdbn"]), "format": 9})
    with pytest.raises(SnapshotIncompatible, match="newer gossipdbn"):
        loads(_with_header(data, {"__metadata__": {**meta, "gossipdbn": newer}}), "m")
    edited = meta["gossipdbn"].replace('"yes"', '"maybe"')
    with pytest.raises(SnapshotCorrupt, match="sha256"):
        loads(_with_header(data, {"__metadata__": {**meta, "gossipdbn": edited}}), "m")


def test_missing_files_and_folders_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(SnapshotMissing, match="train one first"):
        load_model(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="choose another folder"):
        save_model(tmp_path / "file" / "model.safetensors", _model())


def test_parameters_must_fit_the_specification() -> None:
    spec = ModelSpec(2, (2,))
    with pytest.raises(ConfigError, match=r"int32 \(8,\)"):
        Model(spec, np.zeros(7, np.int32))
    with pytest.raises(ConfigError, match="one name each"):
        Model(spec, np.zeros(8, np.int32), classes=("a",))
