"""Brokers, network and store of the simulated world: logs that grow, late deliveries, objects that vanish.

A record sent by a worker is on its way for a while, then appended; a record appended reaches each reader later still.
Order is kept per writer and partition, and per reader and partition, as Kafka keeps it; nothing else is in order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from gossipdbn.errors import RetentionError, SnapshotCorrupt, SnapshotMissing, StoreError

__all__ = ["CONTROL", "SHARDS", "UPDATES", "Appended", "Log", "Store", "Writer"]

UPDATES, CONTROL, SHARDS = "updates", "control", "shards"
Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Appended:
    """A record in the log and who sent it."""

    raw: bytes
    sender: str


class Timeline(Protocol):
    """What brokers need of the world: time, dice, later."""

    now_s: float

    def later(self, delay_s: float, what: Callable[[], object]) -> None: ...

    def delay(self) -> float: ...

    def uniform(self) -> float: ...


class Log:
    """Topics of one run."""

    def __init__(self, slots: int, world: Timeline, appended: Callable[[str, int, int, bytes, str], None]) -> None:
        counts = {UPDATES: slots + 1, CONTROL: 1, SHARDS: slots}
        self.records: dict[Key, list[Appended]] = {(t, p): [] for t, n in counts.items() for p in range(n)}
        self.first: dict[Key, int] = dict.fromkeys(self.records, 0)
        self.away_until_s: dict[Key, float] = dict.fromkeys(self.records, 0.0)
        self.repeat_until_s = 0.0
        self._world, self._appended = world, appended

    def reachable(self, key: Key) -> bool:
        """Whether the partition's leader answers now."""
        return self._world.now_s >= self.away_until_s[key]

    def end(self, topic: str, partition: int) -> int:
        """The offset after the last record."""
        return len(self.records[topic, partition])

    def record(self, topic: str, partition: int, offset: int) -> bytes | None:
        """The record at an offset, None at the end; raises RetentionError below the first kept one."""
        key = (topic, partition)
        if offset < self.first[key]:
            raise RetentionError(f"{topic} {partition} begins at {self.first[key]}, needed {offset}")
        records = self.records[key]
        return records[offset].raw if offset < len(records) else None

    def append(self, topic: str, partition: int, raw: bytes, sender: str) -> int:
        """Append as soon as the leader is there; twice while repeating. Returns where it stands, or -1."""
        key = (topic, partition)
        if not self.reachable(key):
            wait = self.away_until_s[key] - self._world.now_s
            self._world.later(wait + 1e-6, lambda: self.append(topic, partition, raw, sender))
            return -1
        offset = self._put(key, raw, sender)
        if self._world.now_s < self.repeat_until_s and self._world.uniform() < 0.5:
            self._world.later(self._world.delay() * 3, lambda: self._put(key, raw, sender))
            return -1  # as brokers do not say of one they have
        return offset

    def _put(self, key: Key, raw: bytes, sender: str) -> int:
        offset = len(self.records[key])
        self.records[key].append(Appended(raw, sender))
        self._appended(key[0], key[1], offset, raw, sender)
        return offset


@dataclass(slots=True)
class Writer:
    """One producer: keeps order per partition; once broken it takes nothing, and what it holds is lost or late."""

    log: Log
    world: Timeline
    sender: str
    reachable: Callable[[], float]
    acknowledged: Callable[[int, int, bytes, Writer], None]
    broken: str = ""
    closed: bool = False
    held: dict[Key, list[bytes]] = field(default_factory=dict)
    _busy: set[Key] = field(default_factory=set)

    def send(self, topic: str, partition: int, raw: bytes) -> None:
        """Queue a record."""
        if self.closed or self.broken:
            return
        self.held.setdefault((topic, partition), []).append(raw)
        self._start((topic, partition))

    def _start(self, key: Key) -> None:
        if key not in self._busy and self.held.get(key):
            self._busy.add(key)
            self.world.later(self.world.delay(), lambda: self._arrive(key))

    def _arrive(self, key: Key) -> None:
        self._busy.discard(key)
        queue = self.held.get(key)
        if not queue:
            return
        cut_s = self.reachable()
        if cut_s > 0 or not self.log.reachable(key):
            wait = max(cut_s, self.log.away_until_s[key] - self.world.now_s) + 1e-6
            self._busy.add(key)
            self.world.later(wait, lambda: self._arrive(key))
            return
        raw = queue.pop(0)
        offset = self.log.append(*key, raw, self.sender)
        if key[0] == UPDATES:
            self.world.later(self.world.delay(), lambda: self.acknowledged(key[1], offset, raw, self))
        self._start(key)

    def held_anything(self) -> bool:
        """Whether a record is still on its way."""
        return not self.closed and any(self.held.values())

    def give_up(self, keep: float) -> None:
        """Take nothing more. Of each partition's queue a share ``keep``, its first records, still arrives."""
        self.closed = True
        for queue in self.held.values():
            del queue[round(len(queue) * keep) :]


class Store:
    """Named objects, whole or absent; what is stored becomes visible to others a little later.

    ``ever``: all that was ever stored, for a judge who forgets nothing.
    """

    def __init__(self, world: Timeline) -> None:
        self.objects: dict[str, bytes] = {}
        self.ever: dict[str, bytes] = {}
        self.visible_s: dict[str, float] = {}
        self.torn_next = False
        self._world = world

    def put(self, name: str, data: bytes, lag_s: float) -> None:
        """Publish atomically. A torn write leaves nothing under the name and raises StoreError."""
        if self.torn_next:
            self.torn_next = False
            raise StoreError(f"writing {name} stopped half way", retryable=True)
        if name not in self.objects:
            self.objects[name] = self.ever[name] = data
            self.visible_s[name] = self._world.now_s + lag_s

    def get(self, name: str) -> bytes:
        """The object; raises SnapshotMissing while it cannot be seen."""
        if name not in self.objects or self._world.now_s < self.visible_s[name]:
            raise SnapshotMissing(f"no object {name}")
        return self.objects[name]

    def get_sized(self, name: str, max_bytes: int) -> bytes:
        """The object, refused when it is longer than expected."""
        data = self.get(name)
        if len(data) > max_bytes:
            raise SnapshotCorrupt(f"object {name} has {len(data)} bytes, expected {max_bytes}")
        return data

    def delete(self, name: str) -> None:
        """Remove an object, if it is there."""
        self.objects.pop(name, None)
