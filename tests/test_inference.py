"""Files in, classes, scores and features out, through the schema inside the model."""

from __future__ import annotations

import csv
import gzip
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyarrow import parquet

from gossipdbn import inference
from gossipdbn.errors import ConfigError, DataError, SnapshotMissing, StoreError
from gossipdbn.inference import evaluate, predict, score, transform
from gossipdbn.models import reading
from gossipdbn.models.dbn import train
from gossipdbn.models.files import Model, save_model
from gossipdbn.models.spec import ModelSpec, PhaseSpec, parameter_count
from gossipdbn.readers import read_sample
from gossipdbn.schema import SchemaConfig, model_units, schema_from_dict, schema_to_dict
from gossipdbn.source import SourceConfig

CLASSES = ("left", "right")


def _write_csv(path: Path, rows: int, seed: int, label: bool = True) -> None:
    """Two groups of rows: "left" has a high, "right" has b high."""
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as f:
        out = csv.writer(f)
        out.writerow(("a", "b", "colour", *(("side",) if label else ())))
        for i in range(rows):
            side = i % 2
            a, b = rng.normal(3.0 - 6 * side, 1), rng.normal(6 * side - 3.0, 1)
            out.writerow((f"{a:.4f}", f"{b:.4f}", "red" if i % 3 else "blue", *((CLASSES[side],) if label else ())))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("model")
    _write_csv(folder / "train.csv", 400, 0)
    source = SourceConfig("csv", str(folder / "train.csv"))
    schema = read_sample(source, SchemaConfig(label="side"))
    visible, units, binary, classes = model_units(schema)
    spec = ModelSpec(visible, (6,), units, classes, binary)
    draft = Model(spec, np.zeros(parameter_count(spec), np.int32), schema_to_dict(schema), schema.classes)
    parts = list(inference.encoded(draft, source))
    values = np.concatenate([p.values for p in parts])
    labels = np.concatenate([p.labels for p in parts if p.labels is not None])
    phases = (
        PhaseSpec("cd", epochs=4, batch=20, lr=0.005, lr_final=0.005),
        PhaseSpec("backprop", epochs=15, batch=20, lr=0.02, lr_final=0.0, optimizer="adam"),
    )
    theta = train(spec, phases, values, labels, run_key=1, mean=schema.visible_mean)
    save_model(folder / "model.safetensors", Model(spec, theta, schema_to_dict(schema), schema.classes))
    return folder


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open() as f:
        return list(csv.DictReader(f))


def test_classes_are_named_and_counted(trained: Path, tmp_path: Path) -> None:
    _write_csv(tmp_path / "new.csv", 101, 5)
    result = predict(
        trained / "model.safetensors", tmp_path / "new.csv", tmp_path / "out" / "p.csv", probabilities=True
    )
    lines = _lines(tmp_path / "out" / "p.csv")
    assert result.rows == len(lines) == 101 and result.output == str(tmp_path / "out" / "p.csv")
    assert list(lines[0]) == ["file", "row", "class", "probability", "label", "p_left", "p_right"]
    assert [int(line["row"]) for line in lines] == list(range(101))
    wrong = sum(line["class"] != line["label"] for line in lines)
    assert result.evaluation is not None and result.evaluation.wrong == wrong <= 2
    assert result.evaluation.confusion.sum() == 101
    assert all(abs(float(line["p_left"]) + float(line["p_right"]) - 1) < 1e-5 for line in lines)
    again = evaluate(trained / "model.safetensors", tmp_path / "new.csv")
    assert again.error == wrong / 101
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["p.csv"]


def test_rows_without_labels_and_several_files_go_to_parquet(trained: Path, tmp_path: Path) -> None:
    for i in range(2):
        _write_csv(tmp_path / f"part-{i}.csv", 30 + i, i, label=False)
    files = [tmp_path / "part-0.csv", tmp_path / "part-1.csv"]
    result = predict(trained / "model.safetensors", files, tmp_path / "p.parquet")
    table = parquet.read_table(tmp_path / "p.parquet")
    assert result.rows == table.num_rows == 61 and result.evaluation is None
    assert table.column_names == ["file", "row", "class", "probability"]
    assert table.column("row").to_pylist() == [*range(30), *range(31)]
    assert predict(trained / "model.safetensors", tmp_path / "part-*.csv").rows == 61
    with pytest.raises(DataError, match="no row has a label"):
        evaluate(trained / "model.safetensors", files)


