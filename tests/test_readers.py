from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp

from gossipdbn import readers
from gossipdbn.errors import ConfigError, DataError
from gossipdbn.readers import json_rows, kind_of, list_files, pieces, read_idx, read_sample, read_table
from gossipdbn.schema import ColumnConfig, SchemaConfig, encode, fit
from gossipdbn.source import SourceConfig, schema_config, source_config


def idx(array: np.ndarray) -> bytes:
    codes = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}
    code = codes[array.dtype.str[1:]]
    head = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


IMAGES = np.random.default_rng(0).integers(0, 256, (23, 4, 5)).astype(np.uint8)
LABELS = (np.arange(23) % 3).astype(np.uint8)


@pytest.fixture
def images(tmp_path: Path) -> SourceConfig:
    (tmp_path / "images-ubyte.gz").write_bytes(gzip.compress(idx(IMAGES)))
    (tmp_path / "labels-ubyte").write_bytes(idx(LABELS))
    return SourceConfig("idx", str(tmp_path / "images-ubyte.gz"), labels=str(tmp_path / "labels-ubyte"))


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
def test_idx_files_of_every_type_are_read(tmp_path, dtype):
    values = np.arange(24).reshape(2, 3, 4).astype(dtype)
    (tmp_path / "a.idx").write_bytes(idx(values))
    got = read_idx(str(tmp_path / "a.idx"))
    assert got.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(got, values)


def test_images_and_labels_come_together_in_pieces(images):
    parts = list(pieces(images, images.path, 10))
    assert [len(p["image"]) for p in parts] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate([p["image"] for p in parts]), IMAGES.reshape(23, 20))
    np.testing.assert_array_equal(np.concatenate([p["label"] for p in parts]), LABELS)
    schema = read_sample(images, SchemaConfig())
    assert (schema.label, schema.classes, schema.width) == ("label", ("0", "1", "2"), 20)


def _damage(data: bytes, how: str) -> bytes:
    if how == "cut":
        return gzip.compress(idx(IMAGES)[:-7])
    if how == "longer":
        return gzip.compress(idx(IMAGES) + b"x")
    if how == "cut gzip":
        return data[: len(data) // 2]
    if how == "flipped gzip":
        return data[:100] + bytes([data[100] ^ 255]) + data[101:]
    return {"not idx": b"hello world", "empty": b"", "cut header": idx(IMAGES)[:9]}[how]


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "cut off in image 22 of 23"),
        ("longer", "more bytes"),
        ("cut gzip", "gzip data is damaged"),
        ("flipped gzip", "gzip data is damaged"),
        ("not idx", "not an idx file"),
        ("empty", "not an idx file"),
        ("cut header", "header is cut off"),
    ],
)
def test_damaged_images_are_refused(images, how, message):
    path = Path(images.path)
    path.write_bytes(_damage(path.read_bytes(), how))
    with pytest.raises(DataError, match=message) as caught:
        list(pieces(images, images.path, 10))
    assert "images-ubyte.gz" in str(caught.value)


def test_labels_of_another_number_are_refused(images):
    Path(images.labels).write_bytes(idx(LABELS[:-1]))
    with pytest.raises(DataError, match=r"has 22 labels, .* has 23 images"):
        read_table(images)


CSV = "age,city,class\n" + "".join(f"{i}.5,{'Ulm' if i % 2 else 'Bern'},{i % 3}\n" for i in range(20))


def _csv(tmp_path: Path, text: str, **settings) -> SourceConfig:
    (tmp_path / "rows.csv").write_text(text)
    return SourceConfig("csv", str(tmp_path / "rows.csv"), **settings)


def test_csv_is_read_in_exact_pieces_by_the_schema(tmp_path):
    source = _csv(tmp_path, CSV)
    schema = read_sample(source, SchemaConfig(label="class"))
    assert [(c.name, c.kind) for c in schema.columns] == [("age", "gaussian"), ("city", "categorical")]
    parts = list(pieces(source, source.path, 7, readers.column_types(schema)))
    assert [len(p["age"]) for p in parts] == [7, 7, 6]
    values, labels = encode(schema, read_table(source, schema))
    assert values.shape == (20, 3)
    np.testing.assert_array_equal(labels, np.arange(20) % 3)


