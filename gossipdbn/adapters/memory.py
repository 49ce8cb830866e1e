"""The log and the store in memory: the same ports as Kafka and HDFS, for one process. Used by tests and by replay.

Everything is at hand at once: a record is readable as soon as it is sent, membership is spread evenly and changes when
members come and go. Faults are the simulator's business, not this adapter's.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

from gossipdbn.adapters.stores import whole
from gossipdbn.errors import LogError, RetentionError, SnapshotCorrupt, SnapshotMissing
from gossipdbn.ports import HandOver, Record, SlotAssigned, SlotRevoked, TopicSpec

__all__ = ["MemoryLog", "MemoryStore"]


class MemoryLog:
    """Topics as lists of bytes. Thread-safe; share one object between workers."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.data: dict[str, list[list[tuple[bytes, int]]]] = {}
        self.groups: dict[tuple[str, str], list[_MemoryMembership]] = defaultdict(list)

    def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        with self.lock:
            for t in topics:
                have = self.data.setdefault(t.name, [[] for _ in range(t.partitions)])
                if len(have) != t.partitions:
                    raise LogError(f"topic {t.name} has {len(have)} partitions, the run needs {t.partitions}")

    def topics(self) -> list[str]:
        return sorted(self.data)

    def partitions(self, topic: str) -> int:
        return len(self.data.get(topic, ()))

    def _partition(self, topic: str, partition: int) -> list[tuple[bytes, int]]:
        if topic not in self.data or not 0 <= partition < len(self.data[topic]):
            raise LogError(f"topic {topic} has no partition {partition}")
        return self.data[topic][partition]

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        return 0, len(self._partition(topic, partition))

    def append(self, topic: str, partition: int, value: bytes) -> int:
        """Append one record; returns its offset."""
        with self.lock:
            records = self._partition(topic, partition)
            records.append((bytes(value), time.time_ns() // 1_000_000))
            return len(records) - 1

    def read(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        records = self._partition(topic, partition)
        if stop > len(records):
            raise RetentionError(f"{topic} partition {partition} ends at {len(records)}, needed {stop}")
        for offset in range(start, stop):
            value, ts = records[offset]
            yield Record(topic, partition, offset, value, ts)

    def reader(self, eager: bool = True) -> _MemoryReader:
        return _MemoryReader(self)

    def writer(self, acknowledged: Callable[[Record], None] | None = None) -> _MemoryWriter:
        return _MemoryWriter(self, acknowledged)

    def membership(
        self, group: str, topic: str, member: str, hand_over: HandOver = lambda _slots: None
    ) -> _MemoryMembership:
        m = _MemoryMembership(self, (group, topic), member, hand_over)
        with self.lock:
            self.groups[group, topic].append(m)
            self.rebalance((group, topic))
        return m

    def rebalance(self, key: tuple[str, str]) -> None:
        """Spread partitions evenly, moving as few as possible."""
        members = self.groups[key]
        if not members:
            return
        n = self.partitions(key[1])
        quota = -(-n // len(members))
        free = set(range(n))
        for m in members:
            keep = sorted(m.owns)[:quota]
            for p in m.owns - set(keep):
                m.events.append(SlotRevoked(p))
                m.letting_go.add(p)
            m.owns = set(keep)
            free -= m.owns
        held = {p for m in members for p in m.letting_go}
        for p in sorted(free):
            m = min(members, key=lambda x: len(x.owns))
            m.owns.add(p)
            if p not in held:  # else when its owner has let go of it
                m.events.append(SlotAssigned(p))

    def close(self) -> None:
        """Nothing to close: the data stay with the object."""


class _MemoryReader:
    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self._at: dict[tuple[str, int], int] = {}

    def add(self, topic: str, partition: int, offset: int) -> None:
        self._at[topic, partition] = offset

    def remove(self, topic: str, partition: int) -> None:
        self._at.pop((topic, partition), None)

    def poll(self, timeout_s: float, max_records: int = 500) -> list[Record]:
        out = self._take(max_records)
        if not out and timeout_s > 0:
            time.sleep(min(timeout_s, 0.001))
            out = self._take(max_records)
        return out

    def _take(self, limit: int) -> list[Record]:
        out: list[Record] = []
        with self._log.lock:
            for (topic, partition), start in list(self._at.items()):
                end = self._log.offsets(topic, partition)[1]
                stop = min(end, start + limit - len(out))
                out += self._log.read(topic, partition, start, max(start, stop))
                self._at[topic, partition] = max(start, stop)
        return out

    def close(self) -> None:
        self._at.clear()


class _MemoryWriter:
    def __init__(self, log: MemoryLog, acknowledged: Callable[[Record], None] | None = None) -> None:
        self._log, self._acknowledged, self._broken = log, acknowledged, ""

    def send(self, topic: str, partition: int, value: bytes) -> None:
        if self._broken:
            raise LogError(self._broken)
        offset = self._log.append(topic, partition, value)
        if self._acknowledged is not None:
            self._acknowledged(next(self._log.read(topic, partition, offset, offset + 1)))

    def failure(self) -> str | None:
        return self._broken or None

    def flush(self, timeout_s: float) -> bool:
        return not self._broken

    def close(self) -> None:
        self._broken = "the writer is closed"


class _MemoryMembership:
    def __init__(self, log: MemoryLog, key: tuple[str, str], member: str, hand_over: HandOver) -> None:
        self._log, self._key, self.member, self._hand_over = log, key, member, hand_over
        self.owns: set[int] = set()
        self.letting_go: set[int] = set()
        self.events: list[SlotAssigned | SlotRevoked] = []

    def poll(self, timeout_s: float) -> list[SlotAssigned | SlotRevoked]:
        with self._log.lock:
            out, self.events = self.events, []
        moving = [e.slot for e in out if isinstance(e, SlotRevoked)]
        if moving:
            self._hand_over(moving)
            self._let_go(moving)
        return out

    def _let_go(self, slots: Iterable[int]) -> None:
        with self._log.lock:
            for slot in slots:
                self.letting_go.discard(slot)
                for m in self._log.groups[self._key]:
                    if slot in m.owns:
                        m.events.append(SlotAssigned(slot))

    def close(self) -> None:
        with self._log.lock:
            if self in self._log.groups[self._key]:
                self._log.groups[self._key].remove(self)
                self._let_go(list(self.letting_go))
                self._log.rebalance(self._key)


class MemoryStore:
    """Named objects in a dictionary."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def put(self, name: str, data: bytes | BinaryIO) -> None:
        self.objects.setdefault(name, whole(data))

    def get(self, name: str, max_bytes: int) -> bytes:
        if name not in self.objects:
            raise SnapshotMissing(f"no object {name} in memory")
        if len(self.objects[name]) > max_bytes:
            raise SnapshotCorrupt(f"object {name} has {len(self.objects[name])} bytes, expected at most {max_bytes}")
        return self.objects[name]

    def names(self, prefix: str = "") -> list[str]:
        return sorted(n for n in self.objects if n.startswith(prefix))

    def delete(self, name: str) -> None:
        self.objects.pop(name, None)

    def url(self) -> str:
        return "memory://"
