"""Payloads that their store has lost come back under their names, recomputed by whoever needs them."""

from __future__ import annotations

import dataclasses
import logging
import threading
from pathlib import Path

import pytest

from gossipdbn.adapters.stores import FolderStore
from gossipdbn.core.values import PayloadRef, Sealed, Update
from gossipdbn.replay.verify import verify
from gossipdbn.wire.messages import RunWire, payload_name
from tests.replay.scene import Scene, manifest, rows, walk


@pytest.fixture(autouse=True)
def _listen(caplog):
    caplog.set_level(logging.INFO, "gossipdbn.worker")


def _refs(scene: Scene, slot: int) -> list[PayloadRef]:
    end = scene.log.offsets(scene.names.updates, slot)[1]
    decoded = [RunWire().decode(r.value) for r in scene.log.read(scene.names.updates, slot, 0, end)]
    updates = [d.message for d in decoded if isinstance(d, Sealed) and isinstance(d.message, Update)]
    return [u.payload_ref for u in updates if u.payload_ref is not None]


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
        job.parameters += 1 << 20
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
