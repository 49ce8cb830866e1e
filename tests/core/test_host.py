"""One worker, several slots: who works next, what stops all of them, what stops one partition."""

from __future__ import annotations

import pytest

from gossipdbn.core import events as ev
from gossipdbn.core.slot import CLAIMING, READING, RUNNING
from gossipdbn.errors import LocalProtocolError
from gossipdbn.wire.messages import RunWire
from tests.core.making import WIRE, Author, Bench, a_manifest, changed

M = a_manifest()


@pytest.fixture
def bench():
    b = Bench(M)
    b.own(0)
    b.own(1)
    return b


def trains(effects):
    return [e.job.slot for e in effects if isinstance(e, ev.Train)]


def test_the_slot_furthest_behind_works_next(bench):
    order = []
    for _ in range(6):
        order += trains(bench.train())
        bench.deliver()
    assert order == [0, 1, 0, 1, 0, 1]


def test_a_slot_sees_its_own_pending_and_no_others(bench):
    bench.train()
    bench.train()
    assert [len(s.pending) for s in bench.host.slots.values()] == [1, 1]
    (job,) = [e.job for e in bench.work()]
    assert job.slot == 0 and job.start_version == (1, 0, 0)


def test_a_failed_send_ends_every_claim_with_a_new_writer(bench):
    bench.train()
    effects = bench.step(ev.SendFailed("no space left"))
    assert isinstance(effects[0], ev.RenewWriter) and bench.reports("send-failed") == ["no space left"]
    assert {s.stage for s in bench.host.slots.values()} == {READING}
    bench.sent.clear()  # lost with the writer
    bench.tick()
    assert {s.stage for s in bench.host.slots.values()} == {CLAIMING}
    bench.deliver()
    assert {s.stage for s in bench.host.slots.values()} == {RUNNING}


def test_an_unknown_key_stops_its_partition_and_no_other(bench):
    stranger = RunWire(9, {9: b"k" * 16})
    bench.log[1].append(stranger.encode(WIRE.decode(bench.log[1][0]).message))
    (hold,) = [e for e in bench.step(ev.Logged(1, 1, bench.log[1][1])) if isinstance(e, ev.Hold)]
    assert hold.wants is None and "key 9" in bench.host.held[1]
    bench.train()
    bench.deliver()
    assert bench.host.replica.version == (1, 0, 0)


def test_a_stop_flushes_keeps_and_releases_everything(bench):
    bench.train()
    bench.step(ev.StopAsked())
    assert not bench.host.stopped
    bench.step(ev.Assigned(1))  # nothing new is begun
    bench.deliver()
    for _ in range(4):
        bench.work()
    assert not bench.host.slots and not bench.host.stopped  # a snapshot is still being written
    for e in bench.of(ev.StoreSnapshot):
        bench.step(ev.SnapshotStored(e.snapshot.slot, None))
    assert bench.host.stopped and not bench.host.finished
    assert [e.slot for e in bench.of(ev.Release)] == [0, 1] or [e.slot for e in bench.of(ev.Release)] == [1, 0]


def test_only_one_snapshot_is_written_at_a_time():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.own(1)
    b.train()
    b.train()
    b.deliver()
    b.tick()
    assert [type(e) for e in b.work()] == [ev.StoreSnapshot, ev.SnapshotWhole]
    assert [type(e) for e in b.work()] == [ev.Train]


def test_a_digest_that_differs_is_reported_and_ends_the_claim_that_stated_it(bench):
    bench.work()
    job = bench.of(ev.Train)[0].job
    job.start_digest ^= 1
    bench.step(ev.RoundTrained(job, ev.Metrics()))
    bench.deliver()
    assert len(bench.reports("mismatch")) == 1 and "differs from the log" in bench.reports("dropped")[0]


def test_a_digest_that_differed_before_this_claim_is_reported_only():
    author = Author(M)
    author.claim(0)
    author.write(changed(author.next_update(0), start_digest=1))
    b = Bench(M, log=author.log)
    b.own(0)
    assert len(b.reports("mismatch")) == 1 and not b.reports("dropped")


def test_a_reset_on_request_claims_with_reset(bench):
    bench.take(bench.host.reset(0, "asked for"))
    bench.tick()
    assert WIRE.decode(bench.sent[0].raw).message.mode == 1
    assert bench.host.reset(7, "not hosted") == []


def test_all_slots_closed_is_finished():
    b = Bench(M, rows=0)
    b.own(0)
    b.own(1)
    for _ in range(8):
        b.work()
        b.deliver()
    assert b.host.finished and not b.host.slots


def test_slots_that_found_their_partition_closed_are_released():
    author = Author(M)
    b = Bench(M, log=author.log)
    b.step(ev.Assigned(0))
    author.whole_slot(0)
    b.step(ev.EndOffset(0, len(b.log[0])))
    b.read()
    b.tick()
    assert 0 not in b.host.slots and b.of(ev.Release) == [ev.Release(0)] and not b.sent


def test_events_for_slots_that_are_not_hosted_are_ignored(bench):
    job = bench.work()[0].job
    job.slot = 5
    for event in (
        ev.RoundTrained(job, ev.Metrics()),
        ev.RowsArrived(5, 1, True),
        ev.RoundFailed(5, ""),
        ev.Recovered(5, 1, None),
        ev.Unassigned(5),
    ):
        assert bench.step(event) == []


def test_an_unknown_event_is_our_bug(bench):
    with pytest.raises(LocalProtocolError, match="unknown event"):
        bench.step("nonsense")
