"""Reads idx, CSV, Parquet, JSON-lines and npz files as columns of numpy arrays, piece by piece.

The feed, prediction and the fit of a schema read files through the same functions, so a row means the same to all.
Arrow is used where it is installed and needed (CSV, Parquet); idx, JSON lines and npz need numpy alone.
"""

from __future__ import annotations

import glob
import gzip
import io
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Literal, cast

import msgspec
import numpy as np
import numpy.typing as npt

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.schema import Schema, SchemaConfig, column_types, columns_of, fit, sample_types
from gossipdbn.source import SourceConfig

__all__ = [
    "IMAGE",
    "LABEL",
    "SUFFIXES",
    "csv_row",
    "json_rows",
    "list_files",
    "pieces",
    "read_idx",
    "read_sample",
    "read_table",
]

Array = npt.NDArray[Any]
Columns = dict[str, Array]
Types = Mapping[str, Literal["number", "text"]]

IMAGE = "image"
LABEL = "label"
"""Names of the columns of idx and npz sources."""

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
SUFFIXES = {
    "idx": ("ubyte", ".idx", ".idx1", ".idx3"),
    "csv": (".csv", ".tsv", ".txt", ".data"),
    "parquet": (".parquet", ".pq"),
    "json": (".json", ".jsonl", ".ndjson"),
    "npz": (".npz",),
}
SAMPLE_ROWS = 10_000
CSV_BLOCK_BYTES = 32 << 20  # what a sample's types are taken from


def kind_of(path: str) -> str:
    """Kind of source that a file's name says, for ``predict`` and ``score``; DataError when it says none."""
    name = path.removesuffix(".gz").lower()
    for kind, suffixes in SUFFIXES.items():
        if any(suffix in Path(name).name if kind == "idx" else name.endswith(suffix) for suffix in suffixes):
            return kind
    raise DataError(f"{path}: the name does not say what is inside; known endings: csv, parquet, json, npz, idx (.gz)")


def list_files(source: SourceConfig) -> list[Path]:
    """The source's files, sorted by name; DataError when there is none."""
    path = Path(source.path).expanduser()
    if path.is_file():
        return [path]
    if path.is_dir():
        found = [p for p in path.iterdir() if p.is_file() and not p.name.startswith((".", "_"))]
        found = [p for p in found if p.name.lower().removesuffix(".gz").endswith(SUFFIXES.get(source.kind, ("",)))]
    else:
        found = [Path(p) for p in glob.glob(str(path)) if Path(p).is_file()]
    if not found:
        raise DataError(f"source.path: no {source.kind} file at {source.path!r}; give a file, a folder or a glob")
    return sorted(found)


@contextmanager
def _opened(file: str, content: bytes | None) -> Iterator[IO[bytes]]:
    """The file's bytes, unzipped when they are gzip; ``content`` is used instead of the file system when given."""
    try:
        with io.BytesIO(content) if content is not None else open(file, "rb") as raw:
            magic = raw.read(2)
            raw.seek(0)
            if magic == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=raw) as unzipped:
                    yield io.BufferedReader(cast(Any, unzipped), 1 << 20)
            else:
                yield cast(IO[bytes], raw)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{file}: the gzip data is damaged or cut off ({error})") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read: {error.strerror or error}") from error


def pieces(
    source: SourceConfig, file: str, rows: int, types: Types | None = None, content: bytes | None = None
) -> Iterator[Columns]:
    """Columns of one file, ``rows`` rows at a time (the last piece may be shorter), in the file's order.

    Parameters
    ----------
    types : what text columns are read as; None looks at the first rows (CSV only).
    content : the file's bytes where it lies on a file system that only Spark can reach.

    Raises
    ------
    DataError : the file cannot be read or is not what the source says; names file, row and column where known.
    """
    if source.kind == "idx":
        return _idx_pieces(source, file, rows, content)
    if source.kind == "npz":
        return _npz_pieces(file, rows, content)
    if source.kind == "json":
        return _json_pieces(file, rows, content)
    if source.kind == "parquet":
        return _rebatched(_parquet_tables(file, rows, content), rows)
    return _rebatched(_csv_tables(source, file, types, content), rows)


def _idx_header(stream: IO[bytes], file: str) -> tuple[np.dtype[Any], tuple[int, ...]]:
    head = stream.read(4)
    if len(head) != 4 or head[:2] != b"\0\0" or head[2] not in _IDX_TYPES or not 1 <= head[3] <= 8:
        raise DataError(f"{file}: not an idx file (its first bytes are {head.hex(' ') or 'missing'})")
    raw = stream.read(4 * head[3])
    if len(raw) != 4 * head[3]:
        raise DataError(f"{file}: the idx header is cut off")
    return np.dtype(_IDX_TYPES[head[2]]), struct.unpack(f">{head[3]}I", raw)


