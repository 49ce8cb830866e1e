"""Reads a source's first rows to fit the run's schema, before the run is made."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

from confluent_kafka import Consumer, KafkaError, TopicPartition

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.errors import ConfigError, DataError, LogError
from gossipdbn.readers import SAMPLE_ROWS, csv_row, json_rows, pieces, read_sample
from gossipdbn.schema import Schema, SchemaConfig, fit, sample_types
from gossipdbn.source import SourceConfig
from gossipdbn.spark.session import close_session, open_session, session_is_open
from gossipdbn.spark.sources import base_folder, file_frame, is_remote

__all__ = ["fit_source_schema"]

_SAMPLE_S_MAX = 30.0


def fit_source_schema(source: SourceConfig, config: SchemaConfig, bootstrap: str = "", **kafka: Any) -> Schema:
    """Fit the run's schema on the source's first rows (up to 10,000).

    Local files are read directly, files on other file systems through a short Spark session, topics by a consumer.

    Parameters
    ----------
    bootstrap : the run's brokers, for a topic without brokers of its own.
    kafka : options of ``KafkaLog`` for those brokers (``kafka={...}``: librdkafka settings).

    Raises
    ------
    DataError : the source is empty or cannot be read. ConfigError : the settings do not fit it. LogError : no broker.
    """
    if source.kind == "kafka":
        own = bool(source.bootstrap)
        lines = _sample_events(source, source.bootstrap or bootstrap, {} if own else kafka)
        where = f"topic {source.topic}"
        columns = (
            json_rows(lines, where) if source.format == "json" else csv_row(lines, source, sample_types(config), where)
        )
        return fit(columns, config, where)
    return _sample_remote(source, config) if is_remote(source.path) else read_sample(source, config)


def _sample_remote(source: SourceConfig, config: SchemaConfig) -> Schema:
    """The first file's first rows, fetched by Spark's own file system clients."""
    own = not session_is_open()
    spark = open_session("gossipdbn schema")
    try:
        found = file_frame(spark.read, source, base_folder(source)).filter("length > 0").orderBy("path")
        first = found.limit(1).collect()
    except Exception as error:
        raise DataError(f"source.path: {source.path} cannot be read: {str(error).splitlines()[0][:300]}") from error
    finally:
        if own:
            close_session(spark)
    if not first:
        raise DataError(f"source.path: no {source.kind} file with rows at {source.path!r}")
    path, content = str(first[0]["path"]), bytes(first[0]["content"])
    return fit(next(pieces(source, path, SAMPLE_ROWS, sample_types(config), content)), config, path)


def _sample_events(source: SourceConfig, bootstrap: str, options: Mapping[str, Any]) -> list[bytes]:
    log = KafkaLog(bootstrap, **options)
    try:
        partitions = log.partitions(source.topic)
        if not partitions:
            raise ConfigError(f"source.topic: there is no topic {source.topic!r} at {bootstrap}")
        deadline = time.monotonic() + _SAMPLE_S_MAX
        while True:
            ranges = [log.offsets(source.topic, p) for p in range(partitions)]
            if any(end > first for first, end in ranges):
                break
            if not source.endless or time.monotonic() > deadline:
                raise DataError(
                    f"topic {source.topic} is empty: the schema is fitted on its first events. Send some, then start"
                )
            time.sleep(0.2)
    finally:
        log.close()
    share = -(-SAMPLE_ROWS // partitions)
    settings = dict(options.get("kafka", {}))
    lines: list[bytes] = []
    for partition, (first, end) in enumerate(ranges):
        if end > first:
            lines += islice(_events(source.topic, partition, (first, end), bootstrap, settings), share)
    if not lines:
        raise DataError(f"topic {source.topic} holds no events, only what transactions and compaction left behind")
    return lines


def _events(
    topic: str, partition: int, span: tuple[int, int], bootstrap: str, settings: Mapping[str, Any]
) -> Iterator[bytes]:
    """Values of a partition. A user's topic may have gaps (compaction, transactions), so this is no ``KafkaLog``."""
    consumer = Consumer(
        {
            **settings,
            "bootstrap.servers": bootstrap,
            "group.id": "gossipdbn-sample",  # required by the library; nothing is committed
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
        }
    )
    try:
        consumer.assign([TopicPartition(topic, partition, span[0])])
        deadline = time.monotonic() + _SAMPLE_S_MAX
        while time.monotonic() < deadline:
            message = consumer.poll(1.0)
            if message is None:
                continue
            error = message.error()
            if error is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    return
                raise LogError(f"topic {topic} cannot be read: {error.str()}", retryable=True)
            if message.value() is not None:
                yield bytes(message.value())
            if message.offset() + 1 >= span[1]:
                return
    finally:
        consumer.close()
