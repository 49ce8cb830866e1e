"""What a cluster costs and survives, on one machine's loopback: ``benchmarks/cluster.py --help``.

Each part prints its figures and stands in the JSON result beside the bar it should meet. Figures are medians of several
runs where a part is run several times; on a machine that does other work they say little, so its load is recorded too.
NUMBA_CPU_NAME and NUMBA_CPU_FEATURES (values in ``kernels.py``) make workers compute as on another CPU; a part's name
in the result then ends in the tier of the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from cluster_exchange import CD, exchange, with_exchange
from cluster_memory import memory
from cluster_messages import latency, payload
from cluster_share import learning
from cluster_tools import SHAPE, Tools, grey, load_watched, quantiles

from gossipdbn.adapters.stores import open_store
from gossipdbn.embedded.broker import Broker
from gossipdbn.embedded.hdfs import Hdfs
from gossipdbn.embedded.spark import SparkCluster
from gossipdbn.kernels.tiers import TIER
from gossipdbn.models import learners
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.schema import SchemaConfig
from gossipdbn.source import SourceConfig
from gossipdbn.spark.feed import FeedTarget, fit_source_schema, run_feed
from gossipdbn.spark.placement import PLACEMENT_SETTINGS, WorkerOrder, place_workers
from gossipdbn.spark.session import close_session, open_session
from gossipdbn.testing import RunHarness

ROOT = Path(__file__).resolve().parent.parent


# ---- feed -----------------------------------------------------------------------------------------------------------
def feed(tools: Tools) -> dict[str, Any]:
    """Image rows of 784 bytes from files through Spark into the broker; nobody trains."""
    folder = tools.folder / "images"
    folder.mkdir(exist_ok=True)
    values = grey(30_000)
    for i in range(8):
        header = (0x0803).to_bytes(4, "big") + b"".join(n.to_bytes(4, "big") for n in (len(values), 28, 28))
        (folder / f"part-{i}.idx3-ubyte").write_bytes(header + np.roll(values, i, 1).tobytes())
    source = SourceConfig(kind="idx", path=str(folder / "*.idx3-ubyte"))
    schema = fit_source_schema(source, SchemaConfig())
    rates = []
    for i in range(tools.repeats):
        run = tools.run(hidden=(16,), phases=[CD], slots=4, **SHAPE)
        target = FeedTarget(run.bootstrap, run.topics.shards, 4, str(tools.folder / f"checkpoint{i}"))
        result = run_feed(source, schema, target)
        size = result.rows * 784 / 1e6
        rates.append(size / (result.seconds - (result.to_first_shard_s or 0.0)))
        run.close()
    return {"megabytes": size, "MB_per_s": round(statistics.median(rates), 1), "runs": [round(r, 1) for r in rates]}


# ---- snapshots on HDFS ----------------------------------------------------------------------------------------------
def snapshot(tools: Tools) -> dict[str, Any]:
    """Publication of a snapshot of 784-500-500-10, and rows per second with HDFS against a folder."""
    spec = ModelSpec(784, (500, 500), "grey", 10)
    parameters = sum(learners.initial_parameters(spec, 1, np.full(784, 0.3, np.float32)).shape)
    data = np.random.default_rng(0).bytes(parameters * 12)  # parameters, residual, momentum
    with Hdfs(tools.folder / "hdfs", die_with_parent=True) as hdfs:
        store = open_store(f"{hdfs.url}/bench")
        took = []
        for i in range(20):
            began = time.monotonic()
            store.put(f"snapshots/{i}", data)
            took.append(time.monotonic() - began)
        rates: dict[str, list[float]] = {"folder": [], "hdfs": []}
        for i in range(tools.repeats):
            for name, url in (("folder", ""), ("hdfs", f"{hdfs.url}/run{i}")):
                rate, facts = with_exchange(tools, 0.0, tools.seconds, url)
                rates[name].append(rate)
        folder, remote = statistics.median(rates["folder"]), statistics.median(rates["hdfs"])
    return {"bytes": len(data), **quantiles(took), "rows_per_s": {"folder": round(folder), "hdfs": round(remote)},
            "hdfs_to_folder": round(remote / folder, 3), "snapshots": facts["snapshots"]}  # fmt: skip


# ---- leader of three brokers ----------------------------------------------------------------------------------------
def leader(tools: Tools) -> dict[str, Any]:
    """The test with three brokers in containers, several times: it fails on a lost or doubled record."""
    test = ROOT / "tests" / "integration" / "test_containers.py"
    pauses, records = [], []
    for _ in range(tools.repeats):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-s", str(test), "-k", "leader"],
            capture_output=True, text=True, cwd=ROOT, check=False,
        )  # fmt: skip
        told = re.search(r"leader killed: (\d+) records, longest pause ([\d.]+) s", done.stdout)
        if done.returncode or told is None:
            return {"skipped": (done.stdout + done.stderr)[-500:]}
        records.append(int(told[1]))
        pauses.append(float(told[2]))
    return {"records": records, "lost": 0, "doubled": 0, "pause_s": statistics.median(pauses), "pauses_s": pauses}


# ---- Spark placement ------------------------------------------------------------------------------------------------
def placement(tools: Tools) -> dict[str, Any]:
    """A Python worker on an executor is killed: seconds until all its slots train again."""
    extra = {
        **PLACEMENT_SETTINGS, "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.executor.memory": "512m", "spark.ui.enabled": "false",
    }  # fmt: skip
    took: list[float] = []
    with SparkCluster(tools.folder / "spark") as cluster:
        spark = open_session("bench", cluster.master, tools.folder / "driver", extra)
        try:
            run = tools.run(visible=96, hidden=(64,), phases=[PhaseSpec("cd", epochs=10**5, batch=20, tau=5)])
            run.feed_rows((grey(4000, 96) > 0).astype(np.uint8))
            placed = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 2)
            took.extend(_kill_one(run) for _ in range(max(5, tools.repeats)))
            placed.cancel()
        finally:
            close_session(spark)
    return {"kills": len(took), "p50_s": round(statistics.median(took), 2), "runs_s": [round(t, 2) for t in took]}


def _kill_one(run: RunHarness) -> float:
    at = run.follower.ledger.updates
    run.wait_for(lambda f: f.ledger.updates > at + 200 and len({c.worker for c in f.replica.chains[:-1]}) == 2, 120)
    victim = next(p for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] and run.run in p.info["cmdline"])
    name = victim.cmdline()[victim.cmdline().index("--name") + 1]
    before = {i: c for i, c in enumerate(run.follower.replica.chains[:-1]) if c.worker.startswith(f"{name}#")}
    victim.parent().kill()
    began = time.monotonic()
    run.wait_for(
        lambda f: all(
            f.replica.chains[i].incarnation > c.incarnation and f.replica.chains[i].step > c.step
            for i, c in before.items()
        ),
        120,
    )
    return time.monotonic() - began


PARTS: dict[str, tuple[Callable[[Tools], dict[str, Any]], str, Callable[[dict[str, Any]], bool]]] = {
    "latency": (latency, "p50 <= 10 ms, p99 <= 50 ms", lambda r: r["p50_ms"] <= 10 and r["p99_ms"] <= 50),
    "payload": (
        payload,
        "at 500 kB by reference through a folder costs no more than 3 times inline (the default limit is 512 KiB)",
        lambda r: all(x["folder_p50_ms"] <= 3 * x["inline_p50_ms"] for x in r["table"] if x["kB"] == 500),
    ),
    "exchange": (
        exchange,
        "tau 10 >= 88 %, adaptive >= 93 % of the rows/s without exchange",
        lambda r: r["tau_10_share"] >= 0.88 and r["adaptive_share"] >= 0.93,
    ),
    "learning": (
        learning,
        "adaptive tau: mean test error no worse than at the plan's tau by more than the spread of the seeds",
        lambda r: r["mean"]["adaptive"] <= r["mean"]["fixed"] + max(r["spread_of_fixed"], 0.001),
    ),
    "feed": (feed, ">= 50 MB/s", lambda r: r["MB_per_s"] >= 50),
    "snapshot": (
        snapshot,
        "publication p50 <= 1 s, rows/s within 3 %",
        lambda r: r["p50_ms"] <= 1000 and r["hdfs_to_folder"] >= 0.97,
    ),
    "leader": (leader, "nothing lost or doubled, pause <= 15 s", lambda r: r.get("pause_s", 99) <= 15),
    "memory": (
        memory,
        "idle <= 250 MB, <= 12 bytes per parameter of a stack beyond, flat: a line through the samples rises by <= 1 %",
        lambda r: r["idle_MB"] <= 250 and r["bytes_per_parameter"] <= 12 and r["growth"] <= 0.01,
    ),
    "placement": (placement, "killed Python worker -> its slots train again: p50 <= 10 s", lambda r: r["p50_s"] <= 10),
}


def main() -> None:
    """Measure the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default all of: {', '.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="merge the results into this file")
    parser.add_argument("--quick", action="store_true", help="one short run per figure: all parts within 12 minutes")
    parser.add_argument("--repeats", type=int, default=3, help="runs per figure")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of one throughput measurement")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long memory is watched")
    options = parser.parse_args()
    if options.quick:
        options.repeats, options.seconds, options.minutes = 1, 5.0, 1.0
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"unknown parts {sorted(unknown)}; known: {', '.join(PARTS)}")
    results: dict[str, Any] = json.loads(options.json.read_text()) if options.json and options.json.exists() else {}
    results["machine"] = {"cores": os.cpu_count(), "python": platform.python_version(), "cpu": platform.processor()}
    with (
        tempfile.TemporaryDirectory(prefix="gossipdbn-bench-") as folder,
        Broker(f"{folder}/broker", die_with_parent=True) as b,
    ):
        tools = Tools(Path(folder), b.bootstrap, options.repeats, options.seconds, options.minutes)
        try:
            for part in options.parts or PARTS:
                measure, bar, holds = PARTS[part]
                with load_watched() as circumstances:
                    found = measure(tools)
                name = f"{part}_{TIER}" if "NUMBA_CPU_NAME" in os.environ else part
                holding = "skipped" not in found and holds(found)
                results[name] = {"bar": bar, "holds": holding, "tier": TIER, **found, **circumstances}
                print(name, json.dumps(results[name], indent=1), flush=True)
                if options.json:
                    options.json.parent.mkdir(parents=True, exist_ok=True)
                    options.json.write_text(json.dumps(results, indent=1) + "\n")
        finally:
            tools.close()


if __name__ == "__main__":
    main()
