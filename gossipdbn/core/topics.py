"""The three topics of a run: their names, partitions and settings (protocol, section 4)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from gossipdbn.errors import ConfigError

__all__ = ["MESSAGE_BYTES_MAX", "SHARD_BYTES_MAX", "RunTopics", "TopicSpec", "run_names", "run_of", "run_topics"]

SHARD_BYTES_MAX = 8 << 20
"""Largest record of a shards topic, bytes."""
MESSAGE_BYTES_MAX = 1 << 20
"""Largest record of an updates or control topic, bytes."""
_OVERHEAD = 1 << 16  # batch headers and keys around a record
_NAME = re.compile(r"[A-Za-z0-9._-]{1,200}")
_CONTROL = ".control"


@dataclass(frozen=True, slots=True)
class RunTopics:
    """Names of a run's topics and of the group that spreads its slots over workers."""

    shards: str
    updates: str
    control: str
    group: str


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to create: its name, number of partitions and settings (Kafka's configuration keys)."""

    name: str
    partitions: int
    config: tuple[tuple[str, str], ...] = ()


def run_names(run: str, prefix: str = "") -> RunTopics:
    """Names of the topics of ``run``; raises ConfigError when they cannot be Kafka topics."""
    base = prefix + run
    if not run or not _NAME.fullmatch(base):
        raise ConfigError(
            f"run: {base!r} cannot name topics; use 1 to 200 letters, digits, '.', '_' or '-' (with the topic prefix)"
        )
    return RunTopics(f"{base}.shards", f"{base}.updates", base + _CONTROL, f"{base}.slots")


def run_topics(run: str, slots: int, prefix: str = "") -> list[TopicSpec]:
    """The topics of a run with ``slots`` slots. Updates have one partition more, which is the operator's."""
    if slots < 1:
        raise ConfigError(f"slots: {slots} is not allowed; a run has at least one slot")
    names = run_names(run, prefix)
    kept = (("cleanup.policy", "delete"), ("retention.bytes", "-1"), ("retention.ms", "-1"))
    message = ("max.message.bytes", str(MESSAGE_BYTES_MAX + _OVERHEAD))
    return [
        TopicSpec(names.shards, slots, (*kept, ("max.message.bytes", str(SHARD_BYTES_MAX + _OVERHEAD)))),
        TopicSpec(
            names.updates,
            slots + 1,
            (*kept, message, ("compression.type", "uncompressed"), ("message.timestamp.type", "LogAppendTime")),
        ),
        TopicSpec(names.control, 1, (*kept, message)),
    ]


def run_of(control_topic: str, prefix: str = "") -> str | None:
    """The run whose control topic this is, or None."""
    if control_topic.startswith(prefix) and control_topic.endswith(_CONTROL):
        return control_topic[len(prefix) : -len(_CONTROL)] or None
    return None
