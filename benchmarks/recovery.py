"""What killing workers costs: SIGKILL every few seconds on a real broker. ``benchmarks/recovery.py --help``.

Three runs of MNIST: a short one to learn how fast this machine is, an undisturbed one, and one of the same plan whose
workers are killed one after another, each replaced at once by a new process of another name. Workers are told to expect
to be lost every ``--expect`` seconds. Reported are

goodput
    rows whose training counts, by rows computed. Computed are all rows that a worker began to train or to recompute, as
    the workers' logs say line by line: also those of rounds that a kill cut short, or that were not sent by then.
resume
    seconds from a kill to the first update of each slot that the victim had, less the group's session timeout.

Checked, by the exit status: the ledger is exact; every worker that saw the end and the log agree in their digest, and
replay recomputes every update to the same bytes; goodput and resumption are what ``--goodput`` and ``--resume`` ask
for; the test error is that of the undisturbed run within three standard deviations of two such counts.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from gossipdbn.core.values import Update
from gossipdbn.embedded.broker import Broker
from gossipdbn.kernels.tiers import TIER
from gossipdbn.launch.result import model_of
from gossipdbn.models.reading import predict_proba
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.replay.audit import audit
from gossipdbn.replay.history import History, judge_all, open_run
from gossipdbn.replay.spool import collect
from gossipdbn.replay.verify import verify
from gossipdbn.testing import RunHarness

MNIST = Path(__file__).resolve().parent.parent / "examples" / "data" / "mnist"
BATCH, TAU = 100, 10


def mnist(which: str, rows: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(MNIST / f"{which}-images-idx3-ubyte.gz") as f:
        values = np.frombuffer(f.read()[16:], np.uint8).reshape(-1, 784)[:rows]
    with gzip.open(MNIST / f"{which}-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read()[8:], np.uint8)[:rows].astype(np.int32)
    return np.rint(values * (127 / 255)).astype(np.uint8), labels


def plan(epochs: int) -> list[PhaseSpec]:
    """Half of the epochs for the layers, half for the whole stack; rounds as a configuration has them by default."""
    layers, rest = max(1, epochs // 4), max(1, epochs - 2 * max(1, epochs // 4))
    return [
        PhaseSpec("cd", 0, layers, batch=BATCH, tau=TAU, lr=0.05),
        PhaseSpec("cd", 1, layers, batch=BATCH, tau=TAU, lr=0.05),
        PhaseSpec("backprop", 0, rest, batch=50, tau=5, optimizer="adam", lr=0.001, lr_final=0.0),
    ]


class Runs:
    """Makes runs on one broker."""

    def __init__(self, bootstrap: str, folder: Path, options: argparse.Namespace) -> None:
        self.bootstrap, self.folder, self.options = bootstrap, folder, options
        self.values, self.labels = mnist("train", options.rows)

    def make(self, name: str, epochs: int) -> RunHarness:
        o = self.options
        run = RunHarness(
            self.bootstrap, self.folder / name, visible=784, hidden=(500, 500), phases=plan(epochs), slots=o.slots,
            visible_units="grey", classes=10, name=name, snapshot_every_s=o.snapshot_every,
            settings={"failure_every_s": o.expect}, session_timeout_ms=round(o.session * 1000),
            visible_mean=(self.values.mean(0) / 127).astype(np.float32),
        )  # fmt: skip
        run.feed_rows(self.values, self.labels, shard_rows=500)
        return run


def kill_until_finished(run: RunHarness, o: argparse.Namespace) -> list[dict[str, Any]]:
    """Kill a worker that hosts slots every ``o.every`` seconds; returns what each kill hit."""
    dice, kills, names = random.Random(o.seed), [], o.workers
    run.wait_for(lambda f: f.ledger.updates > 0, 300)
    following = time.monotonic() + o.every
    while not run.follower.finished:
        run.follower.poll(0.05, time.monotonic())
        if time.monotonic() < following:
            continue
        following += o.every
        hosts: dict[str, list[int]] = {}
        for slot, chain in enumerate(run.follower.replica.chains[:-1]):
            if not chain.closed and chain.worker:
                hosts.setdefault(chain.worker.partition("#")[0], []).append(slot)
        victims = sorted(n for n in hosts if n in run.workers and run.workers[n].alive)
        if victims:
            victim = dice.choice(victims)
            run.kill_worker(victim)
            kills.append({"at_ms": time.time_ns() // 1_000_000, "victim": victim, "slots": hosts[victim]})
            names += 1
            run.start_worker(f"w{names}", "--verbose")
    return kills


def resumes(history: History, kills: list[dict[str, Any]], session_s: float) -> list[float]:
    """Seconds beyond the session timeout until somebody else's update of each slot that a victim had."""
    found = []
    for kill in kills:
        for slot in kill["slots"]:
            names = {x.message.incarnation: x.message.worker for x in history.partitions[slot].lines
                     if x.accepted and not isinstance(x.message, Update)}  # fmt: skip
            later = (x.at_ms for x in history.partitions[slot].updates() if x.at_ms > kill["at_ms"]
                     and names[x.message.incarnation].partition("#")[0] != kill["victim"])  # fmt: skip
            at = next(later, None)
            if at is not None:
                found.append((at - kill["at_ms"]) / 1000 - session_s)
    return found


