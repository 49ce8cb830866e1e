"""Look at a run once, from its log alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from rich.console import RenderableType

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.stores import open_store
from gossipdbn.core.topics import run_of
from gossipdbn.errors import LogError, RunMissing
from gossipdbn.launch.follow import Follower
from gossipdbn.launch.runs import match_run
from gossipdbn.ports import Log
from gossipdbn.report.status import RunState, render_table
from gossipdbn.wire.envelope import Keyring
from gossipdbn.worker.control import load_control
from gossipdbn.worker.process import run_settings

__all__ = ["Look", "await_run", "find_run", "look"]

TELL_AGAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class Look:
    """Facts for ``--json`` and a table for people."""

    facts: dict[str, object]
    table: RenderableType


def find_run(log: Log, wanted: str, prefix: str = "") -> str:
    """The run id meant by an id or its beginning."""
    return match_run([r for t in log.topics() if (r := run_of(t, prefix)) is not None], wanted)


def await_run(
    log: Log,
    wanted: str,
    prefix: str,
    keys: Keyring,
    wait_s: float,
    say: Callable[[str], None],
    stopped: Callable[[float], bool],
) -> str:
    """As `find_run`, once the run has its manifest; waits up to ``wait_s`` for it, and for brokers that do not answer.

    Parameters
    ----------
    say : told why it waits, at first, every 30 s, and when the reason changes.
    stopped : waits for some seconds; true when the wait shall end early.

    Raises
    ------
    RunMissing, LogError : the last reason, when the time is over.
    """
    began, told, told_s = time.monotonic(), "", 0.0
    while True:
        try:
            run = find_run(log, wanted, prefix)
            load_control(log, run, keys, prefix)
            return run
        except (RunMissing, LogError) as error:
            waited_s = time.monotonic() - began
            lasting = isinstance(error, LogError) and not error.retryable
            if lasting or waited_s >= wait_s or stopped(0.0):
                raise
            why = str(error)
            if why != told or waited_s - told_s >= TELL_AGAIN_S:
                told, told_s = why, waited_s
                say(f"waiting up to {wait_s - waited_s:.0f} s more: {why}")
        stopped(min(1.0, wait_s))


def look(bootstrap: str, wanted: str, prefix: str, keys: Keyring) -> Look:
    """Read a run's log up to now; raises ConfigError when there is no such run."""
    log = KafkaLog(bootstrap)
    try:
        run = find_run(log, wanted, prefix)
        control = load_control(log, run, keys, prefix)
        assert control.manifest is not None
        store = open_store(str(run_settings(control.manifest)["store"]))
        follower = Follower(log, control, store, keys, prefix)
        now = time.monotonic()
        follower.catch_up(now)
        summary = follower.summary()
        state: RunState = "failed" if follower.failed else "done" if follower.finished else "training"
        if control.stop and state == "training":
            state = "stopped"
        first, last = follower.seen.first_ms or 0, follower.seen.last_ms
        seconds = max((last - first) / 1000, 1e-3)
        view = follower.view(state, seconds, now)
        owners = tuple(sorted({v.worker for v in view.slots if v.worker and not v.closed}))
        view = replace(view, workers=owners, rows_per_s=view.rows_done / seconds, updates_per_s=view.updates / seconds)
        follower.close()
        facts: dict[str, object] = {
            "run": run, "state": state, "version": follower.replica.version, "updates": follower.ledger.updates,
            "digest": f"{follower.replica.digest():016x}", "ledger": summary, "claims": follower.seen.claims,
            "voids": view.voids, "held": follower.held, "snapshot_every_s": view.snapshot_every_s, "slots": view.slots,
            "workers": {n: f"{w.digest:016x}" for n, w in control.workers.items()},
        }  # fmt: skip
        return Look(facts, render_table(view))
    finally:
        log.close()
