"""A store that takes no snapshots is told of once, and once more when it takes them again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from gossipdbn.adapters.memory import MemoryStore
from gossipdbn.core import rounds
from gossipdbn.core.chain import genesis
from gossipdbn.core.events import Snapshot
from gossipdbn.errors import StoreError
from gossipdbn.kernels import codec
from gossipdbn.worker.keeping import SnapshotWriter
from gossipdbn.worker.tuning import CadenceTuner
from tests.replay.scene import Scene, manifest, rows

SLOTS = 3


class Moody(MemoryStore):
    """Takes no snapshot while ``refuses`` says so."""

    def __init__(self, refuses: Callable[[], bool] = lambda: False) -> None:
        super().__init__()
        self.refuses = refuses
        self.refused = 0

    def put(self, name, data):
        if name.startswith("snapshots/") and self.refuses():
            self.refused += 1
            raise StoreError("the store is away", retryable=True)
        super().put(name, data)


class Keeper:
    """A snapshot writer whose answers are waited for."""

    def __init__(self, store: Moody) -> None:
        self.manifest = manifest(SLOTS)
        cadence = CadenceTuner(self.manifest, 60.0, 1.0)
        self.writer = SnapshotWriter(store, self.manifest, ThreadPoolExecutor(1), cadence)

    def keep(self, slot: int, hosted: tuple[int, ...] = (0, 1, 2)) -> bool:
        start, chain = rounds.initial_parameters(self.manifest), genesis(SLOTS)
        state = rounds.fresh_state(self.manifest, slot, chain)
        self.writer.copy(Snapshot(slot, start, (chain,) * (SLOTS + 1), state, codec.digest(start)))
        self.writer.write(slot, chain)
        answers: list[bool] = []
        while not answers:
            answers = [message is not None for _, message in self.writer.done(hosted)]
        return answers == [True]


@pytest.fixture(autouse=True)
def _listen(caplog):
    caplog.set_level(logging.INFO, "gossipdbn.worker")


def _told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "snapshot" in r.getMessage()]


def test_a_worker_tells_once_that_its_store_is_away_and_once_that_it_is_back(caplog):
    store = Moody()
    store.refuses = lambda: store.refused < 7
    scene = Scene(store=store, steady=True)
    scene.feed(*rows())
    scene.work("only")
    first, last = _told(caplog)
    assert first.endswith("was not written; training goes on without: the store is away")
    assert last == "snapshots are written again, after 7 that were not"


def test_all_is_well_when_every_slot_has_a_snapshot_again(caplog):
    away = [True]
    keeper = Keeper(Moody(lambda: away[0]))
    assert not any([keeper.keep(0), keeper.keep(1), keeper.keep(0)])
    away[0] = False
    assert keeper.keep(2) and keeper.keep(0)
    assert len(_told(caplog)) == 1
    assert keeper.keep(1) and keeper.keep(1)
    assert _told(caplog)[1:] == ["snapshots are written again, after 3 that were not"]
    away[0] = True
    assert not keeper.keep(2)
    assert len(_told(caplog)) == 3


def test_a_slot_that_has_left_is_not_waited_for(caplog):
    away = [True]
    keeper = Keeper(Moody(lambda: away[0]))
    assert not any([keeper.keep(0), keeper.keep(1)])
    away[0] = False
    assert keeper.keep(1, hosted=(1, 2))
    assert _told(caplog)[1:] == ["snapshots are written again, after 2 that were not"]
