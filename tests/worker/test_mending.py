"""Payloads that their store has lost come back under their names, recomputed by whoever needs them."""

from __future__ import annotations

import dataclasses
import logging
import threading
from pathlib import Path

import pytest

from gossipdbn.adapters.stores import FolderStore
from gossipdbn.core.values import PayloadRef, Revocation, Sealed, Update
from gossipdbn.replay.operator import Operator
from gossipdbn.replay.verify import verify
from gossipdbn.wire.messages import RunWire, payload_name
from gossipdbn.worker.control import load_control
from tests.replay.scene import Scene, manifest, rows, walk


@pytest.fixture(autouse=True)
def _listen(caplog):
    caplog.set_level(logging.INFO, "gossipdbn.worker")


def _refs(scene: Scene, slot: int) -> list[PayloadRef]:
    end = scene.log.offsets(scene.names.updates, slot)[1]
    decoded = [RunWire().decode(r.value) for r in scene.log.read(scene.names.updates, slot, 0, end)]
    messages = [d.message for d in decoded if isinstance(d, Sealed) and isinstance(d.message, Update | Revocation)]
    return [m.payload_ref for m in messages if m.payload_ref is not None]


def _scene(store) -> Scene:
    scene = Scene(store=store, manifest=manifest(3, inline_bytes=16))
    scene.feed(*rows())
    return scene


@pytest.mark.parametrize("which", [0, -1])
def test_a_lost_payload_is_recomputed_by_the_slots_next_owner(tmp_path, caplog, which):
    scene = _scene(FolderStore(tmp_path / "store"))
    scene.work("first", until=40)
    lost = [(slot, _refs(scene, slot)[which]) for slot in (0, 2)]
    before = [scene.store.get(payload_name(ref), ref.size) for _, ref in lost]
    for _, ref in lost:
        scene.store.delete(payload_name(ref))
    if which == 0:  # its slot's snapshots all contain it, those of the replica that the next worker starts from do not
        for name in scene.store.names("snapshots/"):
            scene.store.delete(name)
    scene.work("second")
    assert [scene.store.get(payload_name(ref), ref.size) for _, ref in lost] == before
    assert sum("back in the store" in r.getMessage() for r in caplog.records) >= 2
    assert not [r for r in caplog.records if "reset" in r.getMessage()]
    found = verify(scene.logged(tmp_path / "copy"), 1, train=walk)
    assert found.identical, found.problems


def _revoked(scene: Scene, slot: int, first: int, last: int) -> PayloadRef:
    """Revoke; the payload of that, which travels by reference."""
    Operator(scene.log, scene.manifest, scene.store, RunWire(), "operator@test").revoke(slot, first, last)
    return _refs(scene, scene.manifest.slots)[-1]


@pytest.mark.parametrize("with_an_update", [False, True])
def test_a_lost_payload_of_a_revocation_is_added_up_again(tmp_path, caplog, with_an_update):
    scene = _scene(FolderStore(tmp_path / "store"))
    scene.work("first", until=30)
    lost = [_revoked(scene, 1, 0, 2), *(_refs(scene, 1)[1:2] if with_an_update else [])]
    before = [scene.store.get(payload_name(ref), ref.size) for ref in lost]
    for ref in lost:
        scene.store.delete(payload_name(ref))
    for name in scene.store.names("snapshots/"):
        scene.store.delete(name)
    _bounded(scene, "second", 20_000)
    assert [scene.store.get(payload_name(ref), ref.size) for ref in lost] == before
    found = verify(scene.logged(tmp_path / "copy"), 1, train=walk)
    assert found.identical and found.revocations == 1, found.problems


def test_what_a_recovery_lacks_is_recomputed_though_no_partition_waits_for_it(tmp_path, caplog):
    """The replica starts from the newest snapshot; the other slots start earlier, and need what came between."""
    scene = _scene(FolderStore(tmp_path / "store"))
    scene.work("first", until=25)
    _revoked(scene, 1, 0, 1)
    scene.work("second", until=60)
    announced = load_control(scene.log, scene.run, {}).snapshots
    newest = max((a for of_slot in announced.values() for a in of_slot), key=lambda a: sum(a.version))
    for name in scene.store.names("snapshots/"):
        if name != newest.name:
            scene.store.delete(name)
    lost = [payload_name(ref) for p in (newest.slot, scene.manifest.slots) for ref in _refs(scene, p)]
    for name in lost:
        scene.store.delete(name)
    _bounded(scene, "third", 20_000)
    assert not [r for r in caplog.records if "reset" in r.getMessage()]
    waits = [m for r in caplog.records if (m := r.getMessage()).startswith("recovery of slot") and "waits" in m]
    assert 0 < len(waits) <= 3 * len(lost)  # told once for each reason, not at every turn
    for name in scene.store.names("snapshots/"):
        scene.store.delete(name)
    _bounded(scene, "fourth", 20_000)  # puts back what nobody has needed yet
    assert set(lost) <= set(scene.store.names("payloads/"))
    assert verify(scene.logged(tmp_path / "copy"), 1, train=walk).identical


def _bounded(scene: Scene, name: str, turns: int) -> None:
    """Work to the end; fails after so many turns."""
    worker = scene.worker(name, threading.Event())
    turn, left = worker._turn, [turns]

    def counted():
        left[0] -= 1
        assert left[0], f"not finished after {turns} turns: {worker.host.held}"
        turn()

    worker._turn = counted
    assert worker.run().finished


class Forgetful(FolderStore):
    """Says that it has stored its first payload, and has not."""

    forgot = 0

    def put(self, name, data):
        if name.startswith("payloads/") and not self.forgot:
            self.forgot = 1
            return
        super().put(name, data)


def test_an_owner_whose_payload_never_arrived_stores_it_again(tmp_path: Path, caplog):
    store = Forgetful(tmp_path / "store")
    scene = _scene(store)
    scene.work("only")
    assert store.forgot and any("back in the store" in r.getMessage() for r in caplog.records)
    assert not [r for r in caplog.records if "recomputing" in r.getMessage()]  # it had it in memory
    assert verify(scene.logged(tmp_path / "copy"), 1, train=walk).identical


def test_what_cannot_be_recomputed_is_waited_for(tmp_path, caplog):
    """Another computation than the one that made the log never fills the hole."""
    scene = _scene(FolderStore(tmp_path / "store"))
    scene.work("first", until=40)
    ref = _refs(scene, 0)[-1]
    scene.store.delete(payload_name(ref))
    for name in scene.store.names("snapshots/"):
        scene.store.delete(name)
    train = scene.train

    def otherwise(m, job, *inputs):
        stats = train(m, job, *inputs)
        job.parameters[:] += 1 << 20
        return stats

    wrong = dataclasses.replace(scene, train=otherwise)
    worker = wrong.worker("second", threading.Event())
    turn, turns = worker._turn, [0]

    def bounded():
        turns[0] += 1
        if turns[0] > 300:
            worker.control.stops = worker.control.answered + 1
        turn()

    worker._turn = bounded
    assert not worker.run().finished
    assert payload_name(ref) not in scene.store.names("payloads/")
    assert any("cannot be recomputed" in r.getMessage() or "waits" in r.getMessage() for r in caplog.records)
