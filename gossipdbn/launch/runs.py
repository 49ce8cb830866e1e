"""Runs on a log: create one from a configuration, list them, ask one to stop, let it go on."""

from __future__ import annotations

import datetime as dt
import hashlib
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import msgspec

from gossipdbn.config import RunConfig
from gossipdbn.core.topics import run_names, run_of, run_topics
from gossipdbn.core.values import Manifest, ManifestRecord, Resumed, StopRequested, manifest_json
from gossipdbn.errors import ConfigError, GossipDbnError, LogError, RunMissing
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.spec import ModelSpec, parameter_count
from gossipdbn.ports import Log, TopicSpec
from gossipdbn.schema import Schema, model_units, schema_to_dict
from gossipdbn.wire.envelope import NO_KEYS, Keyring
from gossipdbn.wire.messages import encode_control
from gossipdbn.worker.control import Control, load_control

__all__ = [
    "RunInfo",
    "build_manifest",
    "create_run",
    "list_runs",
    "new_run_id",
    "request_stop",
    "resume_run",
    "software",
]

_PACKAGES = ("gossipdbn", "numpy", "numba", "llvmlite", "confluent-kafka", "pyspark", "safetensors", "msgspec")
CODECS = {"exact": 0, "ternary": 1, "int8": 2}


def software() -> dict[str, str]:
    """Versions of the packages that matter for a run, and of Python."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def new_run_id(name: str, wall_ms: int) -> str:
    """``name-YYYYmmdd-HHMMSS`` in UTC: sorts by time, is a valid topic name."""
    return f"{name}-{dt.datetime.fromtimestamp(wall_ms / 1000, dt.UTC):%Y%m%d-%H%M%S}"


def build_manifest(config: RunConfig, schema: Schema, run: str, store: str, created_ms: int) -> Manifest:
    """The manifest of a new run.

    Raises
    ------
    ConfigError : the configuration and what the data turned out to be do not fit together.
    """
    visible, units, binary, classes = model_units(schema)
    wanted = config.model.classes
    if wanted and not classes:
        raise ConfigError(f"model.classes: found {wanted}, but the source has no labels (source.labels, schema.label)")
    if wanted and classes != wanted:
        raise ConfigError(
            f"model.classes: found {wanted}, the source has {classes} classes: {', '.join(schema.classes)}"
        )
    model = config.model
    spec = ModelSpec(visible, model.hidden, units, wanted, binary, model.hidden_units, model.loss)
    rows_max = max(p.tau * p.batch for p in config.phases)
    seed = hashlib.sha256(f"gossipdbn {config.run.seed}".encode()).digest()
    return Manifest(
        run=run,
        slots=config.run.slots,
        spec=spec,
        phases=config.phases,
        run_key=int.from_bytes(seed[:8], "little"),
        visible_mean=schema.visible_mean.astype("<f4").tobytes(),
        numerics=NUMERICS,
        codec=CODECS[config.exchange.codec],
        e_max=config.exchange.e_max,
        pending=config.exchange.pending,
        gate=config.run.gate,
        round_rows_max=16 * rows_max,
        inline_bytes=config.exchange.inline_bytes,
        schema=schema_to_dict(schema),
        versions=software(),
        config={
            "store": store,
            "failure_every_s": config.snapshots.failure_every_seconds,
            "snapshot_every_s": config.snapshots.every_seconds,
            "keep": config.snapshots.keep,
            "session_timeout_ms": config.worker.session_timeout_ms,
            "memory_mb": config.worker.memory_mb or 1024,
            "communication_share": config.worker.communication_share,
        },
        created_ms=created_ms,
    )


def create_run(log: Log, manifest: Manifest, prefix: str = "", key_id: int = 0, keys: Keyring = NO_KEYS) -> None:
    """Make the run's topics and publish its manifest, which then never changes.

    Raises
    ------
    ConfigError : a run of that id exists, or the cluster's limits are too small.
    """
    names = run_names(manifest.run, prefix)
    if log.partitions(names.control) and log.offsets(names.control, 0)[1]:
        raise ConfigError(
            f"run {manifest.run} exists already; choose another id, or `gossipdbn train --resume {manifest.run}`"
        )
    log.create_topics(
        [TopicSpec(t.name, t.partitions, t.config) for t in run_topics(manifest.run, manifest.slots, prefix)]
    )
    manifest = msgspec.structs.replace(manifest, keyed=key_id != 0)
    record = ManifestRecord(manifest.run, manifest_json(manifest))
    _append(log, names.control, encode_control(record, key_id, keys))


def _append(log: Log, topic: str, raw: bytes) -> None:
    writer = log.writer()
    try:
        writer.send(topic, 0, raw)
        if not writer.flush(15.0):
            raise LogError(f"topic {topic} did not take a record: {writer.failure() or 'no acknowledgement in 15 s'}")
    finally:
        writer.close()


@dataclass(frozen=True, slots=True)
class RunInfo:
    """One line about a run on a log."""

    run: str
    created_ms: int
    network: str
    slots: int
    state: str
    parameters: int


def _info(control: Control, manifest: Manifest) -> RunInfo:
    spec = manifest.spec
    shape = "-".join(str(n) for n in (spec.visible, *spec.hidden, *((spec.classes,) if spec.classes else ())))
    ended = any(w.what == "finished" for w in control.workers.values())
    state = "finished" if ended else "stopped" if control.stop else "open"
    return RunInfo(control.run, manifest.created_ms, shape, manifest.slots, state, parameter_count(spec))


def list_runs(log: Log, prefix: str = "", keys: Keyring = NO_KEYS) -> list[RunInfo | tuple[str, str]]:
    """The runs of a log, newest first; (run, reason) for those that cannot be read."""
    found: list[RunInfo | tuple[str, str]] = []
    for topic in log.topics():
        run = run_of(topic, prefix)
        if run is None:
            continue
        try:
            control = load_control(log, run, keys, prefix)
            assert control.manifest is not None
            found.append(_info(control, control.manifest))
        except GossipDbnError as error:
            found.append((run, str(error)))
    return sorted(found, key=lambda r: -r.created_ms if isinstance(r, RunInfo) else 0)


def match_run(names: Sequence[str], wanted: str) -> str:
    """The run id meant by ``wanted``: an id, or the beginning of exactly one."""
    if wanted in names:
        return wanted
    found = [n for n in names if re.match(re.escape(wanted), n)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"run {wanted!r} could be {', '.join(sorted(found)[:5])}")
    raise RunMissing(f"run {wanted!r} is not on this log; `gossipdbn runs` lists them")


def request_stop(log: Log, run: str, by: str, prefix: str = "", key_id: int = 0, keys: Keyring = NO_KEYS) -> int:
    """Ask every worker of a run to flush, snapshot and leave; returns the request's number."""
    control = load_control(log, run, keys, prefix)
    number = control.stops + 1
    message = StopRequested(run, number, by[:500])
    _append(log, run_names(run, prefix).control, encode_control(message, key_id, keys))
    return number


def resume_run(log: Log, run: str, prefix: str = "", key_id: int = 0, keys: Keyring = NO_KEYS) -> Control:
    """Answer open stop requests, so that workers may work again."""
    control = load_control(log, run, keys, prefix)
    if control.stop:
        message = Resumed(run, control.stops)
        _append(log, run_names(run, prefix).control, encode_control(message, key_id, keys))
        control.answered = control.stops
    return control