def read_idx(file: str, content: bytes | None = None) -> Array:
    """A whole idx file as an array of its own shape (LeCun's format for MNIST)."""
    with _opened(file, content) as stream:
        dtype, shape = _idx_header(stream, file)
        need = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        data = stream.read(need + 1)
    if len(data) != need:
        raise DataError(f"{file}: {need} bytes are expected after the header, {len(data)} are there")
    return np.frombuffer(data, dtype).reshape(shape).astype(dtype.newbyteorder("="), copy=False)


def _idx_pieces(source: SourceConfig, file: str, rows: int, content: bytes | None) -> Iterator[Columns]:
    labels = read_idx(str(Path(source.labels).expanduser())) if source.labels else None
    with _opened(file, content) as stream:
        dtype, shape = _idx_header(stream, file)
        count, width = shape[0], int(np.prod(shape[1:], dtype=np.int64))
        if labels is not None and labels.shape != (count,):
            raise DataError(f"{source.labels}: has {labels.shape[0]} labels, {file} has {count} images")
        for first in range(0, count, rows):
            n = min(rows, count - first)
            data = stream.read(n * width * dtype.itemsize)
            if len(data) != n * width * dtype.itemsize:
                at = first + len(data) // max(width * dtype.itemsize, 1)
                raise DataError(f"{file}: cut off in image {at} of {count}")
            image = np.frombuffer(data, dtype).reshape(n, width).astype(dtype.newbyteorder("="), copy=False)
            yield {IMAGE: image} if labels is None else {IMAGE: image, LABEL: labels[first : first + n]}
        if stream.read(1):
            raise DataError(f"{file}: more bytes than its {count} images")


def _npz_pieces(file: str, rows: int, content: bytes | None) -> Iterator[Columns]:
    with _opened(file, content) as stream:
        try:
            with np.load(io.BytesIO(stream.read()), allow_pickle=False) as arrays:
                found = {name: arrays[name] for name in arrays.files}
        except (ValueError, OSError, KeyError) as error:
            raise DataError(f"{file}: not an npz file of plain arrays ({error})") from error
    values = next((found[name] for name in ("X", "x", "data") if name in found), None)
    labels = next((found[name] for name in ("y", "Y", "labels") if name in found), None)
    if found.keys() >= _CSR:
        yield from _csr_pieces(file, rows, found, labels)
        return
    if values is None or values.ndim < 2:
        raise DataError(f"{file}: no array X of at least two dimensions (it has {sorted(found)})")
    if labels is not None and labels.shape[:1] != values.shape[:1]:
        raise DataError(f"{file}: X has {len(values)} rows, y has {len(labels)}")
    values = values.reshape(len(values), -1)
    for first in range(0, len(values), rows):
        piece = {f"x{j}": values[first : first + rows, j] for j in range(values.shape[1])}
        yield piece if labels is None else {**piece, LABEL: labels[first : first + rows]}


_CSR = {"data", "indices", "indptr", "shape"}


def _csr_pieces(file: str, rows: int, found: Columns, labels: Array | None) -> Iterator[Columns]:
    """Rows of a compressed sparse matrix as ``scipy.sparse.save_npz`` writes it, dense a piece at a time."""
    kind = found.get("format", np.array(b"csr")).item()
    data, columns, starts = found["data"], found["indices"], found["indptr"]
    shape = [int(n) for n in found["shape"].ravel()]
    if kind not in (b"csr", "csr") or len(shape) != 2:
        raise DataError(f"{file}: a sparse array of format {kind!r}, shape {shape}; save a CSR matrix (tocsr())")
    n, width = shape
    if starts.shape != (n + 1,) or starts[0] != 0 or (np.diff(starts) < 0).any() or starts[-1] != len(data):
        raise DataError(f"{file}: the row starts of the sparse matrix do not fit its {len(data)} entries")
    if columns.shape != data.shape or (len(columns) and not 0 <= columns.min() <= columns.max() < width):
        raise DataError(f"{file}: the sparse matrix has entries outside its {width} columns")
    if labels is not None and labels.shape[:1] != (n,):
        raise DataError(f"{file}: X has {n} rows, y has {len(labels)}")
    for first in range(0, n, rows):
        stop = min(first + rows, n)
        part = slice(int(starts[first]), int(starts[stop]))
        values = np.zeros((stop - first, width), data.dtype)
        at = np.repeat(np.arange(stop - first), np.diff(starts[first : stop + 1]))
        np.add.at(values, (at, columns[part]), data[part])  # entries of one place add up
        piece = {f"x{j}": values[:, j] for j in range(width)}
        yield piece if labels is None else {**piece, LABEL: labels[first:stop]}


