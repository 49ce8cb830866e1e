"""Packing without Spark: what runs in its Python workers is plain functions over Arrow batches."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.schema import SchemaConfig, fit
from gossipdbn.source import SourceConfig

pa = pytest.importorskip("pyarrow")

from gossipdbn.spark.pack import data_error_in, make_plan, pack_events, pack_files, packer  # noqa: E402
from gossipdbn.spark.sources import base_folder, is_remote, java_client_settings  # noqa: E402
from gossipdbn.wire import envelope  # noqa: E402
from gossipdbn.wire.shards import ShardLimits, decode_shard, slot_of  # noqa: E402

SCHEMA = fit({"a": np.array([0, 1, 1]), "b": np.array([1, 0, 1])})
EVENTS = [(p, o) for p in range(2) for o in [*range(3, 40), *range(47, 90)]]  # a gap, as compaction leaves it
SOURCE = SourceConfig("kafka", topic="t", shard_rows=16)


def _batch(events: list[tuple[int, int]]) -> pa.RecordBatch:
    values = [json.dumps({"a": o % 2, "b": p}).encode() for p, o in events]
    columns = [["t"] * len(events), [p for p, _ in events], [o for _, o in events], values]
    return pa.RecordBatch.from_arrays([pa.array(c) for c in columns], ["topic", "partition", "offset", "value"])


@given(st.lists(st.integers(1, 30), max_size=20))
def test_arrow_batches_do_not_move_the_cuts(sizes):
    plan = make_plan(SOURCE, SCHEMA, 3, "", {}, 0)
    whole = list(pack_events(plan, [_batch(EVENTS)]))
    cuts = np.minimum(np.cumsum([0, *sizes, len(EVENTS)]), len(EVENTS)).tolist()
    batches = [_batch(EVENTS[a:b]) for a, b in pairwise(cuts)]
    assert list(pack_events(plan, batches)) == whole
    assert sum(s.rows for s in whole) == len(EVENTS)
    assert whole[0].id == "t/0#0:3+13"


def test_tasks_that_split_a_range_at_a_window_give_the_same_shards():
    plan = make_plan(SOURCE, SCHEMA, 3, "", {}, 0)
    cut = EVENTS.index((0, 64))
    apart = [*pack_events(plan, [_batch(EVENTS[:cut])]), *pack_events(plan, [_batch(EVENTS[cut:])])]
    assert apart == list(pack_events(plan, [_batch(EVENTS)]))


def test_sealed_records_carry_their_partition():
    keys = {5: b"k" * 32}
    plan = make_plan(SOURCE, SCHEMA, 3, "", keys, 5)
    batches = list(packer(plan)([_batch(EVENTS)]))
    for batch in batches:
        (record,), (partition,) = (batch.column(c).to_pylist() for c in ("value", "partition"))
        opened = envelope.open_(record, keys)
        shard = decode_shard(opened.body, ShardLimits(2, 0))
        assert opened.key_id == 5
        assert slot_of(shard.id, 3) == partition
    assert len(batches) == len(list(pack_events(plan, [_batch(EVENTS)])))


def test_an_error_in_a_worker_crosses_as_text():
    bad = _batch(EVENTS[:5]).to_pydict()
    bad["value"][3] = b'{"a": 1, "b": "two\\"\\n"}'
    with pytest.raises(RuntimeError) as caught:
        list(packer(make_plan(SOURCE, SCHEMA, 3, "", {}, 0))([pa.RecordBatch.from_pydict(bad)]))
    java = f"org.apache.spark.api.python.PythonException: Traceback\n  RuntimeError: {caught.value}\n\tat org.apache"
    error = data_error_in(java)
    assert isinstance(error, DataError)
    assert str(error).startswith("t/0: column 'b', row 6: expected a number, got")
    assert data_error_in("some other failure") is None


def test_events_without_a_value_are_refused():
    bad = _batch(EVENTS[:5]).to_pydict()
    bad["value"][1] = None
    with pytest.raises(DataError, match="t/0 offset 4: an event without a value"):
        list(pack_events(make_plan(SOURCE, SCHEMA, 3, "", {}, 0), [pa.RecordBatch.from_pydict(bad)]))


def test_files_are_named_from_the_source_folder_and_bounded(tmp_path):
    (tmp_path / "x y.csv").write_text("a,b\n" + "0,1\n" * 50)
    source = SourceConfig("csv", str(tmp_path), shard_rows=20)
    plan = make_plan(source, SCHEMA, 2, base_folder(source), {}, 0)
    batch = pa.RecordBatch.from_pydict({"path": [f"file:{tmp_path}/x y.csv"]})
    assert [s.id for s in pack_files(plan, [batch])] == ["x y.csv#0:0+20", "x y.csv#1:20+20", "x y.csv#2:40+10"]
    content = pa.RecordBatch.from_pydict(
        {"path": ["hdfs://nn/rows/x.csv"], "content": [(tmp_path / "x y.csv").read_bytes()]}
    )
    remote = make_plan(source, SCHEMA, 2, "hdfs://nn/rows", {}, 0)
    assert [s.rows for s in pack_files(remote, [content])] == [20, 20, 10]
    small = SourceConfig("csv", str(tmp_path), shard_rows=1, files_per_batch=1024)
    (tmp_path / "long.csv").write_text("a,b\n" + "0,1\n" * 100)
    with pytest.raises(DataError, match=r"long\.csv: more than 64 rows in one file"):
        list(
            pack_files(
                make_plan(small, SCHEMA, 2, base_folder(small), {}, 0),
                [pa.RecordBatch.from_pydict({"path": [f"file:{tmp_path}/long.csv"]})],
            )
        )


def test_a_missing_label_column_is_drift(tmp_path):
    schema = fit({"a": np.array([0, 1, 1]), "y": np.array([1, 0, 1])}, SchemaConfig(label="y"))
    (tmp_path / "a.csv").write_text("a\n1\n")
    source = SourceConfig("csv", str(tmp_path / "a.csv"))
    plan = make_plan(source, schema, 2, base_folder(source), {}, 0)
    with pytest.raises(DataError, match="label"):
        list(pack_files(plan, [pa.RecordBatch.from_pydict({"path": [f"file:{tmp_path}/a.csv"]})]))


def test_folders_of_sources(tmp_path: Path):
    assert base_folder(SourceConfig("csv", str(tmp_path))) == str(tmp_path)
    assert base_folder(SourceConfig("csv", f"file://{tmp_path}/*.csv")) == str(tmp_path)
    assert base_folder(SourceConfig("csv", "hdfs://nn/a/b/")) == "hdfs://nn/a/b"
    assert base_folder(SourceConfig("csv", "hdfs://nn/a/*.csv")) == "hdfs://nn/a"
    assert base_folder(SourceConfig("kafka", topic="t")) == ""
    assert is_remote("s3://bucket/x")
    assert not is_remote("/a/b")


def test_security_settings_reach_sparks_client():
    given = {
        "security.protocol": "SASL_SSL",
        "sasl.mechanisms": "SCRAM-SHA-512",
        "sasl.username": 'u"',
        "client.id": "x",
    }
    got = java_client_settings({**given, "sasl.password": "p\\", "ssl.ca.location": "/ca.pem", "linger.ms": "3"})
    assert got["kafka.security.protocol"] == "SASL_SSL"
    assert got["kafka.sasl.mechanism"] == "SCRAM-SHA-512"
    assert 'ScramLoginModule required username="u\\"" password="p\\\\";' in got["kafka.sasl.jaas.config"]
    assert got["kafka.ssl.truststore.location"] == "/ca.pem"
    with pytest.raises(ConfigError, match=r"ssl\.key\.location"):
        java_client_settings({"ssl.key.location": "/k.pem"})
