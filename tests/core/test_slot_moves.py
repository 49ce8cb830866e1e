"""A slot that is kept, moved, fenced while it moves, or comes back."""

from __future__ import annotations

import pytest

from gossipdbn.core import events as ev
from gossipdbn.core.values import NO_METRICS, RESUME, Claim, SnapshotAnnounced
from gossipdbn.sim import abstract
from tests.core.making import WIRE, Author, Bench, a_manifest, fresh, rows_of

M = a_manifest()


@pytest.fixture
def bench():
    b = Bench(M)
    b.own(0)
    return b


def foreign_claim(bench):
    chain = bench.host.replica.chains[0]
    return WIRE.encode(Claim("r", 0, chain.incarnation + 1, "other", RESUME, 0, 1))


def test_a_snapshot_waits_for_the_log_and_training_for_neither():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.tick()
    (store,) = b.work()  # the state after the first round, whose update is under way
    s, state = store.snapshot, b.host.slots[0].state
    assert (s.slot, s.state.seq, s.state.tip) == (0, 1, state.tip) and s.state.residual is state.residual
    (train,) = b.work()
    assert train.job.start_version == (1, 0, 0) and s.digest == train.job.start_digest
    abstract.train(M, train.job, rows_of(0, train.job.rows), None, 0)
    b.step(ev.RoundTrained(train.job, NO_METRICS))
    assert not b.of(ev.SnapshotWhole)
    b.deliver()
    (whole,) = b.of(ev.SnapshotWhole)
    assert (whole.slot, whole.chain.count, whole.chain.tip) == (0, 1, s.state.tip)
    assert b.host.replica.version == (2, 0, 0)
    announced = SnapshotAnnounced("r", 0, 1, "n", 1, b"x" * 32, (1, 0, 0), 0)
    assert b.step(ev.SnapshotStored(0, announced)) == [ev.Announce(announced)]
    assert b.step(ev.SnapshotStored(0, None)) == []


def test_a_snapshot_with_nothing_pending_is_whole_at_once():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.deliver()
    b.tick()
    store, whole = b.work()
    s = store.snapshot
    assert s.digest == b.host.replica.digest() and s.chains == tuple(b.host.replica.chains)
    assert s.parameters is b.host.replica.acc  # no copy: the driver writes it before its next step
    assert whole == ev.SnapshotWhole(0, b.host.replica.chains[0])
    b.tick()
    b.train()  # one at a time, and nothing new to keep
    assert (s.state.seq, b.host.slots[0].state.seq) == (1, 2)


def test_a_copied_state_is_dropped_with_its_owner():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.tick()
    assert [type(e) for e in b.work()] == [ev.StoreSnapshot]
    b.sent.clear()
    b.log[0].append(foreign_claim(b))
    b.read()
    assert b.of(ev.SnapshotDropped) == [ev.SnapshotDropped(0)] and not b.of(ev.SnapshotWhole)
    b.own(1)
    for _ in range(4):
        b.train()
        b.tick()
    assert len(b.of(ev.StoreSnapshot)) == 2  # the place is free again


def test_the_cadence_can_be_changed_for_slots_that_run_and_for_those_to_come():
    b = Bench(M)
    b.own(0)
    b.train()
    b.deliver()
    b.tick()
    assert [type(e) for e in b.work()] == [ev.Train]  # no snapshot for a long time
    b.step(ev.CadenceChosen(0.1))
    b.host.slots[0].busy = False
    assert [type(e) for e in b.work()] == [ev.StoreSnapshot, ev.SnapshotWhole]
    b.own(1)
    assert b.host.slots[1].snapshot_every_s == 0.1


def test_what_was_recomputed_is_kept_at_once():
    author = Author(M)
    author.claim(0)
    author.update(0, 2)
    for recomputed in (0, 2):
        b = Bench(M, snapshot_every_s=60.0, log=[list(records) for records in author.log])
        b.own(0)
        (recover,) = b.of(ev.Recover)
        state = fresh(M)
        state.tip, state.seq, state.start_version = recover.chain.tip, recover.chain.count, recover.chain.start_version
        state.cursor, state.step, state.incarnation = recover.chain.cursor, recover.chain.step, recover.incarnation
        b.step(ev.Recovered(0, recover.incarnation, state, rounds=recomputed))
        assert next(type(e) for e in b.work()) == (ev.StoreSnapshot if recomputed else ev.Train)


def test_a_snapshot_that_the_store_did_not_take_is_due_again_without_a_new_round():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.deliver()
    b.tick()
    assert isinstance(b.work()[0], ev.StoreSnapshot)
    b.host.slots[0].rows, b.host.slots[0].ended = 2, False  # nothing more to train
    b.step(ev.SnapshotStored(0, None))
    assert not b.of(ev.StoreSnapshot)[1:] and not [e for e in b.work() if isinstance(e, ev.StoreSnapshot)]
    b.tick(1.0)
    store, _ = b.work()
    assert isinstance(store, ev.StoreSnapshot) and store.snapshot.state.seq == 1
    b.step(ev.SnapshotStored(0, SnapshotAnnounced("r", 0, 1, "n", 1, b"x" * 32, (1, 0, 0), 0)))
    b.tick(1.0)
    assert not [e for e in b.work() if isinstance(e, ev.StoreSnapshot)]


def test_a_slot_that_moves_waits_for_a_snapshot_under_way():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.deliver()
    b.tick()
    assert [type(e) for e in b.work()] == [ev.StoreSnapshot, ev.SnapshotWhole]
    b.step(ev.Unassigned(0))
    assert not b.work() and b.host.slots[0].waits_for == "a snapshot, to hand it over"
    b.step(ev.SnapshotStored(0, None))
    assert b.work() == [ev.Release(0)]


def test_nothing_new_to_keep_never_stops_training():
    b = Bench(M, snapshot_every_s=0.0)
    b.own(0)
    assert [type(e) for e in b.work()] == [ev.Train]


def test_a_slot_that_moves_finishes_keeps_and_releases(bench):
    bench.train()
    bench.step(ev.Unassigned(0))
    assert not bench.work() and 0 in bench.host.slots
    bench.deliver()
    store, whole, release = bench.work()
    assert isinstance(store, ev.StoreSnapshot) and whole.slot == 0 and release == ev.Release(0)
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
