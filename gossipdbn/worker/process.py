"""A worker as a process: adapters put together from the run's manifest, signals turned into a clean stop."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from gossipdbn.adapters.clock import SystemClock
from gossipdbn.adapters.heap import return_memory
from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.stores import open_store
from gossipdbn.core.values import Manifest
from gossipdbn.models import learners
from gossipdbn.wire.envelope import NO_KEYS, Keyring
from gossipdbn.worker.control import load_control
from gossipdbn.worker.loop import Worker, WorkerOptions, WorkerResult

__all__ = ["WorkerSpec", "run_settings", "run_worker", "stop_on_signals"]

logger = logging.getLogger("gossipdbn.worker")


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Everything a worker process is told.

    ``store`` overrides the manifest's snapshot store (another mount of the same folder); "" = the manifest's.
    ``kafka`` passes settings to librdkafka.
    """

    run: str
    bootstrap: str
    name: str
    prefix: str = ""
    store: str = ""
    key_id: int = 0
    keys: Keyring = field(default_factory=dict)
    kafka: dict[str, str] = field(default_factory=dict)
    session_timeout_ms: int = 0


def run_settings(manifest: Manifest) -> dict[str, object]:
    """The manifest's operational settings with their defaults: store, snapshots, session timeout, memory, tau."""
    defaults: dict[str, object] = {
        "store": "", "failure_every_s": 1800.0, "snapshot_every_s": 0.0, "keep": 2, "session_timeout_ms": 6000,
        "memory_mb": 1024, "linger_s": 0.5, "communication_share": 0.0,
    }  # fmt: skip
    return {**defaults, **{k: v for k, v in manifest.config.items() if k in defaults}}


@contextlib.contextmanager
def stop_on_signals() -> Iterator[threading.Event]:
    """An event that SIGTERM and SIGINT set; a second one ends the process as usual."""
    asked = threading.Event()
    before: dict[int, Any] = {}

    def stop(number: int, _frame: FrameType | None) -> None:
        asked.set()
        signal.signal(number, before[number])

    for number in (signal.SIGTERM, signal.SIGINT):
        before[number] = signal.getsignal(number)
        signal.signal(number, stop)
    try:
        yield asked
    finally:
        for asked_for, handler in before.items():
            signal.signal(asked_for, handler)


def run_worker(spec: WorkerSpec, stop: threading.Event | None = None) -> WorkerResult:
    """Join a run and work until it is finished or a stop is asked for.

    Raises
    ------
    ConfigError : no such run, or its manifest cannot be used here. LogError, StoreError : the cluster or store fails.
    """
    return_memory()
    keys = spec.keys or NO_KEYS
    probe = KafkaLog(spec.bootstrap, kafka=spec.kafka, client_id=f"gossipdbn-{spec.name}")
    control = load_control(probe, spec.run, keys, spec.prefix)
    probe.close()
    assert control.manifest is not None
    settings = run_settings(control.manifest)
    timeout = spec.session_timeout_ms or int(str(settings["session_timeout_ms"]))
    log = KafkaLog(spec.bootstrap, kafka=spec.kafka, session_timeout_ms=timeout, client_id=f"gossipdbn-{spec.name}")
    store = open_store(spec.store or str(settings["store"]))
    learners.warm(control.manifest.spec, control.manifest.phases)
    control = load_control(log, spec.run, keys, spec.prefix)  # snapshots may have been replaced while kernels compiled
    assert control.manifest is not None
    options = WorkerOptions(
        name=spec.name,
        prefix=spec.prefix,
        key_id=spec.key_id,
        failure_every_s=float(str(settings["failure_every_s"])),
        snapshot_every_s=float(str(settings["snapshot_every_s"])),
        keep=int(str(settings["keep"])),
        linger_s=float(str(settings["linger_s"])),
        memory_bytes=int(str(settings["memory_mb"])) << 20,
        communication_share=float(str(settings["communication_share"])),
    )
    logger.info("worker %s joins run %s: %d slots, store %s", spec.name, spec.run, control.manifest.slots, store.url())
    try:
        stopped = stop.is_set if stop is not None else lambda: False
        return Worker(log, store, control, options, SystemClock(), keys, should_stop=stopped).run()
    finally:
        log.close()
