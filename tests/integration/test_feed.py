"""The feed with real Spark and a real broker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.errors import ConfigError, DataError, GossipDbnError
from gossipdbn.ports import TopicSpec
from gossipdbn.schema import Schema, SchemaConfig, encode, schema_to_dict
from gossipdbn.source import SourceConfig
from gossipdbn.spark import feed
from gossipdbn.spark.feed import FeedResult, FeedTarget, fit_source_schema, run_feed
from gossipdbn.spark.session import close_session, open_session
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import slot_of
from tests.integration.feeding import KEYS, SLOTS, images, on_topic, rows_of

pytestmark = [pytest.mark.integration, pytest.mark.kafka, pytest.mark.spark]

@pytest.fixture(scope="module")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    session = open_session(log_folder=tmp_path_factory.mktemp("spark"))
    yield session
    close_session(session)


@pytest.fixture
def target(log: KafkaLog, tmp_path: Path, run_name: str) -> FeedTarget:
    topic = f"{run_name}.shards"
    log.create_topics([TopicSpec(topic, SLOTS)])
    return FeedTarget(log.bootstrap, topic, SLOTS, str(tmp_path / "checkpoint"), 7, KEYS)


def test_images_arrive_once_each_with_end_marks(log, spark, target, tmp_path):
    source, pixels, labels = images(tmp_path, 3210)
    schema = fit_source_schema(source, SchemaConfig())
    stages: list[str] = []
    result = run_feed(source, schema, target, spark=spark, on_progress=lambda p: stages.append(p.stage))
    shards, marks, copies = on_topic(log, target, schema)
    got, names = rows_of(shards, "train-ubyte")
    np.testing.assert_array_equal(got, pixels)
    np.testing.assert_array_equal(names, labels)
    assert result.finished
    assert (result.rows, result.shards, result.copies, copies) == (3210, 7, 0, 0)
    assert sorted(m.rows for m in marks) == sorted(result.rows_per_partition)
    assert max(result.shards_per_partition) - min(result.shards_per_partition) <= 1
    assert list(dict.fromkeys(stages)) == ["starting Spark", "feeding", "counting", "done"]

    again = run_feed(source, schema, target, spark=spark)
    assert (again.finished, again.rows, again.shards) == (True, 3210, 7)
    assert len(on_topic(log, target, schema)[1]) == SLOTS


def test_rows_end_while_spark_is_still_closing(log, spark, target, tmp_path, monkeypatch):
    source, _, _ = images(tmp_path, 600)
    schema = fit_source_schema(source, SchemaConfig())
    seen: list[int] = []

    def close(_session: Any) -> None:
        deadline = time.monotonic() + 60
        while len(on_topic(log, target, schema)[1]) < SLOTS and time.monotonic() < deadline:
            time.sleep(0.05)
        seen.append(len(on_topic(log, target, schema)[1]))

    monkeypatch.setattr(feed, "session_is_open", lambda: False)
    monkeypatch.setattr(feed, "open_session", lambda **_: spark)
    monkeypatch.setattr(feed, "close_session", close)
    assert run_feed(source, schema, target).finished
    assert seen == [SLOTS]


CHILD = """
import json, sys
from gossipdbn.schema import schema_from_dict
from gossipdbn.source import source_config
from gossipdbn.spark.feed import FeedTarget, run_feed
if __name__ == "__main__":
    given = json.load(open(sys.argv[1]))
    target = FeedTarget(given["bootstrap"], given["topic"], 3, given["checkpoint"], 7, {7: b"sixteen bytes ..."})
    result = run_feed(source_config(given["source"]), schema_from_dict(given["schema"]), target)
    print(json.dumps([result.finished, result.rows, result.copies]))
