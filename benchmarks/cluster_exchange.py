"""Rows per second of two workers with exchange and without, in turns, on the same cores."""

from __future__ import annotations

import contextlib
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cluster_tools import SHAPE, Tools, grey

from gossipdbn.core import plan, rounds
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import Manifest, RowRange, manifest_from_json, manifest_json
from gossipdbn.embedded.broker import Broker
from gossipdbn.models import learners
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.report.page import CurvePoint
from gossipdbn.testing import RunHarness, cut_shards
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire
from gossipdbn.wire.shards import ShardSequence, encode_shard, slot_of
from gossipdbn.worker.rows import RowStore

CD = PhaseSpec("cd", epochs=10**5, batch=100, tau=10, lr=0.005)
SLOTS = 2
FED, SHARD = 24_000, 250
WARM_UP_S = 150.0  # Java's second compiler is done with the broker then
WINDOW_S, SETTLE_S = 4.0, 0.5


def alone(path: str, slot: int, counter: str) -> None:
    """Train a slot's rounds without a log, on the rows it has in a run, and count its rows in a file, until killed."""
    manifest = manifest_from_json(Path(path).read_bytes())
    rows = _rows_of(manifest, slot)
    replica = Replica(manifest, RunWire().decode, rounds.initial_parameters(manifest))
    state = rounds.fresh_state(manifest, slot, replica.chains[slot])
    learners.warm(manifest.spec, manifest.phases)
    done = np.memmap(counter, np.int64, "r+", shape=(1,))
    phase, cursor = manifest.phases[0], (0, 0)
    while True:
        todo = plan.next_rows(manifest, 0, cursor, rows.rows, rows.ended, phase.batch * phase.tau)
        assert isinstance(todo, RowRange), todo
        job = rounds.begin(state, replica.acc, replica.version, todo)
        rounds.run(manifest, job, *rows.get(todo))
        if job.trained is not None:
            job.trained.give_back()
        cursor = (todo.epoch, todo.first + todo.count)
        done[0] += todo.count


def _rows_of(manifest: Manifest, slot: int) -> RowStore:
    """A slot's rows of those that `_run` feeds."""
    rows, sequence = RowStore(manifest, slot, envelope.NO_KEYS), ShardSequence()
    for shard in cut_shards(manifest, grey(FED), shard_rows=SHARD):
        if slot_of(shard.id, manifest.slots) == slot:
            sequence.add(shard)
            rows.feed(rows.next_offset, envelope.seal(encode_shard(shard)))
    rows.feed(rows.next_offset, envelope.seal(encode_shard(sequence.end_mark())))
    return rows


def _run(tools: Tools, share: float, store: str = "") -> RunHarness:
    """Two workers of a slot each that have begun to train; a pause of some seconds costs neither its slot."""
    values = grey(FED)
    mean = (values.mean(0) / 127).clip(0.01, 0.99).astype(np.float32)
    settings = {"communication_share": share}
    run = tools.run(
        hidden=(500,), phases=[CD], slots=SLOTS, store=store, settings=settings, visible_mean=mean,
        session_timeout_ms=20_000, **SHAPE,
    )  # fmt: skip
    run.feed_rows(values, shard_rows=SHARD)
    run.start_workers(2)
    run.wait_for(lambda f: f.ledger.updates > 60, 120)
    return run


def _points(run: RunHarness) -> list[CurvePoint]:
    """All updates so far: when they came and how many rows they have."""
    run.follower.catch_up(time.monotonic())
    assert not run.follower.finished, run.follower.failed or "too few rows for the time"
    return list(run.follower.seen.curve)


def _rate(run: RunHarness, points: list[CurvePoint], began_s: float, seconds: float) -> float:
    """Rows per second of the updates in a stretch of wall time."""
    first_s = began_s - run.manifest.created_ms / 1000
    return sum(p.rows for p in points if first_s <= p.time_s < first_s + seconds) / seconds


def with_exchange(tools: Tools, share: float, seconds: float, store: str = "") -> tuple[float, dict[str, Any]]:
    """Rows per second of two workers, and what the updates say, read when the time is over."""
    run = _run(tools, share, store)
    began_s = time.time()
    time.sleep(seconds)
    points = _points(run)
    facts = {"snapshots": sum(len(s) for s in run.follower.control.snapshots.values())}
    run.close()
    return _rate(run, points, began_s, seconds), facts


def _cpu_seconds(run: RunHarness) -> dict[str, float]:
    """CPU seconds so far of the broker and of the run's workers."""
    workers = {child.pid for child in run.workers.values()}
    found: dict[str, float] = {}
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            who = "broker" if child.name() == "java" else "workers" if child.pid in workers else "other"
            found[who] = found.get(who, 0.0) + sum(child.cpu_times()[:2])
    return found