def test_csv_without_header_and_gzipped(tmp_path):
    (tmp_path / "a.data.gz").write_bytes(gzip.compress(b"0,1,0\n1,1,0\n0,0,1\n"))
    source = SourceConfig("csv", str(tmp_path), header=False)
    schema = read_sample(source, SchemaConfig())
    assert schema.visible_units == "binary"
    values, _ = encode(schema, read_table(source, schema))
    assert values.tolist() == [[0, 1, 0], [1, 1, 0], [0, 0, 1]]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("old,Ulm,1", r"column 'age', row 13: expected a number, got 'old'"),
        ("1.5,Ulm", r"row 13: expected 3 values, got 2"),
        ("1.5,Ulm,1,9", r"row 13: expected 3 values, got 4"),
        (",Ulm,1", r"column 'age', row 13: expected a finite number"),
        ("1.5,Rome,1", r"column 'city', row 13: expected one of 'Bern', 'Ulm'"),
        ("1.5,Ulm,7", r"label column 'class', row 13: expected one of the classes"),
    ],
)
def test_a_bad_csv_line_is_named(tmp_path, line, message):
    schema = read_sample(_csv(tmp_path, CSV), SchemaConfig(label="class"))
    lines = CSV.splitlines()
    lines[14] = line
    source = _csv(tmp_path, "\n".join(lines) + "\n")
    types = readers.column_types(schema)
    with pytest.raises(DataError, match=message) as caught:
        [encode(schema, piece, source.path, 6 * i) for i, piece in enumerate(pieces(source, source.path, 6, types))]
    assert "rows.csv" in str(caught.value)


def test_names_stay_as_they_are_written(tmp_path):
    text = "a,c,note,y\n" + "".join(f"{i}.5,{i % 2}.0,{i if i < 15 else 'x'},{i % 3}.0\n" for i in range(20))
    source = _csv(tmp_path, text)
    config = SchemaConfig(label="y", ignore=("note",), columns=(ColumnConfig("c", "categorical"),))
    schema = read_sample(source, config)
    assert schema.classes == ("0.0", "1.0", "2.0")
    assert schema.columns[1].categories == ("0.0", "1.0")
    assert encode(schema, read_table(source, schema))[0].shape == (20, 3)


def test_a_bad_csv_line_in_a_later_block_has_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CSV_BLOCK_BYTES", 1 << 16)
    text = "a,b\n" + "1.25,2\n" * 90_000 + "1.25,x\n" + "1.25,2\n" * 10
    source = _csv(tmp_path, text)
    with pytest.raises(DataError, match=r"column 'b', row 90000: expected a number, got 'x'"):
        list(pieces(source, source.path, 50_000, {"a": "number", "b": "number"}))


def test_parquet_numbers_texts_vectors_and_nulls(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table(
        {
            "x": pa.array([0.5, None, 2.0]),
            "flag": pa.array([True, False, True]),
            "city": pa.array(["a", "b", "a"]).dictionary_encode(),
            "pixels": pa.array([[1, 2], [3, 4], [5, 255]], pa.list_(pa.uint8(), 2)),
            "list": pa.array([[1.0], [2.0], [3.0]], pa.list_(pa.float64())),
        }
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    columns = read_table(SourceConfig("parquet", str(tmp_path)))
    assert columns["pixels"].tolist() == [[1, 2], [3, 4], [5, 255]]
    assert columns["list"].shape == (3, 1)
    assert columns["city"].tolist() == ["a", "b", "a"]
    with pytest.raises(DataError, match="column 'x', row 1"):
        fit(columns, SchemaConfig(only=("x",)))
    schema = fit(columns, SchemaConfig(numeric="grey", ignore=("x",)))
    assert (schema.visible_units, schema.width) == ("grey", 1 + 2 + 2 + 1)


def test_a_file_that_is_not_parquet_is_refused(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet"):
        read_table(SourceConfig("parquet", str(tmp_path)))


def test_json_lines_keep_their_types(tmp_path):
    rows = [{"a": i, "b": [0.5, 1.0], "c": "x"} for i in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(r) for r in rows) + "\n\n")
    columns = read_table(SourceConfig("json", str(tmp_path)))
    assert columns["a"].tolist() == [0, 1, 2, 3, 4]
    assert columns["b"].shape == (5, 2)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([b'{"a": 1}', b"{"], "row 8 is not a JSON object"),
        ([b'{"a": 1}', b"[1]"], "row 8 is not a JSON object"),
        ([b'{"a": 1}', b'{"b": 1}'], "row 8: column 'a' is missing"),
        ([b'{"a": 1}', b'{"a": 1, "b": 1}'], "row 8: column 'b' is new"),
        ([b'{"a": 1}', b'{"a": "\xff"}'], "row 8 is not a JSON object"),
    ],
)
def test_json_rows_that_differ_are_named(lines, message):
    with pytest.raises(DataError, match=message):
        json_rows(lines, "events", 7)


