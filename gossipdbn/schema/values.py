"""The values of a schema: what the user says about columns, what the fit made of it, and columns as arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

import msgspec
import numpy as np
import numpy.typing as npt

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.models.spec import VisibleUnits

ColumnKind = Literal["auto", "binary", "grey", "gaussian", "categorical"]
Array = npt.NDArray[Any]

CATEGORIES_MAX = 256
CLASSES_MAX = 1000
WIDTH_MAX = 1 << 16
GREY_MAX = 127


@dataclass(frozen=True, slots=True)
class ColumnConfig:
    """What the user says about one column; the rest is fitted.

    Attributes
    ----------
    kind : "auto" looks at the sample.
    range : "grey": (lowest, highest) value; without it the sample's, and later values are clipped to it.
    clip : "grey": clip values outside ``range`` instead of refusing them.
    threshold : "binary": values of at least this are 1.
    categories : "categorical": the list; without it the sample's, sorted.
    other : "categorical": one more unit for values outside the list, instead of refusing them.
    """

    name: str
    kind: ColumnKind = "auto"
    range: tuple[float, ...] = ()
    clip: bool = False
    threshold: float | None = None
    categories: tuple[str, ...] = ()
    other: bool = False

    def __post_init__(self) -> None:
        path = f"schema.columns.{self.name}"
        if self.kind not in get_args(ColumnKind):
            raise ConfigError(f"{path}.kind: {self.kind!r} is unknown; choose one of {', '.join(get_args(ColumnKind))}")
        if self.range and (len(self.range) != 2 or not self.range[0] < self.range[1]):
            raise ConfigError(f"{path}.range: two numbers, the lower one first, are needed, not {self.range}")
        if len(set(self.categories)) != len(self.categories):
            raise ConfigError(f"{path}.categories: a category is named twice in {self.categories}")


@dataclass(frozen=True, slots=True)
class SchemaConfig:
    """The ``[schema]`` table: what the user says about the columns.

    Attributes
    ----------
    columns : settings of single columns.
    only : names of the columns to use, in this order; empty: all but the label.
    ignore : names of columns that are left out.
    label : name of the column with the class; empty: rows have no label.
    classes : the classes in order; empty: the sample's, sorted.
    numeric : kind of number columns that have no settings of their own.
    binarise : number columns without settings become binary, 1 from this value on.
    """

    columns: tuple[ColumnConfig, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    label: str = ""
    classes: tuple[str, ...] = ()
    numeric: Literal["auto", "binary", "grey", "gaussian"] = "auto"
    binarise: float | None = None

    def __post_init__(self) -> None:
        if self.numeric not in ("auto", "binary", "grey", "gaussian"):
            raise ConfigError(f"schema.numeric: {self.numeric!r} is unknown; choose auto, binary, grey or gaussian")
        if len(set(self.classes)) != len(self.classes):
            raise ConfigError(f"schema.classes: a class is named twice in {self.classes}")


@dataclass(frozen=True, slots=True)
class Column:
    """One fitted column.

    Attributes
    ----------
    size : values per row (the pixels of an image), 1 for plain columns.
    low, high, clip : range of "grey", and whether values outside are clipped or refused.
    threshold : of "binary", None where values are 0 and 1 already.
    mean, std : of "gaussian", ``size`` float64 values each, in the column's own unit.
    categories, other : of "categorical".
    """

    name: str
    kind: Literal["binary", "grey", "gaussian", "categorical"]
    size: int = 1
    low: float = 0.0
    high: float = 1.0
    clip: bool = False
    threshold: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    categories: tuple[str, ...] = ()
    other: bool = False

    @property
    def width(self) -> int:
        """Number of visible units."""
        return len(self.categories) + self.other if self.kind == "categorical" else self.size


@dataclass(frozen=True, slots=True)
class Schema:
    """The fixed meaning of a source's columns; plain data for the run's manifest (``schema_to_dict``).

    Attributes
    ----------
    columns : in the order of the visible units.
    visible_units : type of the whole row: see ``gossipdbn.models.spec.ModelSpec``.
    means : mean of every visible unit over the sample, in model units (0..1 for binary and grey).
    label, classes : the label's column ("" for none) and its classes; a row's label is the index into ``classes``.
    ignored : columns of the source that are known and left out.
    """

    columns: tuple[Column, ...]
    visible_units: VisibleUnits
    means: tuple[float, ...]
    label: str = ""
    classes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """Number of visible units: the length of a row."""
        return sum(c.width for c in self.columns)

    @property
    def visible_mean(self) -> npt.NDArray[np.float32]:
        """Mean of every visible unit over the sample, float32 [width], in model units."""
        return np.array(self.means, np.float32)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of encoded rows: uint8 (binary 0/1, grey 0..127) or float32."""
        return np.dtype(np.uint8 if self.visible_units in ("binary", "grey") else np.float32)


