from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.models.spec import ModelSpec
from gossipdbn.schema import (
    ColumnConfig,
    SchemaConfig,
    encode,
    fit,
    model_units,
    schema_from_dict,
    schema_to_dict,
)


def _people(n: int = 40) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "age": rng.uniform(0, 90, n),
        "member": rng.integers(0, 2, n),
        "city": np.array([["Ulm", "Bern", "Linz"][i % 3] for i in range(n)], object),
        "class": rng.integers(0, 3, n),
    }


def test_images_become_grey_units_of_a_fixed_range():
    image = np.random.default_rng(1).integers(0, 256, (30, 784)).astype(np.uint8)
    schema = fit({"image": image, "label": np.arange(30) % 10}, SchemaConfig(label="label"))
    values, labels = encode(schema, {"image": image, "label": np.arange(30) % 10})
    assert values.dtype == np.uint8
    assert (schema.visible_units, schema.width, schema.classes) == ("grey", 784, tuple("0123456789"))
    np.testing.assert_array_equal(values, np.rint(image.astype(float) * 127 / 255))
    np.testing.assert_array_equal(labels, np.arange(30) % 10)
    np.testing.assert_allclose(schema.visible_mean, values.mean(axis=0) / 127, atol=1e-6)


def test_images_cut_at_a_threshold_become_binary_units():
    image = np.random.default_rng(1).integers(0, 256, (30, 16)).astype(np.uint8)
    schema = fit({"image": image}, SchemaConfig(binarise=128))
    values, labels = encode(schema, {"image": image})
    assert schema.visible_units == "binary"
    assert labels is None
    np.testing.assert_array_equal(values, image >= 128)


def test_numbers_flags_and_texts_become_a_mixed_row():
    table = _people()
    schema = fit(table, SchemaConfig(label="class"))
    values, _ = encode(schema, table)
    assert values.dtype == np.float32
    assert schema.visible_units == "mixed"
    assert model_units(schema) == (5, "mixed", (1, 2, 3, 4), 3)
    assert ModelSpec(schema.width, (4,), "mixed", binary_columns=model_units(schema)[2]).visible == 5
    assert abs(float(values[:, 0].mean())) < 1e-6
    assert values[:, 2:].sum(axis=1).tolist() == [1.0] * 40
    assert schema.columns[2].categories == ("Bern", "Linz", "Ulm")


def test_grey_and_binary_units_share_bytes():
    table = {"a": np.arange(10.0), "flag": np.arange(10) % 2, "c": np.array(list("xyxyxyxyxy"), object)}
    schema = fit(table, SchemaConfig(numeric="grey", columns=(ColumnConfig("flag", "binary"),)))
    values, _ = encode(schema, table)
    assert schema.visible_units == "grey"
    assert set(values[:, 1:].ravel().tolist()) == {0, 127}
    assert values[:, 0].tolist() == np.rint(np.arange(10) * 127 / 9).tolist()


def test_a_schema_survives_json():
    for config in (SchemaConfig(label="class"), SchemaConfig(only=("age",)), SchemaConfig(numeric="grey")):
        schema = fit(_people(), config)
        assert schema_from_dict(json.loads(json.dumps(schema_to_dict(schema)))) == schema


def test_a_damaged_schema_is_refused():
    data = schema_to_dict(fit(_people()))
    for change in ({"means": [0.5]}, {"columns": "x"}, {"visible_units": "colour"}):
        with pytest.raises(DataError, match="schema"):
            schema_from_dict({**data, **change})


def _bad(column: str, row: int, value: object) -> dict[str, np.ndarray]:
    table = _people()
    changed = table[column].astype(object)
    changed[row] = value
    return {**table, column: changed}


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("age", float("nan"), "finite number"),
        ("age", float("inf"), "finite number"),
        ("age", "old", "expected a number, got 'old'"),
        ("age", None, "missing value"),
        ("age", 1e12, "number near"),
        ("member", 2, "0 or 1"),
        ("city", "Rome", "expected one of 'Bern', 'Linz', 'Ulm'"),
        ("city", None, "missing value"),
        ("class", 7, "classes '0', '1', '2'"),
    ],
)
def test_a_bad_value_is_named_by_column_and_row(column, value, expected):
    schema = fit(_people(), SchemaConfig(label="class"))
    with pytest.raises(DataError, match=expected) as caught:
        encode(schema, _bad(column, 17, value), "people.csv", first_row=1000)
    assert f"'{column}', row 1017" in str(caught.value)
    assert str(caught.value).startswith("people.csv: ")


