"""Get hold of a run for commands that look back at it: on a cluster, on the embedded broker, or in an archive file."""

from __future__ import annotations

import contextlib
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.stores import open_store
from gossipdbn.config import Home, RunConfig
from gossipdbn.core.values import Manifest
from gossipdbn.errors import ConfigError
from gossipdbn.launch.look import find_run
from gossipdbn.launch.runs import RunInfo, create_run, list_runs, software
from gossipdbn.launch.train import load_remembered, whose_broker
from gossipdbn.ports import SnapshotStore
from gossipdbn.replay import archive
from gossipdbn.replay.fork import child_manifest, child_parameters
from gossipdbn.replay.history import History, LoggedRun, open_run
from gossipdbn.replay.moments import Moment, Timeline
from gossipdbn.replay.operator import Operator
from gossipdbn.replay.spool import collect
from gossipdbn.wire.envelope import Keyring
from gossipdbn.wire.messages import RunWire
from gossipdbn.worker.control import Control, load_control
from gossipdbn.worker.process import run_settings

__all__ = ["Connected", "Recorded", "Where", "connected", "fork", "pack", "recorded"]

Say = Callable[[str], None]
TELL_S = 5.0


@dataclass(frozen=True, slots=True)
class Where:
    """What a command was told about the cluster.

    ``bootstrap``: "" = where the run was started from here, else the embedded broker. ``kafka``: librdkafka's settings.
    """

    home: Home
    bootstrap: str = ""
    prefix: str = ""
    keys: Keyring = field(default_factory=dict, repr=False)
    key_id: int = 0
    kafka: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Connected:
    """A run on a live log."""

    where: Where
    log: KafkaLog
    control: Control
    manifest: Manifest
    store: SnapshotStore

    def operator(self, name: str) -> Operator:
        """Who may revoke and give up, signing with the command's key."""
        wire = RunWire(self.where.key_id, self.where.keys)
        return Operator(self.log, self.manifest, self.store, wire, name, self.where.prefix)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A run's records at hand; ``facts``: what an archive says of itself, None for a copy of a live log."""

    run: LoggedRun
    facts: archive.ArchiveFacts | None = None


def _address(where: Where, wanted: str) -> str:
    """The cluster a run was started on from here; "" = the embedded broker."""
    try:
        facts = msgspec.json.decode(where.home.run(wanted).facts.read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return ""
    return "" if facts.get("embedded") else str(facts.get("bootstrap", ""))


@contextlib.contextmanager
def connected(where: Where, wanted: str, say: Say) -> Iterator[Connected]:
    """A run on its log; ``wanted`` is an id or its beginning, "" = the newest run there.

    Raises
    ------
    ConfigError : there is no such run.
    """
    address = where.bootstrap or (_address(where, wanted) if wanted else "")
    with whose_broker(where.home, address, "", say) as bootstrap:
        log = KafkaLog(bootstrap, kafka=where.kafka)
        try:
            run = find_run(log, wanted, where.prefix) if wanted else _newest(log, where)
            control = load_control(log, run, where.keys, where.prefix)
            assert control.manifest is not None
            store = open_store(str(run_settings(control.manifest)["store"]))
            yield Connected(where, log, control, control.manifest, store)
        finally:
            log.close()


def _newest(log: KafkaLog, where: Where) -> str:
    for found in list_runs(log, where.prefix, where.keys):
        if isinstance(found, RunInfo):
            return found.run
    raise ConfigError("--last: there is no run on this log yet; `gossipdbn train` makes one")


@contextlib.contextmanager
def recorded(where: Where, wanted: str, say: Say) -> Iterator[Recorded]:
    """A run's records in a temporary folder: an archive's if ``wanted`` is a file, else copied from its log."""
    with tempfile.TemporaryDirectory(prefix="gossipdbn-replay-") as folder:
        path = Path(wanted)
        if wanted and path.is_file():
            spool, facts = archive.unpack(path, Path(folder))
            say(f"run {spool.run} from {path}")
            yield Recorded(open_run(Path(folder), where.keys), facts)
            return
        if wanted.endswith((".zip", ".gossip")):
            raise ConfigError(f"there is no archive {path}")
        with connected(where, wanted, say) as live:
            say(f"copying the records of run {live.manifest.run}")
            collect(live.log, live.manifest, live.store, where.keys, Path(folder), where.prefix, _now_and_then(say))
        yield Recorded(open_run(Path(folder), where.keys))


def _now_and_then(say: Say) -> Say:
    told_s = [time.monotonic()]

    def on_progress(text: str) -> None:
        if time.monotonic() - told_s[0] >= TELL_S:
            told_s[0] = time.monotonic()
            say(text)

    return on_progress


def pack(history: History, path: Path) -> tuple[archive.ArchiveFacts, str]:
    """Write an archive of a judged run; returns what it says of itself and the file's SHA-256."""
    machine = f"{platform.system()} {platform.machine()}, Python {platform.python_version()}"
    facts = archive.describe(history, software(), machine)
    return facts, archive.write(history.run.spool, facts, path)


def fork(
    live: Connected, timeline: Timeline, moment: Moment, child: str, created_ms: int, *, slots: int | None = None,
    config: RunConfig | None = None,
) -> Manifest:  # fmt: skip
    """Create a child run that starts from a moment of its parent, on the same log.

    Parameters
    ----------
    config : plan, slots and store of the child; None = the parent's.

    Raises
    ------
    ConfigError : the plan does not fit, or a run of that name exists.
    """
    home = live.where.home
    folder = home.run(child)
    store = str(run_settings(live.manifest)["store"])
    if config is not None and config.snapshots.store:
        store = config.snapshots.store
    elif Path(store) == home.run(live.manifest.run).snapshots:
        store = str(folder.snapshots)
    data, origin = child_parameters(timeline, moment)
    manifest, name = child_manifest(
        live.manifest, child, origin, slots=slots or (config.run.slots if config else None),
        phases=config.phases if config else None, software=software(), store=store, created_ms=created_ms,
    )  # fmt: skip
    open_store(store).put(name, data)
    create_run(live.log, manifest, live.where.prefix, live.where.key_id, live.where.keys)
    _remember(live, child, config)
    return manifest


def _remember(live: Connected, child: str, config: RunConfig | None) -> None:
    """Keep the child's configuration where ``train --resume`` looks for it, if there is one."""
    home, parent = live.where.home, live.manifest.run
    folder, facts = home.run(child), home.run(parent).facts
    try:
        text = config.text if config is not None else load_remembered(home, parent)[0].text
        known = msgspec.json.decode(facts.read_bytes(), type=dict[str, object])
    except (ConfigError, OSError, msgspec.MsgspecError):
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(text)
    folder.facts.write_bytes(msgspec.json.encode({**known, "run": child, "parent": parent}))
