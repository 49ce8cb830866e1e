"""A trained model at work on files: classes, scores and features for rows of any number.

Files are read piece by piece through the schema inside the model, so a row means what it meant in training; results
are written as they come, to CSV or Parquet by the name of the output, and appear under that name only when complete.
Each line names its row: the file and the row's number in it, counted from 0.
"""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from gossipdbn import readers
from gossipdbn.errors import ConfigError, DataError, StoreError
from gossipdbn.models import reading
from gossipdbn.models.files import Model, load_model
from gossipdbn.models.scores import anomaly_scores
from gossipdbn.schema import Schema, column_types, encode, schema_from_dict
from gossipdbn.source import SourceConfig

PIECE_ROWS = 4096
"""Rows held in memory at a time."""

Data = str | os.PathLike[str] | SourceConfig | Sequence[str | os.PathLike[str]]


class Rows(NamedTuple):
    """Encoded rows of one file: number of the first one, values [n, V], labels int32 [n] or None."""

    file: str
    first: int
    values: NDArray[Any]
    labels: NDArray[np.int32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """How often a model is right: rows with a label, wrong ones, int [classes, classes] with the true class by row."""

    rows: int
    wrong: int
    confusion: NDArray[np.int64]

    @property
    def error(self) -> float:
        """Fraction of wrong rows."""
        return self.wrong / self.rows


@dataclass(frozen=True, slots=True, eq=False)
class Summary:
    """What was done: rows read, where the result lies, and what is known about them in sum.

    ``evaluation`` is there when rows carried labels; the means are those of ``score``.
    """

    rows: int
    output: str | None
    evaluation: Evaluation | None = None
    mean_free_energy: float | None = None
    mean_reconstruction_error: float | None = None


def open_model(model: Model | str | os.PathLike[str]) -> Model:
    """A model, read from its file where it is not one already."""
    return model if isinstance(model, Model) else load_model(model)


def model_schema(model: Model) -> Schema:
    """The schema inside a model; ConfigError when it has none or one of another width."""
    if not model.schema:
        raise ConfigError("the model carries no schema, so it cannot read files: use its parameters on arrays instead")
    schema = schema_from_dict(model.schema)
    if schema.width != model.spec.visible:
        raise ConfigError(f"the model's schema has {schema.width} units, its first layer {model.spec.visible}")
    return schema


def sources_of(data: Data, schema: Schema, labels: str = "") -> list[SourceConfig]:
    """What to read: paths become sources by their names; CSV without a header is recognised by the schema's columns."""
    if isinstance(data, SourceConfig):
        if data.kind == "kafka":
            raise ConfigError("source.kind: a topic cannot be read here; name files or a folder")
        return [replace(data, labels=labels or data.labels)]
    paths = [data] if isinstance(data, str | os.PathLike) else list(data)
    if not paths:
        raise ConfigError("no data was named: give a file, a folder or a glob")
    out = []
    for path in paths:
        kind = _kind(os.fspath(path))
        if labels and kind != "idx":
            raise ConfigError(f"a file of labels goes with idx images, {os.fspath(path)} is {kind}")
        # Columns are named c0, c1, ... exactly where training read a file without a header.
        bare = kind == "csv" and all(c.name == f"c{c.name[1:]}" and c.name[1:].isdigit() for c in schema.columns)
        out.append(SourceConfig(kind=kind, path=os.fspath(path), labels=labels, header=not bare))
    return out


def _kind(path: str) -> Any:
    """Kind of a path's files; a folder is what its first known file is."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return readers.kind_of(path)
    for file in sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith((".", "_"))):
        try:
            return readers.kind_of(str(file))
        except DataError:
            continue
    raise DataError(f"{path}: the folder holds no file of a known kind (csv, parquet, json, npz, idx)")


def encoded(model: Model, data: Data, *, labels: str = "", piece_rows: int = PIECE_ROWS) -> Iterator[Rows]:
    """Rows of the data as the model takes them, at most ``piece_rows`` at a time; raises DataError as reading does."""
    schema = model_schema(model)
    types = column_types(schema)
    for source in sources_of(data, schema, labels):
        for file in readers.list_files(source):
            first = 0
            for piece in readers.pieces(source, str(file), piece_rows, types):
                values, classes = encode(schema, piece, str(file), first)
                yield Rows(str(file), first, values, classes)
                first += len(values)


class _Tally:
    """Counts right and wrong rows."""

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)

    def add(self, labels: NDArray[np.int32] | None, predicted: NDArray[np.int64]) -> None:
        if labels is not None:
            known = labels >= 0
            np.add.at(self.confusion, (labels[known], predicted[known]), 1)

    def evaluation(self) -> Evaluation | None:
        rows = int(self.confusion.sum())
        return Evaluation(rows, rows - int(np.trace(self.confusion)), self.confusion) if rows else None


def _classes(model: Model) -> list[str]:
    if not model.spec.classes:
        raise ConfigError("the model has no classes to predict: it was trained without labels; use score or transform")
    return list(model.classes) or [str(i) for i in range(model.spec.classes)]


def evaluate(model: Model | str | os.PathLike[str], data: Data, *, labels: str = "") -> Evaluation:
    """Error of a classifier on labelled rows; DataError when no row has a label."""
    model = open_model(model)
    tally = _Tally(len(_classes(model)))
    for rows in encoded(model, data, labels=labels):
        p = reading.predict_proba(model.spec, model.parameters, rows.values)
        tally.add(rows.labels, np.argmax(p, axis=1))
    result = tally.evaluation()
    if result is None:
        raise DataError("no row has a label, so nothing can be evaluated: name the file or the column of labels")
    return result


def predict(
    model: Model | str | os.PathLike[str],
    data: Data,
    output: str | os.PathLike[str] | None = None,
    *,
    labels: str = "",
    probabilities: bool = False,
) -> Summary:
    """Class and its probability for every row.

    Parameters
    ----------
    model, data : a model or its file; files (idx, CSV, Parquet, JSON lines, npz), a folder, a glob or a source.
    output : ``*.csv`` or ``*.parquet`` with columns file, row, class, probability; None writes nothing.
    labels : file of labels beside idx images. Labels found in the rows are written too, and evaluated.
    probabilities : also write the probability of every class as ``p_<class>``.
    """
    model = open_model(model)
    names = _classes(model)
    tally, count = _Tally(len(names)), 0
    text = np.array(names, object)
    with _writer(output) as write:
        for rows in encoded(model, data, labels=labels):
            p = np.asarray(reading.predict_proba(model.spec, model.parameters, rows.values))
            best = np.argmax(p, axis=1)
            tally.add(rows.labels, best)
            count += len(best)
            columns = {"class": text[best], "probability": p[np.arange(len(best)), best].astype(np.float32)}
            if rows.labels is not None:
                columns["label"] = np.where(rows.labels >= 0, text[rows.labels], np.array(None, object))
            if probabilities:
                columns |= {f"p_{n}": p[:, i].astype(np.float32) for i, n in enumerate(names)}
            write(rows, columns)
    _some(count, data)
    return Summary(count, _name(output), tally.evaluation())


def score(
    model: Model | str | os.PathLike[str], data: Data, output: str | os.PathLike[str] | None = None, *, labels: str = ""
) -> Summary:
    """Free energy and reconstruction error of every row: the higher, the stranger to the model.

    ``output`` gets the columns file, row, free_energy, reconstruction_error.
    """
    model = open_model(model)
    count, energy, error = 0, 0.0, 0.0
    with _writer(output) as write:
        for rows in encoded(model, data, labels=labels):
            s = anomaly_scores(model.spec, model.parameters, rows.values)
            write(rows, {"free_energy": s.free_energy, "reconstruction_error": s.reconstruction})
            count += len(s.free_energy)
            energy += float(s.free_energy.sum(dtype=np.float64))
            error += float(s.reconstruction.sum(dtype=np.float64))
    _some(count, data)
    return Summary(count, _name(output), None, energy / count, error / count)


def transform(
    model: Model | str | os.PathLike[str],
    data: Data,
    output: str | os.PathLike[str] | None = None,
    *,
    layers: int | None = None,
    labels: str = "",
) -> Summary:
    """Features of every row: probabilities of the hidden units after ``layers`` layers (None: all).

    ``output`` gets the columns file, row, h0, h1, ...
    """
    model = open_model(model)
    if layers is not None and not 1 <= layers <= len(model.spec.hidden):
        raise ConfigError(f"layers: {layers} is out of range, the model has 1 to {len(model.spec.hidden)}")
    count = 0
    with _writer(output) as write:
        for rows in encoded(model, data, labels=labels):
            h = reading.transform(model.spec, model.parameters, rows.values, layers)
            write(rows, {f"h{i}": h[:, i] for i in range(h.shape[1])})
            count += len(h)
    _some(count, data)
    return Summary(count, _name(output))


def _some(count: int, data: Data) -> None:
    if not count:
        raise DataError(f"{data}: there are no rows")


def _name(output: str | os.PathLike[str] | None) -> str | None:
    return None if output is None else os.fspath(output)


class _Write(Protocol):
    def __call__(self, rows: Rows, columns: dict[str, NDArray[Any]]) -> None: ...


def _nowhere(rows: Rows, columns: dict[str, NDArray[Any]]) -> None:
    """Only the summary is wanted."""


@contextmanager
def _writer(output: str | os.PathLike[str] | None) -> Iterator[_Write]:
    """Something to hand pieces of results to; the file gets its name when all went well."""
    if output is None:
        yield _nowhere
        return
    target = Path(output)
    if target.suffix not in (".csv", ".parquet"):
        raise ConfigError(f"{target}: the output's name must end in .csv or .parquet")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".gossipdbn-", dir=target.parent) as folder:
            temporary = Path(folder) / "part"
            with _parquet(temporary) if target.suffix == ".parquet" else _csv(temporary) as write:
                yield write
            temporary.replace(target)
    except OSError as e:
        raise StoreError(f"cannot write {target}: {e.strerror or e}; choose another folder or make room") from e


@contextmanager
def _csv(path: Path) -> Iterator[_Write]:
    with path.open("w", newline="", encoding="utf-8") as f:
        out = csv.writer(f)
        begun = False

        def write(rows: Rows, columns: dict[str, NDArray[Any]]) -> None:
            nonlocal begun
            if not begun:
                out.writerow(("file", "row", *columns))
                begun = True
            n = len(rows.values)
            texts = [_texts(c) for c in columns.values()]
            out.writerows(zip([rows.file] * n, range(rows.first, rows.first + n), *texts, strict=True))

        yield write


def _texts(column: NDArray[Any]) -> list[Any]:
    """Values as CSV writes them: float32 with the fewest digits that give the same number back."""
    if column.dtype == np.float32:
        return [str(x) for x in column]
    return ["" if x is None else x for x in column.tolist()]


@contextmanager
def _parquet(path: Path) -> Iterator[_Write]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as e:
        raise ConfigError("Parquet needs pyarrow: pip install 'gossipdbn[spark]', or name a .csv output") from e
    opened: list[Any] = []

    def write(rows: Rows, columns: dict[str, NDArray[Any]]) -> None:
        n = len(rows.values)
        table = pa.table({
            "file": pa.array([rows.file] * n, pa.string()),
            "row": pa.array(np.arange(rows.first, rows.first + n)),
            **{k: pa.array(v, pa.string() if v.dtype == object else None) for k, v in columns.items()},
        })  # fmt: skip
        if not opened:
            opened.append(parquet.ParquetWriter(path, table.schema))
        opened[0].write_table(table)

    try:
        yield write
    finally:
        for w in opened:
            w.close()
    if not opened:
        parquet.write_table(pa.table({"file": pa.array([], pa.string()), "row": pa.array([], pa.int64())}), path)
