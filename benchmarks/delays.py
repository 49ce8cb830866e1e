"""Who is held up by a worker that hangs, crawls or is cut off: nobody else. ``benchmarks/delays.py --help``.

Three workers train one layer on MNIST over a real broker. One of them, w1, gets into trouble and out of it again:

paused
    SIGSTOP for a while; its slots go to the others after the group's session timeout.
slow
    stopped nine tenths of the time (SIGSTOP and SIGCONT, ten times a second); it keeps its slots and its membership.
cut off
    what it says to the brokers and they to it is not forwarded: it reaches them through a listener of its own, whose
    advertised address is a proxy here. Its slots go to the others as well.

Before and after each trouble there is a quiet window. Compared are the rows per second, by the log's clock, of updates
that the two other workers published. A worker that stands still must not give its processor to the others, or they
would seem faster than they are: the others are pinned to processors that w1 may not use; w1 shares its own with the
broker and this program.

Checked, by the exit status: the others' rate in each trouble is no less than that of the quiet windows around it,
within ``--within`` (their work of taking w1's slots over is part of it, once a window); w1's slots went on elsewhere
while it hung or was cut off (what it sent too late is void, and counted), the ledger is exact, and replay recomputes
every update to the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import selectors
import signal
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from recovery import facts, mnist, steady_rate

from gossipdbn.core.values import Claim, Update
from gossipdbn.embedded.broker import Broker
from gossipdbn.embedded.process import free_ports
from gossipdbn.kernels.tiers import TIER
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.replay.history import History, judge_all, open_run
from gossipdbn.replay.spool import collect
from gossipdbn.testing import RunHarness

VICTIM, OTHERS = "w1", ("w2", "w3")


class Proxy:
    """Forwards TCP connections to a port of this machine; while ``cut`` is set, nothing, in both directions."""

    def __init__(self, port: int, target: int) -> None:
        self.cut = threading.Event()
        self._target = ("127.0.0.1", target)
        self._server = socket.create_server(("127.0.0.1", port))
        self._peers: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            if self.cut.is_set():
                time.sleep(0.05)
                continue
            for key, _ in self._selector.select(0.05):
                if key.fileobj is self._server:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._peers:
                    self._forward(key.fileobj)

    def _accept(self) -> None:
        client, _ = self._server.accept()
        try:
            server = socket.create_connection(self._target)
        except OSError:
            client.close()
            return
        for one, other in ((client, server), (server, client)):
            self._peers[one] = other
            self._selector.register(one, selectors.EVENT_READ)

    def _forward(self, source: socket.socket) -> None:
        try:
            data = source.recv(1 << 18)
            if data:
                self._peers[source].sendall(data)
                return
        except OSError:
            pass
        for end in (source, self._peers[source]):
            self._selector.unregister(end)
            del self._peers[end]
            end.close()


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Processes started in here may use these processors only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def crawl(pid: int, until_s: float) -> None:
    """Let a process run a tenth of the time."""
    while time.monotonic() < until_s:
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.09)
        os.kill(pid, signal.SIGCONT)
        time.sleep(0.01)


class Scene:
    """The broker with a second listener behind a proxy, runs on it, and workers on their processors."""

    def __init__(self, folder: Path, o: argparse.Namespace) -> None:
        self.folder, self.options = folder, o
        cores = sorted(os.sched_getaffinity(0))
        self.ours, rest = {cores[0]}, cores[1:] or cores[:1]
        self.theirs = {name: {rest[i % len(rest)]} for i, name in enumerate(OTHERS)}
        os.sched_setaffinity(0, self.ours)
        inner, self.outer = free_ports(2)
        kinds = "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,CUT:PLAINTEXT"
        self.broker = Broker(folder / "kafka", die_with_parent=True, settings={
            "listeners": f"PLAINTEXT://127.0.0.1:@PORT@,CONTROLLER://127.0.0.1:@CPORT@,CUT://127.0.0.1:{inner}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:@PORT@,CUT://127.0.0.1:{self.outer}",
            "listener.security.protocol.map": kinds,
        })  # fmt: skip
        self.proxy = Proxy(self.outer, inner)
        self.values, self.labels = mnist("train", o.rows)

    def run(self, name: str, epochs: int) -> RunHarness:
        o = self.options
        run = RunHarness(
            self.broker.bootstrap, self.folder / name, visible=784, hidden=(500,), visible_units="grey", classes=10,
            phases=[PhaseSpec("cd", 0, epochs, batch=100, tau=10, lr=0.02), PhaseSpec("backprop", batch=50, tau=5)],
            slots=o.slots, name=name, snapshot_every_s=0.0, settings={"failure_every_s": 2 * o.seconds},
            session_timeout_ms=round(1000 * o.session), visible_mean=(self.values.mean(0) / 127).astype(np.float32),
        )  # fmt: skip
        run.feed_rows(self.values, self.labels, shard_rows=500)
        run.start_worker(VICTIM, "--bootstrap", f"127.0.0.1:{self.outer}")
        for other in OTHERS:
            with on_cores(self.theirs[other]):
                run.start_worker(other)
        return run


def hosts(run: RunHarness) -> set[str]:
    """Workers that host a slot now, as the log says."""
    return {c.worker.partition("#")[0] for c in run.follower.replica.chains[:-1] if not c.closed}


def trouble(run: RunHarness, proxy: Proxy, kind: str, seconds: float) -> None:
    """Let w1 have this trouble for so long, and end it."""
    process = run.workers[VICTIM].process
    assert process is not None
    if kind == "paused":
        process.send_signal(signal.SIGSTOP)
        run.follow(seconds)
        process.send_signal(signal.SIGCONT)
    elif kind == "slow":
        thread = threading.Thread(target=crawl, args=(process.pid, time.monotonic() + seconds))
        thread.start()
        run.follow(seconds)
        thread.join()
    elif kind == "cut off":
        proxy.cut.set()
        run.follow(seconds)
        proxy.cut.clear()
    else:
        run.follow(seconds)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def windows(run: RunHarness, proxy: Proxy, o: argparse.Namespace) -> list[tuple[str, int, int]]:
    """(what, from, to) in ms: quiet, trouble, quiet, ..., each trouble ``o.cycles`` times."""
    everybody = {VICTIM, *OTHERS}
    kinds = [k for _ in range(o.cycles) for k in ("paused", "slow", "cut off")]
    found = []
    for kind in [x for k in kinds for x in ("quiet", k)] + ["quiet"]:
        if kind == "quiet":
            run.wait_for(lambda _: hosts(run) >= everybody or run.follower.finished, 120)
            run.follow(o.settle)
        began = now_ms()
        trouble(run, proxy, kind, o.seconds)
        if run.follower.finished:
            raise SystemExit("the plan was over before the measurement: give --spare more")
        found.append((kind, began, now_ms()))
        print(f"{kind}: {o.seconds:.0f} s", flush=True)
    return found


def published(history: History) -> list[tuple[int, str, int]]:
    """(ms, worker, rows) of every accepted update."""
    out = []
    for part in history.partitions[:-1]:
        owner = ""
        for x in part.lines:
            if x.accepted and isinstance(x.message, Claim):
                owner = x.message.worker.partition("#")[0]
            elif x.accepted and isinstance(x.message, Update):
                out.append((x.at_ms, owner, x.message.rows.count))
    return out


def rate(updates: list[tuple[int, str, int]], who: Callable[[str], bool], began: int, ended: int) -> float:
    """Rows per second of the workers that ``who`` names."""
    return sum(rows for at, worker, rows in updates if began <= at < ended and who(worker)) / ((ended - began) / 1000)


def compared(history: History, seen: list[tuple[str, int, int]]) -> dict[str, Any]:
    """Rates in each trouble beside those of the quiet windows around it, and what became of w1's slots."""
    updates = published(history)
    others = [rate(updates, lambda w: w != VICTIM, a, b) for _, a, b in seen]
    its = [rate(updates, lambda w: w == VICTIM, a, b) for _, a, b in seen]
    out: dict[str, Any] = {}
    for i, (kind, a, b) in enumerate(seen):
        if kind == "quiet":
            continue
        quiet = (others[i - 1] + others[i + 1]) / 2
        moved = {
            part.partition for part in history.partitions[:-1] for x in part.lines
            if x.accepted and isinstance(x.message, Claim) and a <= x.at_ms < b
            and x.message.worker.partition("#")[0] != VICTIM
        }  # fmt: skip
        after = seen[i + 1][2]
        voids = sum(not x.accepted and a <= x.at_ms < after for p in history.partitions for x in p.lines)
        names = ("others_by_quiet", "victim_rows_per_second", "taken_over", "void")
        entry = out.setdefault(kind, {name: [] for name in names})
        entry["others_by_quiet"].append(round(others[i] / quiet, 4))
        entry["victim_rows_per_second"].append(round(its[i]))
        entry["taken_over"].append(len(moved))
        entry["void"].append(voids)
    for entry in out.values():
        entry["median"] = statistics.median(entry["others_by_quiet"])
    quiets = [x for (kind, _, _), x in zip(seen, others, strict=True) if kind == "quiet"]
    return {"others_quiet_rows_per_second": [round(x) for x in quiets], "troubles": out}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=45.0, help="length of a window")
    parser.add_argument("--settle", type=float, default=3.0, help="seconds to settle before a quiet window")
    parser.add_argument("--cycles", type=int, default=1, help="how often each trouble comes")
    parser.add_argument("--slots", type=int, default=6)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--session", type=float, default=3.0, help="the group's session timeout, seconds")
    parser.add_argument("--within", type=float, default=0.05, help="how much less the others' rate may be")
    parser.add_argument("--spare", type=float, default=1.5, help="length of the plan, by the time measured")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the replay")
    parser.add_argument("--rates-only", action="store_true", help="stop after the windows: no end, ledger, replay")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def measure(folder: Path, o: argparse.Namespace) -> dict[str, Any]:
    scene = Scene(folder, o)
    with scene.broker:
        short = scene.run("calibration", 6)
        short.wait_until_finished(900)
        speed = steady_rate(facts(short, folder / "s0", o.jobs)[1])
        short.close()
        seconds = (6 * o.cycles + 1) * (o.seconds + o.settle + o.session)
        run = scene.run("troubled", max(2, round(o.spare * seconds * speed / o.rows)))
        run.wait_for(lambda f: f.ledger.updates > 10, 300)
        seen = windows(run, scene.proxy, o)
        if o.rates_only:
            history = judge_all(open_run(collect(run.log, run.manifest, run.store, {}, folder / "s1").folder, {}))
            run.close()
            return {**compared(history, seen), "run": {}}
        os.sched_setaffinity(0, set().union(scene.ours, *scene.theirs.values()))
        run.wait_until_finished(20 * seconds)
        found, history = facts(run, folder / "s1", o.jobs)
        run.close()
    return {**compared(history, seen), "run": found}


def main() -> None:
    o, before = options(), os.getloadavg()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), o)
    troubles, run = result["troubles"], result["run"]
    checks = {
        **{f"{kind}: others": t["median"] >= 1 - o.within for kind, t in troubles.items()},
        **{f"{kind}: taken over": all(troubles[kind]["taken_over"]) for kind in ("paused", "cut off")},
    }  # fmt: skip
    if not o.rates_only:
        checks["ledger"] = run["ledger_exact"] and not run["outstanding_rows"]
        checks["replay"] = run["replay_identical"] and run["digests_agree"]
    result = {
        "checks": checks, **result, "seconds": o.seconds, "session_s": o.session, "slots": o.slots, "tier": str(TIER),
        "cores": os.cpu_count(), "load_averages": [round(x, 1) for x in (*before, *os.getloadavg())],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