def test_npz_of_a_sparse_matrix(tmp_path):
    x = np.random.default_rng(0).integers(0, 3, (7, 4)) * (np.arange(4) != 2)
    path = tmp_path / "a.npz"
    source = SourceConfig("npz", str(path))
    m = sp.csr_array(x.astype(np.float32))
    sp.save_npz(path, m)
    parts = list(pieces(source, str(path), 3))
    assert [len(p["x0"]) for p in parts] == [3, 3, 1]
    for j in range(4):
        np.testing.assert_array_equal(np.concatenate([p[f"x{j}"] for p in parts]), x[:, j])
    np.savez(path, data=m.data, indices=m.indices, indptr=m.indptr, shape=m.shape, y=np.arange(7))
    np.testing.assert_array_equal(read_table(source)["label"], np.arange(7))
    sp.save_npz(path, m.tocsc())
    with pytest.raises(DataError, match=r"format b'csc'.*tocsr"):
        read_table(source)
    for broken, words in [
        ({"indices": m.indices + 2}, "entries outside its 4 columns"),
        ({"indptr": m.indptr[:-1]}, "row starts"),
        ({"indptr": m.indptr[::-1]}, "row starts"),
        ({"y": np.arange(6)}, "X has 7 rows, y has 6"),
    ]:
        np.savez(path, **{"data": m.data, "indices": m.indices, "indptr": m.indptr, "shape": m.shape, **broken})
        with pytest.raises(DataError, match=words):
            read_table(source)


def test_npz_of_plain_arrays_only(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.arange(6.0).reshape(3, 2), y=np.array([0, 1, 0]))
    columns = read_table(SourceConfig("npz", str(tmp_path / "a.npz")))
    assert {k: v.tolist() for k, v in columns.items()} == {"x0": [0, 2, 4], "x1": [1, 3, 5], "label": [0, 1, 0]}
    np.savez(tmp_path / "b.npz", X=np.array([{}], object))
    with pytest.raises(DataError, match="not an npz file of plain arrays"):
        read_table(SourceConfig("npz", str(tmp_path / "b.npz")))


def test_files_are_found_by_folder_glob_and_name(tmp_path):
    for name in ("b.csv", "a.csv.gz", "c.parquet", "_temporary.csv", ".hidden.csv"):
        (tmp_path / name).write_bytes(b"")
    names = [p.name for p in list_files(SourceConfig("csv", str(tmp_path)))]
    assert names == ["a.csv.gz", "b.csv"]
    assert [p.name for p in list_files(SourceConfig("csv", str(tmp_path / "b.*")))] == ["b.csv"]
    with pytest.raises(DataError, match=r"source\.path: no json file"):
        list_files(SourceConfig("json", str(tmp_path)))
    assert [kind_of(n) for n in ("x/t10k-images-idx3-ubyte.gz", "a.csv", "a.PARQUET")] == ["idx", "csv", "parquet"]
    with pytest.raises(DataError, match="does not say"):
        kind_of("a.exe")