def schema_to_dict(schema: Schema) -> dict[str, Any]:
    """Plain data (JSON, msgpack) from which ``schema_from_dict`` makes an equal schema."""
    return cast(dict[str, Any], msgspec.to_builtins(schema))


def schema_from_dict(data: Mapping[str, Any]) -> Schema:
    """Inverse of ``schema_to_dict``; DataError when the data is no schema."""
    try:
        schema = msgspec.convert(dict(data), Schema)
    except msgspec.ValidationError as error:
        raise DataError(f"the manifest's schema cannot be read: {error}") from error
    if len(schema.means) != schema.width or not 0 < schema.width <= WIDTH_MAX:
        raise DataError(f"the manifest's schema has {len(schema.means)} means for {schema.width} visible units")
    return schema


def model_units(schema: Schema) -> tuple[int, VisibleUnits, tuple[int, ...], int]:
    """(visible, visible_units, binary_columns, classes) as ``ModelSpec`` wants them."""
    binary: list[int] = []
    if schema.visible_units == "mixed":
        at = 0
        for c in schema.columns:
            binary += range(at, at + c.width) if c.kind != "gaussian" else ()
            at += c.width
    return schema.width, schema.visible_units, tuple(binary), len(schema.classes)


def column_types(schema: Schema) -> dict[str, Literal["number", "text"]]:
    """What a text source (CSV) must read each column as."""
    kinds: dict[str, Literal["number", "text"]] = {
        c.name: "text" if c.kind == "categorical" else "number" for c in schema.columns
    }
    return kinds | dict.fromkeys((*schema.ignored, *((schema.label,) if schema.label else ())), "text")


def sample_types(config: SchemaConfig) -> dict[str, Literal["number", "text"]]:
    """What the sample's columns must be read as, before there is a schema: names stay as they are written."""
    named = [c.name for c in config.columns if c.kind == "categorical" or c.categories or c.other]
    return dict.fromkeys((*named, *((config.label,) if config.label else ())), "text")


def columns_of(table: object) -> dict[str, Array]:
    """Columns by name as numpy arrays: a mapping of arrays as it is, or an Arrow table or batch converted.

    Numbers come as [n] or, for vectors, [n, size] arrays (missing numbers as NaN), everything else as object [n].
    """
    if isinstance(table, Mapping):
        return {str(k): np.asarray(v) for k, v in table.items()}
    arrow = cast(Any, table)
    return {name: _from_arrow(arrow.column(name)) for name in arrow.schema.names}


def _from_arrow(column: Any) -> Array:
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    kind = column.type
    if pa.types.is_dictionary(kind):
        column = column.dictionary_decode()
        kind = column.type
    if pa.types.is_fixed_size_list(kind) and not column.null_count and _is_number(kind.value_type):
        return cast(Array, column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _ragged(column.to_pylist())
    if pa.types.is_boolean(kind) and column.null_count:
        column = column.cast(pa.int8())
    return cast(Array, column.to_numpy(zero_copy_only=False))


def _is_number(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def _ragged(rows: list[Any]) -> Array:
    """Lists of one length as [n, size]; anything else as an object array, which ``encode`` looks at row by row."""
    if rows and all(isinstance(r, list) and len(r) == len(rows[0]) for r in rows):
        values = np.array(rows)
        if values.ndim == 2 and values.dtype.kind in "biuf":
            return values
    out = np.empty(len(rows), object)
    out[:] = rows
    return out
