"""Workers on the executors of a real standalone Spark cluster: run, killed, cancelled."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from gossipdbn.models.spec import PhaseSpec
from tests.integration.hosting import evenly_hosted

pytestmark = [pytest.mark.spark, pytest.mark.kafka, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def spark(gossip_spark: str, tmp_path_factory: pytest.TempPathFactory):
    from gossipdbn.spark.placement import PLACEMENT_SETTINGS
    from gossipdbn.spark.session import close_session, open_session

    extra = {
        **PLACEMENT_SETTINGS, "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.executor.memory": "512m", "spark.ui.enabled": "false",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        session = open_session("placement", gossip_spark, tmp_path_factory.mktemp("driver"), extra)
    yield session
    close_session(session)


def _rows(n=4000, visible=96):
    rng = np.random.default_rng(0)
    prototypes = rng.random((4, visible)) < 0.4
    return (prototypes[rng.integers(0, 4, n)] ^ (rng.random((n, visible)) < 0.1)).astype(np.uint8)


def worker_processes(run: str) -> list[psutil.Process]:
    """Worker processes of the run, wherever they hang in the tree."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if "worker" in line and run in line:
                found.append(process)
    return found


def _run(gossip_run, epochs):
    return gossip_run(visible=96, hidden=(64,), phases=[PhaseSpec("cd", epochs=epochs, batch=20, tau=5)])


# First, while no other session holds the cluster's cores: the fixture `spark` keeps them to the end of the module.
@pytest.mark.skipif(
    not os.environ.get("GOSSIPDBN_WHOLE_JOB"), reason="compiles the kernels of a shipped package: `make whole-job`"
)
@pytest.mark.timeout(900)
def test_train_places_its_workers_on_a_cluster_ships_the_package_and_ends_with_a_model(
    gossip_broker: str, gossip_spark: str, home: Path, tmp_path: Path
) -> None:
    values = np.random.default_rng(1).random((3000, 8))
    header = ",".join(f"c{i}" for i in range(8))
    np.savetxt(tmp_path / "rows.csv", values, "%.4f", ",", header=header, comments="")
    (tmp_path / "run.toml").write_text(CONFIG)
    result = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "-m", "gossipdbn", "train", tmp_path / "run.toml", "--bootstrap", gossip_broker, "--plain",
         "--placement", "spark", "--master", gossip_spark, "--spark-conf", "spark.executor.memory=512m", "--ship",
         "--json", result],
        capture_output=True, text=True, timeout=800, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads(result.read_text())
    assert facts["state"] == "finished"
    assert facts["ledger"]["exact"]
    assert len(facts["digests"]) == 3
    assert len(set(facts["digests"].values())) == 1
    assert all(name.startswith("spark-") for name in facts["digests"] if name != "log")


def test_a_killed_python_worker_comes_back_and_its_slots_train_again(gossip_run, spark):
    from gossipdbn.spark.placement import WorkerOrder, place_workers

    run = _run(gossip_run, 3)
    run.feed_rows(_rows(12_000), end=False)  # nobody can finish before the last rows come
    placed = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 2)
    run.wait_for(lambda f: f.ledger.updates > 100 and evenly_hosted(f, number=2), 90)
    assert not placed.failure
    victim = worker_processes(run.run)[0]
    name = victim.cmdline()[victim.cmdline().index("--name") + 1]
    slots = [i for i, c in enumerate(run.follower.replica.chains[:-1]) if c.worker.startswith(name + "#")]
    before = {i: run.follower.replica.chains[i].incarnation for i in slots}
    victim.parent().kill()
    at = time.monotonic()
    counts = {i: run.follower.replica.chains[i].count for i in slots}
    run.feed_rows(_rows(12_000), end=False)
    run.wait_for(
        lambda f: all(f.replica.chains[i].incarnation > before[i] and f.replica.chains[i].count > counts[i] + 8
                      for i in slots), 60,
    )  # fmt: skip
    print(f"slots {slots} train again after {time.monotonic() - at:.1f} s")
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    run.feed_rows(_rows(1000))
    run.wait_for(lambda f: f.finished, 180)
    assert placed.wait(30)
    assert not placed.failure
    assert len(placed.results) == 2
    assert not worker_processes(run.run)
    run.assert_exact_ledger()
    run.assert_replayable()


def test_cancelling_stops_everything_within_five_seconds_and_a_resumed_run_is_exact(gossip_run, spark):
    from gossipdbn.spark.placement import WorkerOrder, place_workers

    run = _run(gossip_run, 3)
    run.feed_rows(_rows(12_000), end=False)
    placed = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 2)
    run.wait_for(lambda f: f.ledger.updates > 60, 90)
    began = time.monotonic()
    assert placed.cancel()
    while worker_processes(run.run):
        assert time.monotonic() - began < 5.0
        time.sleep(0.05)
    print(f"cancelled in {time.monotonic() - began:.1f} s")
    assert not placed.failure
    run.follower.catch_up(time.monotonic())
    assert not run.follower.finished
    run.feed_rows(_rows(1000))
    again = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 2)
    run.wait_for(lambda f: f.finished, 180)
    assert again.wait(30)
    run.assert_exact_ledger()
    run.assert_replayable()


def test_a_worker_that_cannot_work_says_why_and_is_not_started_again(gossip_run, spark):
    from gossipdbn.spark.placement import WorkerOrder, place_workers

    run = _run(gossip_run, 1)
    placed = place_workers(spark, WorkerOrder("no-such-run", run.bootstrap), 1)
    assert placed.wait(60)
    assert "is not on this log" in placed.failure


CONFIG = """
[run]
name = "placed"
workers = 2
[source]
kind = "csv"
path = "rows.csv"
[model]
hidden = [12]
[train]
epochs = 8
batch = 50
tau = 4
"""
