"""Taking a slot over: which snapshot is used, and what is done when none can be."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time

import msgspec
import pytest

from gossipdbn.core.values import SnapshotAnnounced
from gossipdbn.wire.messages import encode_control
from gossipdbn.wire.snapshots import announce, decode_snapshot, encode_snapshot
from gossipdbn.worker.control import load_control
from tests.replay.scene import Scene, rows, walk


def _interrupted(until: int = 60) -> Scene:
    scene = Scene(steady=True)
    scene.feed(*rows())
    scene.work("first", until=until)
    return scene


def _newest(scene: Scene, slot: int) -> SnapshotAnnounced:
    return load_control(scene.log, scene.run, {}).newest(slot)[0]


def _finish(scene: Scene, name: str = "second"):
    worker = scene.worker(name, threading.Event())
    result = worker.run()
    assert result.finished
    return worker


def _recomputed(caplog: pytest.LogCaptureFixture, slot: int) -> int:
    texts = [r.getMessage() for r in caplog.records]
    return next(int(t.split(": ")[1].split()[0]) for t in texts if t.startswith(f"slot {slot} recovered"))


@pytest.fixture(autouse=True)
def _listen(caplog):
    caplog.set_level(logging.INFO, "gossipdbn.worker")


def test_a_takeover_recomputes_only_what_came_after_the_snapshot(caplog):
    scene = _interrupted()
    before = [scene.logged_chain(s) for s in range(3)]
    snapshots = {s: _newest(scene, s).seq for s in range(3) if load_control(scene.log, scene.run, {}).newest(s)}
    assert snapshots
    _finish(scene)
    for slot, seq in snapshots.items():
        assert _recomputed(caplog, slot) == before[slot].count - seq
    assert not [r for r in caplog.records if "reset" in r.getMessage()]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
def test_an_unusable_snapshot_is_left_for_the_one_before(caplog, damage):
    scene = _interrupted()
    slot = max(range(3), key=lambda s: len(load_control(scene.log, scene.run, {}).newest(s)))
    newest = _newest(scene, slot)
    data = scene.store.objects[newest.name]
    if damage == "gone":
        del scene.store.objects[newest.name]
    else:
        middle = len(data) // 2
        bad = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if damage == "flipped" else data[:-7]
        scene.store.objects[newest.name] = bad
    count = scene.logged_chain(slot).count
    _finish(scene)
    assert _recomputed(caplog, slot) > count - newest.seq
    assert any("snapshot" in r.getMessage() for r in caplog.records)


def test_what_is_behind_goes_first_many_rounds_a_turn(caplog):
    scene = _interrupted()
    scene.store.objects = {k: v for k, v in scene.store.objects.items() if k.startswith("payloads/")}
    worker = scene.worker("second", threading.Event())
    behind, turn = [], worker._turn

    def counted() -> None:
        behind.append(bool(worker._recoveries))
        turn()

    worker._turn = counted
    assert worker.run().finished
    assert sum(behind) < sum(_recomputed(caplog, s) for s in range(3)) / 2


def test_a_snapshot_of_a_round_that_never_reached_the_log_is_not_used(caplog):
    """Its owner died between the snapshot and the send: the state is of a branch that nobody else knows."""
    scene = _interrupted()
    slot = next(s for s in range(3) if load_control(scene.log, scene.run, {}).newest(s))
    newest = _newest(scene, slot)
    true = decode_snapshot(scene.manifest, scene.store.objects[newest.name], newest.sha256)
    state = dataclasses.replace(true.state, seq=true.state.seq + 1, tip=b"deadbrch", residual=true.state.residual + 9)
    chains = list(true.chains)
    chains[slot] = dataclasses.replace(chains[slot], tip=state.tip, count=state.seq)
    forged = dataclasses.replace(true, state=state, chains=tuple(chains))
    data = encode_snapshot(scene.manifest, forged)
    message = msgspec.structs.replace(announce(scene.manifest, forged, data), version=(0,) * 4)
    scene.store.put(message.name, data)
    scene.log.append(scene.names.control, 0, encode_control(message))
    worker = _finish(scene)
    assert worker.host.replica.chains[slot].resets == 0
    assert any("another history" in r.getMessage() for r in caplog.records)


def test_without_any_snapshot_the_whole_tail_is_recomputed(caplog):
    scene = _interrupted()
    scene.store.objects = {k: v for k, v in scene.store.objects.items() if k.startswith("payloads/")}
    counts = [scene.logged_chain(s).count for s in range(3)]
    worker = _finish(scene)
    assert [_recomputed(caplog, s) for s in range(3)] == counts
    assert all(c.resets == 0 for c in worker.host.replica.chains)


def test_rows_that_are_gone_mean_a_reset_not_a_crash(caplog):
    """The shards topic lost its records: residuals are given up, and the slot says so."""
    scene = _interrupted()
    scene.store.objects = {k: v for k, v in scene.store.objects.items() if k.startswith("payloads/")}
    slot = 1
    kept = scene.log.data[scene.names.shards][slot]
    scene.log.data[scene.names.shards][slot] = kept[:1]
    worker = scene.worker("second", stop := threading.Event())
    threading.Timer(1.5, stop.set).start()
    worker.run()
    assert worker.host.replica.chains[slot].resets == 1
    assert any(r.levelno >= logging.WARNING and "reset" in r.getMessage() for r in caplog.records)


def test_a_slot_that_moves_between_living_workers_is_not_recomputed(caplog):
    def slowly(*inputs):
        time.sleep(0.005)
        return walk(*inputs)

    scene = Scene(train=slowly)
    scene.feed(*rows())
    first, second = (scene.worker(n, threading.Event(), snapshot_every_s=60.0) for n in ("first", "second"))
    thread = threading.Thread(target=first.run)
    thread.start()
    while scene.count() < 15:
        time.sleep(0.002)
    caplog.clear()
    assert second.run().finished
    thread.join()
    moved = [r.getMessage() for r in caplog.records if "recovered" in r.getMessage()]
    assert moved and all("recovered: 0 rounds recomputed" in m for m in moved), moved
    assert not [r for r in caplog.records if "fenced" in r.getMessage()]
    assert second.rounds > 0 and sum(scene.logged_chain(s).voids for s in range(3)) == 0