def computed(run: RunHarness) -> dict[str, int]:
    """Rows that workers began to train, and rows that recoveries recomputed, as their logs say.

    A recovery that was cut short counts with one whole round more than it says.
    """
    found = Counter[str]()
    for child in run.workers.values():
        under_way: dict[str, int] = {}
        log = child.log.read_text(errors="replace")
        words = r"slot (\d+) (trains|recovers:|recovered: \d+ rounds recomputed,) (\d+) rows"
        for slot, what, n in re.findall(words, log):
            if what == "trains":
                found["rounds_trained"] += 1
                found["rows_trained"] += int(n)
            elif what == "recovers:":
                under_way[slot] = int(n)
            else:
                under_way.pop(slot, None)
                found["recoveries"] += 1
                found["recoveries_without_a_row"] += n == "0"
                found["rows_recomputed"] += int(n)
        found["rows_recomputed"] += sum(under_way.values()) + len(under_way) * BATCH * TAU
        found["recoveries_cut_short"] += len(under_way)
    return dict(found)


def cadences(run: RunHarness) -> list[float]:
    """The cadences that workers chose, seconds, as their announcements say."""
    return [a.every_ms / 1000 for of_slot in run.follower.control.snapshots.values() for a in of_slot]


def facts(run: RunHarness, folder: Path, jobs: int) -> tuple[dict[str, Any], History]:
    """What the log says of a finished run: books, replay, test error."""
    spool = collect(run.log, run.manifest, run.store, {}, folder)
    logged = open_run(spool.folder, {})
    history = judge_all(logged)
    books, v = audit(history), verify(logged, jobs)
    model = model_of(run.follower)
    values, labels = mnist("t10k")
    wrong = int((predict_proba(model.spec, model.parameters, values).argmax(1) != labels).sum())
    seconds = history.training_seconds()[0]
    return {
        "seconds": round(seconds, 1), "rows": v.rows, "rows_per_second": round(v.rows / seconds, 1),
        "updates": v.updates, "claims": v.claims, "voids": v.voids, "resets": v.resets, "ledger_exact": books.exact,
        "outstanding_rows": books.summary.outstanding_rows, "replay_identical": v.identical, "digest": v.digest,
        "digests_agree": len(set(run.digests().values())) == 1, "replay_seconds": v.seconds,
        "test_error": round(wrong / len(labels), 5), "problems": v.problems,
    }, history  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long workers shall be killed at least")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--slots", type=int, default=6)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--session", type=float, default=3.0, help="the group's session timeout, seconds")
    parser.add_argument("--expect", type=float, default=5.0, help="seconds after which a worker expects to be lost")
    parser.add_argument("--snapshot-every", type=float, default=0.0, help="a fixed cadence instead, seconds per slot")
    parser.add_argument("--pace", type=float, default=1.1, help="expected speed under kills, by the undisturbed one")
    parser.add_argument("--goodput", type=float, default=0.95, help="least goodput")
    parser.add_argument("--resume", type=float, default=2.0, help="most median seconds to resume, beyond the session")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the replay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def steady_rate(history: History, *, whole: bool = False) -> float:
    """Rows per second in the later half of a run, or between its first and its last update."""
    lines = sorted((x for p in history.partitions for x in p.updates()), key=lambda x: x.at_ms)
    later = lines if whole else lines[len(lines) // 2 :]
    rows = sum(x.message.rows.count for x in later[1:] if isinstance(x.message, Update))
    return rows / max(0.1, (later[-1].at_ms - later[0].at_ms) / 1000)


def three_runs(o: argparse.Namespace, folder: Path, bootstrap: str) -> dict[str, Any]:
    runs = Runs(bootstrap, folder, o)
    short = runs.make("calibration", 8)
    short.start_workers(o.workers)
    short.wait_until_finished(900)
    rate = steady_rate(facts(short, folder / "s0", o.jobs)[1], whole=True)  # layers are faster than backpropagation
    short.close()
    epochs = max(4, round(o.seconds * o.pace * rate / o.rows))
    print(f"{rate:.0f} rows/s: {epochs} epochs", flush=True)
    calm = runs.make("undisturbed", epochs)
    calm.start_workers(o.workers)
    calm.wait_until_finished(4 * o.seconds + 600)
    undisturbed, history = facts(calm, folder / "s1", o.jobs)
    calm_rate = steady_rate(history)
    calm.close()
    print(json.dumps(undisturbed), flush=True)
    wild = runs.make("killed", epochs)
    wild.start_workers(o.workers, "--verbose")
    kills = kill_until_finished(wild, o)
    wild.wait_until_finished(60)
    killed, history = facts(wild, folder / "s2", o.jobs)
    work, back, chosen = computed(wild), resumes(history, kills, o.session), cadences(wild)
    wild.close()
    total = work["rows_trained"] + work["rows_recomputed"]
    return {
        "goodput": round(killed["rows"] / total, 4), "rows_computed": total, "kills": len(kills), **work,
        "rate_by_undisturbed": round(steady_rate(history) / calm_rate, 3),
        "resume_p50_s": round(statistics.median(back), 2), "resume_p90_s": round(float(np.quantile(back, 0.9)), 2),
        "resumes": len(back), "cadence_s": round(statistics.median(chosen), 3), "epochs": epochs,
        "killed": killed, "undisturbed": undisturbed,
    }  # fmt: skip


def checks(r: dict[str, Any], o: argparse.Namespace) -> dict[str, bool]:
    """What the benchmark asks for, and whether it is so."""
    killed, calm = r["killed"], r["undisturbed"]
    tests = len(mnist("t10k")[1])
    p = (killed["test_error"] + calm["test_error"]) / 2
    noise = 3 * (2 * p * (1 - p) / tests) ** 0.5
    return {
        "seconds": killed["seconds"] >= o.seconds, "goodput": r["goodput"] >= o.goodput,
        "resume": r["resume_p50_s"] <= o.resume,
        "ledger": killed["ledger_exact"] and not killed["outstanding_rows"],
        "replay": killed["replay_identical"] and killed["digests_agree"],
        "quality": killed["test_error"] - calm["test_error"] <= noise,
    }  # fmt: skip


def main() -> None:
    o, before = options(), os.getloadavg()
    with tempfile.TemporaryDirectory() as name, Broker(Path(name) / "kafka", die_with_parent=True) as broker:
        result = three_runs(o, Path(name), broker.bootstrap)
    result = {
        "checks": checks(result, o), **result, "session_s": o.session, "expect_s": o.expect, "every_s": o.every,
        "workers": o.workers, "slots": o.slots, "tier": str(TIER), "cores": os.cpu_count(),
        "load_averages": [round(x, 1) for x in (*before, *os.getloadavg())],
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if all(result["checks"].values()) else 1)


if __name__ == "__main__":
    main()
