"""The seams between the drivers and the world: what a log, a snapshot store and a clock must offer.

The Kafka adapter, the in-memory log and the simulator each implement these; the drivers know nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple, Protocol

from gossipdbn.core.topics import TopicSpec as TopicSpec  # noqa: PLC0414 - part of this interface


class Record(NamedTuple):
    """One record as a log holds it."""

    topic: str
    partition: int
    offset: int
    value: bytes
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class SlotAssigned:
    """The group gave this member a partition of the shards topic: it shall host that slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class SlotRevoked:
    """The group took a partition away; ``lost`` when the member had already been expelled."""

    slot: int
    lost: bool = False


class Reader(Protocol):
    """Reads chosen partitions from chosen offsets; never a group member. One thread uses it."""

    def add(self, topic: str, partition: int, offset: int) -> None:
        """Start (or restart) reading ``partition`` at ``offset``."""

    def remove(self, topic: str, partition: int) -> None:
        """Stop reading ``partition``; nothing of it is returned afterwards."""

    def poll(self, timeout_s: float, max_records: int = 500) -> list[Record]:
        """Up to ``max_records`` records, each partition's in offset order without gaps.

        Raises RetentionError when a wanted offset is gone, LogError when the log cannot be read for good.
        """

    def close(self) -> None: ...


class Writer(Protocol):
    """Appends records with acknowledgement by all in-sync replicas. After one failure it is unusable (fenced)."""

    def send(self, topic: str, partition: int, value: bytes) -> None:
        """Queue a record; order per partition is kept. Raises LogError when the queue is full or it is broken."""

    def failure(self) -> str | None:
        """Why the writer is broken (a send was given up, a fatal error), or None. Serves delivery reports."""

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything sent is acknowledged; False at the timeout."""

    def close(self) -> None: ...


HandOver = Callable[[list[int]], None]
"""Called from within ``Membership.poll`` with slots that shall move, before anybody else is given them."""


class Membership(Protocol):
    """Membership of the group that spreads slots over live workers (cooperative; nothing is committed)."""

    def poll(self, timeout_s: float) -> list[SlotAssigned | SlotRevoked]: ...

    def close(self) -> None:
        """Leave the group at once, so that others take over without waiting for the session timeout."""


class Log(Protocol):
    """A set of topics: Kafka, or the in-memory log."""

    def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create missing topics and wait until they are usable; raises LogError when one exists with other shape."""

    def topics(self) -> list[str]: ...

    def partitions(self, topic: str) -> int:
        """Number of partitions; 0 when the topic does not exist."""

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        """(first offset kept, offset after the last record)."""

    def read(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        """Records start..stop-1; raises RetentionError when some are gone. Blocks until they are read."""

    def reader(self, eager: bool = True) -> Reader:
        """Not eager: records may come a quarter of a second later, many at a time, at less cost to the brokers."""
        ...

    def writer(self, acknowledged: Callable[[Record], None] | None = None) -> Writer:
        """``acknowledged`` hears of each record that the log took, from within the writer's other calls.

        Its offset is negative where the log does not say, after a repeated send.
        """
        ...

    def membership(
        self, group: str, topic: str, member: str, hand_over: HandOver = lambda _slots: None
    ) -> Membership: ...

    def close(self) -> None: ...


class SnapshotStore(Protocol):
    """Named immutable objects with atomic publication: a name is absent or whole, never half."""

    def put(self, name: str, data: bytes | BinaryIO) -> None:
        """Publish bytes, or what a file holds; a name that exists already is left as it is. Raises StoreError."""

    def get(self, name: str, max_bytes: int) -> bytes:
        """The whole object. Raises SnapshotMissing, SnapshotCorrupt (longer than ``max_bytes``), StoreError."""

    def names(self, prefix: str = "") -> list[str]: ...

    def delete(self, name: str) -> None:
        """Remove; absent names are fine."""

    def url(self) -> str: ...


class Clock(Protocol):
    """Time as the drivers see it; the core sees only ticks."""

    def monotonic_s(self) -> float: ...

    def background_s(self) -> float:
        """CPU seconds that other threads of this process have used so far: Kafka's clients, mostly."""
        ...

    def wall_ms(self) -> int: ...
