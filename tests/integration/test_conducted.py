"""A run on a real broker and the simulator agree: the same schedule of rounds gives the same records and digest.

One way, what real processes did is played by simulated workers. The other way, a seed's world, with its faults, trains
a real model; its log is put on a real broker, where a real worker and replay come to the same.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from gossipdbn.core import rounds
from gossipdbn.launch.follow import rows_of_slots
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.ports import Record
from gossipdbn.sim.brokers import UPDATES
from gossipdbn.sim.options import Fault, draw
from gossipdbn.sim.world import Job, World
from gossipdbn.testing import RunHarness
from gossipdbn.worker.recover import fetch_payload
from tests.core.making import replace
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


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [3, 6])
def test_a_simulated_run_is_a_run_on_a_real_broker(gossip_run: Callable[..., RunHarness], seed: int) -> None:
    """Kills, zombies, cuts and lost writers in virtual time, real training; then the records on Kafka."""
    phases = [PhaseSpec("cd", 0, 2, batch=5, tau=2), PhaseSpec("backprop", 0, 2, batch=5, tau=2, optimizer="adam")]
    run = gossip_run(visible=20, hidden=(12,), phases=phases, classes=3, slots=3)
    rng = np.random.default_rng(seed)
    values, labels = (rng.random((300, 20)) < 0.3).astype(np.uint8), rng.integers(0, 3, 300).astype(np.int32)
    run.feed_rows(values, labels, shard_rows=20)
    feed = [[r.value for r in records(run, run.topics.shards, s)] for s in range(3)]
    kinds = ("kill", "zombie", "pause", "move", "reset", "cut", "lose", "unacked", "repeat", "kill", "zombie", "clock")
    faults = tuple(Fault(0.05 + 0.03 * i, kind, 7 * i + seed, 3 * i, 0.6) for i, kind in enumerate(kinds))
    fed = tuple(r or 0 for r in rows_of_slots(run.log, run.manifest, {}).values())
    options = replace(
        draw(seed), slots=3, workers=2, rows=fed, rotate_at_s=None, snapshot_every_s=0.05, faults=faults,
        latency_s=0.002, train_s=0.006, feed_s=0.0, store_s=0.005, session_s=0.05, poll_max=50, pending=8,
    )  # fmt: skip
    world = World(options, job=Job(run.manifest, feed, rounds.run))
    world.run()
    assert world.counted["kill"] and world.checker.replica.finished
    writer = run.log.writer()
    for slot in range(3):
        for record in world.log.records[UPDATES, slot]:
            writer.send(run.topics.updates, slot, record.raw)
    assert writer.flush(20.0)
    writer.close()
    run.start_worker("late")
    run.wait_until_finished(WAIT_S)
    run.assert_exact_ledger()
    digest = f"{world.checker.replica.digest():016x}"
    assert run.digests() == {"late": digest, "log": digest}
    found = run.assert_replayable()
    assert found.digest == digest and found.claims > 3