def exchange(tools: Tools) -> dict[str, Any]:
    """Two workers of a slot each and the broker on the same cores: fixed tau, adaptive tau, and no log at all.

    The broker is one for a long life (`gossipdbn up`), measured when Java has compiled it; quick runs take another.
    """
    with Broker(tools.folder / "lasting", die_with_parent=True, lasting=tools.repeats > 1) as broker:
        lasting = Tools(tools.folder / "exchange", broker.bootstrap, tools.repeats, tools.seconds, tools.minutes)
        lasting.folder.mkdir()
        with_exchange(lasting, 0.0, WARM_UP_S if tools.repeats > 1 else tools.seconds)
        with _pair_alone(lasting) as pair:
            found = {name: _taking_turns(lasting, pair, share) for name, share in (("tau_10", 0.0), ("adaptive", 0.05))}
    return {
        "slots": SLOTS,
        "windows": len(found["tau_10"]["shares"]),
        "window_s": WINDOW_S,
        **{f"{name}_share": round(statistics.median(f["shares"]), 3) for name, f in found.items()},
        **found,
    }


class _Alone:
    """Two processes that train without a log; they are stopped but in ``measured``."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], counters: list[np.memmap[Any, np.dtype[np.int64]]]):
        self._processes, self._counters = processes, counters

    def signal(self, number: int) -> None:
        for process in self._processes:
            process.send_signal(number)

    def rows(self) -> int:
        assert all(p.poll() is None for p in self._processes), "training without a log ended"
        return sum(int(c[0]) for c in self._counters)

    def measured(self) -> float:
        """Rows per second of a window."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        before, began = self.rows(), time.monotonic()
        time.sleep(WINDOW_S)
        rate = (self.rows() - before) / (time.monotonic() - began)
        self.signal(signal.SIGSTOP)
        return rate


@contextlib.contextmanager
def _pair_alone(tools: Tools) -> Iterator[_Alone]:
    manifest = tools.run(hidden=(500,), phases=[CD], slots=SLOTS, **SHAPE).manifest
    path = tools.folder / "alone.json"
    path.write_bytes(manifest_json(manifest))
    processes, counters = [], []
    for slot in range(SLOTS):
        counter = tools.folder / f"alone{slot}"
        counters.append(np.memmap(counter, np.int64, "w+", shape=(1,)))
        command = [sys.executable, __file__, str(path), str(slot), str(counter)]
        processes.append(subprocess.Popen(command))
    pair = _Alone(processes, counters)
    try:
        while not all(int(c[0]) for c in counters):
            pair.rows()
            time.sleep(0.1)
        pair.signal(signal.SIGSTOP)
        yield pair
    finally:
        pair.signal(signal.SIGKILL)


def _taking_turns(tools: Tools, pair: _Alone, share: float) -> dict[str, Any]:
    """Windows with exchange, each between two without: the host's speed changes from one minute to the next."""
    run = _run(tools, share)
    run.wait_for(lambda f: f.ledger.updates > 300, 120)  # tau has found its place
    began: list[float] = []
    without: list[float] = []
    used: Counter[str] = Counter()

    def measure_alone() -> None:
        for name in run.workers:
            run.pause_worker(name)
        without.append(pair.measured())
        for name in run.workers:
            run.resume_worker(name)

    measure_alone()
    for _ in range(max(2, round(2 * tools.repeats * tools.seconds / WINDOW_S))):
        time.sleep(SETTLE_S)
        before = _cpu_seconds(run)
        began.append(time.time())
        time.sleep(WINDOW_S)
        used.update({who: s - before.get(who, 0.0) for who, s in _cpu_seconds(run).items()})
        measure_alone()
    points = _points(run)
    rates = [_rate(run, points, at, WINDOW_S) for at in began]
    run.close()
    shares = [rate / statistics.mean(without[i : i + 2]) for i, rate in enumerate(rates)]
    return {
        "rows_per_s": {"without": round(statistics.median(without)), "with": round(statistics.median(rates))},
        "shares": [round(x, 3) for x in shares],
        "quartiles": [round(float(q), 3) for q in np.percentile(shares, [25, 75])],
        "rows_per_update": round(statistics.mean(p.rows for p in points[-40:])),
        "error": round(statistics.mean(p.error for p in points[-40:]), 5),
        "rows": sum(p.rows for p in points),
        "cores_used": {who: round(s / (WINDOW_S * len(rates)), 3) for who, s in used.items()},
        "snapshots": sum(len(s) for s in run.follower.control.snapshots.values()),
    }


if __name__ == "__main__":
    alone(sys.argv[1], int(sys.argv[2]), sys.argv[3])
