"""What killing workers costs: SIGKILL every few seconds on a real broker. ``benchmarks/recovery.py --help``.

Three runs of MNIST: a short one to learn how fast this machine is, an undisturbed one, and one of the same plan whose
workers are killed one after another, each replaced at once by a new process. Reported are

goodput
    rows whose training counts, by rows computed. Computed are those, the rows of rounds that recoveries recomputed
    (from the workers' logs), of void updates, and one round for every kill (a killed process cannot say what it was
    doing: it trains one round at a time).
resume
    seconds from a kill to the first update of each slot that the victim had, less the group's session timeout.
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
from pathlib import Path
from typing import Any

import numpy as np

from gossipdbn.core.values import Update
from gossipdbn.embedded.broker import Broker
from gossipdbn.kernels.tiers import TIER
from gossipdbn.launch.result import model_of
from gossipdbn.models.learners import predict_proba
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
    """Half of the epochs for the layers, half for the whole stack."""
    layers, rest = max(1, epochs // 4), max(1, epochs - 2 * max(1, epochs // 4))
    return [
        PhaseSpec("cd", 0, layers, batch=BATCH, tau=TAU, lr=0.05),
        PhaseSpec("cd", 1, layers, batch=BATCH, tau=TAU, lr=0.05),
        PhaseSpec("backprop", 0, rest, batch=BATCH, tau=TAU, optimizer="adam", lr=0.001, lr_final=0.0),
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
            session_timeout_ms=round(o.session * 1000), visible_mean=(self.values.mean(0) / 127).astype(np.float32),
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
            run.start_worker(f"w{names}")
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


def recomputed_rounds(run: RunHarness) -> int:
    """Rounds that recoveries trained again, as the workers' logs say."""
    logs = "\n".join(child.log.read_text(errors="replace") for child in run.workers.values())
    return sum(int(n) for n in re.findall(r"recovered: (\d+) rounds recomputed", logs))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300.0, help="how long the plan of the two runs shall take")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--slots", type=int, default=6)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--session", type=float, default=3.0, help="the group's session timeout, seconds")
    parser.add_argument("--snapshot-every", type=float, default=1.0, help="seconds, per slot")
    parser.add_argument("--jobs", type=int, default=2, help="processes of the replay")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as name, Broker(Path(name) / "kafka", die_with_parent=True) as broker:
        folder = Path(name)
        runs = Runs(broker.bootstrap, folder, o)
        short = runs.make("calibration", 4)
        short.start_workers(o.workers)
        short.wait_until_finished(900)
        rate = facts(short, folder / "s0", o.jobs)[0]["rows_per_second"]
        short.close()
        epochs = max(4, round(o.seconds * rate / o.rows))
        print(f"{rate} rows/s: {epochs} epochs", flush=True)
        calm = runs.make("undisturbed", epochs)
        calm.start_workers(o.workers)
        calm.wait_until_finished(4 * o.seconds + 600)
        undisturbed, _ = facts(calm, folder / "s1", o.jobs)
        calm.close()
        print(json.dumps(undisturbed), flush=True)
        wild = runs.make("killed", epochs)
        wild.start_workers(o.workers)
        kills = kill_until_finished(wild, o)
        wild.wait_until_finished(60)
        killed, history = facts(wild, folder / "s2", o.jobs)
        again, back = recomputed_rounds(wild), resumes(history, kills, o.session)
        wild.close()
    wasted = (again + killed["voids"] + len(kills)) * BATCH * TAU
    result = {
        "goodput": round(killed["rows"] / (killed["rows"] + wasted), 4),
        "rate_by_undisturbed": round(killed["rows_per_second"] / undisturbed["rows_per_second"], 3),
        "kills": len(kills), "recomputed_rounds": again,
        "resume_p50_s": round(statistics.median(back), 2) if back else None,
        "resume_p90_s": round(float(np.quantile(back, 0.9)), 2) if back else None, "resumes": len(back),
        "session_s": o.session,
        "snapshot_every_s": o.snapshot_every, "every_s": o.every,
        "workers": o.workers, "slots": o.slots, "epochs": epochs,
        "tier": str(TIER),
        "cores": os.cpu_count(), "load_averages": [round(x, 1) for x in (*before, *os.getloadavg())],
        "killed": killed, "undisturbed": undisturbed,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
