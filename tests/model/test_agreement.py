"""The executable model holds its own invariants, and production gives the same verdicts and versions as the model."""

from __future__ import annotations

import random

import numpy as np
import pytest

from gossipdbn.core.chain import tip_after
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import RESET, RESUME, Accepted, RowRange, TensorDelta, Undecided
from gossipdbn.core.values import Claim as ClaimMessage
from gossipdbn.core.values import Revocation as RevocationMessage
from gossipdbn.core.values import Update as UpdateMessage
from gossipdbn.kernels import codec
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from tests.core.making import WIRE, a_manifest
from tests.model import protocol_model as model
from tests.model import schedules

SCHEDULES = 160
PARAMETERS = 3


class Translation:
    """Watches a schedule of the model and plays every record, as real bytes, through production's replicas."""

    def __init__(self, setting: model.Setting) -> None:
        phases = tuple(PhaseSpec("cd", 0, epochs, 2, 1) for epochs in setting.epochs)
        self.manifest = a_manifest(setting.slots, phases, spec=ModelSpec(1, (1,)), codec=0)
        self.truth = self._replica()
        self.readers: dict[int, Replica] = {}
        self.raw: dict[tuple[int, model.Record], bytes] = {}
        self.tips: dict[int, bytes] = {}
        self.floors: dict[int, tuple[int, ...]] = {}
        self.compared = self.void = 0

    def _replica(self) -> Replica:
        return Replica(self.manifest, WIRE.decode, np.zeros(PARAMETERS, np.int32))

    def __call__(self, what: str, worker: int, p: int, record: model.Record, ok: bool) -> None:
        if what == "created":
            self.raw[p, record] = WIRE.encode(self._message(p, record))
            if isinstance(record, model.Update):
                self.tips[record.nonce] = tip_after(self.tips[record.nonce], self.raw[p, record])
                self.floors[record.nonce] = record.start
            return
        replica = self.truth if what == "appended" else self.readers.setdefault(worker, self._replica())
        chain = replica.chains[p]
        verdict = replica.read(p, chain.offset, self.raw[p, record])
        assert not isinstance(verdict, Undecided)
        assert isinstance(verdict, Accepted) == ok, (what, p, record, verdict)
        self.compared += 1
        self.void += not ok
        if what == "appended" and ok and isinstance(record, model.Claim):
            self.tips[record.nonce] = replica.chains[p].tip
            self.floors[record.nonce] = replica.chains[p].start_version

    def _message(self, p: int, r: model.Record):
        if isinstance(r, model.Claim):
            return ClaimMessage("r", p, r.incarnation, f"n{r.nonce}", RESET if r.reset else RESUME, 0, 1)
        delta = np.array([[r.delta]], np.int32)
        digest = codec.digest(delta)
        payload = (TensorDelta(0, 0, codec.quantise(0, delta, self.manifest.e_max)),)
        if isinstance(r, model.Revocation):
            return RevocationMessage("r", r.number, r.slot, r.seq, r.seq, digest, payload)
        advance = tuple(b - a for a, b in zip(self.floors[r.nonce], r.start, strict=True))
        prev = self.tips[r.nonce]
        rows, at = RowRange(*r.rows), (r.seq, prev, r.phase, r.closing)
        return UpdateMessage("r", p, r.incarnation, *at, advance, 0, rows, r.step, digest, payload)


def same_place(replica: Replica, partitions: list[model.Partition]) -> None:
    """Versions, phases, cursors and integers are equal."""
    assert replica.version == tuple(t.count for t in partitions)
    for chain, t in zip(replica.chains, partitions, strict=True):
        assert (chain.incarnation, chain.offset, chain.closed) == (t.incarnation, t.offset, t.closed)
        if t.slot < t.slots:
            assert (chain.phase, chain.cursor, chain.start_version) == (t.phase, t.cursor, t.start)
    assert int(replica.acc[0]) == sum(t.total(t.count) for t in partitions)
    assert replica.digest() == replica.expected_digest(replica.version)


@pytest.mark.parametrize("first", range(0, SCHEDULES, 40))
def test_production_judges_as_the_model_does(first: int) -> None:
    compared = void = 0
    for seed in range(first, first + 40):
        watch: list[Translation] = []

        def look(*what, watch=watch, seed=seed) -> None:
            if not watch:
                watch.append(Translation(schedules.draw(random.Random(seed))))
            watch[0](*what)

        world = schedules.run(seed, look)
        same_place(watch[0].truth, world.truth)
        for worker in world.workers:
            if worker.name in watch[0].readers:
                same_place(watch[0].readers[worker.name], worker.reads)
        compared, void = compared + watch[0].compared, void + watch[0].void
    assert compared > 2000 and void > 30, (compared, void)


def test_the_model_keeps_its_own_rules() -> None:
    for seed in range(1000, 1100):
        schedules.run(seed)


def broken_within(seeds: range) -> str:
    for seed in seeds:
        try:
            schedules.run(seed)
        except model.Broken as e:
            return str(e)
    return ""


def test_without_lineage_the_model_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model.World, "lineage", False)
    assert broken_within(range(200, 300))


def test_without_the_fence_the_model_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    accepts = model.Partition._accepts

    def unfenced(self, r):
        if isinstance(r, model.Update):
            r2 = model.replace(r, incarnation=self.incarnation, nonce=self.nonce)
            return accepts(self, r2)
        return accepts(self, r)

    monkeypatch.setattr(model.Partition, "_accepts", unfenced)
    assert broken_within(range(300))