def test_out_of_range_is_refused_or_clipped_as_the_column_says():
    table = {"a": np.array([0.0, 50.0, 100.0])}
    strict = fit(table, SchemaConfig(columns=(ColumnConfig("a", "grey", range=(0, 100)),)))
    with pytest.raises(DataError, match=r"column 'a', row 1: expected a number in 0\.\.100, the value is 101"):
        encode(strict, {"a": np.array([1.0, 101.0])})
    fitted = fit(table, SchemaConfig(columns=(ColumnConfig("a", "grey"),)))
    assert encode(fitted, {"a": np.array([-5.0, 101.0])})[0].tolist() == [[0], [127]]


def test_rows_of_the_wrong_width_are_refused():
    schema = fit({"image": np.zeros((4, 9), np.uint8) + np.arange(9, dtype=np.uint8)})
    with pytest.raises(DataError, match="expected 9 values per row, got 8"):
        encode(schema, {"image": np.zeros((3, 8), np.uint8)})
    ragged = np.empty(3, object)
    ragged[:] = [[0] * 9, [0] * 9, [0] * 7]
    with pytest.raises(DataError, match="row 2: expected 9 values"):
        encode(schema, {"image": ragged})


def test_missing_and_new_columns_are_drift():
    table = _people()
    schema = fit(table, SchemaConfig(label="class"))
    with pytest.raises(DataError, match="column 'city' is missing"):
        encode(schema, {k: v for k, v in table.items() if k != "city"})
    with pytest.raises(DataError, match="column 'height' is new"):
        encode(schema, {**table, "height": table["age"]})
    assert encode(fit(table, SchemaConfig(label="class", ignore=("age",))), table)[0].shape == (40, 4)


def test_missing_labels_are_minus_one():
    schema = fit(_people(), SchemaConfig(label="class"))
    _, labels = encode(schema, _bad("class", 3, None))
    assert labels is not None
    assert labels[3] == -1
    assert labels.dtype == np.int32


def test_unknown_categories_may_go_to_other():
    schema = fit(_people(), SchemaConfig(only=("city",), columns=(ColumnConfig("city", other=True),)))
    values, _ = encode(schema, {"city": np.array(["Rome", None, "Ulm"], object)})
    assert values.tolist() == [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 1, 0]]


def test_a_constant_column_is_kept_and_harmless():
    schema = fit({"a": np.array([3.5, 3.5, 3.5]), "b": np.array([1.0, 2.5, 7.0])})
    values, _ = encode(schema, {"a": np.array([3.5]), "b": np.array([2.0])})
    assert np.isfinite(values).all()
    assert values[0, 0] == 0


@pytest.mark.parametrize(
    ("config", "path"),
    [
        (lambda: SchemaConfig(label="colour"), "schema.label"),
        (lambda: SchemaConfig(only=("a",)), "schema.columns"),
        (lambda: SchemaConfig(ignore=("a",)), "schema.ignore"),
        (lambda: ColumnConfig("a", "blue"), "schema.columns.a.kind"),
        (lambda: ColumnConfig("a", range=(2, 1)), "schema.columns.a.range"),
        (lambda: SchemaConfig(numeric="x"), "schema.numeric"),
        (lambda: SchemaConfig(classes=("a", "a")), "schema.classes"),
        (lambda: SchemaConfig(columns=(ColumnConfig("age", "gaussian"), ColumnConfig("member", "grey"))), "member"),
    ],
)
def test_settings_that_cannot_be_are_named_by_path(config, path):
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        fit(_people(), config())


def test_an_empty_sample_and_a_continuous_label_are_refused():
    with pytest.raises(DataError, match="empty"):
        fit({"a": np.empty(0)})
    with pytest.raises(DataError, match="label column 'y' has"):
        fit({"a": np.arange(2000.0), "y": np.arange(2000) / 7}, SchemaConfig(label="y"))


@given(st.lists(st.integers(0, 255), min_size=1, max_size=50))
def test_every_byte_has_the_grey_value_of_the_formula(pixels):
    image = np.array(pixels, np.uint8)[:, None]
    schema = fit({"image": np.array([[0], [255]], np.uint8)})
    by_table, _ = encode(schema, {"image": image})
    by_formula, _ = encode(schema, {"image": image.astype(np.float64)})
    np.testing.assert_array_equal(by_table, by_formula)
    np.testing.assert_array_equal(by_table, np.rint(image.astype(float) * 127 / 255))
