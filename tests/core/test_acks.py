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


def test_an_acknowledged_update_is_read_back_and_its_partition_no_longer_read(bench):
    bench.train()
    assert follows(acknowledge(bench)) == [(0, None)]
    assert bench.host.replica.version == (1, 0, 0) and not bench.host.slots[0].pending
    bench.train()
    assert follows(acknowledge(bench)) == []
    assert bench.host.replica.version == (2, 0, 0)


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
def test_a_record_further_on_makes_it_be_read_again(bench, unknown):
    bench.train()
    acknowledge(bench)
    bench.train()
    bench.log[0].append(b"somebody's noise")
    assert follows(acknowledge(bench, -1001 if unknown else None)) == [(0, 2)]
    assert bench.host.replica.version == (1, 0, 0)
    bench.read()
    assert bench.host.replica.version == (2, 0, 0) and bench.host.replica.chains[0].voids == 1


def test_a_silent_partition_is_read_again_and_a_new_owner_found(bench):
    bench.train()
    acknowledge(bench)
    assert follows(bench.tick(QUIET_S / 2)) == []
    bench.log[0].append(WIRE.encode(Claim("r", 0, 2, "other", 0, 0, M.numerics)))
    assert follows(bench.tick(QUIET_S)) == [(0, 2)]
    bench.read()
    assert bench.host.slots[0].stage != RUNNING
    assert follows(bench.tick(QUIET_S)) == []


def test_a_slot_that_is_handed_over_is_read_again_at_once(bench):
    bench.train()
    acknowledge(bench)
    bench.step(ev.Unassigned(0))
    bench.host.slots[0].snapshot_seq = bench.host.slots[0].state.seq  # kept already
    assert follows(bench.work()) == [(0, 2)]
    assert not bench.host.slots


def test_who_waits_for_the_end_of_a_partition_reads_it(bench):
    bench.train()
    acknowledge(bench)
    assert follows(bench.step(ev.EndOffset(0, 5))) == [(0, 2)]


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
