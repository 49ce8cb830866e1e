"""Done once after installation: fetches Spark's connector and makes later starts fast."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.embedded.broker import Broker
from gossipdbn.ports import TopicSpec
from gossipdbn.schema import SchemaConfig
from gossipdbn.source import SourceConfig
from gossipdbn.spark.feed import FeedTarget, fit_source_schema, run_feed
from gossipdbn.spark.session import class_archive, close_session, kafka_jars, open_session

__all__ = ["is_prepared", "prepare"]

_RECORD_S_MAX = 120.0


def is_prepared() -> bool:
    """Whether there is nothing left for ``prepare`` to do."""
    archive = class_archive()
    return archive is None or archive.path.exists()


def prepare(on_progress: Callable[[str], None] | None = None) -> bool:
    """Feed a few rows through a broker and Spark once, recording the classes that are loaded (about half a minute).

    Returns whether later sessions start faster; False where this Java cannot record.

    Raises
    ------
    EmbeddedError : no Java, no connection to fetch the jars, or a part does not start.
    """
    tell = on_progress or (lambda _line: None)
    tell("fetching Spark's Kafka connector")
    kafka_jars()
    archive = class_archive()
    if archive is None or archive.path.exists():
        return archive is not None
    tell("starting a broker and Spark once, so that they start faster from now on")
    with tempfile.TemporaryDirectory(prefix="gossipdbn-prepare-") as name:
        folder = Path(name)
        (folder / "rows.csv").write_text("a,b\n" + "0,1\n1,0\n" * 8)
        source = SourceConfig("csv", str(folder / "rows.csv"))
        with Broker(folder / "kafka", die_with_parent=True) as broker:
            log = KafkaLog(broker.bootstrap)
            log.create_topics([TopicSpec("prepare.shards", 1)])
            log.close()
            session = open_session(log_folder=folder, archive=archive)
            code: int | None = None
            try:
                target = FeedTarget(broker.bootstrap, "prepare.shards", 1, str(folder / "checkpoint"))
                run_feed(source, fit_source_schema(source, SchemaConfig()), target, spark=session)
            finally:
                with contextlib.suppress(OSError):
                    code = close_session(session, _RECORD_S_MAX)
                archive.adopt(code)
    return archive.path.exists()