"""


def _child(tmp_path: Path, source: SourceConfig, schema: Schema, target: FeedTarget) -> subprocess.Popen[bytes]:
    settings = {"kind": source.kind, "path": source.path, "labels": source.labels, "shard_rows": source.shard_rows}
    settings |= {"files_per_batch": source.files_per_batch}
    given = {"bootstrap": target.bootstrap, "topic": target.topic, "checkpoint": target.checkpoint}
    given |= {"source": settings, "schema": schema_to_dict(schema)}
    (tmp_path / "given.json").write_text(json.dumps(given))
    (tmp_path / "child.py").write_text(CHILD)
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "child.py"), str(tmp_path / "given.json")],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )


def _kill_after(log: KafkaLog, target: FeedTarget, child: subprocess.Popen[bytes], messages: int) -> int:
    deadline = time.monotonic() + 120
    while (seen := sum(log.offsets(target.topic, s)[1] for s in range(SLOTS))) < messages:
        assert child.poll() is None, "the feed ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.killpg(child.pid, signal.SIGKILL)  # Python and Spark's JVM at once
    child.wait()
    return seen


def _csv_folder(folder: Path, files: int, rows: int) -> tuple[SourceConfig, dict[str, np.ndarray]]:
    folder.mkdir()
    rng = np.random.default_rng(2)
    tables = {}
    for i in range(files):
        table = rng.integers(0, 2, (rows, 6))
        lines = "\n".join(",".join(map(str, r)) for r in table.tolist())
        (folder / f"part-{i:02d}.csv").write_text("a,b,c,d,e,f\n" + lines + "\n")
        tables[f"part-{i:02d}.csv"] = table
    return SourceConfig("csv", str(folder), shard_rows=20, files_per_batch=1), tables


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["idx", "csv"])
def test_a_killed_driver_goes_on_from_its_checkpoint(log, target, tmp_path, kind):
    if kind == "idx":
        source, pixels, _ = images(tmp_path, 6000, shard_rows=5)
        expected = {"train-ubyte": pixels}
    else:
        source, expected = _csv_folder(tmp_path / "rows", 30, 200)
    schema = fit_source_schema(source, SchemaConfig())
    seen = _kill_after(log, target, _child(tmp_path, source, schema, target), 40)
    before, marks, _ = on_topic(log, target, schema)
    assert not marks
    total = sum(len(v) for v in expected.values())
    assert 0 < sum(s.rows for s in before.values()) < total, f"killed too late, at {seen} messages"

    child = _child(tmp_path, source, schema, target)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 0
    finished, rows, copies = json.loads(output)
    shards, marks, seen_copies = on_topic(log, target, schema)
    assert finished
    assert rows == total == sum(s.rows for s in shards.values())
    assert copies == seen_copies
    assert len(marks) == SLOTS
    assert before.items() <= shards.items()
    for name, values in expected.items():
        np.testing.assert_array_equal(rows_of(shards, name)[0], values)


def test_folders_of_parquet_and_json_arrive(log, spark, target, tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = {"x": np.linspace(-3, 9, 500), "flag": np.arange(500) % 2 == 0, "c": np.array(["u", "v"] * 250, object)}
    table["y"] = np.arange(500) % 4
    for kind in ("parquet", "json"):
        folder = tmp_path / kind
        folder.mkdir()
        for i in range(2):
            part = {k: v[250 * i : 250 * i + 250].tolist() for k, v in table.items()}
            if kind == "parquet":
                parquet.write_table(pa.table(part), folder / f"{i}.parquet", row_group_size=30)
            else:
                rows = [dict(zip(part, r, strict=True)) for r in zip(*part.values(), strict=True)]
                (folder / f"{i}.json").write_text("\n".join(map(json.dumps, rows)))
        source = SourceConfig(kind, str(folder), shard_rows=64)
        schema = fit_source_schema(source, SchemaConfig(label="y"))
        topic = f"{target.topic}.{kind}"
        log.create_topics([TopicSpec(topic, SLOTS)])
        here = FeedTarget(target.bootstrap, topic, SLOTS, f"{target.checkpoint}-{kind}", 7, KEYS)
        assert run_feed(source, schema, here, spark=spark).rows == 500
        shards, _, _ = on_topic(log, here, schema)
        expected, labels = encode(schema, table)
        parts = [rows_of(shards, f"{i}.{kind}") for i in range(2)]
        np.testing.assert_array_equal(np.concatenate([p[0] for p in parts]), expected)
        np.testing.assert_array_equal(np.concatenate([p[1] for p in parts]), labels)
        assert schema.visible_units == "mixed"


def _send(log: KafkaLog, topic: str, rows: list[dict[str, Any]]) -> None:
    writer = log.writer()
    for i, row in enumerate(rows):
        writer.send(topic, i % 2, json.dumps(row).encode())
    assert writer.flush(20)
    writer.close()


def _events(first: int, count: int) -> list[dict[str, Any]]:
    return [{"n": float(first + i), "flag": (first + i) % 3 == 0} for i in range(count)]


class Running:
    """A feed on a thread."""

    def __init__(self, run: Callable[..., FeedResult]) -> None:
        self.rows, self.result, self.error = 0, None, None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(run,))
        self._thread.start()

    def _run(self, run: Callable[..., FeedResult]) -> None:
        try:
            self.result = run(stop=self._stop.is_set, on_progress=self._see)
        except GossipDbnError as error:  # handed to the test
            self.error = error

    def _see(self, progress: Any) -> None:
        self.rows = progress.rows

    def until(self, rows: int) -> None:
        deadline = time.monotonic() + 60
        while self.rows < rows and time.monotonic() < deadline and self._thread.is_alive():
            time.sleep(0.05)
        assert self.rows >= rows, self.error

    def stop(self) -> FeedResult:
        self._stop.set()
        self._thread.join(60)
        assert self.error is None, self.error
        assert self.result is not None
        return self.result


def test_events_are_fed_while_they_come_and_after_a_restart(log, spark, target):
    topic = target.topic.replace("shards", "events")
    log.create_topics([TopicSpec(topic, 2)])
    _send(log, topic, _events(0, 300))
    source = SourceConfig("kafka", topic=topic, endless=True, shard_rows=50, rows_per_batch=100, batch_ms=100)
    schema = fit_source_schema(source, SchemaConfig(), log.bootstrap)
    assert schema.visible_units == "mixed"

    def run(**hooks: Any) -> FeedResult:
        return run_feed(source, schema, target, spark=spark, **hooks)

    first = Running(run)
    first.until(300)
    _send(log, topic, _events(300, 120))
    first.until(420)
    assert not first.stop().finished
    _send(log, topic, _events(420, 80))
    second = Running(run)
    second.until(80)
    second.stop()

    shards, marks, _ = on_topic(log, target, schema)
    assert not marks
    for partition in range(2):
        got, _ = rows_of(shards, f"{topic}/{partition}")
        mine = _events(0, 300)[partition::2] + _events(300, 120)[partition::2] + _events(420, 80)[partition::2]
        columns = {k: np.array([r[k] for r in mine]) for k in ("n", "flag")}
        np.testing.assert_array_equal(got, encode(schema, columns)[0])

    lost = FeedTarget(target.bootstrap, target.topic, SLOTS, target.checkpoint + "-other", 7, KEYS)
    bounded = SourceConfig("kafka", topic=topic, shard_rows=50)
    with pytest.raises(DataError, match="checkpoint .* is gone"):
        run_feed(bounded, schema, lost, spark=spark)


def test_a_topic_can_be_a_bounded_source(log, spark, target):
    topic = target.topic.replace("shards", "events")
    log.create_topics([TopicSpec(topic, 2)])
    writer = log.writer()
    for i in range(90):
        writer.send(topic, i % 2, f"{i}.5;{'a' if i % 2 else 'b'}".encode())
    assert writer.flush(20)
    writer.close()
    source = SourceConfig(
        "kafka", topic=topic, format="csv", fields=("n", "c"), delimiter=";", shard_rows=16, rows_per_batch=40
    )
    schema = fit_source_schema(source, SchemaConfig(), log.bootstrap)
    result = run_feed(source, schema, target, spark=spark)
    assert (result.finished, result.rows) == (True, 90)


def test_a_crowded_endless_feed_pauses(log, spark, target, tmp_path):
    source, _ = _csv_folder(tmp_path / "rows", 12, 100)
    source = SourceConfig("csv", source.path, shard_rows=100, files_per_batch=1, endless=True, batch_ms=300)
    schema = fit_source_schema(source, SchemaConfig())
    trained = [0]
    crowded = [0]

    def run(**hooks: Any) -> FeedResult:
        see = hooks.pop("on_progress")

        def watch(progress: Any) -> None:
            fed[0] = progress.rows
            see(progress)

        def backlog() -> int:
            waiting = fed[0] - trained[0]
            crowded[0] = max(crowded[0], waiting)
            return waiting

        return run_feed(
            source, schema, target, spark=spark, backlog=backlog, backlog_rows_max=300, on_progress=watch, **hooks
        )

    fed = [0]
    running = Running(run)
    running.until(400)
    time.sleep(2)
    held = running.rows
    trained[0] = 10_000
    running.until(1200)
    running.stop()
    assert 400 <= held <= 900  # it went on for a batch or two, then waited
    assert sum(s.rows for s in on_topic(log, target, schema)[0].values()) == 1200


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "a,b,c,d,e,f\n0,1,0,1,0,1\n0,1,2,1,0,1\n",
            r"part-07\.csv: column 'c', row 1: expected 0 or 1, the value is 2",
        ),
        ("a,b,c,d,e,f\n0,1,0,1,0,1\n0,1,x,1,0,1\n", r"column 'c', row 1: expected a number, got 'x'"),
        ("a,b,c,d,e\n0,1,0,1,0\n", r"part-07\.csv: column 'f' is missing"),
        ("a,b,c,d,e,f,g\n0,1,0,1,0,1,1\n", r"part-07\.csv: column 'g' is new"),
    ],
)
def test_a_bad_row_stops_the_feed_and_nothing_fed_is_lost(log, spark, target, tmp_path, text, message):
    source, expected = _csv_folder(tmp_path / "rows", 8, 40)
    schema = fit_source_schema(source, SchemaConfig())
    bad = tmp_path / "rows" / "part-07.csv"
    good = bad.read_text()
    bad.write_text(text)
    os.utime(bad, (time.time() + 5, time.time() + 5))  # the newest file comes last
    with pytest.raises(DataError, match=message) as caught:
        run_feed(source, schema, target, spark=spark)
    assert "\n" not in str(caught.value)
    shards, marks, _ = on_topic(log, target, schema)
    assert (sum(s.rows for s in shards.values()), marks) == (280, [])

    bad.write_text(good)
    result = run_feed(source, schema, target, spark=spark)
    assert (result.finished, result.rows) == (True, 320)
    np.testing.assert_array_equal(rows_of(on_topic(log, target, schema)[0], "part-07.csv")[0], expected["part-07.csv"])


def test_a_file_changed_after_it_was_fed_is_refused(log, spark, target, tmp_path):
    source, _ = _csv_folder(tmp_path / "rows", 2, 40)
    schema = fit_source_schema(source, SchemaConfig())
    result = run_feed(source, schema, target, spark=spark, stop=lambda: False)
    assert result.finished
    (tmp_path / "rows" / "part-00.csv").write_text("a,b,c,d,e,f\n" + "1,1,1,1,1,1\n" * 40)
    fresh = f"{target.topic}.second"
    log.create_topics([TopicSpec(fresh, SLOTS)])
    shards, _, _ = on_topic(log, target, schema)
    writer = log.writer()
    for shard in shards.values():
        from gossipdbn.wire.shards import encode_shard

        writer.send(fresh, slot_of(shard.id, SLOTS), envelope.seal(encode_shard(shard), 7, KEYS))
    assert writer.flush(20)
    writer.close()
    here = FeedTarget(target.bootstrap, fresh, SLOTS, f"{target.checkpoint}-second", 7, KEYS)
    with pytest.raises(DataError, match=r"part-00\.csv#[01]:(0|20)\+20 came a second time with other content"):
        run_feed(source, schema, here, spark=spark)


def test_missing_topics_and_empty_sources_are_named(log, spark, target, tmp_path):
    source, _ = _csv_folder(tmp_path / "rows", 1, 40)
    schema = fit_source_schema(source, SchemaConfig())
    with pytest.raises(ConfigError, match=r"no-such\.shards does not exist"):
        run_feed(source, schema, FeedTarget(log.bootstrap, "no-such.shards", SLOTS, target.checkpoint), spark=spark)
    with pytest.raises(ConfigError, match="has 3 partitions, the run has 5 slots"):
        run_feed(source, schema, FeedTarget(log.bootstrap, target.topic, 5, target.checkpoint), spark=spark)
    with pytest.raises(DataError, match="no csv file"):
        run_feed(SourceConfig("csv", str(tmp_path)), schema, target, spark=spark)
    with pytest.raises(ConfigError, match="there is no topic"):
        fit_source_schema(SourceConfig("kafka", topic="no-such"), SchemaConfig(), log.bootstrap)


def test_folders_with_odd_names_are_taken_literally(log, spark, target, tmp_path):
    folder = tmp_path / "my rows [1] 100%"
    source, expected = _csv_folder(folder, 2, 40)
    (folder / "notes.md").write_text("not rows")
    schema = fit_source_schema(source, SchemaConfig())
    assert run_feed(source, schema, target, spark=spark).rows == 80
    shards, _, _ = on_topic(log, target, schema)
    for name, rows in expected.items():
        np.testing.assert_array_equal(rows_of(shards, name)[0], rows)


@pytest.mark.hdfs
@pytest.mark.slow
def test_files_on_hdfs_are_read_by_sparks_own_client(log, target, tmp_path, hdfs_folder):
    from gossipdbn.adapters.stores import open_store

    _, expected = _csv_folder(tmp_path / "rows", 3, 40)
    store = open_store(hdfs_folder)
    for name in expected:
        store.put(name, (tmp_path / "rows" / name).read_bytes())
    source = SourceConfig("csv", hdfs_folder, shard_rows=20)
    schema = fit_source_schema(source, SchemaConfig())
    result = run_feed(source, schema, target)
    assert (result.finished, result.rows) == (True, 120)
    shards, _, _ = on_topic(log, target, schema)
    for name, rows in expected.items():
        np.testing.assert_array_equal(rows_of(shards, name)[0], rows)
