"""A run on a real broker and the simulator agree: the same schedule of rounds gives the same records and digest."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gossipdbn.core import rounds
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.ports import Record
from gossipdbn.sim.world import Job
from gossipdbn.testing import RunHarness
from gossipdbn.worker.recover import fetch_payload
from tests.sim.conductor import Conductor, accepted

pytestmark = [pytest.mark.integration, pytest.mark.kafka]
PHASES = [
    PhaseSpec("cd", 0, 5, batch=20, tau=2),
    PhaseSpec("pcd", 1, 3, batch=20, tau=2),
    PhaseSpec("backprop", 0, 4, batch=20, tau=2, optimizer="adam", lr=0.01, lr_final=0.0),
]
WAIT_S = 240.0


def records(run: RunHarness, topic: str, slot: int) -> list[Record]:
    return list(run.log.read(topic, slot, *run.log.offsets(topic, slot)))


@pytest.mark.timeout(600)
def test_simulated_workers_make_the_run_of_real_processes_again(gossip_run: Callable[..., RunHarness]) -> None:
    """Two workers, one of them killed and replaced; large payloads through the store. Then the same in virtual time."""
    run = gossip_run(
        visible=64, hidden=(24, 12), phases=PHASES, classes=4, slots=4, inline_bytes=400, snapshot_every_s=0.5
    )
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 4, 2000).astype(np.int32)
    shapes = rng.random((4, 64)) < 0.4
    values = (shapes[labels] ^ (rng.random((2000, 64)) < 0.1)).astype(np.uint8)
    run.feed_rows(values[:600], labels[:600], end=False)  # nobody can finish before the trouble
    run.start_workers(2)
    run.wait_for(lambda f: {"w1", "w2"} <= {t.worker for t in f.seen.turns} and f.ledger.updates > 10, WAIT_S)
    run.kill_worker("w1")
    run.start_worker("w3")
    run.feed_rows(values[600:], labels[600:])
    run.wait_until_finished(WAIT_S)
    run.assert_exact_ledger()

    slots = range(run.manifest.slots)
    script = [
        accepted(run.manifest, s, records(run, run.topics.updates, s), lambda ref: fetch_payload(run.store, ref))
        for s in slots
    ]
    feed = [[r.value for r in records(run, run.topics.shards, s)] for s in slots]
    conductor = Conductor(Job(run.manifest, feed, rounds.run), script)
    conductor.play()
    again = conductor.stage.checker.replica
    assert {f"{again.digest():016x}"} == set(run.digests().values())
    assert again.version == run.follower.replica.version and again.finished
    assert conductor.recovered and len(conductor.workers) > 1
