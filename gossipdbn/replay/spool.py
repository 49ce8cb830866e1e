"""A run's records in a folder: copied once from a log or unpacked from an archive, then read by many processes.

::

    index.json                 run, first offset and number of records of every partition
    updates-00003.records      per record: u32 length | i64 append time in ms | the record's exact bytes
    objects/payloads-<sha256>  spilled payloads, and the initial parameters of a child run

A spool answers the reading half of the ``Log`` port and ``get`` of a snapshot store, so that everything that reads a
run reads a spool. Topics have the run's plain names, whatever prefix they had on their cluster.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec
import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import rounds
from gossipdbn.core.revocation import Subtraction
from gossipdbn.core.topics import RunTopics, run_names
from gossipdbn.core.values import Manifest, Payload, PayloadRef, Revocation, Sealed, Update
from gossipdbn.errors import LogError, RetentionError, SnapshotCorrupt, SnapshotError, SnapshotMissing, StoreError
from gossipdbn.models.spec import parameter_count
from gossipdbn.ports import HandOver, Log, Membership, Reader, Record, SnapshotStore, TopicSpec, Writer
from gossipdbn.wire.envelope import Keyring
from gossipdbn.wire.messages import RunWire, decode_payload, payload_name

__all__ = ["INDEX", "KINDS", "Index", "Part", "Spool", "collect", "object_file", "records_file"]

INDEX = "index.json"
KINDS = ("shards", "updates", "control")
_HEAD = struct.Struct("<Iq")

Progress = Callable[[str], None]


class Part(NamedTuple):
    """One partition: its kind of topic, number, first offset kept, records, and bytes of its file."""

    kind: str
    partition: int
    first: int
    records: int
    size: int


class Index(msgspec.Struct, frozen=True):
    """What a spool holds. ``objects``: names of objects of the snapshot store."""

    run: str
    parts: tuple[Part, ...]
    objects: tuple[str, ...] = ()
    format: int = 1


def records_file(kind: str, partition: int) -> str:
    """Name of a partition's file."""
    return f"{kind}-{partition:05d}.records"


def object_file(name: str) -> str:
    """Name of an object's file: ``payloads/ab12`` becomes ``objects/payloads-ab12``."""
    return "objects/" + name.replace("/", "-")


class _Partition:
    """The records of one file, found by offset."""

    def __init__(self, path: Path, part: Part) -> None:
        self.part = part
        self._starts: NDArray[np.int64] = np.empty(0, np.int64)
        self._data: mmap.mmap | bytes = b""
        if part.size:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._scan(path)

    def _scan(self, path: Path) -> None:
        starts, at, size = [], 0, len(self._data)
        while at < size:
            if at + _HEAD.size > size:
                raise SnapshotCorrupt(f"{path.name} ends inside a record")
            length, _ = _HEAD.unpack_from(self._data, at)
            starts.append(at)
            at += _HEAD.size + length
        if at != size or len(starts) != self.part.records:
            raise SnapshotCorrupt(f"{path.name} holds {len(starts)} whole records, {self.part.records} are named")
        self._starts = np.array(starts, np.int64)

    @property
    def end(self) -> int:
        return self.part.first + self.part.records

    def get(self, offset: int) -> tuple[bytes, int]:
        at = int(self._starts[offset - self.part.first])
        length, when = _HEAD.unpack_from(self._data, at)
        return self._data[at + _HEAD.size : at + _HEAD.size + length], when


class Spool:
    """Reads a spool folder. Implements the reading half of ``Log``; writing raises LogError."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.index = msgspec.json.decode((folder / INDEX).read_bytes(), type=Index)
        except (OSError, msgspec.MsgspecError) as error:
            raise SnapshotCorrupt(f"{folder} holds no records of a run: {error}") from error
        self.run = self.index.run
        self.names: RunTopics = run_names(self.run)
        self._kinds = {self.names.shards: "shards", self.names.updates: "updates", self.names.control: "control"}
        self._parts = {(p.kind, p.partition): p for p in self.index.parts}
        self._open: dict[tuple[str, int], _Partition] = {}

    def _partition(self, topic: str, partition: int) -> _Partition:
        key = (self._kinds.get(topic, ""), partition)
        if key not in self._open:
            if key not in self._parts:
                raise LogError(f"the records of run {self.run} have no partition {partition} of {topic}")
            self._open[key] = _Partition(self.folder / records_file(*key), self._parts[key])
        return self._open[key]

    # ---- Log --------------------------------------------------------------------------------------------------------
    def topics(self) -> list[str]:
        return sorted(self._kinds)

    def partitions(self, topic: str) -> int:
        kind = self._kinds.get(topic, "")
        return sum(k == kind for k, _ in self._parts)

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        found = self._partition(topic, partition)
        return found.part.first, found.end

    def read(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        found = self._partition(topic, partition)
        if start < stop and (start < found.part.first or stop > found.end):
            raise RetentionError(
                f"{topic} partition {partition} holds {found.part.first}..{found.end - 1}, not {start}"
            )
        for offset in range(start, stop):
            value, when = found.get(offset)
            yield Record(topic, partition, offset, value, when)

    def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        self._read_only()

    def reader(self, eager: bool = True) -> Reader:
        self._read_only()

    def writer(self, acknowledged: Callable[[Record], None] | None = None) -> Writer:
        self._read_only()

    def membership(
        self, group: str, topic: str, member: str, hand_over: HandOver = lambda _slots: None
    ) -> Membership:
        self._read_only()

    def _read_only(self) -> NoReturn:
        raise LogError(f"the records of run {self.run} are a copy: nothing can join or change them")

    def close(self) -> None:
        self._open.clear()

    # ---- what replay needs ------------------------------------------------------------------------------------------
    def record(self, partition: int, offset: int) -> bytes | None:
        """The record of the updates topic at ``offset``; None at the end. Raises RetentionError before the start."""
        found = self._partition(self.names.updates, partition)
        if offset >= found.end:
            return None
        if offset < found.part.first:
            raise RetentionError(
                f"updates partition {partition} starts at offset {found.part.first}: what came before was trimmed"
            )
        return found.get(offset)[0]

    def time_ms(self, partition: int, offset: int) -> int:
        """When the log took a record of the updates topic."""
        return self._partition(self.names.updates, partition).get(offset)[1]

    def get(self, name: str, max_bytes: int) -> bytes:
        """An object of the run's snapshot store that came along."""
        path = self.folder / object_file(name)
        if name not in self.index.objects:
            raise SnapshotMissing(f"{name} is not among the records of run {self.run}")
        if path.stat().st_size > max_bytes:
            raise SnapshotCorrupt(f"{name} has {path.stat().st_size} bytes, expected at most {max_bytes}")
        return path.read_bytes()


