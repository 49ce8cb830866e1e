"""Acknowledged records of one's own stand for reading a partition; everything else makes it be read again."""

from __future__ import annotations

import pytest

from gossipdbn.core import events as ev
from gossipdbn.core.acks import QUIET_S
from gossipdbn.core.slot import RUNNING
from gossipdbn.core.values import Claim
from tests.core.making import WIRE, Author, Bench, a_manifest

M = a_manifest(inline_bytes=1 << 20)


@pytest.fixture
def bench():
    b = Bench(M)
    b.own(0)
    return b


def follows(effects):
    return [(e.partition, e.offset) for e in effects if isinstance(e, ev.Follow)]


def acknowledge(bench, offset=None):
    """The log took the next record that was sent, and says so."""
    sent = bench.sent.pop(0)
    bench.log[sent.slot].append(sent.raw)
    at = len(bench.log[sent.slot]) - 1 if offset is None else offset
    return bench.step(ev.Acknowledged(sent.slot, at, sent.raw))


@pytest.fixture
def unread(bench):
    """Slot 0's partition holds a claim and two updates and is no longer read."""
    for _ in range(2):
        bench.train()
        acknowledge(bench)
    return bench


def test_acknowledged_updates_are_read_back_and_their_partition_is_no_longer_read(bench):
    bench.train()
    assert follows(acknowledge(bench)) == []
    assert bench.host.replica.version == (1, 0, 0) and not bench.host.slots[0].pending
    bench.train()
    assert follows(acknowledge(bench)) == [(0, None)]
    bench.train()
    assert follows(acknowledge(bench)) == []
    assert bench.host.replica.version == (3, 0, 0)


def test_where_they_come_seldom_it_is_read_on(bench):
    for _ in range(3):
        bench.tick(QUIET_S)
        bench.train()
        assert follows(acknowledge(bench)) == []
    assert bench.host.replica.version == (3, 0, 0)


def test_of_a_slot_that_is_another_workers_nothing_is_heard(bench):
    bench.step(ev.Assigned(1))
    bench.read()
    bench.tick()
    assert bench.sent
    bench.step(ev.Unassigned(1))
    assert acknowledge(bench) == [] and bench.host.replica.chains[1].offset == 0


def test_it_is_not_opened_again(bench, monkeypatch):
    bench.train()
    monkeypatch.setattr(bench.host.replica, "_decode", lambda _: pytest.fail("opened again"))
    acknowledge(bench)
    assert bench.host.replica.version == (1, 0, 0)


def test_what_was_read_before_it_was_acknowledged_counts_once(bench):
    bench.train()
    (sent,) = bench.sent
    bench.deliver()
    assert bench.step(ev.Acknowledged(0, 1, sent.raw)) == []
    assert bench.host.replica.version == (1, 0, 0)


@pytest.mark.parametrize("unknown", [True, False])
def test_a_record_further_on_makes_it_be_read_again(unread, unknown):
    unread.train()
    unread.log[0].append(b"somebody's noise")
    assert follows(acknowledge(unread, -1001 if unknown else None)) == [(0, 3)]
    assert unread.host.replica.version == (2, 0, 0)
    unread.read()
    assert unread.host.replica.version == (3, 0, 0) and unread.host.replica.chains[0].voids == 1


def test_a_silent_partition_is_read_again_and_a_new_owner_found(unread):
    assert follows(unread.tick(QUIET_S / 2)) == []
    unread.log[0].append(WIRE.encode(Claim("r", 0, 2, "other", 0, 0, M.numerics)))
    assert follows(unread.tick(QUIET_S)) == [(0, 3)]
    unread.read()
    assert unread.host.slots[0].stage != RUNNING
    assert follows(unread.tick(QUIET_S)) == []


def test_a_slot_that_is_handed_over_is_read_again_at_once(unread):
    unread.step(ev.Unassigned(0))
    unread.host.slots[0].snapshot_seq = unread.host.slots[0].state.seq  # kept already
    assert follows(unread.work()) == [(0, 3)]
    assert not unread.host.slots


def test_who_waits_for_the_end_of_a_partition_reads_it(unread):
    assert follows(unread.step(ev.EndOffset(0, 5))) == [(0, 3)]


def test_a_held_partition_hears_no_acknowledgements():
    bench = Bench(a_manifest(inline_bytes=0))
    bench.own(0)
    bench.train()
    bench.train()
    first = bench.sent[0]
    effects = acknowledge(bench)
    assert [e.offset for e in effects if isinstance(e, ev.Hold)] == [1] and 0 in bench.host.held
    assert acknowledge(bench) == []
    assert bench.host.replica.version == (0, 0, 0)
    bench.step(ev.Logged(0, 1, first.raw, bench.host.under_way(0, first.raw)))
    assert bench.host.replica.version == (1, 0, 0)


def test_an_owner_lends_what_it_sent_and_ends_with_what_others_read(bench):
    for _ in range(3):
        bench.train()
        acknowledge(bench)
    reader = Author(M).replica
    for offset, raw in enumerate(bench.log[0]):
        reader.read(0, offset, raw)
    assert reader.version == bench.host.replica.version == (3, 0, 0)
    assert reader.digest() == bench.host.replica.digest()