# --- JSON -------------------------------------------------------------------------------------------------------

_OBJECT = msgspec.json.Decoder(dict[str, Any])


def json_rows(lines: list[bytes], where: str, first_row: int = 0) -> Columns:
    """Columns of JSON objects, one per line; every object must have the keys of the first one."""
    objects: list[dict[str, Any]] = []
    for i, line in enumerate(lines):
        try:
            objects.append(_OBJECT.decode(line))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(f"{where}: row {first_row + i} is not a JSON object: {error}") from error
    keys = objects[0].keys()
    for i, item in enumerate(objects):
        if item.keys() != keys:
            name = min(item.keys() ^ keys)
            what = "is missing" if name in keys else "is new"
            raise DataError(f"{where}: row {first_row + i}: column {name!r} {what}; all rows need the same columns")
    return {k: _column([o[k] for o in objects]) for k in keys}


def _column(values: list[Any]) -> Array:
    first = values[0]
    if isinstance(first, list):
        if all(isinstance(v, list) and len(v) == len(first) for v in values):
            array = np.array(values)
            if array.ndim == 2 and array.dtype.kind in "biuf":
                return array
    elif all(type(v) is type(first) for v in values) and isinstance(first, (bool, int, float)):
        return np.array(values)
    elif all(type(v) in {int, float} for v in values):
        return np.array(values, np.float64)
    out = np.empty(len(values), object)
    out[:] = values
    return out


def _json_pieces(file: str, rows: int, content: bytes | None) -> Iterator[Columns]:
    with _opened(file, content) as stream:
        first, lines = 0, []
        for line in stream:
            if line.strip():
                lines.append(line)
            if len(lines) == rows:
                yield json_rows(lines, file, first)
                first, lines = first + rows, []
        if lines:
            yield json_rows(lines, file, first)


# --- Arrow: CSV and Parquet -------------------------------------------------------------------------------------


def _rebatched(tables: Iterator[Any], rows: int) -> Iterator[Columns]:
    """Pieces of exactly ``rows`` rows whatever the reader's own batches are: row ranges name the shards."""
    import pyarrow as pa

    waiting: list[Any] = []
    held = 0
    for table in tables:
        waiting.append(table)
        held += table.num_rows
        if held < rows:
            continue
        whole = pa.concat_tables(waiting)
        cut = held - held % rows
        for first in range(0, cut, rows):
            yield columns_of(whole.slice(first, rows))
        waiting, held = [whole.slice(cut)], held - cut
    if held:
        yield columns_of(pa.concat_tables(waiting))


def _parquet_tables(file: str, rows: int, content: bytes | None) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(pa.BufferReader(content) if content is not None else file) as opened:
            for batch in opened.iter_batches(max(rows, 4096), use_threads=False):
                yield pa.Table.from_batches([batch])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise DataError(f"{file}: cannot be read as Parquet: {error}") from error


def _csv_tables(source: SourceConfig, file: str, types: Types | None, content: bytes | None) -> Iterator[Any]:
    import pyarrow as pa
    from pyarrow import csv

    broken: list[tuple[int, int, int, str]] = []

    def on_invalid(row: Any) -> str:
        broken.append((row.number or 0, row.expected_columns, row.actual_columns, str(row.text)[:60]))
        return "error"

    named = {} if types is None else {k: pa.float64() if v == "number" else pa.string() for k, v in types.items()}
    head = 1 + source.header  # Arrow counts lines from 1, the header is one of them
    try:
        with _opened(file, content) as stream:
            reader = csv.open_csv(
                pa.PythonFile(stream, mode="r"),
                read_options=csv.ReadOptions(
                    use_threads=False, block_size=CSV_BLOCK_BYTES, autogenerate_column_names=not source.header
                ),
                parse_options=csv.ParseOptions(delimiter=source.delimiter, invalid_row_handler=on_invalid),
                convert_options=csv.ConvertOptions(
                    column_types={**named, **{f"f{k[1:]}": v for k, v in named.items() if not source.header}},
                    strings_can_be_null=True,
                    null_values=["", "NA", "NaN", "nan", "null", "NULL"],
                ),
            )
            names = reader.schema.names if source.header else [f"c{i}" for i in range(len(reader.schema.names))]
            if len(set(names)) != len(names):
                raise DataError(f"{file}: a column's name stands twice in the header")
            for batch in reader:
                yield pa.Table.from_batches([batch]).rename_columns(names)
    except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeDecodeError) as error:
        if broken:
            number, expected, actual, text = broken[-1]
            raise DataError(
                f"{file}: row {number - head}: expected {expected} values, got {actual}: {text!r}"
            ) from error
        raise DataError(_csv_message(file, str(error), _csv_names(source, file, content), head)) from error


