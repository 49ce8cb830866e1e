"""Which lost payload is computed again, when, and what a revocation's comes to."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import numpy as np
import pytest

from gossipdbn.core import events as ev
from gossipdbn.core.chain import payload_digest
from gossipdbn.core.mending import Mender
from gossipdbn.core.revocation import Subtraction, minus
from gossipdbn.core.values import PayloadRef, Revocation
from gossipdbn.errors import LogError
from gossipdbn.wire.messages import decode_payload
from tests.core.making import WIRE, Author, a_manifest, fresh

M = a_manifest()


def hold_of(author: Author, partition: int, offset: int) -> ev.Hold:
    raw = author.log[partition][offset]
    return ev.Hold(partition, offset, raw, "gone", WIRE.reopen(raw).payload_ref)


class Scripted:
    """A recovery that ends as it is told, and says what it lacks."""

    def __init__(self, *steps: object, lacks: ev.Hold | None = None) -> None:
        self.steps, self.lacks = list(steps), lacks

    def advance(self):
        step = self.steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step


DONE = ev.Recovered(0, 1, fresh(M))
WAITS = LogError("not now", retryable=True)


class Bench:
    """A mender of a host of slot 0 among recoveries that are given by slot, and what it did."""

    def __init__(self, recoveries: dict[int, list[Scripted]], subtraction=None, under_way=None) -> None:
        self.begun: list[int] = []
        self.kept: dict[PayloadRef, bytes] = {}
        host = SimpleNamespace(slots={0: None}, replica=SimpleNamespace(manifest=M), under_way=lambda *_: under_way)
        self.mender = Mender(host, WIRE, self.recovery, subtraction, self.kept.__setitem__, 1.0, 8.0)
        self.recoveries = recoveries

    def recovery(self, effect: ev.Recover) -> Scripted:
        self.begun.append(effect.slot)
        return self.recoveries[effect.slot].pop(0)

    def until(self, now_s: float, *holds: ev.Hold) -> list[str]:
        """Turns until there is nothing to do; the kinds of reports."""
        kinds: list[str] = []
        while (effects := self.mender.turn(holds, now_s)) or self.mender.busy:
            kinds += [e.kind for e in effects if isinstance(e, ev.Report)]
        return kinds


def spilled() -> Author:
    author = Author(M)
    for slot in (0, 1):
        author.claim(slot)
        author.update(slot, 1, spill=True)
        author.update(slot, 1, spill=True)
    return author


def test_hosts_of_the_slot_begin_first():
    author = spilled()
    bench = Bench({0: [Scripted(None, DONE)], 1: [Scripted(DONE)]})
    holds = hold_of(author, 0, 1), hold_of(author, 1, 1)
    assert bench.until(0.0, *holds) == [] and bench.until(0.9, *holds) == []
    assert bench.until(1.0, *holds) == ["mends"] and bench.begun == [0]
    assert bench.until(2.9, *holds) == []
    assert bench.until(3.0, *holds) == ["mends"] and bench.begun == [0, 1]


def test_who_still_has_it_puts_it_back():
    author, payload = spilled(), ()
    bench = Bench({}, under_way=payload)
    bench.until(0.0, hold_of(author, 0, 1))
    assert bench.until(1.0, hold_of(author, 0, 1)) == [] and len(bench.kept) == 1


def test_what_a_recomputation_lacks_is_recomputed_first():
    author = spilled()
    needed, hold = hold_of(author, 1, 1), hold_of(author, 0, 2)
    bench = Bench({0: [Scripted(WAITS, lacks=needed), Scripted(DONE)], 1: [Scripted(DONE)]})
    bench.until(0.0, hold)
    assert bench.until(1.0, hold) == ["mends", "waits"]
    bench.recoveries[0].insert(0, Scripted(WAITS, lacks=needed))
    assert bench.until(2.0, hold) == ["mends", "waits"]  # perhaps somebody else has put it back by now
    assert bench.until(3.9, hold) == []
    assert bench.until(4.0, hold) == ["mends"] and bench.begun == [0, 0, 1]
    assert bench.until(4.1, hold) == ["mends"] and bench.begun == [0, 0, 1, 0]


def test_what_nobody_waits_for_any_more_is_left():
    author = spilled()
    bench = Bench({0: [Scripted(None, None)]})
    hold = hold_of(author, 0, 1)
    bench.mender.turn([hold], 0.0)
    bench.mender.turn([hold], 1.0)
    assert bench.mender.busy
    bench.mender.turn([], 1.1)
    assert not bench.mender.busy


def test_what_cannot_be_recomputed_is_tried_again_much_later():
    author = spilled()
    hold = hold_of(author, 0, 1)
    impossible = ev.Recovered(0, 1, None, "it differs")
    bench = Bench({0: [Scripted(impossible), Scripted(DONE)]})
    bench.until(0.0, hold)
    assert bench.until(1.0, hold) == ["mends", "lost"]
    assert bench.until(8.9, hold) == [] and bench.until(9.0, hold) == ["mends"]


# ---- revocations ----------------------------------------------------------------------------------------------------
def revoked(author: Author, first: int, last: int, payload=None) -> ev.Hold:
    """The operator's record over updates of slot 0, whose payload is in no store."""
    subtraction = Subtraction(M, Revocation("r", 0, 0, first, last, 0), WIRE, record(author), fetch(author))
    payload = subtraction.advance() if payload is None else payload
    ref = WIRE.pack_payload(payload)[0]
    raw = WIRE.encode(Revocation("r", 0, 0, first, last, payload_digest(M, payload), None, ref))
    author.log[M.slots].append(raw)
    return ev.Hold(M.slots, 0, raw, "gone", ref)