@pytest.mark.parametrize(
    ("table", "path"),
    [
        ({}, "source.kind"),
        ({"kind": "xml"}, "source.kind"),
        ({"kind": "csv"}, "source.path"),
        ({"kind": "csv", "path": 3}, "source.path"),
        ({"kind": "csv", "path": "a", "labels": "b"}, "source.labels"),
        ({"kind": "csv", "path": "a", "header": "yes"}, "source.header"),
        ({"kind": "csv", "path": "a", "delimiter": ";;"}, "source.delimiter"),
        ({"kind": "csv", "path": "a", "shard_rows": -1}, "source.shard_rows"),
        ({"kind": "csv", "path": "a", "shard_rows": True}, "source.shard_rows"),
        ({"kind": "csv", "path": "a", "colour": 1}, "source.colour"),
        ({"kind": "kafka"}, "source.topic"),
        ({"kind": "kafka", "topic": "t", "format": "csv"}, "source.fields"),
        ({"kind": "kafka", "topic": "t", "format": "xml"}, "source.format"),
        ({"kind": "kafka", "topic": "t", "starting": "now"}, "source.starting"),
        ({"kind": "kafka", "topic": "t", "fields": "a"}, "source.fields"),
    ],
)
def test_source_settings_are_checked_by_path(table, path):
    with pytest.raises(ConfigError, match="^" + path.replace(".", r"\.")):
        source_config(table)


def test_schema_settings_from_toml():
    got = schema_config(
        {"label": "y", "classes": [0, 1], "columns": {"a": {"range": [0, 9], "clip": True}, "b": "categorical"}}
    )
    assert got.classes == ("0", "1")
    assert got.columns[0].range == (0.0, 9.0)
    assert got.columns[1].kind == "categorical"
    assert schema_config({"columns": ["a", "b"]}).only == ("a", "b")
    assert schema_config({"binarise": 128}).binarise == 128.0
    for table, path in (
        ({"columns": 3}, "schema.columns"),
        ({"columns": {"a": 3}}, "schema.columns.a"),
        ({"columns": {"a": {"range": ["x", 1]}}}, "schema.columns.a.range"),
        ({"columns": {"a": {"threshold": "x"}}}, "schema.columns.a.threshold"),
        ({"colour": 3}, "schema.colour"),
    ):
        with pytest.raises(ConfigError, match="^" + path.replace(".", r"\.")):
            schema_config(table)


def test_csv_events_are_numbers_or_texts():
    source = SourceConfig("kafka", topic="t", format="csv", fields=("n", "c"))
    lines = [b"1.5,a", b"2,b"]
    fitted = readers.csv_row(lines, source, None, "t/0")
    assert fitted["n"].tolist() == [1.5, 2.0]
    assert fitted["c"].tolist() == ["a", "b"]
    assert readers.csv_row([b",x"], source, {"n": "number", "c": "text"}, "t/0")["n"].tolist() == [None]
    for bad, message in (
        (b"1,2,3", "t/0: row 7: expected 2 values, got 3"),
        (b"x,a", "t/0: column 'n', row 7: expected a number, got 'x'"),
        (b"\xff,a", "t/0: row 7 is not CSV"),
    ):
        with pytest.raises(DataError, match=message):
            readers.csv_row([bad], source, {"n": "number", "c": "text"}, "t/0", 7)


def test_files_of_one_source_must_have_the_same_columns(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    (tmp_path / "b.csv").write_text("a,c\n1,2\n")
    with pytest.raises(DataError, match="is not in all files"):
        read_table(SourceConfig("csv", str(tmp_path)))
    (tmp_path / "b.csv").write_text("a,a\n1,2\n")
    with pytest.raises(DataError, match="stands twice"):
        read_table(SourceConfig("csv", str(tmp_path / "b.csv")))
    (tmp_path / "c.csv").write_text("a,b\n")
    with pytest.raises(DataError, match="has no rows"):
        read_table(SourceConfig("csv", str(tmp_path / "c.csv")))
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match=r"empty\.csv: cannot be read as CSV"):
        read_table(SourceConfig("csv", str(tmp_path / "empty.csv")))


def test_a_sample_is_the_first_rows(tmp_path):
    for i in range(3):
        (tmp_path / f"{i}.csv").write_text("a\n" + f"{i}.5\n" * 10)
    assert len(read_table(SourceConfig("csv", str(tmp_path)), rows_max=15)["a"]) == 15
    with pytest.raises(ConfigError, match="topic"):
        read_sample(SourceConfig("kafka", topic="t"), SchemaConfig())
