"""What a worker learns from its writer: where its records stand, and that it is broken."""

from __future__ import annotations

from collections import Counter

import pytest

from gossipdbn.adapters.memory import MemoryLog
from gossipdbn.core import events as ev
from gossipdbn.errors import LogError
from gossipdbn.worker import loop
from tests.replay.scene import Scene, rows


@pytest.fixture
def scene():
    scene = Scene()
    scene.feed(*rows())
    return scene


def test_a_worker_reads_few_of_its_own_updates(scene, monkeypatch):
    """They come as acknowledgements; what else is in their partitions it reads."""
    seen: Counter[str] = Counter()
    step, record = loop.Worker._step, loop.Worker._record

    def stepped(self, event):
        seen[type(event).__name__] += 1
        step(self, event)

    def recorded(self, r):
        seen["read"] += r.topic == self.topics.updates and r.offset >= self.host.replica.chains[r.partition].offset
        record(self, r)

    monkeypatch.setattr(loop.Worker, "_step", stepped)
    monkeypatch.setattr(loop.Worker, "_record", recorded)
    scene.work("only")
    updates = sum(scene.logged_chain(s).count for s in range(scene.manifest.slots))
    assert seen["Acknowledged"] >= updates > 50
    assert seen["read"] < updates / 5


class Breaking:
    """A writer that loses every record after the first ``whole`` and says so later."""

    def __init__(self, writer, whole=25):
        self._writer, self._left, self._broken = writer, whole, None

    def send(self, topic, partition, value):
        if self._broken:
            raise LogError(self._broken)
        self._left -= 1
        if self._left < 0:
            self._broken = "a record was given up"
        else:
            self._writer.send(topic, partition, value)

    def failure(self):
        return self._broken

    def flush(self, timeout_s):
        return not self._broken

    def close(self):
        self._writer.close()


def test_a_broken_writer_is_renewed_once_a_turn_and_nothing_is_lost(scene, monkeypatch):
    writer, turn, one = MemoryLog.writer, loop.Worker._turn, loop.Worker._one
    turns, renewed = [0], Counter()

    def turned(self):
        turns[0] += 1
        turn(self)

    def done(self, effect):
        renewed[turns[0]] += isinstance(effect, ev.RenewWriter)
        one(self, effect)

    monkeypatch.setattr(MemoryLog, "writer", lambda self, *heard: Breaking(writer(self, *heard)))
    monkeypatch.setattr(loop.Worker, "_turn", turned)
    monkeypatch.setattr(loop.Worker, "_one", done)
    scene.work("only")
    assert sum(renewed.values()) > 1 and max(renewed.values()) == 1
    assert all(scene.logged_chain(s).closed for s in range(scene.manifest.slots))
