"""Writes events of sixteen pretended sensors to a Kafka topic until Ctrl-C: something for examples/live.toml to learn.

usage: python examples/produce_events.py [--bootstrap HOST:PORT] [--topic events] [--per-second 500] [--seconds 0]
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time

import numpy as np
from confluent_kafka import Producer

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.config import default_home
from gossipdbn.embedded import broker
from gossipdbn.ports import TopicSpec

SENSORS = 16


def events(seed: int = 1):
    """Endless rows: three hidden causes, each seen by several sensors, and noise."""
    draw = np.random.default_rng(seed)
    mixing = draw.normal(size=(3, SENSORS))
    while True:
        values = draw.normal(size=3) @ mixing + 0.3 * draw.normal(size=SENSORS)
        yield {f"sensor{i}": round(float(v), 4) for i, v in enumerate(values)}


def main() -> None:
    """Write events at a steady rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bootstrap", default="", help="brokers; default: the embedded one that runs here")
    parser.add_argument("--topic", default="events")
    parser.add_argument("--per-second", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=0.0, help="end after this long; 0: never")
    options = parser.parse_args()
    if not options.bootstrap:
        own = broker.running(default_home(os.environ).broker)
        if own is None:
            sys.exit("no embedded broker runs here: gossipdbn up, or --bootstrap HOST:PORT")
        options.bootstrap = own.bootstrap
    log = KafkaLog(options.bootstrap)
    log.create_topics([TopicSpec(options.topic, 4)])
    log.close()
    producer = Producer({"bootstrap.servers": options.bootstrap, "linger.ms": 20})
    began = time.monotonic()
    try:
        for n, event in enumerate(events()):
            event["time"] = round(time.time(), 3)
            producer.produce(options.topic, json.dumps(event))
            producer.poll(0)
            ahead = n / options.per_second - (time.monotonic() - began)
            if ahead > 0.05:
                time.sleep(ahead)
            if options.seconds and time.monotonic() - began > options.seconds:
                break
    except KeyboardInterrupt:
        pass
    producer.flush(10)


if __name__ == "__main__":
    main()
