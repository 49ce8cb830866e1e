"""Executors that come and go: Spark's dynamic allocation, and executors that are lost."""

from __future__ import annotations

import contextlib
import signal
import time

import numpy as np
import psutil
import pytest

from gossipdbn.models.spec import PhaseSpec
from tests.integration.test_placement import worker_processes

pytestmark = [pytest.mark.spark, pytest.mark.kafka, pytest.mark.timeout(400)]
IDLE_S = 3
EXECUTOR = "org.apache.spark.executor.CoarseGrainedExecutorBackend"


@pytest.fixture(scope="module")
def spark(gossip_spark: str, tmp_path_factory: pytest.TempPathFactory):
    from gossipdbn.spark.placement import PLACEMENT_SETTINGS
    from gossipdbn.spark.session import close_session, open_session

    extra = {
        **PLACEMENT_SETTINGS, "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1",
        "spark.executor.memory": "512m", "spark.executor.cores": "1", "spark.ui.enabled": "false",
        "spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.shuffleTracking.enabled": "true",
        "spark.dynamicAllocation.minExecutors": "0", "spark.dynamicAllocation.maxExecutors": "2",
        "spark.dynamicAllocation.executorIdleTimeout": f"{IDLE_S}s",
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        session = open_session("elastic", gossip_spark, tmp_path_factory.mktemp("driver"), extra)
    yield session
    close_session(session)


def _run(gossip_run):
    """A run that nobody can finish before its last rows come (``_rows``)."""
    run = gossip_run(visible=96, hidden=(64,), phases=[PhaseSpec("cd", epochs=3, batch=20, tau=5)])
    run.feed_rows(_rows(8000), end=False)
    return run


def _rows(n):
    rng = np.random.default_rng(0)
    prototypes = rng.random((4, 96)) < 0.4
    return (prototypes[rng.integers(0, 4, n)] ^ (rng.random((n, 96)) < 0.1)).astype(np.uint8)


def _executors(spark) -> list[psutil.Process]:
    """Executor processes of this application, on this machine."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            line = process.cmdline()
            if EXECUTOR in line and spark.sparkContext.applicationId in line:
                found.append(process)
    return found


def _hosts(follower):
    return {c.worker.split("#")[0] for c in follower.replica.chains[:-1] if c.worker and not c.closed}


def _wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_long_tasks_keep_their_executors_a_lost_one_is_replaced_and_idle_ones_go(gossip_run, spark):
    from gossipdbn.spark.placement import WorkerOrder, place_workers

    assert not _executors(spark)
    run = _run(gossip_run)
    placed = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 2)
    run.wait_for(lambda f: f.ledger.updates > 40 and len(_hosts(f)) == 2, 120)
    before = _executors(spark)
    assert len(before) == 2
    run.follow(2.0 * IDLE_S)
    assert _executors(spark) == before, "an executor was taken from its long task"

    lost = before[0]
    claims = [c.incarnation for c in run.follower.replica.chains[:-1]]
    workers = [p for p in worker_processes(run.run) if lost in p.parents()]
    assert workers
    lost.send_signal(signal.SIGKILL)
    killed = time.monotonic()
    _wait_until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers), 10)
    run.wait_for(lambda f: sum(c.incarnation > n for c, n in zip(f.replica.chains, claims, strict=False)) >= 2, 60)
    print(f"its slots are claimed {time.monotonic() - killed:.1f} s after the executor was killed")
    run.wait_for(lambda f: len(_hosts(f)) == 2 and len(_executors(spark)) == 2, 120)

    run.feed_rows(_rows(1000))
    run.wait_for(lambda f: f.finished, 240)
    assert placed.wait(30)
    assert not placed.failure
    _wait_until(lambda: not _executors(spark), 30)
    assert not worker_processes(run.run)
    run.assert_exact_ledger()


def test_workers_placed_after_the_executors_went_get_new_ones(gossip_run, spark):
    from gossipdbn.spark.placement import WorkerOrder, place_workers

    _wait_until(lambda: not _executors(spark), 30)
    run = _run(gossip_run)
    first = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 1)
    run.wait_for(lambda f: f.ledger.updates > 10, 120)
    more = place_workers(spark, WorkerOrder(run.run, run.bootstrap), 1)
    run.feed_rows(_rows(1000))
    run.wait_for(lambda f: f.finished, 180)
    assert first.wait(30)
    assert more.wait(60)
    assert not first.failure
    assert not more.failure
    run.assert_exact_ledger()