def _csv_names(source: SourceConfig, file: str, content: bytes | None) -> list[str]:
    """The header's names, for a message."""
    import csv

    with _opened(file, content) as stream:
        first = stream.readline().decode(errors="replace")
    cells = next(csv.reader([first], delimiter=source.delimiter), [])
    return cells if source.header else [f"c{i}" for i in range(len(cells))]


def _csv_message(file: str, text: str, names: list[str], head: int) -> str:
    found = re.search(r"CSV column #(\d+): (?:Row #(\d+): )?CSV conversion error to \w+: invalid value '(.*)'", text)
    if found is None:
        return f"{file}: cannot be read as CSV: {text}"
    index = int(found[1])
    column = names[index] if index < len(names) else f"number {index}"
    row = f", row {int(found[2]) - head}" if found[2] else ""
    return f"{file}: column {column!r}{row}: expected a number, got {found[3][:40]!r}"


def csv_row(lines: list[bytes], source: SourceConfig, types: Types | None, where: str, first_row: int = 0) -> Columns:
    """Columns of CSV events (values in the order of ``source.fields``)."""
    import csv

    wanted = source.fields
    cells: list[list[str]] = []
    for i, line in enumerate(lines):
        try:
            row = next(csv.reader([line.decode()], delimiter=source.delimiter), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(f"{where}: row {first_row + i} is not CSV: {error}") from error
        if len(row) != len(wanted):
            raise DataError(
                f"{where}: row {first_row + i}: expected {len(wanted)} values, got {len(row)}: {line[:60]!r}"
            )
        cells.append(row)
    return {name: _texts(name, [c[j] for c in cells], types, where, first_row) for j, name in enumerate(wanted)}


def _texts(name: str, texts: list[str], types: Types | None, where: str, first_row: int) -> Array:
    out = np.empty(len(texts), object)
    number = None if types is None else types.get(name) == "number"
    for i, text in enumerate(texts):
        try:
            out[i] = text if number is False else float(text) if text else None
        except ValueError:
            if number:
                at = f"{where}: column {name!r}, row {first_row + i}"
                raise DataError(f"{at}: expected a number, got {text[:40]!r}") from None
            return _texts(name, texts, {name: "text"}, where, first_row)
    if number is not False and all(v is not None for v in out):
        return out.astype(np.float64)
    return out


# --- whole files ------------------------------------------------------------------------------------------------


def read_table(
    source: SourceConfig, schema: Schema | None = None, rows_max: int | None = None, types: Types | None = None
) -> Columns:
    """All rows of a source's files as columns, or the first ``rows_max``; for prediction, scoring and tests."""
    types = column_types(schema) if schema is not None else types
    parts: list[Columns] = []
    held = 0
    for file in list_files(source):
        for piece in pieces(source, str(file), min(rows_max or 65_536, 65_536), types):
            parts.append(piece)
            held += len(next(iter(piece.values())))
            if rows_max is not None and held >= rows_max:
                break
        if rows_max is not None and held >= rows_max:
            break
    if not parts:
        raise DataError(f"source.path: {source.path!r} has no rows")
    for part in parts:
        if part.keys() != parts[0].keys():
            name = min(part.keys() ^ parts[0].keys())
            raise DataError(f"{source.path}: column {name!r} is not in all files; all files need the same columns")
    return {k: _joined([p[k] for p in parts])[: rows_max or None] for k in parts[0]}


def _joined(arrays: list[Array]) -> Array:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def read_sample(source: SourceConfig, config: SchemaConfig, rows: int = SAMPLE_ROWS) -> Schema:
    """Fit a schema on the first rows of a source of files; topics are sampled by the feed (``fit_source_schema``)."""
    if source.kind == "kafka":
        raise ConfigError("source.kind: a topic's sample is read from its brokers, not from files")
    if source.kind == "idx" and source.labels and not config.label:
        config = replace(config, label=LABEL)
    return fit(read_table(source, rows_max=rows, types=sample_types(config)), config, source.path)