def record(author: Author):
    return lambda p, offset: author.log[p][offset] if offset < len(author.log[p]) else None


def fetch(author: Author):
    return lambda ref: decode_payload(ref, author.objects[ref]) if ref in author.objects else None


def subtracting(author: Author):
    return lambda m: Subtraction(M, m, WIRE, record(author), fetch(author))


def test_minus_the_sum_leaves_what_was_before():
    author = Author(M)
    author.claim(0)
    author.update(0, 1)
    before = author.replica.acc.copy()
    author.update(0, 1, spill=True)
    author.update(0, 1)
    hold = revoked(author, 1, 2)
    payload = Subtraction(M, WIRE.reopen(hold.raw), WIRE, record(author), fetch(author)).advance()
    message = msgspec.structs.replace(WIRE.reopen(hold.raw), payload=payload, payload_ref=None)
    author.log[M.slots].clear()
    author.append(M.slots, WIRE.encode(message))
    assert np.array_equal(author.replica.acc, before)


def test_a_revocations_payload_is_added_up_again():
    author = spilled()
    hold = revoked(author, 0, 1)
    bench = Bench({}, subtracting(author))
    bench.until(0.0, hold)
    assert bench.until(1.0, hold) == ["mends"] and list(bench.kept) == [hold.wants]


def test_a_revocation_that_is_another_sum_is_never_put_back():
    author = spilled()
    hold = revoked(author, 0, 1, minus(M, np.ones(author.replica.acc.size, np.int32)))
    bench = Bench({}, subtracting(author))
    bench.until(0.0, hold)
    assert bench.until(1.0, hold) == ["mends", "lost"] and not bench.kept


def test_a_revocation_waits_for_the_updates_it_names():
    author = spilled()
    hold = revoked(author, 0, 1)
    data = author.objects.pop(ref := hold_of(author, 0, 1).wants)
    bench = Bench({0: [Scripted(DONE)]}, subtracting(author))
    bench.until(0.0, hold)
    assert bench.until(1.0, hold) == ["mends", "waits"]
    assert bench.until(1.9, hold) == [] and not bench.begun
    assert bench.until(2.0, hold) == ["mends"] and bench.begun == [0]
    author.objects[ref] = data
    assert bench.until(2.1, hold) == ["mends"] and hold.wants in bench.kept


def test_updates_that_the_log_does_not_hold_cannot_be_added_up():
    author = spilled()
    subtraction = Subtraction(M, Revocation("r", 0, 0, 1, 7, 0), WIRE, record(author), fetch(author))
    with pytest.raises(LogError, match="ends before update 7") as found:
        subtraction.advance()
    assert not found.value.retryable and subtraction.lacks is None
