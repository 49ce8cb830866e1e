"""The verdict table, line by line: what is accepted, what is void for ever, what must wait."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from gossipdbn.core import chain as chains
from gossipdbn.core.values import (
    CLOSES_PHASE,
    DONE,
    FAILED,
    OPEN,
    RESET,
    RESUME,
    Accepted,
    Claim,
    Malformed,
    PayloadRef,
    Revocation,
    RowRange,
    Sealed,
    TensorDelta,
    Undecided,
    Unknown,
    Void,
)
from gossipdbn.kernels import codec
from tests.core.making import WIRE, Author, a_manifest, changed

M = a_manifest()
ZEROS = (0, 0, 0)


def judged(author, message, partition=0, key_id=0, fetched=None):
    sealed = Sealed(message, key_id, WIRE.encode(message))
    return chains.judge(author.manifest, author.replica.chains[partition], partition, sealed, fetched)


@pytest.fixture
def author():
    a = Author(M)
    a.claim(0)
    a.update(0)
    return a


def test_the_next_update_of_the_newest_claim_is_accepted(author):
    verdict = judged(author, author.next_update(0))
    assert isinstance(verdict, Accepted) and verdict.start_version == (1, 0, 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"run": "other"}, "another run"),
        ({"slot": 1}, "another partition"),
        ({"incarnation": 2}, "incarnation 2"),
        ({"seq": 2}, "seq 2"),
        ({"seq": 0}, "seq 0"),
        ({"prev": b"12345678"}, "does not continue"),
        ({"phase": 1}, "phase 1"),
        ({"step": 5}, "step 5"),
        ({"advance": (1, 0)}, "wrong length"),
        ({"advance": (0, 0, 0)}, "own history"),
        ({"advance": (2, 0, 0)}, "own history"),
        ({"advance": (1, (1 << 63) - 1, 0), "seq": 1}, None),
        ({"rows": RowRange(0, 3, 2)}, "cursor"),
        ({"rows": RowRange(1, 2, 2)}, "cursor"),
        ({"rows": RowRange(2, 0, 2)}, "cursor"),
        ({"rows": RowRange(0, 2, 0)}, "trains 0 rows"),
        ({"rows": RowRange(0, 2, (1 << 20) + 1)}, "rows"),
        ({"closing": CLOSES_PHASE}, "no rows"),
        ({"closing": DONE, "rows": RowRange(0, 2, 0)}, "not its own"),
        ({"digest": 1}, "stated digest"),
        ({"payload": None}, "no payload"),
        ({"payload": ()}, "stated digest"),
        ({"payload_ref": PayloadRef(b"x" * 32, 9)}, "both"),
        ({"payload": (TensorDelta(7, 1, b""),)}, "other tensors"),
        ({"payload": (TensorDelta(0, 0, bytes(24)),)}, "other tensors or codecs"),
        ({"payload": (TensorDelta(1, 1, b"x"), TensorDelta(0, 1, b"x"))}, "other tensors"),
        ({"payload": (TensorDelta(0, 1, b"x"), TensorDelta(0, 1, b"x"))}, "other tensors"),
        ({"payload": (TensorDelta(0, 1, b"\xff" * 30),)}, "payload"),
    ],
)
def test_an_update_that_breaks_one_rule_is_void(author, fields, reason):
    verdict = judged(author, changed(author.next_update(0), **fields))
    if reason is None:
        assert isinstance(verdict, Accepted)  # other partitions are not this one's business
    else:
        assert isinstance(verdict, Void) and reason in verdict.reason


def test_counts_beyond_any_log_are_void(author):
    author.write(changed(author.next_update(0), advance=(1, (1 << 63) - 1, 0)))
    author.states[0].start_version = author.replica.chains[0].start_version
    verdict = judged(author, changed(author.next_update(0), advance=(1, 1, 0)))
    assert isinstance(verdict, Void) and "beyond any log" in verdict.reason


def test_an_epoch_of_another_phase_is_void(author):
    author.update(0)
    author.update(0, epoch=1)
    verdict = judged(author, author.next_update(0, epoch=2))
    assert isinstance(verdict, Void) and "epoch 2 is not of phase 0" in verdict.reason
    author = Author(M)
    author.claim(0)
    author.close(0)  # a slot without rows: phase 1 begins at pass 2, which is not the next one
    verdict = judged(author, author.next_update(0, epoch=0))
    assert isinstance(verdict, Void) and "epoch 0 is not of phase 1" in verdict.reason


def test_a_sealing_key_other_than_the_claims_is_void(author):
    assert "another key" in judged(author, author.next_update(0), key_id=3).reason
    claim = Claim("r", 0, 2, "b", RESUME, 5, 1)
    assert "another key" in judged(author, claim).reason
    assert isinstance(judged(author, claim, key_id=5), Accepted)


def test_in_a_run_with_keys_nothing_passes_without_one(author):
    chain = author.replica.chains[0]
    keyed = type(M)(**{**{f: getattr(M, f) for f in M.__struct_fields__}, "keyed": True})
    for message in (Claim("r", 0, 2, "b", RESUME, 0, 1), author.next_update(0)):
        sealed = Sealed(message, 0, b"")
        assert isinstance(chains.judge(M, chain, 0, sealed), Accepted)
        assert "without a key" in chains.judge(keyed, chain, 0, sealed).reason


def test_before_any_claim_nothing_is_accepted(author):
    update = changed(author.next_update(0), slot=1, seq=0, advance=ZEROS, incarnation=1)
    assert "the newest is 0" in judged(author, update, 1).reason


@pytest.mark.parametrize(("incarnation", "good"), [(1, False), (2, True), (3, False)])
def test_a_claim_must_be_the_next_incarnation(author, incarnation, good):
    verdict = judged(author, Claim("r", 0, incarnation, "b", RESUME, 0, 1))
    assert isinstance(verdict, Accepted if good else Void)


def test_a_claim_fences_what_the_former_owner_sent(author):
    late = author.next_update(0)
    author.claim(0, "b")
    assert "incarnation 1" in judged(author, late).reason
    imitated = changed(late, incarnation=2)
    assert "does not continue" in judged(author, imitated).reason


def test_a_reset_lifts_the_floor_of_start_version_and_moves_the_tip(author):
    before = author.replica.chains[0]
    author.claim(0, "b", RESET)
    after = author.replica.chains[0]
    assert (after.start_version, after.resets, after.count) == (ZEROS, 1, before.count)
    assert after.tip != before.tip and after.cursor == before.cursor and after.step == before.step
    author.update(0)
    assert author.replica.chains[0].start_version == (1, 0, 0)


def test_closings_end_phases_and_then_the_partition():
    author = Author(M)
    author.whole_slot(0)
    chain = author.replica.chains[0]
    assert (chain.closed, chain.failed, chain.phase, chain.count, chain.step) == (True, "", 1, 8, 6)
    assert "closed" in judged(author, Claim("r", 0, 2, "b", RESUME, 0, 1)).reason
    assert chain.cursor == (2, 4)


def test_failed_closes_at_any_phase(author):
    author.write(author.next_closing(0, FAILED, "rows are damaged"))
    chain = author.replica.chains[0]
    assert chain.closed and chain.failed == "rows are damaged"
    other = Author(M)
    other.claim(1)
    other.write(other.next_closing(1, FAILED))
    assert other.replica.chains[1].failed == "failed"


def test_a_closing_update_carries_the_exact_codec(author):
    closing = author.next_closing(0, CLOSES_PHASE)
    assert closing.closing != OPEN and all(p.codec == 0 for p in closing.payload)
    assert isinstance(judged(author, closing), Accepted)
    ternary = changed(closing, payload=(TensorDelta(0, 1, b"\0\0\0\0"),))
    assert "codecs" in judged(author, ternary).reason


def test_a_payload_by_reference_waits_for_its_object(author):
    update = author.next_update(0)
    ref, _ = WIRE.pack_payload(update.payload)
    by_name = changed(update, payload=None, payload_ref=ref)
    verdict = judged(author, by_name)
    assert isinstance(verdict, Undecided) and verdict.wants == ref
    assert isinstance(judged(author, by_name, fetched=update.payload), Accepted)
    assert isinstance(judged(author, by_name, fetched=()), Void)


def test_a_reference_to_more_than_any_payload_is_void(author):
    size = chains.payload_bytes_max(M) + 1
    huge = changed(author.next_update(0), payload=None, payload_ref=PayloadRef(b"x" * 32, size))
    assert "more than any" in judged(author, huge).reason


def test_unknown_waits_and_malformed_is_void():
    chain = chains.genesis(2)
    assert isinstance(chains.judge(M, chain, 0, Unknown("format 9")), Undecided)
    assert isinstance(chains.judge(M, chain, 0, Malformed("noise")), Void)


def a_revocation(author, first=0, last=0, number=0, slot=0, **fields):
    delta = -(author.replica.acc - Author(M).replica.acc)
    parts, at = [], 0
    for i, (shape, n) in enumerate((((3, 2), 6), ((1, 3), 3), ((1, 2), 2))):
        parts.append(TensorDelta(i, 0, codec.quantise(0, delta[at : at + n].reshape(shape).copy(), 1)))
        at += n
    values = {"digest": codec.digest(delta), "payload": tuple(parts), **fields}
    return Revocation("r", number, slot, first, last, values["digest"], values["payload"])


def test_a_revocation_subtracts_exactly(author):
    start = Author(M).replica.acc
    verdict = author.append(2, WIRE.encode(a_revocation(author)))
    assert isinstance(verdict, Accepted)
    assert np.array_equal(author.replica.acc, start)
    assert author.replica.chains[2].revoked == ((0, 0, 0),)
    assert author.replica.version == (1, 0, 1)
    again = a_revocation(author, number=1)
    assert "revoked already" in judged(author, again, 2).reason


@pytest.mark.parametrize(
    ("fields", "partition", "reason"),
    [
        ({}, 0, "operator's record"),
        ({"number": 1}, 2, "number 1"),
        ({"slot": 2}, 2, "impossible"),
        ({"first": 1, "last": 0}, 2, "impossible"),
        ({"digest": 5}, 2, "stated digest"),
    ],
)
def test_a_revocation_that_breaks_one_rule_is_void(author, fields, partition, reason):
    assert reason in judged(author, a_revocation(author, **fields), partition).reason


def test_slots_records_are_void_in_the_operators_partition(author):
    assert "another partition" in judged(author, Claim("r", 2, 1, "b", RESUME, 0, 1), 2).reason


def test_void_records_move_the_offset_and_nothing_else(author):
    before = author.replica.chains[0]
    author.append(0, b"noise")
    assert author.replica.chains[0] == replace(before, offset=before.offset + 1, voids=1)