def test_pieces_do_not_change_results(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_csv(tmp_path / "new.csv", 50, 3)
    for kind, act in (("p", predict), ("s", score), ("t", transform)):
        act(trained / "model.safetensors", tmp_path / "new.csv", tmp_path / f"{kind}-whole.csv")
    monkeypatch.setattr(inference.encoded, "__kwdefaults__", {"labels": "", "piece_rows": 7})
    for kind, act in (("p", predict), ("s", score), ("t", transform)):
        act(trained / "model.safetensors", tmp_path / "new.csv", tmp_path / f"{kind}-cut.csv")
        assert (tmp_path / f"{kind}-whole.csv").read_bytes() == (tmp_path / f"{kind}-cut.csv").read_bytes()


def test_scores_grow_with_strangeness(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "mixed.csv").write_text("a,b,colour,side\n3,-3,red,left\n-3,3,blue,right\n40,40,red,left\n")
    result = score(trained / "model.safetensors", tmp_path / "mixed.csv", tmp_path / "s.csv")
    lines = _lines(tmp_path / "s.csv")
    energy = [float(line["free_energy"]) for line in lines]
    error = [float(line["reconstruction_error"]) for line in lines]
    assert energy[2] > max(energy[:2]) and error[2] > max(error[:2])
    assert result.mean_free_energy == pytest.approx(np.mean(energy))
    assert result.mean_reconstruction_error == pytest.approx(np.mean(error))


def test_features_are_those_of_the_layers(trained: Path, tmp_path: Path) -> None:
    _write_csv(tmp_path / "new.csv", 20, 4)
    transform(trained / "model.safetensors", tmp_path / "new.csv", tmp_path / "t.parquet", layers=1)
    table = parquet.read_table(tmp_path / "t.parquet")
    model = inference.open_model(trained / "model.safetensors")
    rows = next(inference.encoded(model, tmp_path / "new.csv"))
    want = reading.transform(model.spec, model.parameters, rows.values, 1)
    got = np.column_stack([table.column(f"h{i}").to_numpy() for i in range(6)])
    np.testing.assert_array_equal(got, want)
    with pytest.raises(ConfigError, match="the model has 1 to 1"):
        transform(model, tmp_path / "new.csv", layers=2)


def test_images_with_a_file_of_labels(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4), dtype=np.uint8)
    with gzip.open(tmp_path / "t-images-idx3-ubyte.gz", "wb") as f:
        f.write(struct.pack(">IIII", 0x803, 12, 4, 4) + images.tobytes())
    with gzip.open(tmp_path / "t-labels-idx1-ubyte.gz", "wb") as f:
        f.write(struct.pack(">II", 0x801, 12) + bytes(i % 3 for i in range(12)))
    image, label = str(tmp_path / "t-images-idx3-ubyte.gz"), str(tmp_path / "t-labels-idx1-ubyte.gz")
    schema = read_sample(SourceConfig("idx", image, label), SchemaConfig())
    spec = ModelSpec(16, (5,), "grey", 3)
    model = Model(spec, np.zeros(parameter_count(spec), np.int32), schema_to_dict(schema))
    assert evaluate(model, image, labels=label).rows == 12
    assert predict(model, image, labels=label).evaluation is not None
    assert predict(model, image).evaluation is None
    with pytest.raises(ConfigError, match="goes with idx images"):
        predict(model, tmp_path / "x.csv", labels=label)


def test_what_cannot_be_done_is_said(trained: Path, tmp_path: Path) -> None:
    model = inference.open_model(trained / "model.safetensors")
    _write_csv(tmp_path / "new.csv", 4, 1)
    with pytest.raises(SnapshotMissing):
        predict(tmp_path / "nowhere.safetensors", tmp_path / "new.csv")
    with pytest.raises(ConfigError, match=r"must end in \.csv or \.parquet"):
        predict(model, tmp_path / "new.csv", tmp_path / "p.xlsx")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder"):
        predict(model, tmp_path / "new.csv", tmp_path / "file" / "p.csv")
    with pytest.raises(DataError, match="no csv file"):
        predict(model, tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="a folder or a glob"):
        predict(model, [])
    with pytest.raises(ConfigError, match="a topic cannot be read"):
        predict(model, SourceConfig("kafka", topic="t"))
    with pytest.raises(ConfigError, match="no schema"):
        predict(Model(model.spec, model.parameters), tmp_path / "new.csv")
    bare = ModelSpec(model.spec.visible, (2,), model.spec.visible_units, 0, model.spec.binary_columns)
    without = Model(bare, np.zeros(parameter_count(bare), np.int32), model.schema)
    with pytest.raises(ConfigError, match="no classes"):
        predict(without, tmp_path / "new.csv")
    narrow = ModelSpec(2, (2,), "gaussian", 2)
    with pytest.raises(ConfigError, match="its first layer 2"):
        predict(Model(narrow, np.zeros(parameter_count(narrow), np.int32), model.schema), tmp_path / "new.csv")


def test_a_bad_row_leaves_no_half_written_output(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text("a,b,colour,side\n1,2,red,left\n1,oops,red,left\n")
    with pytest.raises(DataError, match=r"bad\.csv.*row 1.*oops"):
        predict(trained / "model.safetensors", tmp_path / "bad.csv", tmp_path / "p.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv"]
    assert schema_from_dict(inference.open_model(trained / "model.safetensors").schema).label == "side"
