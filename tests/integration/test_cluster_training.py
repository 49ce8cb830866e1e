"""Training on what clusters offer: snapshots and payloads on HDFS, and a number of workers that changes."""

from __future__ import annotations

import contextlib
import re
import time
from pathlib import Path

import numpy as np
import pytest

from gossipdbn.models.spec import PhaseSpec
from tests.integration.hosting import evenly_hosted

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


def _rows(n=4000, visible=96, classes=4, seed=0):
    """Noisy prototypes: learnable, small."""
    rng = np.random.default_rng(seed)
    prototypes = rng.random((classes, visible)) < 0.4
    labels = rng.integers(0, classes, n)
    return (prototypes[labels] ^ (rng.random((n, visible)) < 0.1)).astype(np.uint8)


def _snapshots(follower):
    return sum(len(s) for s in follower.control.snapshots.values())


def _hosts(follower):
    """Workers that host slots which are not closed yet."""
    return {c.worker.split("#")[0] for c in follower.replica.chains[:-1] if not c.closed}


@pytest.mark.hdfs
def test_a_dead_namenode_delays_no_training_and_snapshots_resume(gossip_run, gossip_hdfs, gossip_hdfs_server):
    phases = [PhaseSpec("cd", epochs=2, batch=20, tau=5)]
    run = gossip_run(visible=96, hidden=(64,), phases=phases, store=gossip_hdfs, inline_bytes=4096)
    run.feed_rows(_rows(12_000), end=False)  # nobody can finish before the last rows come
    run.start_workers(2)
    run.wait_for(lambda f: _snapshots(f) >= 4 and f.ledger.updates > 100)
    run.kill_worker("w1")
    run.start_worker("w3")
    run.wait_for(lambda f: any(c.worker.startswith("w3#") for c in f.replica.chains[:-1]))

    gossip_hdfs_server.kill("namenode")
    run.follow(2.0)  # what was under way is over
    before, announced, began = run.follower.ledger.updates, _snapshots(run.follower), time.monotonic()
    run.feed_rows(_rows(24_000, seed=1), end=False)
    run.wait_for(lambda f: f.ledger.updates >= before + 200)
    rate = 200 / (time.monotonic() - began)
    assert _snapshots(run.follower) == announced
    assert not run.follower.finished
    gossip_hdfs_server.restart("namenode")
    run.wait_for(lambda f: _snapshots(f) >= announced + 2)  # although there is nothing to train
    print(f"{rate:.0f} updates/s while the NameNode was down")

    run.feed_rows(_rows(1000, seed=2))
    run.wait_until_finished(180)
    assert len(run.store.names("payloads/")) >= 4  # the closings, whole residuals, went by reference
    run.assert_exact_ledger()
    assert len(set(run.digests().values())) == 1
    run.assert_replayable()


@pytest.mark.hdfs
@pytest.mark.parametrize("trouble", ["safe mode", "full disk"])
def test_training_goes_on_while_hdfs_takes_no_writes_and_snapshots_resume(
    gossip_run, gossip_hdfs, gossip_hdfs_server, trouble
):
    phases = [PhaseSpec("cd", epochs=10**5, batch=20, tau=5)]
    run = gossip_run(visible=96, hidden=(64,), phases=phases, store=gossip_hdfs)
    run.feed_rows(_rows())
    run.start_workers(2)
    run.wait_for(lambda f: evenly_hosted(f, "w1", "w2") and _snapshots(f) >= 2 and f.ledger.updates > 50)
    owners = [c.worker for c in run.follower.replica.chains]

    def break_it(broken: bool) -> None:
        if trouble == "safe mode":
            gossip_hdfs_server.safe_mode(broken)
        else:
            gossip_hdfs_server.reserve((1 << 50) * broken)

    break_it(True)
    try:
        announced = -1
        while announced != _snapshots(run.follower):  # what was under way is over
            announced = _snapshots(run.follower)
            run.follow(2.0)
        before = run.follower.ledger.updates
        run.wait_for(lambda f: f.ledger.updates >= before + 100)
        assert _snapshots(run.follower) == announced, run.report()
    finally:
        break_it(False)
    healed = time.monotonic()
    run.wait_for(lambda f: _snapshots(f) >= announced + 2, 90)
    print(f"{trouble}: snapshots again {time.monotonic() - healed:.1f} s after it was healed")
    run.stop()
    assert [c.worker for c in run.follower.replica.chains] == owners  # nobody had to give a slot up


