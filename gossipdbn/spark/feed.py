"""Feeds a run: a Structured Streaming query from a source to the run's shards topic.

The query has a checkpoint and Spark's own Kafka sink; it delivers at least once. Shards are named by source coordinates
and carry a digest of their content, so whatever a restart writes again is recognised and dropped by every reader. A
bounded source ends with an end mark per partition, written after the whole topic was read back and counted.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.errors import DataError, GossipDbnError, LogError
from gossipdbn.readers import list_files
from gossipdbn.schema import Schema
from gossipdbn.source import SourceConfig
from gossipdbn.spark.audit import TopicAudit
from gossipdbn.spark.pack import PackPlan, data_error_in, make_plan
from gossipdbn.spark.sample import fit_source_schema
from gossipdbn.spark.session import close_session, open_session, session_is_open
from gossipdbn.spark.sources import base_folder, is_remote, java_client_settings, stream
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import ShardLimits, dtype_code

__all__ = ["FeedProgress", "FeedResult", "FeedTarget", "fit_source_schema", "run_feed"]

_POLL_S = 0.1
_GAP_S = 1.0


@dataclass(frozen=True, slots=True)
class FeedTarget:
    """Where the shards go.

    Attributes
    ----------
    bootstrap : brokers. topic : the run's shards topic, with ``slots`` partitions.
    checkpoint : folder (or URL that Spark can write) of the query's progress; belongs to the run.
    key_id, keys : the key that seals records, and all known ones. kafka : the user's librdkafka settings.
    """

    bootstrap: str
    topic: str
    slots: int
    checkpoint: str
    key_id: int = 0
    keys: envelope.Keyring = field(default_factory=dict)
    kafka: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class FeedProgress:
    """What the topic holds: distinct shards and rows, copies among them, and the seconds since the feed began."""

    stage: str
    shards: int
    rows: int
    copies: int
    seconds: float


@dataclass(frozen=True, slots=True)
class FeedResult:
    """How a feed ended.

    Attributes
    ----------
    finished : the source was bounded, is fed completely, and every partition has its end mark.
    rows, shards : on the topic, distinct; of an endless source those that came while this feed ran.
    rows_per_partition, shards_per_partition : the same by slot.
    copies : shards that were on the topic more than once (and are dropped by every reader).
    seconds : from the call to the last end mark on the topic, or to the stop; Spark may still have been closing then.
    to_first_shard_s : from the call to the first new shard seen on the topic, or None.
    """

    finished: bool
    rows: int
    shards: int
    rows_per_partition: tuple[int, ...]
    shards_per_partition: tuple[int, ...]
    copies: int
    seconds: float
    to_first_shard_s: float | None


Progress = Callable[[FeedProgress], None]


def run_feed(
    source: SourceConfig,
    schema: Schema,
    target: FeedTarget,
    *,
    spark: Any = None,
    master: str = "local[*]",
    log_folder: Path | None = None,
    on_progress: Progress | None = None,
    stop: Callable[[], bool] = lambda: False,
    backlog: Callable[[], int] | None = None,
    backlog_rows_max: int = 200_000,
) -> FeedResult:
    """Feed ``source`` until it ends (bounded) or ``stop`` says so; restarting on the same checkpoint goes on.

    Parameters
    ----------
    schema : the run's, from its manifest.
    spark : a session to use (it is left open); else one is opened on ``master`` and closed.
    log_folder : where Spark's log goes; default a temporary folder.
    on_progress : called about ten times a second.
    stop : asked as often.
    backlog : rows that are fed and not yet trained; above ``backlog_rows_max`` an endless source pauses.

    Raises
    ------
    DataError : a row, column or file does not fit the schema, or a source changed after it was fed. What is on the
        topic stays valid.
    LogError : Kafka failed. ConfigError : the topic is missing or of another shape.
    EmbeddedError : Spark did not start.
    """
    began = time.monotonic()
    plan = make_plan(source, schema, target.slots, base_folder(source), target.keys, target.key_id)
    if source.kind != "kafka" and not source.endless and not is_remote(source.path):
        list_files(source)
    limits = ShardLimits(schema.width, dtype_code(schema.visible_units), len(schema.classes), target.key_id != 0)
    log = KafkaLog(target.bootstrap, kafka=dict(target.kafka))
    with contextlib.ExitStack() as stack:
        stack.callback(log.close)
        audit = TopicAudit(log, target.topic, target.slots, limits, target.keys, from_start=not source.endless)
        stack.callback(audit.close)
        audit.catch_up()
        audit.remember()
        _refuse_second_start(source, target, audit)
        watch = _Watch(audit, began, on_progress, stop, backlog if source.endless else None, backlog_rows_max)
        done = audit.any_ended
        if not done:
            watch.tell("starting Spark")
            if not source.endless:
                audit.prepare()
            own = spark is None and not session_is_open()
            session = open_session(master=master, log_folder=log_folder) if spark is None else spark
            try:
                done = _run(session, plan, target, watch)
            finally:
                if own:  # nobody who waits for the end marks waits for Spark
                    closing = threading.Thread(target=close_session, args=(session,), name="closing Spark")
                    closing.start()
                    stack.callback(closing.join)
        if done:
            watch.tell("counting")
            audit.finish(target.key_id, target.keys)
        else:
            audit.catch_up()
        watch.tell("done" if done else "stopped")
        return watch.result(finished=done)


def _refuse_second_start(source: SourceConfig, target: FeedTarget, audit: TopicAudit) -> None:
    """Events are cut into shards by the query's batches: without their record the same events would get other ids."""
    if source.kind != "kafka" or not audit.shards or "://" in target.checkpoint:
        return
    if not (Path(target.checkpoint) / "offsets").is_dir():
        raise DataError(
            f"{target.topic} already holds {audit.shards} shards, but the feed's checkpoint {target.checkpoint} is "
            "gone: starting again would feed events twice. Restore the checkpoint, or start a new run"
        )


