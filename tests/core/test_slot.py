"""A slot's life: claim, recover, train, yield. Each rule of ownership as one short story."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core import events as ev
from gossipdbn.core import rounds
from gossipdbn.core.slot import CLAIMING, READING, RECOVERING, RUNNING
from gossipdbn.core.values import (
    CLOSES_PHASE,
    DONE,
    FAILED,
    NO_METRICS,
    RESET,
    RESUME,
    Accepted,
    Claim,
)
from gossipdbn.errors import LocalProtocolError
from gossipdbn.kernels import workspaces
from gossipdbn.sim import abstract
from tests.core.making import WIRE, Author, Bench, a_manifest, changed, fresh, rows_of

M = a_manifest()


@pytest.fixture
def bench():
    b = Bench(M)
    b.own(0)
    return b


def message(effect):
    return WIRE.decode(effect.raw).message


def foreign_claim(bench, slot=0, mode=RESUME, worker="other"):
    chain = bench.host.replica.chains[slot]
    return WIRE.encode(Claim("r", slot, chain.incarnation + 1, worker, mode, 0, 1))


def test_a_slot_is_read_to_its_end_before_it_is_claimed():
    author = Author(M)
    author.claim(0)
    b = Bench(M, log=[list(r) for r in author.log])
    b.step(ev.Assigned(0))
    b.tick()
    assert not b.sent and b.host.slots[0].stage == READING
    b.read()
    b.tick()
    assert message(b.sent[0]).incarnation == 2 and b.host.slots[0].stage == CLAIMING


def test_the_arrays_of_rounds_go_before_a_closing_update_is_made(monkeypatch):
    """It has four bytes a parameter, and what rounds use as much as 8: a large layer has no room for both."""
    b = Bench(M)
    b.own(0)
    spare, closing, kept = b.host.slots[0]._spare, rounds.closing, []

    def watched(*arguments):
        kept.append((spare._kept, len(workspaces._POOL)))
        return closing(*arguments)

    monkeypatch.setattr(rounds, "closing", watched)
    for _ in range(20):
        b.train()
        b.deliver()
    assert kept == [(None, 0), (None, 0)]


def test_a_fresh_slot_runs_at_once_and_asks_for_its_rows(bench):
    assert bench.host.slots[0].stage == RUNNING
    assert bench.of(ev.FollowRows) == [ev.FollowRows(0)]
    assert not bench.of(ev.Recover)


def test_a_whole_plan_ends_in_done_and_release():
    b = Bench(M)
    b.own(0)
    for _ in range(20):
        b.train()
        b.deliver()
    chain = b.host.replica.chains[0]
    assert chain.closed and chain.count == 8 and 0 not in b.host.slots
    kinds = [m.closing for m in map(message, b.of(ev.Publish)) if hasattr(m, "closing")]
    assert kinds.count(CLOSES_PHASE) == 1 and kinds[-1] == DONE
    assert b.of(ev.Release) == [ev.Release(0)]
    b.step(ev.Assigned(0))
    assert 0 not in b.host.slots  # nobody hosts what is closed


def test_the_window_bounds_what_is_pending():
    b = Bench(a_manifest(pending=2))
    b.own(0)
    for _ in range(5):
        b.train()
    assert len(b.host.slots[0].pending) == 2
    assert b.host.slots[0].waits_for == "its updates to be acknowledged"
    b.deliver()
    b.train()
    assert len(b.host.slots[0].pending) == 1


def test_own_pending_updates_are_in_the_start_of_the_next_round(bench):
    bench.train()
    (job,) = [e.job for e in bench.work()]
    assert job.start_version == (1, 0, 0)
    assert not np.array_equal(job.parameters, bench.host.replica.acc)
    bench.deliver()
    assert np.array_equal(job.parameters, bench.host.replica.acc)


@pytest.mark.parametrize("sent_before", [0, 2])
def test_what_is_read_while_a_round_trains_changes_nothing_of_its_update(sent_before):
    author = Author(M)
    author.claim(1)
    author.update(1)
    sent = []
    for disturbed in (False, True):
        b = Bench(M)
        b.own(0)
        for _ in range(sent_before):  # not read back when the round begins
            b.train()
        (job,) = [e.job for e in b.work() if isinstance(e, ev.Train)]
        start = job.start.copy()
        abstract.train(M, job, rows_of(0, job.rows), None, 0)
        if disturbed:
            b.log[1] = list(author.log[1])
            b.deliver()
            assert b.host.replica.version == (sent_before, 1, 0) and b.host.replica.acc is not job.start
            assert not np.array_equal(b.host.replica.acc, start)
        np.testing.assert_array_equal(job.start, start)
        b.sent.clear()
        b.step(ev.RoundTrained(job, NO_METRICS))
        sent.append(b.sent[0].raw)
    assert sent[0] == sent[1]


def test_a_replica_is_not_copied_while_no_round_trains(bench):
    before = bench.host.replica.acc
    for _ in range(3):
        bench.train()
        bench.deliver()
    assert bench.host.replica.acc is before and bench.host.replica.version == (3, 0, 0)


def test_a_void_claim_is_claimed_again_after_a_growing_delay():
    b = Bench(M)
    b.step(ev.Assigned(0))
    b.tick()
    b.log[0].append(foreign_claim(b))
    b.deliver()  # the other claim came first
    assert b.host.slots[0].stage == READING and "claim is void" in b.reports("dropped")[0]
    assert not b.tick(0.001)
    b.tick(0.01)
    assert message(b.sent[0]).incarnation == 2
    b.deliver()
    assert b.host.slots[0].stage == RUNNING


def test_a_foreign_claim_fences_at_once_and_is_answered_by_a_claim(bench):
    bench.train()
    bench.log[0].append(foreign_claim(bench))
    bench.deliver()
    slot = bench.host.slots[0]
    assert slot.state is None and not slot.pending and "fenced" in bench.reports("dropped")[0]
    assert bench.host.replica.version == (0, 0, 0)  # what the fenced owner had sent is void
    bench.tick()
    assert message(bench.sent[0]).incarnation == 3


def test_two_owners_that_fence_each_other_come_to_rest(bench):
    delays = []
    for _ in range(6):
        bench.log[0].append(foreign_claim(bench))
        bench.deliver()
        waited = 0.0
        while not bench.sent:
            bench.tick(0.002)
            waited += 0.002
        delays.append(waited)
        bench.deliver()
    assert delays[-1] > 4 * delays[0]


def test_an_update_of_this_claim_that_the_owner_did_not_send_ends_it(bench):
    author = Author(M)
    author.claim(0, "w")
    bench.train()
    (mine,) = bench.sent
    imitated = changed(message(mine), metrics=NO_METRICS._replace(train_us=1))
    bench.log[0].append(WIRE.encode(imitated))
    bench.deliver()
    assert "did not send" in bench.reports("dropped")[0]


def test_an_own_update_that_is_void_ends_the_claim(bench):
    bench.train()
    (mine,) = bench.sent
    bench.log[0].append(WIRE.encode(changed(message(mine), digest=1)))
    bench.read()
    assert "own update is void" in bench.reports("dropped")[0]


def test_duplicates_and_strangers_records_end_nothing(bench):
    bench.train()
    (mine,) = bench.sent
    bench.deliver()
    bench.log[0] += [
        mine.raw,
        WIRE.encode(changed(message(mine), run="x")),
        WIRE.encode(changed(message(mine), slot=1)),
        b"",
    ]
    bench.read()
    assert not bench.reports("dropped") and bench.host.slots[0].stage == RUNNING
    assert len(bench.reports("void")) == 4


def test_a_taken_over_slot_is_recovered_before_it_runs():
    author = Author(M)
    author.claim(0)
    author.update(0)
    b = Bench(M, log=author.log)
    b.own(0)
    (recover,) = b.of(ev.Recover)
    assert (recover.slot, recover.incarnation, recover.chain.count) == (0, 2, 1)
    slot = b.host.slots[0]
    assert slot.stage == RECOVERING
    b.step(ev.Recovered(0, 1, fresh(M)))  # an answer to an older question
    assert slot.stage == RECOVERING
    state = author.states[0]
    chain = b.host.replica.chains[0]
    state.tip, state.incarnation = chain.tip, chain.incarnation
    b.step(ev.Recovered(0, 2, state))
    assert slot.stage == RUNNING
    b.train()
    b.deliver()
    assert b.host.replica.chains[0].count == 2


@pytest.mark.parametrize("state", [None, "wrong"])
def test_what_cannot_be_recovered_is_claimed_with_reset(state):
    author = Author(M)
    author.claim(0)
    author.update(0)
    b = Bench(M, log=author.log)
    b.own(0)
    b.step(ev.Recovered(0, 2, None if state is None else fresh(M), "rows are gone"))
    assert b.reports("reset")
    b.tick()
    assert message(b.sent[0]).mode == RESET
    b.deliver()
    slot = b.host.slots[0]
    assert slot.stage == RUNNING and slot.state.seq == 1 and slot.state.step == 1
    assert not slot.state.residual.any()


def test_a_new_owner_reads_up_to_its_last_start_version_first():
    author = Author(M)
    author.claim(0)
    author.claim(1)
    author.update(1, 1)
    author.update(0)
    b = Bench(M, log=[author.log[0], [], []])
    b.own(0)
    state = author.states[0]
    chain = b.host.replica.chains[0]
    state.tip, state.incarnation = chain.tip, chain.incarnation
    b.log[1] = author.log[1]  # there, not read yet
    b.step(ev.Recovered(0, 2, state))
    assert not [e for e in b.work() if isinstance(e, ev.Train)]
    assert b.host.slots[0].waits_for == "updates that its last round contained"
    b.read()
    assert [type(e) for e in b.work()] == [ev.Train]


def test_a_dangling_start_version_is_reset():
    author = Author(M)
    author.claim(0)
    author.claim(1)
    author.update(1, 1)
    author.update(0)
    b = Bench(M, log=[author.log[0], author.log[1][:1], []])  # the log lost an acknowledged update
    b.own(0)
    state = author.states[0]
    chain = b.host.replica.chains[0]
    state.tip, state.incarnation = chain.tip, chain.incarnation
    b.step(ev.Recovered(0, 2, state))
    b.work()
    assert "names updates that partition 1 does not hold" in b.reports("reset")[0]
    b.tick()
    assert message(b.sent[0]).mode == RESET
    b.deliver()
    assert [type(e) for e in b.work()] == [ev.Train]


def test_an_end_that_was_not_read_yet_is_asked_for_again():
    author = Author(M)
    author.claim(0)
    author.claim(1)
    author.update(1, 1)
    author.update(0)
    b = Bench(M, log=[author.log[0], author.log[1], []])
    b.step(ev.Assigned(0))
    for offset, raw in enumerate(b.log[0]):
        b.step(ev.Logged(0, offset, raw))
    b.tick()
    (claim,) = b.sent
    b.log[0].append(claim.raw)
    b.step(ev.Logged(0, len(b.log[0]) - 1, claim.raw))
    state = author.states[0]
    chain = b.host.replica.chains[0]
    state.tip, state.incarnation = chain.tip, chain.incarnation
    b.step(ev.Recovered(0, 2, state))
    assert [type(e) for e in b.work()] == [ev.AskEnd]
    assert [type(e) for e in b.work()] == [ev.AskEnd]
    b.step(ev.EndOffset(1, 0))
    b.read()
    b.step(ev.EndOffset(1, 2))
    assert not b.reports("reset")


def test_a_failure_waits_until_it_may_be_published():
    author = Author(M)
    author.claim(0)
    author.claim(1)
    author.update(1, 1)
    author.update(0)
    b = Bench(M, log=[author.log[0], [], []])
    b.own(0)
    state = author.states[0]
    chain = b.host.replica.chains[0]
    state.tip, state.incarnation = chain.tip, chain.incarnation
    b.log[1] = author.log[1]
    b.step(ev.Recovered(0, 2, state))
    assert not b.step(ev.RoundFailed(0, "a damaged row"))  # its start_version would go back
    b.work()
    assert not b.sent
    b.read()
    b.work()
    assert message(b.sent[0]).closing == FAILED and message(b.sent[0]).note == "a damaged row"
    assert not b.step(ev.RoundFailed(0, "again"))
    b.deliver()
    assert b.host.replica.chains[0].failed == "a damaged row" and 0 not in b.host.slots
    assert not b.step(ev.RoundFailed(0, "nobody hosts it"))


def test_a_round_that_fails_leaves_no_trace_but_the_closing(bench):
    bench.work()
    bench.step(ev.RoundFailed(0, "NaN in row 3"))
    bench.work()
    bench.deliver()
    assert bench.host.replica.chains[0].failed == "NaN in row 3"


def test_divergence_closes_the_slot_as_failed(bench):
    chains = list(bench.host.replica.chains)
    acc = bench.host.replica.acc
    acc[0] = 1 << 30
    bench.host.replica.__init__(M, WIRE.decode, acc, chains)
    bench.work()
    assert message(bench.sent[0]).closing == FAILED and "diverged" in message(bench.sent[0]).note


def test_damaged_memory_trains_nothing_and_stops_the_worker(bench):
    bench.host.replica.acc[3] ^= 64
    with pytest.raises(LocalProtocolError, match="memory is damaged"):
        bench.work()


def test_damaged_memory_is_not_stored_and_closes_nothing():
    b = Bench(M, snapshot_every_s=0.1)
    b.own(0)
    b.train()
    b.deliver()
    b.tick()
    b.host.replica.acc[3] ^= 64
    with pytest.raises(LocalProtocolError, match="memory is damaged"):
        b.work()
    b = Bench(M, rows=0)
    b.own(0)
    b.host.replica.acc[3] ^= 64
    with pytest.raises(LocalProtocolError, match="memory is damaged"):
        b.work()


def test_a_large_payload_goes_to_the_store_first():
    b = Bench(a_manifest(inline_bytes=4))
    b.own(0)
    b.train()
    (effect,) = b.sent
    ref, data = effect.spill
    update = message(effect)
    assert update.payload is None and update.payload_ref == ref and len(data) == ref.size
    b.log[0].append(effect.raw)
    hold = b.step(ev.Logged(0, 1, effect.raw))[0]
    assert isinstance(hold, ev.Hold) and hold.wants == ref and 0 in b.host.held
    from gossipdbn.wire.messages import decode_payload

    b.step(ev.Logged(0, 1, effect.raw, decode_payload(ref, data)))
    assert b.host.replica.version == (1, 0, 0) and not b.host.held


def test_the_gate_waits_for_others_to_close_their_phase():
    b = Bench(a_manifest(gate=2), rows=0)
    b.own(0)
    b.work()
    b.deliver()  # closed phase 0: no rows
    b.step(ev.RowsArrived(0, 4, True))
    b.host.slots[0].state.cursor = (1, 4)
    assert not b.work() and b.host.slots[0].waits_for == "other slots to close phase 0"
    author = Author(a_manifest(gate=2))
    author.claim(1)
    author.close(1)
    b.log[1] = author.log[1]
    b.read()
    assert [type(e) for e in b.work()] == [ev.Train]


def test_few_rows_are_trained_after_a_while_on_a_live_stream():
    b = Bench(M, linger_s=5.0)
    b.own(0)
    b.step(ev.RowsArrived(0, 0, False))
    assert not b.work() and b.host.slots[0].waits_for == "rows"
    b.step(ev.RowsArrived(0, 1, False))
    b.tick(10.0)
    assert not b.work()
    b.step(ev.RowsArrived(0, 3, False))
    assert [e.job.rows.count for e in b.work()] == [2]


def test_closing_is_not_read_as_acceptance_of_anothers(bench):
    assert isinstance(bench.host.replica.judge(0, foreign_claim(bench)), Accepted)
    assert rounds.DIVERGED_AT == 1 << 30
