"""Fits a schema on a sample of rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.models.spec import VisibleUnits
from gossipdbn.schema.encode import binary_units, encode, numbers_of, some_names, texts_of
from gossipdbn.schema.values import (
    CATEGORIES_MAX,
    CLASSES_MAX,
    GREY_MAX,
    WIDTH_MAX,
    Array,
    Column,
    ColumnConfig,
    ColumnKind,
    Schema,
    SchemaConfig,
    columns_of,
)  # fmt: skip

__all__ = ["fit"]


def fit(table: object, config: SchemaConfig | None = None, where: str = "sample") -> Schema:
    """Fit a schema on a sample of rows.

    Parameters
    ----------
    table : the sample, columns as ``columns_of`` takes them.
    config : what the user says about the columns.

    Raises
    ------
    DataError : the sample is empty or a column cannot be used.
    ConfigError : ``config`` names columns that the sample lacks, or settings that contradict each other.
    """
    config = SchemaConfig() if config is None else config
    columns = columns_of(table)
    if not columns or not len(next(iter(columns.values()))):
        raise DataError(f"{where}: the source is empty: there is no row to fit the schema on")
    names = _chosen(config, list(columns))
    settings = {c.name: c for c in config.columns}
    plain = [n for n in names if n not in settings or settings[n].kind == "auto"]
    pixels = config.numeric == "auto" and config.binarise is None and _are_pixels([columns[n] for n in plain])
    fitted = [
        _fit_column(settings.get(n, ColumnConfig(n)), columns[n], config, where, pixels=pixels and n in plain)
        for n in names
    ]
    kinds: set[str] = {c.kind for c in fitted}
    if "gaussian" in kinds and "grey" in kinds:
        fitted = [_not_grey(c, settings, columns[c.name]) for c in fitted]
        kinds = {c.kind for c in fitted}
    classes = _fit_classes(config, columns, where)
    ignored = tuple(n for n in columns if n not in names and n != config.label)
    draft = Schema(tuple(fitted), _units(kinds), (), config.label, classes, ignored)
    if not 0 < draft.width <= WIDTH_MAX:
        raise DataError(f"{where}: {draft.width} visible units; between 1 and {WIDTH_MAX} are possible")
    values, _ = encode(draft, columns, where)
    scale = GREY_MAX if draft.visible_units == "grey" else 1
    means: Array = np.asarray(np.mean(values, axis=0, dtype=np.float64) / scale)
    return replace(draft, means=tuple(np.float32(m).item() for m in means.tolist()))


def _units(kinds: Collection[str]) -> VisibleUnits:
    if "gaussian" in kinds:
        return "gaussian" if set(kinds) == {"gaussian"} else "mixed"
    return "grey" if "grey" in kinds else "binary"


def _chosen(config: SchemaConfig, present: list[str]) -> list[str]:
    wanted = (
        ("schema.columns", config.only),
        ("schema.columns", tuple(c.name for c in config.columns)),
        ("schema.ignore", config.ignore),
        ("schema.label", (config.label,) if config.label else ()),
    )
    for path, required in wanted:
        for n in required:
            if n not in present:
                raise ConfigError(f"{path}: the source has no column {n!r}; it has {some_names(present)}")
    names: list[str] = list(config.only) or [n for n in present if n != config.label and n not in config.ignore]
    if not names:
        raise ConfigError("schema: no column is left besides the label")
    return names


def _are_pixels(columns: Sequence[Array]) -> bool:
    """Vectors of bytes or of numbers in 0..1, or many whole numbers up to 255: images, which share one range."""
    if not columns or all(_is_binary(c) for c in columns):
        return False
    if all(c.ndim == 2 for c in columns):
        floats = all(c.dtype.kind == "f" and bool(np.all((c >= 0) & (c <= 1))) for c in columns)
        return floats or all(c.dtype.kind in "iu" and c.min() >= 0 and c.max() <= 255 for c in columns)
    bytes_ = all(c.ndim == 1 and c.dtype.kind in "iu" and c.min() >= 0 and c.max() <= 255 for c in columns)
    return bytes_ and len(columns) >= 16 and max(int(c.max()) for c in columns) >= 128


def _is_binary(raw: Array) -> bool:
    return raw.dtype.kind == "b" or (raw.dtype.kind in "iuf" and bool(np.all((raw == 0) | (raw == 1))))


def _fit_column(settings: ColumnConfig, raw: Array, config: SchemaConfig, where: str, *, pixels: bool) -> Column:
    kind = settings.kind
    threshold = settings.threshold
    if kind == "auto":
        kind, threshold = _guess(settings, raw, config, pixels=pixels)
    if kind == "categorical":
        return _fit_categories(settings, raw, where)
    size = raw.shape[1] if raw.ndim == 2 else len(raw[0]) if isinstance(raw[0], (list, tuple)) else 1
    column = Column(settings.name, cast(Any, kind), size)
    numbers = numbers_of(column, raw, (f"{where}: ", 0))
    if kind == "binary":
        column = replace(column, threshold=threshold)
        binary_units(column, numbers, (f"{where}: ", 0))
        return column
    if kind == "gaussian":
        exact = numbers.astype(np.float64)
        mean, std = exact.mean(axis=0), exact.std(axis=0)
        std[(std == 0) | ~np.isfinite(std)] = 1.0  # a constant column carries nothing, but must not divide by 0
        return replace(column, mean=tuple(mean.tolist()), std=tuple(std.tolist()))
    if settings.range:
        return replace(column, low=settings.range[0], high=settings.range[1], clip=settings.clip)
    if pixels:
        top = 1.0 if numbers.dtype.kind == "f" else 255.0
        return replace(column, low=0.0, high=top)
    low, high = float(numbers.min()), float(numbers.max())
    return replace(column, low=low, high=high if high > low else low + 1.0, clip=True)


def _guess(
    settings: ColumnConfig, raw: Array, config: SchemaConfig, *, pixels: bool
) -> tuple[ColumnKind, float | None]:
    if settings.categories or settings.other:
        return "categorical", None
    if settings.threshold is not None:
        return "binary", settings.threshold
    if settings.range:
        return "grey", None
    present = [v for v in raw.tolist() if v is not None] if raw.dtype.kind == "O" else []
    number = raw.dtype.kind in "biuf" or (bool(present) and all(isinstance(v, (int, float, list)) for v in present))
    if not number:
        return "categorical", None
    if config.binarise is not None:
        return "binary", config.binarise
    if config.numeric != "auto":
        return config.numeric, None
    if pixels:
        return "grey", None
    return ("binary", None) if _is_binary(raw) else ("gaussian", None)


def _not_grey(c: Column, settings: Mapping[str, ColumnConfig], raw: Array) -> Column:
    """Beside Gaussian columns a grey one becomes Gaussian too: a row has one number format."""
    if c.kind != "grey":
        return c
    if c.name in settings and settings[c.name].kind == "grey":
        raise ConfigError(
            f"schema.columns.{c.name}.kind: grey columns cannot stand beside gaussian ones; choose gaussian for it, "
            "or grey for all number columns (schema.numeric)"
        )
    return _fit_column(ColumnConfig(c.name, "gaussian"), raw, SchemaConfig(), "sample", pixels=False)


def _fit_categories(settings: ColumnConfig, raw: Array, where: str) -> Column:
    names = settings.categories or _sorted_names(texts_of(raw))
    if not 0 < len(names) <= CATEGORIES_MAX:
        raise DataError(
            f"{where}: column {settings.name!r} has {len(names)} categories; 1 to {CATEGORIES_MAX} are possible. "
            "List them (schema.columns), or leave the column out (schema.ignore)"
        )
    return Column(settings.name, "categorical", categories=tuple(names), other=settings.other)


def _sorted_names(texts: Sequence[str | None]) -> tuple[str, ...]:
    """Distinct names, whole numbers in their own order, else alphabetically."""
    names = {t for t in texts if t}
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _fit_classes(config: SchemaConfig, columns: Mapping[str, Array], where: str) -> tuple[str, ...]:
    if not config.label:
        return ()
    classes = config.classes or _sorted_names(texts_of(columns[config.label]))
    if len(classes) < 2 or len(classes) > CLASSES_MAX:
        raise DataError(
            f"{where}: label column {config.label!r} has {len(classes)} different values; 2 to {CLASSES_MAX} classes "
            "are possible. Name all classes in schema.classes"
        )
    return classes