class _Watch:
    """Looks at the topic while the query runs, reports, and says when to pause or stop."""

    def __init__(
        self, audit: TopicAudit, began: float, on_progress: Progress | None, stop: Callable[[], bool],
        backlog: Callable[[], int] | None, backlog_rows_max: int,
    ) -> None:  # fmt: skip
        self.audit, self._began, self._on_progress = audit, began, on_progress
        self.stop, self._backlog, self._backlog_rows_max = stop, backlog, backlog_rows_max
        self._first_s: float | None = None

    def tell(self, stage: str) -> None:
        a, seconds = self.audit, time.monotonic() - self._began
        if self._first_s is None and a.shards > a.found_shards:
            self._first_s = seconds
        if self._on_progress is not None:
            self._on_progress(FeedProgress(stage, a.shards, a.rows, a.copies, seconds))

    def look(self) -> None:
        """Read what has come, for at most about a tenth of a second."""
        until = time.monotonic() + _POLL_S
        while self.audit.advance(_POLL_S) and time.monotonic() < until:
            pass
        self.tell("feeding")

    def crowded(self) -> bool:
        return self._backlog is not None and self._backlog() > self._backlog_rows_max

    def relieved(self) -> bool:
        return self._backlog is None or self._backlog() <= self._backlog_rows_max // 2

    def result(self, *, finished: bool) -> FeedResult:
        a = self.audit
        rows, shards = (tuple(getattr(s, n) for s in a.sequences) for n in ("rows", "shards"))
        seconds = time.monotonic() - self._began
        return FeedResult(finished, a.rows, a.shards, rows, shards, a.copies, seconds, self._first_s)


def _run(spark: Any, plan: PackPlan, target: FeedTarget, watch: _Watch) -> bool:
    """Run queries on the checkpoint until the source ends (True) or the feed is stopped (False)."""
    while True:
        query = _start(spark, plan, target)
        try:
            outcome = _follow(query, watch)
        finally:
            with contextlib.suppress(Exception):
                query.stop()
        if outcome != "crowded":
            return outcome == "ended"
        while not watch.relieved():
            if watch.stop():
                return False
            watch.look()


def _start(spark: Any, plan: PackPlan, target: FeedTarget) -> Any:
    source = plan.source
    settings = java_client_settings(dict(target.kafka))
    writer = (
        stream(spark, plan, target.bootstrap, settings)
        .writeStream.format("kafka")
        .options(**settings)
        .option("kafka.bootstrap.servers", target.bootstrap)
        .option("topic", target.topic)
        .option("kafka.acks", "all")
        .option("kafka.enable.idempotence", "true")
        .option("kafka.max.request.size", str(64 << 20))
        .option("kafka.batch.size", str(1 << 20))
        .option("kafka.max.block.ms", "60000")
        .option("checkpointLocation", target.checkpoint)
        .queryName(f"feed of {target.topic}")
    )
    trigger = {"processingTime": f"{source.batch_ms} milliseconds"} if source.endless else {"availableNow": True}
    try:
        return writer.trigger(**trigger).start()
    except Exception as error:
        raise _clean(error) from error


def _follow(query: Any, watch: _Watch) -> str:
    """Wait for the query: "ended", "stopped" or "crowded"; its failure is raised as the error that it means."""
    while query.isActive:
        watch.look()
        if watch.stop():
            return "stopped"
        if watch.crowded():
            _await_gap(query)
            return "crowded"
    failure = query.exception()
    if failure is not None:
        raise _clean(failure)
    return "ended"


def _await_gap(query: Any) -> None:
    """Wait for the end of a batch, so that it need not be written again; not for long, copies do no harm."""
    until = time.monotonic() + _GAP_S
    while query.isActive and query.status["isTriggerActive"] and time.monotonic() < until:
        time.sleep(0.01)


def _clean(error: BaseException) -> GossipDbnError:
    """The error that a failure of the query means, without Java's and Python's traces."""
    text = str(error)
    found = data_error_in(text)
    if found is not None:
        return found
    causes = [line.strip() for line in text.splitlines() if line.strip()]
    kafka = [line for line in causes if "org.apache.kafka" in line or "KafkaException" in line]
    if kafka:
        return LogError(f"the feed's query failed: {kafka[-1][:300]}", retryable=True)
    lost = [line for line in causes if "data loss" in line.lower() or "KAFKA_DATA_LOSS" in line]
    if lost:
        return DataError(f"the source topic no longer holds events that were not fed: {lost[0][:300]}")
    return DataError(f"the feed's query failed: {(causes or ['no message'])[0][:500]}")
