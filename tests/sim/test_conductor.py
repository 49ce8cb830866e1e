"""A run of real workers, played again by simulated ones: the same records, byte for byte."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest

from gossipdbn.core import rounds
from gossipdbn.sim.world import Job
from gossipdbn.worker.recover import fetch_payload
from tests.replay.scene import Scene, manifest, rows
from tests.sim.conductor import Conductor, Played, accepted


def played(scene: Scene) -> list[list[Played]]:
    out = []
    for slot in range(scene.manifest.slots):
        end = scene.log.offsets(scene.names.updates, slot)[1]
        records = list(scene.log.read(scene.names.updates, slot, 0, end))
        out.append(accepted(scene.manifest, slot, records, lambda ref: fetch_payload(scene.store, ref)))
    return out


def job(scene: Scene) -> Job:
    feed = []
    for slot in range(scene.manifest.slots):
        end = scene.log.offsets(scene.names.shards, slot)[1]
        feed.append([r.value for r in scene.log.read(scene.names.shards, slot, 0, end)])
    return Job(scene.manifest, feed, rounds.run)


@pytest.fixture
def scene() -> Scene:
    """One worker dies, two more share the slots and finish."""
    scene = Scene(train=rounds.run, manifest=manifest(3, inline_bytes=300))
    scene.feed(*rows())
    scene.work("first", until=14)
    threads = [threading.Thread(target=scene.work, args=(name,)) for name in ("second", "third")]
    for thread in threads:
        thread.start()
        time.sleep(0.02)
    for thread in threads:
        thread.join()
    return scene


def test_simulated_workers_make_a_real_run_again(scene: Scene) -> None:
    script = played(scene)
    conductor = Conductor(job(scene), script)
    conductor.play()
    replica = conductor.stage.checker.replica
    assert replica.finished and replica.version[:-1] == tuple(len([r for r in p if r.version]) for p in script)
    assert conductor.recovered >= 3 and len(conductor.workers) == 3


def earlier_version(script: list[list[Played]]) -> tuple[int, int, Played]:
    """A round, and the same one said to have missed an update that it contained."""
    for slot, records in enumerate(script):
        before: tuple[int, ...] = ()
        for n, r in enumerate(records):
            if r.version is None:
                continue
            for other in range(len(script)):
                if before and other != slot and r.version[other] > before[other]:
                    version = tuple(v - (j == other) for j, v in enumerate(r.version))
                    return slot, n, dataclasses.replace(r, version=version)
            before = r.version
    raise AssertionError("no round has read anything new")


def test_a_round_from_another_version_is_another_record(scene: Scene) -> None:
    """The check can fail: a schedule that says otherwise is not what was logged."""
    script = played(scene)
    slot, n, other = earlier_version(script)
    script[slot][n] = other
    with pytest.raises(AssertionError, match="made another one|no order"):
        Conductor(job(scene), script).play()
