"""Any order of partitions, duplication and delay gives the same integers; damaged memory is noticed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipdbn.core import replica as replicas
from gossipdbn.core.values import RESET, Accepted, Undecided, Void
from gossipdbn.errors import LocalProtocolError
from gossipdbn.wire.messages import RunWire, decode_payload
from tests.core.making import WIRE, Author, a_manifest, a_replica, changed

M = a_manifest()


def a_log():
    """Two slots that trained in turn, with a takeover, a reset and spilled payloads."""
    author = Author(M)
    author.claim(0)
    author.claim(1, "b")
    for i in range(3):
        author.update(0, epoch=1 if i == 2 else None)
        author.update(1, 1, spill=i == 1)
        if i == 1:
            author.claim(0, "c")
            author.claim(1, "c", RESET)
    author.close(0)
    return author


AUTHOR = a_log()


def payload_of(raw):
    message = WIRE.decode(raw).message
    ref = getattr(message, "payload_ref", None)
    return None if ref is None else decode_payload(ref, AUTHOR.objects[ref])


@given(st.data())
def test_any_order_duplication_and_delay_give_equal_digests(data):
    replica = a_replica(M)
    log = [list(records) for records in AUTHOR.log]
    for records in log:  # duplicates anywhere after the original: void, the same for everybody
        for i in sorted(data.draw(st.lists(st.integers(0, max(0, len(records) - 1)), max_size=3)), reverse=True):
            if records:
                at = data.draw(st.integers(i + 1, len(records)))
                records.insert(at, records[i])
    order = data.draw(st.permutations([p for p, records in enumerate(log) for _ in records]))
    for p in order:
        offset = replica.chains[p].offset
        replica.read(p, offset, log[p][offset], payload_of(log[p][offset]))
    assert replica.version == AUTHOR.replica.version
    assert np.array_equal(replica.acc, AUTHOR.replica.acc)
    assert replica.digest() == AUTHOR.replica.digest() == replica.expected_digest(replica.version)
    assert [c.tip for c in replica.chains] == [c.tip for c in AUTHOR.replica.chains]
    assert not replica.mismatches and not replica.finished


def test_digests_of_long_ago_are_forgotten_and_the_others_stay_right(monkeypatch):
    author, everything = Author(M), []
    author.claim(0)
    author.claim(1)
    for i in range(40):
        author.update(i % 2)
        everything.append((author.replica.version, author.replica.digest()))
    monkeypatch.setattr(replicas, "REMEMBERED", 4)
    replica = a_replica(M)
    for p, records in enumerate(author.log):
        for offset, raw in enumerate(records):
            replica.read(p, offset, raw)
            assert len(replica._sums[p]) <= 8
    known = [replica.expected_digest(version) for version, _ in everything]
    assert all(k in (None, digest) for k, (_, digest) in zip(known, everything, strict=True))
    assert known[0] is None and None not in known[-6:]
    assert replica.expected_digest(replica.version) == replica.digest() and not replica.mismatches


def test_a_replica_goes_on_from_any_version():
    replica = a_replica(M)
    for p in (1, 0):
        for offset in range(3):
            replica.read(p, offset, AUTHOR.log[p][offset], payload_of(AUTHOR.log[p][offset]))
    later = replicas.Replica(M, WIRE.decode, replica.acc, replica.chains)
    for p, records in enumerate(AUTHOR.log):
        for offset in range(later.chains[p].offset, len(records)):
            later.read(p, offset, records[offset], payload_of(records[offset]))
    assert later.digest() == AUTHOR.replica.digest()
    assert later.expected_digest((0, 0, 0)) is None and later.expected_digest((99, 0, 0)) is None
    assert not later.mismatches


def test_an_undecided_record_changes_nothing():
    replica = a_replica(M)
    wire = RunWire(1, {1: b"k" * 16})
    raw = wire.encode(WIRE.decode(AUTHOR.log[0][0]).message)
    before = replica.chains[0]
    assert isinstance(replica.read(0, 0, raw), Undecided)
    assert replica.chains[0] is before
    assert isinstance(replica.read(0, 0, AUTHOR.log[0][0]), Accepted)
    assert isinstance(replica.read(0, 1, b""), Void)


def test_reading_another_offset_than_the_next_is_our_bug():
    with pytest.raises(LocalProtocolError, match="expected 0"):
        a_replica(M).read(0, 1, AUTHOR.log[0][1])


def test_a_wrong_start_digest_is_reported_when_its_version_is_complete():
    author = Author(M)
    author.claim(0)
    author.claim(1)
    author.update(0)
    lie = changed(author.next_update(1, 1), start_digest=5)
    author.write(lie)
    assert [(m.slot, m.seq, m.stated, m.incarnation) for m in author.replica.mismatches] == [(1, 0, 5, 1)]
    reader = a_replica(M)
    for offset, raw in enumerate(author.log[1]):
        reader.read(1, offset, raw)
    assert not reader.mismatches and reader.version == (0, 1, 0)  # applied at once, checked later
    for offset, raw in enumerate(author.log[0]):
        reader.read(0, offset, raw)
    assert [m.slot for m in reader.mismatches] == [1]


def test_what_waits_for_its_version_is_bounded(monkeypatch):
    monkeypatch.setattr(replicas, "WAITING_MAX", 2)
    author = Author(M)
    author.claim(0)
    author.claim(1)
    author.update(0)
    for _ in range(4):
        author.write(changed(author.next_update(1, 1), start_digest=5))
    reader = a_replica(M)
    for p in (1, 0):
        for offset, raw in enumerate(author.log[p]):
            reader.read(p, offset, raw)
    assert [m.seq for m in reader.mismatches] == [0, 3]  # the others go unchecked


def test_all_slots_closed_is_finished():
    author = Author(M)
    author.whole_slot(0)
    assert not author.replica.finished
    author.whole_slot(1)
    assert author.replica.finished


def test_what_waits_to_be_merged_is_bounded_and_missed_by_nobody():
    """Updates are added when somebody looks; until then they hold no more memory than the parameters."""
    author, replica = Author(M), a_replica(M)
    author.claim(0)
    author.claim(1, "b")
    for i in range(12):
        author.update(i % 2, 1)
    waited = 0
    for p, records in enumerate(author.log):
        for offset, raw in enumerate(records):
            replica.read(p, offset, raw, None)
            assert sum(d.nbytes for d in replica._sum._unmerged) <= replica._sum._acc.nbytes
            waited = max(waited, len(replica._sum._unmerged))
    assert waited > 1
    assert np.array_equal(replica.acc, author.replica.acc) and not replica._sum._unmerged
    assert replica.digest() == replica.expected_digest(replica.version)


def test_partitions_read_one_after_the_other_cost_a_check_per_update_and_partition(monkeypatch):
    """As Kafka gives them to whoever starts late; each record must not look at all that wait again."""
    author, rounds = Author(M), 150
    author.claim(0)
    author.claim(1, "b")
    for _ in range(rounds):
        author.update(0, 1)
        author.update(1, 1)
    checks, check = [], replicas.Replica._check_start_digest
    monkeypatch.setattr(replicas.Replica, "_check_start_digest", lambda self, s: [checks.append(s), check(self, s)])
    replica = a_replica(M)
    for p in (1, 0):
        for offset, raw in enumerate(author.log[p]):
            replica.read(p, offset, raw)
    assert replica.version == author.replica.version and not replica.mismatches
    assert 2 * rounds <= len(checks) <= 2 * 2 * rounds
    assert not any(replica._waiting.values())

