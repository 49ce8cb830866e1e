"""What the ready jobs under ``streams/`` share: their options, and feeding a run that exists."""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Callable
from dataclasses import asdict

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.config.keys import read_keys
from gossipdbn.core.topics import run_names
from gossipdbn.errors import GossipDbnError
from gossipdbn.schema import schema_from_dict
from gossipdbn.source import SourceConfig
from gossipdbn.spark.feed import FeedResult, FeedTarget, run_feed
from gossipdbn.worker.control import load_control

__all__ = ["feed_existing_run", "job_parser", "run_job"]


def job_parser(description: str | None) -> argparse.ArgumentParser:
    """The options that every job has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", required=True, help="id of a run that exists; its manifest names schema and slots")
    parser.add_argument("--bootstrap", required=True, help="host:port of the run's Kafka brokers")
    parser.add_argument(
        "--checkpoint", required=True, help="folder or URL of the feed's progress; keep it for restarts"
    )
    parser.add_argument("--prefix", default="", help="prefix of the run's topics")
    parser.add_argument("--master", default="local[*]", help="Spark master, where spark-submit does not say")
    parser.add_argument("--key-file", default="", help="TOML or JSON of key id = hexadecimal key")
    parser.add_argument("--key-id", type=int, default=0, help="the key that seals records")
    parser.add_argument("--kafka", action="append", default=[], metavar="KEY=VALUE", help="setting of Kafka's client")
    return parser


def feed_existing_run(options: argparse.Namespace, source: SourceConfig, stop: Callable[[], bool]) -> FeedResult:
    """Feed ``source`` into the run that ``options`` (of ``job_parser``) name.

    Raises
    ------
    ConfigError : there is no such run. DataError, LogError, EmbeddedError : as ``run_feed``.
    """
    kafka = dict(pair.split("=", 1) for pair in options.kafka)
    keys = read_keys(options.key_file, options.key_id) if options.key_file else {}
    log = KafkaLog(options.bootstrap, kafka=kafka)
    try:
        manifest = load_control(log, options.run, keys, options.prefix).manifest
    finally:
        log.close()
    assert manifest is not None
    topic = run_names(options.run, options.prefix).shards
    target = FeedTarget(
        options.bootstrap, topic, manifest.slots, options.checkpoint, options.key_id, keys, tuple(kafka.items())
    )
    return run_feed(source, schema_from_dict(manifest.schema), target, master=options.master, stop=stop)


def run_job(options: argparse.Namespace, source: Callable[[argparse.Namespace], SourceConfig]) -> tuple[int, str]:
    """Run a job until its source ends or a signal comes: (exit status, one line of JSON or the error)."""
    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda _number, _frame: stopped.set())
    try:
        result = feed_existing_run(options, source(options), stopped.is_set)
    except GossipDbnError as error:
        return 1, f"{type(error).__name__}: {error}"
    return 0, json.dumps(asdict(result))