@pytest.mark.hdfs
def test_updates_whose_payloads_cannot_be_stored_wait_and_are_never_lost(gossip_run, gossip_hdfs, gossip_hdfs_server):
    phases = [PhaseSpec("cd", epochs=6, batch=20, tau=5)]
    run = gossip_run(visible=96, hidden=(64,), phases=phases, slots=2, store=gossip_hdfs, inline_bytes=0)
    run.feed_rows(_rows(1000), end=False)  # nobody can finish before the last rows come
    run.start_workers(2)
    run.wait_for(lambda f: evenly_hosted(f, "w1", "w2") and f.ledger.updates > 4)
    owners = [c.worker for c in run.follower.replica.chains]
    gossip_hdfs_server.kill("namenode")
    run.follow(3.0)
    stopped_at = run.follower.ledger.updates
    assert not run.follower.finished
    gossip_hdfs_server.restart("namenode")
    run.feed_rows(_rows(200, seed=1))
    run.wait_until_finished(180)
    assert run.follower.ledger.updates > stopped_at
    assert len(run.store.names("payloads/")) >= run.follower.ledger.updates
    assert [c.worker for c in run.follower.replica.chains] == owners  # nobody had to give a slot up
    run.assert_exact_ledger()
    run.assert_replayable()


def test_workers_grow_from_one_to_four_and_shrink_to_two(gossip_run):
    run = gossip_run(visible=96, hidden=(64,), phases=[PhaseSpec("cd", epochs=3, batch=20, tau=5)])
    run.feed_rows(_rows(8000), end=False)  # nobody can finish before the last rows come

    run.start_worker("w1")
    run.wait_for(lambda f: f.ledger.updates > 40 and _hosts(f) == {"w1"})
    for name in ("w2", "w3", "w4"):
        run.start_worker(name)
    run.wait_for(lambda f: _hosts(f) == {"w1", "w2", "w3", "w4"})
    at = run.follower.ledger.updates
    run.feed_rows(_rows(14_000, seed=1), end=False)
    run.wait_for(lambda f: f.ledger.updates > at + 100)
    run.stop_worker("w1")
    run.kill_worker("w2")
    run.wait_for(lambda f: _hosts(f) == {"w3", "w4"})
    run.feed_rows(_rows(1000, seed=2))
    run.wait_until_finished(180)
    run.assert_exact_ledger()
    assert len(set(run.digests().values())) == 1
    run.assert_replayable()


def test_a_layer_of_4096_by_4096_travels_by_reference_in_bounded_memory(gossip_run):
    """Its updates are half a megabyte or so, its closings four bytes a parameter."""
    phases = [PhaseSpec("cd", epochs=1, batch=20, tau=2, lr=0.02)]
    run = gossip_run(visible=4096, hidden=(4096,), phases=phases, slots=2, snapshot_every_s=2.0)
    run.feed_rows(_rows(200, 4096))
    run.start_workers(2)
    peak = {}
    deadline = time.monotonic() + 240  # where kernels are not compiled yet, that comes first
    while not run.follower.finished:
        assert time.monotonic() < deadline, run.report()
        run.follow(0.2)
        for name, child in run.workers.items():
            with contextlib.suppress(OSError, TypeError):  # it has left
                peak[name] = _peak_bytes(child.pid)
    run.wait_until_finished()
    updates, payloads = run.follower.ledger.updates, len(run.store.names("payloads/"))
    print(f"{updates} updates, {payloads} of them by reference, peaks {[p >> 20 for p in peak.values()]} MiB")
    run.assert_exact_ledger()
    assert len(set(run.digests().values())) == 1
    assert payloads >= 3  # of which two are closings
    parameters = len(run.follower.replica.acc)
    assert len(peak) == 2 and max(peak.values()) < 250e6 + 40 * parameters  # closings, 4 bytes each, included
    run.assert_replayable()


def _peak_bytes(pid):
    """Largest resident memory a process has had (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10
