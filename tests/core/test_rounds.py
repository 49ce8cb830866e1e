"""A round is a pure function of its start; closings flush the residual; states move as every reader's chain."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core import recompute, rounds
from gossipdbn.core.values import CLOSES_PHASE, DONE, FAILED, RESET, RowRange
from gossipdbn.errors import LocalProtocolError, LogError, ReplayDivergence
from gossipdbn.models.spec import ModelSpec, PhaseSpec, share_divisor, trained_tensors
from gossipdbn.sim import abstract
from tests.core.making import WIRE, Author, a_manifest, a_replica, changed, fresh, rows_of

M = a_manifest()


def test_the_state_follows_the_chain():
    author = Author(M)
    for slot in (0, 1):
        author.claim(slot)
    for _ in range(2):
        author.update(0)
        author.update(1, 1)
    author.close(0)
    for slot in (0, 1):
        state, chain = author.states[slot], author.replica.chains[slot]
        assert (state.tip, state.seq, state.step, state.cursor, state.phase, state.start_version) == (
            chain.tip, chain.count, chain.step, chain.cursor, chain.phase, chain.start_version)  # fmt: skip


def test_what_is_not_sent_stays_in_the_residual():
    author = Author(M)
    author.claim(0)
    before = author.replica.acc.copy()
    state = author.states[0]
    rows = RowRange(0, 0, 2)
    job = rounds.begin(state, before, (0, 0, 0), rows)
    abstract.train(M, job, rows_of(0, rows), None, 0)
    progress = (job.parameters - before).astype(np.float64) / M.slots
    author.write(rounds.finish(M, state, job))
    sent = author.replica.acc - before
    assert np.abs(sent + state.residual - progress).max() <= 0.5
    assert state.residual.any()


def test_a_residual_has_the_parameters_of_its_phase():
    """Layers that are not trained need none: a stack's slot takes the room of its largest layer."""
    spec = ModelSpec(5, (4, 3), classes=2)
    phases = (PhaseSpec("cd", 0, 1, 2, 1), PhaseSpec("cd", 1, 1, 2, 1), PhaseSpec("backprop", 0, 1, 2, 1))
    manifest = a_manifest(phases=phases, spec=spec)
    author = Author(manifest)
    author.claim(0)
    sizes = []
    for epoch, phase in enumerate(phases):
        state = author.states[0]
        sizes.append(state.residual.size)
        before = author.replica.acc.copy()
        rows = RowRange(epoch, 0, 2)
        job = rounds.begin(state, author.replica.acc.copy(), author.replica.version, rows)
        abstract.train(manifest, job, rows_of(0, rows), None, 0)
        wanted = job.parameters - before
        divisors = [share_divisor(spec, phase, t.id, 2) for t, _, _ in trained_tensors(spec, phase)]
        author.write(rounds.finish(manifest, state, job))
        author.close(0)
        got = author.replica.acc - before
        for (_, at, _), divisor in zip(trained_tensors(spec, phase), divisors, strict=True):
            assert np.array_equal(got[at], np.rint(wanted[at] / divisor))
        untouched = np.ones(len(got), bool)
        for _, at, _ in trained_tensors(spec, phase):
            untouched[at] = False
        assert not got[untouched].any()
    assert sizes == [5 * 4 + 5 + 4, 4 * 3 + 4 + 3, 5 * 4 + 4 + 4 * 3 + 3 + 3 * 2 + 2]


def test_a_closing_update_sends_the_whole_residual():
    author = Author(M)
    author.claim(0)
    author.update(0)
    residual, before = author.states[0].residual.copy(), author.replica.acc.copy()
    author.close(0)
    assert np.array_equal(author.replica.acc - before, residual)
    assert not author.states[0].residual.any() and author.states[0].phase == 1
    assert "memory" not in author.states[0].optimiser


def test_the_last_closing_and_a_failure_end_the_state():
    for kind in (DONE, FAILED):
        state = fresh(M)
        state.phase = 1
        update = rounds.closing(M, state, a_replica(M).digest(), (0, 0, 0), kind, note="x" * 900)
        rounds.sent(M, state, update, b"raw", (0, 0, 0))
        assert state.closed and state.optimiser == {} and len(update.note) == 500


