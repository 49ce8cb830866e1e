"""Runs inside Spark's Python workers: files or events in, sealed shards out.

Only plain data crosses to the workers (a plan as JSON), and every function lives in this module, so nothing of ours is
serialised as code. An error travels back inside the exception's text between markers (``data_error_in``), because Spark
hands the driver no more than text.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import msgspec

from gossipdbn.errors import DataError, GossipDbnError
from gossipdbn.readers import csv_row, json_rows, pieces
from gossipdbn.schema import Schema, column_types, encode
from gossipdbn.source import SourceConfig
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import (
    SEEN_IDS_MAX,
    Shard,
    dtype_code,
    encode_shard,
    make_shard,
    shard_id,
    shard_rows_for,
    slot_of,
)  # fmt: skip

__all__ = ["OUTPUT", "PackPlan", "data_error_in", "pack_events", "pack_files", "packer"]

OUTPUT = "value binary, partition int"
_MARK = "gossipdbn-data-error:"


@dataclass(frozen=True, slots=True)
class PackPlan:
    """What a Python worker must know.

    Attributes
    ----------
    base : folder of the source; a file's name in shard ids is relative to it.
    shard_rows : rows per shard.
    keys : key id -> base64 secret, for the envelope.
    """

    source: SourceConfig
    schema: Schema
    slots: int
    base: str
    shard_rows: int
    key_id: int = 0
    keys: dict[str, str] = field(default_factory=dict)

    def keyring(self) -> dict[int, bytes]:
        return {int(k): base64.b64decode(v) for k, v in self.keys.items()}

    def to_json(self) -> str:
        return msgspec.json.encode(self).decode()


def make_plan(
    source: SourceConfig, schema: Schema, slots: int, base: str, keys: envelope.Keyring, key_id: int
) -> PackPlan:
    """A plan; the rows per shard follow from the row's size where the source does not say."""
    rows = source.shard_rows or shard_rows_for(dtype_code(schema.visible_units), schema.width)
    secrets = {str(key_id): base64.b64encode(keys[key_id]).decode()} if key_id else {}
    return PackPlan(source, schema, slots, base, rows, key_id, secrets)


def packer(plan: PackPlan) -> Callable[[Iterable[Any]], Iterator[Any]]:
    """The function for ``DataFrame.mapInArrow``."""
    return partial(_pack_events if plan.source.kind == "kafka" else _pack_files, plan.to_json())


def data_error_in(text: str) -> DataError | None:
    """The DataError that a worker raised, found in the text of Spark's exception."""
    found = re.search(_MARK + r'("(?:[^"\\]|\\.)*")', text)
    return None if found is None else DataError(json.loads(found[1]))


def _pack_files(plan: str, batches: Iterable[Any]) -> Iterator[Any]:
    return _marked(_sealed(msgspec.json.decode(plan, type=PackPlan), pack_files, batches))


def _pack_events(plan: str, batches: Iterable[Any]) -> Iterator[Any]:
    return _marked(_sealed(msgspec.json.decode(plan, type=PackPlan), pack_events, batches))


def _marked(output: Iterator[Any]) -> Iterator[Any]:
    try:
        yield from output
    except GossipDbnError as error:
        raise RuntimeError(_MARK + json.dumps(str(error))) from None


def _sealed(
    plan: PackPlan, shards: Callable[[PackPlan, Iterable[Any]], Iterator[Shard]], batches: Iterable[Any]
) -> Iterator[Any]:
    """One Arrow batch per shard: it is on the topic before the next one is packed."""
    import pyarrow as pa

    keys = plan.keyring()
    names = ["value", "partition"]
    for shard in shards(plan, batches):
        record = envelope.seal(encode_shard(shard), plan.key_id, keys)
        slot = slot_of(shard.id, plan.slots)
        yield pa.RecordBatch.from_arrays([pa.array([record], pa.binary()), pa.array([slot], pa.int32())], names)


def pack_files(plan: PackPlan, batches: Iterable[Any]) -> Iterator[Shard]:
    """Shards of whole files: rows ``i * shard_rows ...`` of a file are always its i-th shard.

    ``batches`` have a column ``path``, and ``content`` where the files lie on a file system that only Spark can reach.
    """
    shards_max = SEEN_IDS_MAX // plan.source.files_per_batch
    for batch in batches:
        contents = batch.column("content").to_pylist() if "content" in batch.schema.names else None
        for i, path in enumerate(batch.column("path").to_pylist()):
            yield from _file_shards(plan, path, None if contents is None else contents[i], shards_max)


def _file_shards(plan: PackPlan, path: str, content: bytes | None, shards_max: int) -> Iterator[Shard]:
    name = _relative(path, plan.base)
    local = re.sub(r"^file:/*", "/", path)
    parts = pieces(plan.source, local, plan.shard_rows, column_types(plan.schema), content)
    for ordinal, columns in enumerate(parts):
        if ordinal == shards_max:
            raise DataError(
                f"{name}: more than {shards_max * plan.shard_rows} rows in one file; a restarted feed could not "
                "recognise its copies. Split the file, or raise source.shard_rows"
            )
        yield _shard(plan, columns, name, ordinal, ordinal * plan.shard_rows)


def _relative(path: str, base: str) -> str:
    plain, folder = (re.sub(r"^[a-z0-9]+:/*", "/", p) for p in (path, base))
    try:
        return str(PurePosixPath(plain).relative_to(folder))
    except ValueError:
        return PurePosixPath(plain).name


def _shard(plan: PackPlan, columns: dict[str, Any], name: str, ordinal: int, first: int) -> Shard:
    values, labels = encode(plan.schema, columns, name, first)
    if plan.schema.label and labels is None:
        raise DataError(f"{name}: column {plan.schema.label!r} is missing: the run's schema has it as the label")
    identity = shard_id(name, ordinal, first, len(values))
    return make_shard(identity, values, labels, dtype_code(plan.schema.visible_units))


def pack_events(plan: PackPlan, batches: Iterable[Any]) -> Iterator[Shard]:
    """Shards of events: cut where ``offset // shard_rows`` changes, so tasks that split a range agree on the cuts.

    ``batches`` have columns topic, partition, offset, value; a partition's events come in the order of their offsets.
    """
    held: list[bytes] = []
    at: tuple[str, int, int] | None = None
    first = 0
    for batch in batches:
        columns = [batch.column(name).to_pylist() for name in ("topic", "partition", "offset", "value")]
        for topic, partition, offset, value in zip(*columns, strict=True):
            here = (topic, partition, offset // plan.shard_rows)
            if here != at:
                if held and at is not None:
                    yield _event_shard(plan, held, at, first)
                held, at, first = [], here, offset
            if value is None:
                raise DataError(f"{topic}/{partition} offset {offset}: an event without a value")
            held.append(value)
    if held and at is not None:
        yield _event_shard(plan, held, at, first)


def _event_shard(plan: PackPlan, values: list[bytes], at: tuple[str, int, int], first: int) -> Shard:
    name = f"{at[0]}/{at[1]}"
    if plan.source.format == "json":
        columns = json_rows(values, name, first)
    else:
        columns = csv_row(values, plan.source, column_types(plan.schema), name, first)
    return _shard(plan, columns, name, at[2], first)
