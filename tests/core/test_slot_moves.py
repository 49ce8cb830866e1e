"""A slot that is kept, moved, fenced while it moves, or comes back."""

from __future__ import annotations

import pytest

from gossipdbn.core import events as ev
from gossipdbn.core.values import NO_METRICS, RESUME, Claim, SnapshotAnnounced
from tests.core.making import WIRE, Bench, a_manifest

M = a_manifest()


@pytest.fixture
def bench():
    b = Bench(M)
    b.own(0)
    return b


def foreign_claim(bench):
    chain = bench.host.replica.chains[0]
    return WIRE.encode(Claim("r", 0, chain.incarnation + 1, "other", RESUME, 0, 1))


def test_a_snapshot_waits_until_nothing_is_pending():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.tick()
    assert not b.work() and b.host.slots[0].waits_for == "its updates, for a snapshot"
    b.deliver()
    (store,) = b.work()
    s = store.snapshot
    assert (s.slot, s.state.seq, s.state.tip) == (0, 1, b.host.replica.chains[0].tip)
    assert s.digest == b.host.replica.digest() and s.chains == tuple(b.host.replica.chains)
    assert s.parameters is b.host.replica.acc  # no copy: the driver writes it before its next step
    b.tick()
    b.train()  # one at a time, and nothing new to keep
    assert (s.state.seq, b.host.slots[0].state.seq) == (1, 2)
    announced = SnapshotAnnounced("r", 0, 1, "n", 1, b"x" * 32, (1, 0, 0), 0)
    assert b.step(ev.SnapshotStored(0, announced)) == [ev.Announce(announced)]
    assert b.step(ev.SnapshotStored(0, None)) == []


def test_nothing_new_to_keep_never_stops_training():
    b = Bench(M, snapshot_every_s=0.0)
    b.own(0)
    assert [type(e) for e in b.work()] == [ev.Train]


def test_a_slot_that_moves_finishes_keeps_and_releases(bench):
    bench.train()
    bench.step(ev.Unassigned(0))
    assert not bench.work() and 0 in bench.host.slots
    bench.deliver()
    store, release = bench.work()
    assert isinstance(store, ev.StoreSnapshot) and release == ev.Release(0)
    assert 0 not in bench.host.slots


def test_a_slot_that_moves_before_it_runs_is_released_at_once():
    b = Bench(M)
    b.step(ev.Assigned(0))
    assert b.step(ev.Unassigned(0)) == [ev.Release(0)]
    assert b.step(ev.Unassigned(0)) == []


def test_a_slot_fenced_while_it_moves_is_released(bench):
    bench.train()
    bench.step(ev.Unassigned(0))
    bench.log[0].append(foreign_claim(bench))
    bench.deliver()
    assert 0 not in bench.host.slots and ev.Release(0) in bench.effects


def test_a_slot_that_comes_back_while_it_moves_goes_on(bench):
    bench.train()
    bench.step(ev.Unassigned(0))
    bench.step(ev.Assigned(0))
    bench.deliver()
    assert [type(e) for e in bench.work()] == [ev.Train]


def test_a_round_of_an_earlier_life_is_not_published(bench):
    (job,) = [e.job for e in bench.work()]
    bench.log[0].append(foreign_claim(bench))
    bench.deliver()
    assert bench.step(ev.RoundTrained(job, NO_METRICS)) == []
    bench.tick()
    bench.deliver()
    assert bench.step(ev.RoundTrained(job, NO_METRICS)) == []
