"""What the feed's tests share: images to feed, and the topic read without the feed's own reader."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.schema import Schema
from gossipdbn.source import SourceConfig
from gossipdbn.spark.feed import FeedTarget
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import EndMark, Shard, ShardLimits, decode_shard, dtype_code, slot_of, unpack
from tests.test_readers import idx

SLOTS = 3
KEYS = {7: b"sixteen bytes ..."}


def on_topic(log: KafkaLog, target: FeedTarget, schema: Schema) -> tuple[dict[str, Shard], list[EndMark], int]:
    """Distinct shards by id, end marks, copies: read without the feed's own reader."""
    limits = ShardLimits(schema.width, dtype_code(schema.visible_units), len(schema.classes))
    shards: dict[str, Shard] = {}
    marks: list[EndMark] = []
    copies = 0
    for slot in range(target.slots):
        first, end = log.offsets(target.topic, slot)
        for record in log.read(target.topic, slot, first, end):
            opened = envelope.open_(record.value, target.keys)
            assert opened.key_id == target.key_id
            message = decode_shard(opened.body, limits)
            if isinstance(message, EndMark):
                marks.append(message)
                continue
            assert slot_of(message.id, target.slots) == slot
            copies += message.id in shards
            assert shards.setdefault(message.id, message) == message
    return shards, marks, copies


def rows_of(shards: dict[str, Shard], source: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows of one file or topic partition, in its own order; they must be without gap."""
    mine = [(int(i.rpartition(":")[2].split("+")[0]), s) for i, s in shards.items() if i.rpartition("#")[0] == source]
    mine.sort(key=lambda item: item[0])
    assert [first for first, _ in mine] == np.cumsum([0, *(s.rows for _, s in mine)])[:-1].tolist()
    parts = [unpack(s) for _, s in mine]
    labels = None if parts[0][1] is None else np.concatenate([p[1] for p in parts if p[1] is not None])
    return np.concatenate([p[0] for p in parts]), labels


def images(folder: Path, rows: int, shard_rows: int = 0) -> tuple[SourceConfig, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (rows, 28, 28)).astype(np.uint8)
    labels = rng.integers(0, 10, rows).astype(np.uint8)
    (folder / "train-ubyte").write_bytes(idx(pixels))
    (folder / "labels-ubyte").write_bytes(idx(labels))
    source = SourceConfig(
        "idx", str(folder / "train-ubyte"), labels=str(folder / "labels-ubyte"), shard_rows=shard_rows
    )
    return source, np.rint(pixels.reshape(rows, -1).astype(float) * 127 / 255), labels