def collect(
    log: Log, manifest: Manifest, store: SnapshotStore, keys: Keyring, folder: Path, prefix: str = "",
    on_progress: Progress = lambda _text: None,
) -> Spool:  # fmt: skip
    """Copy all records of a run, up to the ends the partitions have now, and the objects they name.

    Parameters
    ----------
    folder : an empty or new folder. prefix : of the topics' names on ``log``.

    Raises
    ------
    LogError : the log cannot be read. Objects that the store lacks are left out, and whoever needs one says so; but a
        revocation's payload is added up again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, wire = run_names(manifest.run, prefix), RunWire(0, keys)
    parts: list[Part] = []
    wanted: dict[str, int] = {}
    revoked: dict[str, Revocation] = {}
    if manifest.parent is not None:
        wanted[rounds.parameters_name(manifest.parent)] = 4 * parameter_count(manifest.spec)
    counts = {"updates": manifest.slots + 1, "shards": manifest.slots, "control": 1}
    for kind, topic in (("updates", names.updates), ("shards", names.shards), ("control", names.control)):
        for partition in range(counts[kind]):
            first, end = log.offsets(topic, partition)
            on_progress(f"reading {topic} partition {partition}: {end - first} records")
            with (folder / records_file(kind, partition)).open("wb") as file:
                for record in log.read(topic, partition, first, end):
                    file.write(_HEAD.pack(len(record.value), record.timestamp_ms))
                    file.write(record.value)
                    m = _by_reference(wire, record.value) if kind == "updates" else None
                    if m is not None and m.payload_ref is not None:
                        wanted[payload_name(m.payload_ref)] = m.payload_ref.size
                        revoked |= {payload_name(m.payload_ref): m} if isinstance(m, Revocation) else {}
                parts.append(Part(kind, partition, first, end - first, file.tell()))
    spool = _indexed(manifest.run, parts, _objects(store, wanted, folder), folder)
    missing = {name: m for name, m in revoked.items() if name not in spool.index.objects}
    found = [name for name, m in missing.items() if _add_up(manifest, m, wire, spool)]
    return _indexed(manifest.run, parts, tuple(sorted((*spool.index.objects, *found))), folder) if found else spool


def _indexed(run: str, parts: list[Part], objects: tuple[str, ...], folder: Path) -> Spool:
    index = Index(run, tuple(parts), objects)
    (folder / INDEX).write_bytes(msgspec.json.format(msgspec.json.encode(index), indent=1))
    return Spool(folder)


def _by_reference(wire: RunWire, raw: bytes) -> Update | Revocation | None:
    """A record's message, if its payload is an object of the store."""
    decoded = wire.decode(raw)
    m = decoded.message if isinstance(decoded, Sealed) else None
    return m if isinstance(m, Update | Revocation) and m.payload_ref is not None else None


def _add_up(manifest: Manifest, m: Revocation, wire: RunWire, spool: Spool) -> bool:
    """Make a revocation's payload again from the records of the updates it names; whether that was possible."""

    def fetch(ref: PayloadRef) -> Payload | None:
        try:
            return decode_payload(ref, spool.get(payload_name(ref), ref.size))
        except SnapshotError:
            return None

    work, payload = Subtraction(manifest, m, wire, spool.record, fetch), None
    try:
        while payload is None:
            payload = work.advance()
    except LogError:
        return False
    ref, data = wire.pack_payload(payload)
    if ref != m.payload_ref:
        return False
    (spool.folder / object_file(payload_name(ref))).write_bytes(data)
    return True


def _objects(store: SnapshotStore, wanted: dict[str, int], folder: Path) -> tuple[str, ...]:
    (folder / "objects").mkdir(exist_ok=True)
    have = []
    for name, size in sorted(wanted.items()):
        try:
            data = store.get(name, size)
        except (SnapshotError, StoreError):
            continue
        (folder / object_file(name)).write_bytes(data)
        have.append(name)
    return tuple(have)
