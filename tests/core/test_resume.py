"""Recovery: the newest usable snapshot of the accepted chain, then the rounds after it; or from the start; or reset."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from gossipdbn.core import events as ev
from gossipdbn.core import resume
from gossipdbn.core.values import RESET
from gossipdbn.errors import LogError, SnapshotCorrupt, StoreError
from gossipdbn.sim import abstract
from gossipdbn.wire.messages import decode_payload
from gossipdbn.wire.snapshots import announce, decode_snapshot, encode_snapshot
from tests.core.making import WIRE, Author, a_manifest, a_replica, rows_of

M = a_manifest()


def keep(author, slot, objects):
    """A snapshot of the slot as it stands."""
    s, r = author.states[slot], author.replica
    copied = ev.Snapshot(slot, r.acc.copy(), tuple(r.chains), s, r.digest())
    data = encode_snapshot(M, copied)
    a = announce(M, copied, data)
    objects[a.name] = data
    return a


def story(reset_at_snapshot=False):
    """Updates, a snapshot, updates, a snapshot, one more update, a claim. Returns author, snapshots, objects."""
    author, objects, announced = Author(M), {}, []
    author.claim(1)
    author.claim(0)
    author.update(0, 1)
    author.update(1, 1)
    announced.append(keep(author, 0, objects))
    author.update(0, 1)
    announced.append(keep(author, 0, objects))
    if reset_at_snapshot:
        author.claim(0, "a", RESET)
    author.update(0, 1, spill=True)
    author.claim(0, "b")
    return author, announced, objects


def recover(author, announced, objects, record=None, rounds_max=99, rows=rows_of, chain=None):
    def load(a):
        if a.name not in objects:
            raise StoreError(f"no {a.name}")
        return decode_snapshot(M, objects[a.name], a.sha256)

    log = record or (lambda p, o: author.log[p][o] if o < len(author.log[p]) else None)
    chain = chain or author.replica.chains[0]
    inputs = resume.Inputs(
        log,
        lambda ref: decode_payload(ref, author.objects[ref]) if ref in author.objects else None,
        sorted(announced, key=lambda a: -a.seq),
        load,
        lambda _position: lambda r: (rows(0, r), None, 0),
        lambda: a_replica(M).acc,
        abstract.train,
        rounds_max,
    )
    return resume.Resume(M, ev.Recover(0, chain.incarnation, chain), WIRE, inputs)


def finish(r):
    for _ in range(50):
        outcome = r.advance()
        if outcome is not None:
            return outcome
    raise AssertionError("no outcome")


def same(state, other):
    return (state.tip, state.seq, state.step, state.cursor) == (other.tip, other.seq, other.step, other.cursor) and (
        np.array_equal(state.residual, other.residual)
        and all(np.array_equal(v, other.optimiser[k]) for k, v in state.optimiser.items())
    )


@pytest.mark.parametrize(("lost", "recomputed"), [((), 1), ((1,), 2), ((0, 1), 3)])
def test_fewer_snapshots_mean_more_rounds_and_the_same_state(lost, recomputed):
    author, announced, objects = story()
    for i in lost:
        del objects[announced[i].name]
    r = recover(author, announced, objects)
    assert same(finish(r).state, author.states[0])
    assert r.recomputed == recomputed and len(r.skipped) == len(lost)


def test_a_reset_that_stands_at_a_snapshot_empties_its_state():
    author, announced, objects = story(reset_at_snapshot=True)
    r = recover(author, announced, objects)
    assert same(finish(r).state, author.states[0]) and r.recomputed == 1


def test_a_snapshot_of_a_dead_branch_is_left_for_an_older_one():
    author, announced, objects = story()
    other = Author(M)  # another history: other rows in the second update
    other.log, other.replica = [[], [], []], a_replica(M)
    other.claim(1)
    other.claim(0)
    other.update(0, 1)
    other.update(1, 1)
    other.update(0, 2)
    dead = keep(other, 0, objects)
    r = recover(author, [announced[0], dead], objects)
    assert same(finish(r).state, author.states[0])
    assert r.skipped == ["a snapshot is of another history"] and r.recomputed == 2


def test_snapshots_of_others_or_of_the_future_are_not_used():
    author, announced, objects = story()
    claimed = author.replica.chains[0]
    foreign = msgspec.structs.replace(keep(author, 1, objects), seq=3)
    author.update(0, epoch=1)
    future = msgspec.structs.replace(keep(author, 0, objects), seq=3)  # what it says is not what it holds
    r = recover(author, [foreign, future, *announced], objects, chain=claimed)
    assert finish(r).state.seq == 3 and r.recomputed == 1
    assert len([why for why in r.skipped if "past" in why]) == 2


def test_a_replica_that_is_ahead_of_the_next_round_is_replaced_by_an_older_base():
    author, objects = Author(M), {}
    author.claim(1)
    author.claim(0)
    author.update(0, 1)
    early = keep(author, 0, objects)
    lagging = author.replica.acc.copy(), list(author.replica.chains)
    author.update(1, 1)
    ahead = keep(author, 0, objects)
    # the next owner of slot 0 has not read slot 1's update yet
    kept = author.replica
    author.replica = kept.__class__(M, WIRE.decode, *lagging)
    author.claim(0, "b")
    author.update(0, 1)
    r = recover(author, [early, ahead], objects)
    assert same(finish(r).state, author.states[0]) and r.recomputed == 1
    del objects[early.name]
    r = recover(author, [early, ahead], objects)
    assert same(finish(r).state, author.states[0]) and r.recomputed == 1


def test_what_cannot_be_read_now_is_tried_again():
    author, announced, objects = story()
    down = [True, True]

    def record(p, o):
        if down and p == 0 and o == len(author.log[0]) - 2:
            down.pop()
            raise LogError("no leader", retryable=True)
        return author.log[p][o] if o < len(author.log[p]) else None

    r = recover(author, announced, objects, record)
    for _ in range(2):
        with pytest.raises(LogError):
            r.advance()
    assert same(finish(r).state, author.states[0])


def test_a_missing_payload_is_waited_for():
    author, announced, objects = story()
    away, author.objects = author.objects, {}
    r = recover(author, announced, objects)
    with pytest.raises(LogError):
        finish(r)
    author.objects = away
    assert same(finish(r).state, author.states[0])


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({"rows": lambda s, r: 1 - rows_of(s, r)}, "differs from the logged one"),
        ({"rounds_max": 0}, "more than 0 rounds"),
        ({"record": lambda p, o: None}, "ends at offset"),
    ],
)
def test_what_cannot_be_recomputed_must_be_reset(more, reason):
    author, announced, objects = story()
    outcome = finish(recover(author, announced, objects, **more))
    assert outcome.state is None and reason in outcome.reason


def test_a_log_that_leads_elsewhere_must_be_reset():
    author, _, objects = story()
    r = recover(author, [], objects)
    object.__setattr__(r.effect.chain, "tip", b"elsewher")
    assert "does not lead" in finish(r).reason


def test_corrupt_snapshots_are_passed_over():
    author, announced, objects = story()
    objects[announced[1].name] = objects[announced[1].name][:-1]
    r = recover(author, announced, objects)
    assert same(finish(r).state, author.states[0]) and "sha256" in r.skipped[0]
    assert isinstance(SnapshotCorrupt("x"), Exception)


def test_contained_versions():
    assert (
        resume.dominated((1, 2), (1, 3)) and not resume.dominated((2, 0), (1, 3)) and not resume.dominated((1,), (1, 2))
    )
