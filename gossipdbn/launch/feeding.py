"""Feed one run: the configuration's source, the manifest's schema, Spark's checkpoint in the run's folder."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.config import Home, RunConfig
from gossipdbn.config.keys import read_keys
from gossipdbn.core.topics import run_names
from gossipdbn.launch.backlog import Backlog
from gossipdbn.schema import schema_from_dict
from gossipdbn.spark.feed import FeedProgress, FeedResult, FeedTarget, run_feed
from gossipdbn.worker.control import load_control

__all__ = ["feed_run", "told_spread"]

_TELL_S = 2.0


def feed_run(
    config: RunConfig, home: Home, run: str, bootstrap: str, checkpoint: str, master: str, stop: threading.Event,
    say: Callable[[str], None],
) -> FeedResult:  # fmt: skip
    """Feed the run until its source ends or ``stop`` is set; see :func:`gossipdbn.spark.feed.run_feed`."""
    security = config.security
    keys = read_keys(security.key_file, security.key_id) if security.key_file else {}
    log = KafkaLog(bootstrap, kafka=dict(config.broker.options))
    control = load_control(log, run, keys, config.broker.prefix)
    assert control.manifest is not None
    backlog = Backlog(log, control.manifest, keys, config.broker.prefix) if config.source.endless else None
    folder = home.run(run)
    folder.path.mkdir(parents=True, exist_ok=True)
    target = FeedTarget(
        bootstrap=bootstrap, topic=run_names(run, config.broker.prefix).shards, slots=control.manifest.slots,
        checkpoint=checkpoint or str(folder.checkpoint), key_id=security.key_id, keys=keys,
        kafka=tuple(config.broker.options),
    )  # fmt: skip
    told = [0.0]

    def progress(p: FeedProgress) -> None:
        if backlog is not None:
            backlog.fed(p.rows)
        if time.monotonic() - told[0] >= _TELL_S:
            told[0] = time.monotonic()
            say(f"feed: {p.stage}, {p.rows:,} rows in {p.shards:,} shards after {p.seconds:.0f} s")

    try:
        result = run_feed(
            config.source, schema_from_dict(control.manifest.schema), target, master=master, log_folder=folder.logs,
            on_progress=progress, stop=stop.is_set, backlog=backlog.rows if backlog is not None else None,
        )  # fmt: skip
    finally:
        if backlog is not None:
            backlog.close()
        log.close()
    say(f"feed: {result.rows:,} rows, {'complete' if result.finished else 'stopped'} after {result.seconds:.1f} s")
    if result.finished:
        told_spread(result.rows_per_partition, say)
    return result


def told_spread(rows: Sequence[int], say: Callable[[str], None]) -> None:
    """Say so when some slot has more than one and a half times its share of the rows: the others will wait for it."""
    if len(rows) > 1 and max(rows) * len(rows) > 1.5 * sum(rows):
        each = ", ".join(f"{n:,}" for n in rows)
        say(f"feed: the slots have {each} rows to train; a smaller source.shard_rows would share them out more evenly")