def test_divergence_is_a_parameter_beyond_its_range():
    acc = a_replica(M).acc.copy()
    for value, beyond in ((-(1 << 30) + 1, False), (-(1 << 30), True), (1 << 30, True)):
        acc[1] = value
        job = rounds.begin(fresh(M), acc, (0, 0, 0), RowRange(0, 0, 2))
        assert rounds.diverged(job) is beyond


def a_run() -> Author:
    """A slot with a takeover, a reset and a spilled payload, beside one whose updates it merged."""
    author = Author(M)
    author.claim(1)
    author.claim(0)
    author.update(0)
    author.update(1, 1, spill=True)
    author.update(0, spill=True)
    author.claim(0, "b")
    author.update(0, epoch=1)
    author.claim(0, "c", RESET)
    author.update(0)
    author.close(0)
    return author


def again(author, slot=0, rows=None, fetch=True, manifest=M):
    objects = {ref: recompute_payload(ref, data) for ref, data in author.objects.items()} if fetch else {}

    def record(p, offset):
        return author.log[p][offset] if offset < len(author.log[p]) else None

    source = recompute.Source(
        record, objects.get, rows or (lambda r: (rows_of(slot, r), None, 0)), lambda _v: a_replica(M), abstract.train
    )
    return recompute.Recomputation(manifest, slot, a_replica(M), fresh(M, slot), WIRE, source)


def recompute_payload(ref, data):
    from gossipdbn.wire.messages import decode_payload

    return decode_payload(ref, data)


def test_every_update_is_recomputed_from_the_log_alone():
    author = a_run()
    r = again(author)
    out = list(r.run())
    assert [x.same for x in out] == [True] * 5
    assert out[-1].logged.closing == CLOSES_PHASE
    for x in out:
        recompute.require_same(x)
    assert r.state.tip == author.replica.chains[0].tip
    assert np.array_equal(r.state.residual, author.states[0].residual)
    assert [x.same for x in again(author, 1).run()] == [True]


def test_a_recomputation_stops_where_it_is_told():
    author = a_run()
    r = again(author)
    assert len(list(r.run(until=2))) == 1
    assert len(list(r.run())) == 4
    with pytest.raises(LogError, match="needed 99"):
        list(again(author).run(until=99))


def test_other_rows_give_another_update():
    out = list(again(a_run(), rows=lambda r: (1 - rows_of(0, r), None, 0)).run(until=2))
    assert [x.same for x in out] == [False]
    with pytest.raises(ReplayDivergence, match="logged digest"):
        recompute.require_same(out[0])


@pytest.mark.parametrize(
    ("field", "value", "says"), [("start_digest", 5, "logged start_digest"), ("note", "x", "differs")]
)
def test_a_forged_field_is_found(field, value, says):
    author = Author(M)
    author.claim(0)
    author.write(changed(author.next_update(0), **{field: value}))
    (r,) = again(author).run()
    assert not r.same
    with pytest.raises(ReplayDivergence, match=says):
        recompute.require_same(r)


def test_a_missing_payload_can_come_later_and_a_missing_update_cannot():
    with pytest.raises(LogError) as missing:
        list(again(a_run(), fetch=False).run())
    assert missing.value.retryable
    author = a_run()
    del author.log[1][1]
    with pytest.raises(LogError, match="names 1") as gone:
        list(again(author).run())
    assert not gone.value.retryable


def test_a_scratch_that_is_ahead_begins_again_from_an_older_base():
    author = a_run()
    r = again(author)
    for offset, raw in enumerate(author.log[1]):  # as a snapshot's replica would hold it
        ref = getattr(WIRE.decode(raw).message, "payload_ref", None)
        r.scratch.read(1, offset, raw, None if ref is None else recompute_payload(ref, author.objects[ref]))
    assert all(x.same for x in r.run())
    ahead = r.scratch
    bad = again(author)
    for offset, raw in enumerate(author.log[1]):
        ref = getattr(WIRE.decode(raw).message, "payload_ref", None)
        bad.scratch.read(1, offset, raw, None if ref is None else recompute_payload(ref, author.objects[ref]))
    bad._source = recompute.Source(bad._source.record, bad._source.fetch, bad._source.rows, lambda _v: ahead)
    with pytest.raises(LocalProtocolError, match="was given for version"):
        list(bad.run())
