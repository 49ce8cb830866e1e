"""Rows of visible units and labels out of columns, by a fitted schema; what does not fit is refused."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from gossipdbn.errors import DataError
from gossipdbn.schema.values import GREY_MAX, Array, Column, Schema, columns_of

__all__ = ["binary_units", "encode", "numbers_of", "some_names", "texts_of"]

_STANDARD_MAX = 1e6


def encode(
    schema: Schema, table: object, where: str = "", first_row: int = 0
) -> tuple[Array, npt.NDArray[np.int32] | None]:
    """Encode rows.

    Parameters
    ----------
    table : columns as ``columns_of`` takes them.
    where, first_row : name of the source (a file, a topic's partition) and number of the first row, for messages.

    Returns
    -------
    values : [n, width], uint8 (0/1 for binary, 0..127 for grey) or float32.
    labels : int32 [n], index into ``classes``, -1 where the label is missing; None when ``table`` has no label column.

    Raises
    ------
    DataError : a column is missing, new or of the wrong type, a value is missing, not finite, out of range or of an
        unknown category or class. Names column and row.
    """
    columns = columns_of(table)
    prefix = f"{where}: " if where else ""
    _check_names(schema, columns, prefix)
    rows = len(next(iter(columns.values())))
    values = np.empty((rows, schema.width), schema.dtype)
    at = 0
    for column in schema.columns:
        _encode_column(schema, column, columns[column.name], values[:, at : at + column.width], (prefix, first_row))
        at += column.width
    labels = None
    if schema.label and schema.label in columns:
        labels = _labels(schema, columns[schema.label], prefix, first_row)
    return values, labels


def _check_names(schema: Schema, columns: Mapping[str, Array], prefix: str) -> None:
    for column in schema.columns:
        if column.name not in columns:
            raise DataError(
                f"{prefix}column {column.name!r} is missing (the run's schema has it; here are "
                f"{some_names(list(columns))}). Schemas are fixed when a run is made: "
                "bring the source back to its columns, or start a new run"
            )
    known = {c.name for c in schema.columns} | {schema.label} | set(schema.ignored)
    new = [name for name in columns if name not in known]
    if new:
        raise DataError(
            f"{prefix}column {new[0]!r} is new: the run's schema, fixed when it was made, does not know it. "
            "Name it in schema.ignore, or start a new run"
        )
    lengths = {len(v) for v in columns.values()}
    if len(lengths) != 1:
        raise DataError(f"{prefix}columns have different numbers of rows: {sorted(lengths)}")


def some_names(items: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are, for messages."""
    shown = ", ".join(repr(i) for i in items[:most])
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


def _encode_column(schema: Schema, c: Column, raw: Array, out: Array, at: tuple[str, int]) -> None:
    full = schema.visible_units == "grey" and c.kind != "grey"  # a binary unit among grey ones: 0 or 127
    if c.kind == "categorical":
        index = _categories(c, raw, at)
        out[:] = 0
        out[np.arange(len(raw)), index] = GREY_MAX if full else 1
        return
    numbers = numbers_of(c, raw, at)
    if c.kind == "grey":
        out[:] = _grey(c, numbers, at)
    elif c.kind == "binary":
        ones = binary_units(c, numbers, at)
        out[:] = ones * np.uint8(GREY_MAX) if full else ones
    else:
        standard = (numbers - np.array(c.mean)) / np.array(c.std)
        _refuse(np.abs(standard) > _STANDARD_MAX, c, numbers, f"a number near {c.mean[0]:.6g} +- {c.std[0]:.3g}", at)
        out[:] = standard


def numbers_of(c: Column, raw: Array, at: tuple[str, int]) -> Array:
    """[n, size] numbers, all finite; integers and booleans keep their type."""
    values = raw
    if values.dtype.kind not in "biuf":
        values = _parsed(c, raw, at)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2:
        values = values.reshape(len(values), -1)
    if values.shape[1] != c.size:
        raise DataError(
            f"{at[0]}column {c.name!r}, row {at[1]}: expected {c.size} value{'s' * (c.size > 1)} per row, "
            f"got {values.shape[1]}"
        )
    if values.dtype.kind == "f":
        _refuse(~np.isfinite(values), c, values, "a finite number", at)
    return values


def _parsed(c: Column, raw: Array, at: tuple[str, int]) -> Array:
    """Numbers out of an object array; the first row that holds anything else is refused."""
    out = np.empty((len(raw), c.size), np.float64)
    for i, cell in enumerate(raw):
        cells = cell if isinstance(cell, (list, tuple, np.ndarray)) else (cell,)
        if len(cells) != c.size:
            raise DataError(
                f"{at[0]}column {c.name!r}, row {at[1] + i}: expected {c.size} value{'s' * (c.size > 1)}, "
                f"got {len(cells)}"
            )
        for j, v in enumerate(cells):
            if isinstance(v, (bool, int, float, np.number, np.bool_)):
                out[i, j] = v
            else:
                got = "a missing value" if v is None else f"{str(v)[:40]!r}"
                raise DataError(f"{at[0]}column {c.name!r}, row {at[1] + i}: expected a number, got {got}")
    return out


def _refuse(bad: Array, c: Column, values: Array, expected: str, at: tuple[str, int]) -> None:
    if bad.any():
        row, place = (int(k) for k in np.argwhere(bad)[0])
        value = f"value {place} of the row" if c.size > 1 else "value"
        got = values[row, place]
        shown = "a missing value or NaN" if got != got else f"{got:.9g}" if values.dtype.kind != "b" else str(got)  # noqa: PLR0124
        raise DataError(f"{at[0]}column {c.name!r}, row {at[1] + row}: expected {expected}, the {value} is {shown}")


@lru_cache(maxsize=64)
def _byte_table(low: float, high: float) -> bytes:
    steps = (np.arange(256) - low) * (GREY_MAX / (high - low))
    table: bytes = np.clip(np.rint(steps), 0, GREY_MAX).astype(np.uint8).tobytes()
    return table


def _grey(c: Column, numbers: Array, at: tuple[str, int]) -> Array:
    """``rint(127 (x - low) / (high - low))``, of bytes by table, or in 16-bit integers (thrice as fast) in 0..255."""
    small = numbers.dtype == np.uint8
    if not c.clip and not (small and c.low <= 0 and c.high >= 255):
        outside = (numbers < c.low) | (numbers > c.high)
        _refuse(outside, c, numbers, f"a number in {c.low:.9g}..{c.high:.9g}", at)
    if small and (c.low, c.high) == (0, 255):
        twice = numbers.astype(np.uint16)  # 2 * 127 x + 255 fits; no half is possible, so none is rounded to even
        twice *= 2 * GREY_MAX
        twice += 255
        twice //= 2 * 255
        return twice.astype(np.uint8)
    if small:
        table = _byte_table(c.low, c.high)
        return np.frombuffer(numbers.tobytes().translate(table), np.uint8).reshape(numbers.shape)
    steps = (numbers.astype(np.float64) - c.low) * (GREY_MAX / (c.high - c.low))
    grey: Array = np.clip(np.rint(steps), 0, GREY_MAX).astype(np.uint8)
    return grey


def binary_units(c: Column, numbers: Array, at: tuple[str, int]) -> Array:
    """uint8 0/1 by the column's threshold, or of values that are 0 and 1 already."""
    if c.threshold is not None:
        return (numbers >= c.threshold).astype(np.uint8)
    if numbers.dtype.kind != "b":
        _refuse((numbers != 0) & (numbers != 1), c, numbers, "0 or 1", at)
    return numbers.astype(np.uint8)


def _text(value: object) -> str | None:
    """A category's name: texts as they are, whole numbers without a point; None for missing values."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)):
        return "1" if value else "0"
    if isinstance(value, (float, np.floating)):
        if math.isnan(value):
            return None
        return str(int(value)) if float(value).is_integer() else repr(float(value))
    return str(value)


def texts_of(raw: Array) -> list[str | None]:
    """Names of all values; each distinct number is formatted once."""
    if raw.dtype.kind in "biuf" and raw.ndim == 1:
        unique, inverse = np.unique(raw, return_inverse=True)
        names = [_text(u) for u in unique.tolist()]
        return [names[i] for i in inverse.tolist()]
    return [_text(v) for v in raw.tolist()]


def _categories(c: Column, raw: Array, at: tuple[str, int]) -> npt.NDArray[np.int64]:
    index = {name: i for i, name in enumerate(c.categories)}
    out = np.empty(len(raw), np.int64)
    for i, name in enumerate(texts_of(raw)):
        k = index.get(name, len(c.categories) if c.other else -1) if name is not None else -1
        if name is None and c.other:
            k = len(c.categories)
        if k < 0:
            got = "a missing value" if name is None else f"{name[:40]!r}"
            raise DataError(
                f"{at[0]}column {c.name!r}, row {at[1] + i}: expected one of {some_names(c.categories)}, got {got}"
            )
        out[i] = k
    return out


def _labels(schema: Schema, raw: Array, prefix: str, first_row: int) -> npt.NDArray[np.int32]:
    index = {name: i for i, name in enumerate(schema.classes)}
    missing = -2  # no class of this name; -1 is "no label"

    def number(value: object) -> int:
        name = _text(value)
        return -1 if not name else index.get(name, missing)

    if raw.dtype.kind in "biuf" and raw.ndim == 1:
        unique, inverse = np.unique(raw, return_inverse=True)
        out = np.array([number(u) for u in unique.tolist()], np.int32)[inverse]
    else:
        out = np.array([number(v) for v in raw.tolist()], np.int32)
    if (out == missing).any():
        row = int(np.argmax(out == missing))
        raise DataError(
            f"{prefix}label column {schema.label!r}, row {first_row + row}: expected one of the classes "
            f"{some_names(schema.classes, 12)}, got {(_text(raw[row]) or '')[:40]!r}"
        )
    return out
