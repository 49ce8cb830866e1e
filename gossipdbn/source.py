"""Where rows come from, and what their columns mean: the ``[source]`` and ``[schema]`` tables of a run.

A source is *bounded* (a file, a folder: the feed ends with an end mark) or *endless* (a Kafka topic, or a folder that
is watched: the feed runs until it is stopped).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any, Literal, cast, get_args

from gossipdbn.errors import ConfigError
from gossipdbn.schema import ColumnConfig, SchemaConfig

__all__ = ["SourceConfig", "SourceKind", "schema_config", "source_config"]

SourceKind = Literal["idx", "csv", "parquet", "json", "npz", "kafka"]


@dataclass(frozen=True, slots=True)
class SourceConfig:
    """The ``[source]`` table.

    Attributes
    ----------
    kind
        "idx" (images and labels as MNIST has them, gzipped or not), "csv", "parquet", "json" (one object per line),
        "npz" (numpy arrays X and y, or a CSR matrix of scipy), "kafka" (events in a topic).
    path
        A file, a folder, or a folder and a glob such as ``data/part-*.csv``. Not for "kafka".
    labels
        "idx": the file with the labels, beside exactly one file of images.
    header, delimiter
        "csv": whether the first line names the columns (else they are ``c0``, ``c1``, ...); the separator.
    topic, bootstrap
        "kafka": the topic of events and its brokers (empty: the run's own).
    format
        "kafka": "json" (an object) or "csv" (values in the order of ``fields``).
    fields
        "kafka" with "csv": the names of the values.
    starting
        "kafka": "earliest" or "latest".
    endless
        Never ends: a folder is watched for new files, a topic followed. Without it, a topic is read up to what it
        holds when the feed starts.
    shard_rows
        Rows per message; 0 chooses by row size (messages of some hundred kB).
    files_per_batch, rows_per_batch
        Bounds of one Spark batch: back-pressure for folders (files) and topics (events).
    batch_ms
        Least time between two batches of an endless source, in milliseconds.
    """

    kind: SourceKind
    path: str = ""
    labels: str = ""
    header: bool = True
    delimiter: str = ","
    topic: str = ""
    bootstrap: str = ""
    format: Literal["json", "csv"] = "json"
    fields: tuple[str, ...] = ()
    starting: Literal["earliest", "latest"] = "earliest"
    endless: bool = False
    shard_rows: int = 0
    files_per_batch: int = 16
    rows_per_batch: int = 50_000
    batch_ms: int = 500

    def __post_init__(self) -> None:
        for name in ("path", "labels"):
            object.__setattr__(self, name, getattr(self, name).removeprefix("file://"))
        _check_source(self)


def _check_source(s: SourceConfig) -> None:
    if s.kind not in get_args(SourceKind):
        raise ConfigError(f"source.kind: {s.kind!r} is unknown; choose one of {', '.join(get_args(SourceKind))}")
    if s.kind == "kafka":
        if not s.topic:
            raise ConfigError("source.topic: a source of kind 'kafka' needs the name of its topic")
        if s.format not in ("json", "csv"):
            raise ConfigError(f"source.format: {s.format!r} is unknown; choose json or csv")
        if s.format == "csv" and not s.fields:
            raise ConfigError("source.fields: events in CSV need the names of their values, in order")
        if s.starting not in ("earliest", "latest"):
            raise ConfigError(f"source.starting: {s.starting!r} is unknown; choose earliest or latest")
    elif not s.path:
        raise ConfigError(f"source.path: a source of kind {s.kind!r} needs a file, a folder or a glob")
    if s.labels and s.kind != "idx":
        raise ConfigError(f"source.labels: only for kind 'idx'; for {s.kind!r} name the column with schema.label")
    if len(s.delimiter) != 1:
        raise ConfigError(f"source.delimiter: one character is needed, not {s.delimiter!r}")
    for name, low, high in (
        ("shard_rows", 0, 65_536),
        ("files_per_batch", 1, 1024),
        ("rows_per_batch", 1, 10_000_000),
        ("batch_ms", 0, 3_600_000),
    ):
        if not low <= getattr(s, name) <= high:
            raise ConfigError(f"source.{name}: {getattr(s, name)} is outside {low}..{high}")


def source_config(table: Mapping[str, Any]) -> SourceConfig:
    """``[source]`` as read from TOML or JSON; ConfigError names the key's path."""
    values = _typed(table, SourceConfig, "source")
    if "kind" not in values:
        raise ConfigError(f"source.kind is missing; choose one of {', '.join(get_args(SourceKind))}")
    return SourceConfig(**values)


def schema_config(table: Mapping[str, Any]) -> SchemaConfig:
    """``[schema]`` as read from TOML or JSON, with one ``[schema.columns.<name>]`` table per described column."""
    rest = dict(table)
    columns = rest.pop("columns", {})
    if isinstance(columns, Mapping):
        described = tuple(_column(name, settings) for name, settings in columns.items())
        only = None
    elif isinstance(columns, list) and all(isinstance(c, str) for c in columns):
        described, only = (), tuple(columns)
    else:
        raise ConfigError("schema.columns: a list of names, or one table [schema.columns.<name>] per column, is needed")
    values = _typed(rest, SchemaConfig, "schema", skip=("columns", "only"))
    values.setdefault("only", only) if only is not None else None
    return SchemaConfig(columns=described, **values)


def _column(name: str, settings: object) -> ColumnConfig:
    path = f"schema.columns.{name}"
    if isinstance(settings, str):
        settings = {"kind": settings}
    if not isinstance(settings, Mapping):
        raise ConfigError(f"{path}: a table or the name of a kind is needed, not {type(settings).__name__}")
    return ColumnConfig(name=name, **_typed(settings, ColumnConfig, path, skip=("name",)))


def _typed(table: Mapping[str, Any], kind: type, path: str, skip: tuple[str, ...] = ()) -> dict[str, Any]:
    """The table's values, each of the type of the field's default; unknown keys are refused."""
    known = {f.name: f for f in fields(cast(Any, kind)) if f.name not in skip}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in known:
            raise ConfigError(f"{path}.{key} is unknown; known keys are {', '.join(sorted(known))}")
        values[key] = _value(f"{path}.{key}", value, str(known[key].type), known[key].default)
    return values


def _value(path: str, value: object, annotation: str, default: object) -> object:
    if annotation.startswith("tuple"):
        return _sequence(path, value, float if "float" in annotation else str)
    expected = str if default is MISSING or isinstance(default, str) else bool if isinstance(default, bool) else None
    if expected is None:
        integer = isinstance(default, int)
        good = isinstance(value, int) if integer else isinstance(value, (int, float)) and math.isfinite(value)
        if not good or isinstance(value, bool):
            raise ConfigError(f"{path}: {value!r} is not {'a whole number' if integer else 'a number'}")
        return value if integer else float(cast(float, value))
    if not isinstance(value, expected):
        wanted = "true or false" if expected is bool else "a text"
        raise ConfigError(f"{path}: {value!r} is not {wanted}")
    return value


def _sequence(path: str, value: object, item: type) -> tuple[object, ...]:
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{path}: a list is needed, not {value!r}")
    if item is float:
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v) for v in value):
            raise ConfigError(f"{path}: {value!r} is not a list of numbers")
        return tuple(float(v) for v in value)
    return tuple(str(v) for v in value)
