"""What the control topic says: the manifest, snapshots, stop requests. Facts that change no training state."""

from __future__ import annotations

from dataclasses import dataclass, field

from gossipdbn.core.topics import run_names
from gossipdbn.core.values import (
    Manifest,
    ManifestRecord,
    Resumed,
    SnapshotAnnounced,
    StopRequested,
    WorkerState,
    manifest_from_json,
)
from gossipdbn.errors import ConfigError, GossipDbnError, LogError, RemoteProtocolError, RunMissing
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.ports import Log
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import decode_control

__all__ = ["Control", "load_control"]

MANIFEST_FORMAT = 1
SNAPSHOTS_MIN = 64  # announcements remembered per slot; more where more than half as many snapshots are kept


@dataclass(slots=True)
class Control:
    """The fold of the control topic.

    Attributes
    ----------
    manifest : the first valid one, or None. snapshots : per slot, the last announcements in log order; what was
    announced long before them is no longer in the store.
    stops, answered : newest stop request and newest one answered by a resume; ``stop`` if one is open.
    workers : newest statement of each worker. voids : records that were none.
    """

    run: str
    keys: envelope.Keyring = field(default_factory=dict)
    offset: int = 0
    manifest: Manifest | None = None
    snapshots: dict[int, list[SnapshotAnnounced]] = field(default_factory=dict)
    stops: int = 0
    answered: int = 0
    workers: dict[str, WorkerState] = field(default_factory=dict)
    voids: int = 0
    held: str = ""

    @property
    def stop(self) -> bool:
        return self.stops > self.answered

    def read(self, offset: int, value: bytes) -> None:
        """Take the next record; unreadable ones (format, key) are named in ``held`` and passed, they change no state.

        Raises
        ------
        ConfigError : the run's manifest is of a newer format or other numerics than this software has.
        """
        self.offset = offset + 1
        try:
            message = decode_control(value, self.keys)
        except envelope.Unreadable as e:
            self.held = str(e)
            return
        except RemoteProtocolError:
            self.voids += 1
            return
        unsigned = self.manifest is not None and self.manifest.keyed and envelope.key_id_of(value) == 0
        if message.run != self.run or unsigned:
            self.voids += 1
        elif isinstance(message, ManifestRecord):
            self._manifest(message)
        elif isinstance(message, SnapshotAnnounced):
            self._announced(message)
        elif isinstance(message, StopRequested):
            self.stops = max(self.stops, message.number)
        elif isinstance(message, Resumed):
            self.answered = max(self.answered, message.number)
        else:
            self.workers[message.worker] = message

    def _announced(self, message: SnapshotAnnounced) -> None:
        known = self.snapshots.setdefault(message.slot, [])
        known.append(message)
        kept = 0 if self.manifest is None else int(str(self.manifest.config.get("keep", 0)))
        if len(known) > max(SNAPSHOTS_MIN, 2 * kept):
            del known[0]

    def _manifest(self, record: ManifestRecord) -> None:
        if self.manifest is not None:
            return
        try:
            manifest = manifest_from_json(record.manifest)
        except ValueError:  # msgspec's errors are ValueErrors; a manifest that does not parse is not the run's
            self.voids += 1
            return
        if manifest.run != self.run:
            self.voids += 1
            return
        if manifest.format != MANIFEST_FORMAT:
            raise ConfigError(
                f"run {self.run} has a manifest of format {manifest.format}, this software knows "
                f"{MANIFEST_FORMAT}: update gossipdbn"
            )
        if manifest.numerics != NUMERICS:
            raise ConfigError(
                f"run {self.run} was made with numerics {manifest.numerics}, this software computes "
                f"{NUMERICS}: use the gossipdbn version named in the manifest ({manifest.versions})"
            )
        self.manifest = manifest

    def newest(self, slot: int) -> list[SnapshotAnnounced]:
        """The slot's snapshots, newest first."""
        return sorted(self.snapshots.get(slot, ()), key=lambda s: -s.seq)


def load_control(log: Log, run: str, keys: envelope.Keyring, prefix: str = "") -> Control:
    """Read a run's control topic to its end.

    Raises
    ------
    RunMissing : there is no such run. ConfigError : its manifest cannot be used here.
    """
    topic = run_names(run, prefix).control
    if not log.partitions(topic):
        raise RunMissing(f"there is no run {run!r} on this log (no topic {topic}); `gossipdbn runs` lists them")
    control = Control(run, keys)
    start, stop = log.offsets(topic, 0)
    for record in log.read(topic, 0, start, stop):
        control.read(record.offset, record.value)
    if control.manifest is None:
        raise _no_manifest(control, start)
    return control


def _no_manifest(control: Control, start: int) -> GossipDbnError:
    if control.held:
        return ConfigError(f"run {control.run}: {control.held}")
    if start:
        return LogError(f"run {control.run}: the control topic starts at offset {start}, its manifest is gone")
    return RunMissing(
        f"run {control.run} has no manifest yet: its start failed or is under way; try again, or start anew"
    )
