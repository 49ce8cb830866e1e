"""Training on a real broker with real worker processes: kills, zombies, stops, live rows."""

from __future__ import annotations

import hashlib
import time

import msgspec
import numpy as np
import pytest

from gossipdbn.kernels import codec
from gossipdbn.models.spec import PhaseSpec, layout
from tests.integration.hosting import evenly_hosted

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

PLAN = [
    PhaseSpec("cd", layer=0, epochs=4, batch=20, tau=5),
    PhaseSpec("cd", layer=1, epochs=3, batch=20, tau=5),
    PhaseSpec("backprop", epochs=6, batch=20, tau=5, lr=0.002, lr_final=0.0, optimizer="adam"),
]


def _rows(n=4000, visible=96, classes=4, seed=0):
    """Noisy prototypes: learnable, small."""
    rng = np.random.default_rng(seed)
    prototypes = rng.random((classes, visible)) < 0.4
    labels = rng.integers(0, classes, n).astype(np.int32)
    return (prototypes[labels] ^ (rng.random((n, visible)) < 0.1)).astype(np.uint8), labels


def _run(gossip_run, **options):
    return gossip_run(visible=96, hidden=(64, 32), classes=4, phases=PLAN, **options)


def _fold_by_hand(run):
    """An independent reader: thirty lines that know the record layout and nothing of the core."""
    acc = np.zeros(sum(t.size for t in layout(run.manifest.spec)), np.int64)
    tensors = layout(run.manifest.spec)
    for p in range(run.manifest.slots):
        incarnation, tip, count, closed = 0, bytes(8), 0, False
        for record in run.log.read(run.topics.updates, p, *run.log.offsets(run.topics.updates, p)):
            raw = record.value
            m = msgspec.msgpack.decode(raw[29:])
            if m[0] == 1:
                if not closed and m[3] == incarnation + 1:
                    incarnation, tip = m[3], hashlib.sha256(tip + raw).digest()[:8]
            elif m[0] == 2 and not closed and (m[3], m[4], m[5]) == (incarnation, count, tip):
                payload = m[13]
                if payload is None:
                    payload = msgspec.msgpack.decode(run.store.get(f"payloads/{m[14][0].hex()}", 1 << 30))
                for tensor, kind, data in payload:
                    t = tensors[tensor]
                    acc[t.offset : t.offset + t.size] += codec.decode(kind, data, *t.blocks).reshape(-1)
                tip, count, closed = hashlib.sha256(tip + raw).digest()[:8], count + 1, m[7] >= 2
        assert closed
    return acc


def test_two_workers_one_killed_and_replaced(gossip_run):
    run = _run(gossip_run)
    values, labels = _rows()
    run.feed_rows(values[:3000], labels[:3000], end=False)  # nobody can finish before the trouble
    run.start_workers(2)
    run.wait_for(lambda f: f.ledger.updates > 20 and evenly_hosted(f, "w1", "w2"))
    run.kill_worker("w1")
    killed_at = run.follower.ledger.updates
    run.start_worker("w3")
    run.feed_rows(values[3000:], labels[3000:])
    run.wait_until_finished()
    assert run.follower.ledger.updates > killed_at
    run.assert_exact_ledger()
    digests = run.digests()
    assert len(digests) >= 3 and len(set(digests.values())) == 1, digests
    from gossipdbn.core.rounds import initial_parameters

    folded = (initial_parameters(run.manifest) + _fold_by_hand(run)).astype(np.int32)
    assert np.array_equal(folded, run.follower.replica.acc)
    assert any(c.incarnation > 1 for c in run.follower.replica.chains[:-1])
    run.assert_replayable()


def test_a_zombie_is_fenced_for_every_reader(gossip_run):
    run = _run(gossip_run)
    values, labels = _rows(8000)
    run.feed_rows(values[:3000], labels[:3000], end=False)
    run.start_workers(2)
    run.wait_for(lambda f: f.ledger.updates > 20 and evenly_hosted(f, "w1", "w2"))
    mine = {s for s, c in enumerate(run.follower.replica.chains[:-1]) if c.worker.startswith("w1#")}
    before = {s: run.follower.replica.chains[s].incarnation for s in mine}
    run.pause_worker("w1")
    run.feed_rows(values[3000:], labels[3000:])  # after it: a fast machine would be done before
    run.wait_for(lambda f: all(f.replica.chains[s].incarnation > before[s] for s in mine) or f.finished)
    run.resume_worker("w1")
    run.wait_until_finished()
    for slot in mine:
        assert run.follower.replica.chains[slot].incarnation > before[slot]
    run.assert_exact_ledger()
    assert len(set(run.digests().values())) == 1
    run.assert_replayable()


def test_stop_and_resume_continue_where_they_were(gossip_run):
    run = _run(gossip_run)
    values, labels = _rows()
    run.feed_rows(values[:3000], labels[:3000], end=False)  # nobody can finish before it is stopped
    run.start_workers(2)
    run.wait_for(lambda f: f.ledger.updates > 20)
    run.stop()
    run.follower.catch_up(time.monotonic())
    at = run.follower.ledger.updates
    assert not run.follower.finished
    run.feed_rows(values[3000:], labels[3000:])
    run.resume()
    run.start_worker("later")
    run.wait_until_finished()
    assert run.follower.ledger.updates > at
    run.assert_exact_ledger()
    run.assert_replayable()


def test_live_rows_train_until_stopped_and_go_on_later(gossip_run):
    joint = [PhaseSpec("joint", epochs=None, batch=20, tau=5)]
    run = gossip_run(visible=96, hidden=(64, 32), classes=4, phases=joint, slots=2)
    values, labels = _rows(6000)
    run.start_workers(2)
    for first in range(0, 3000, 500):
        run.feed_rows(values[first : first + 500], labels[first : first + 500], end=False)
        run.wait_for(lambda f, n=first: sum(f.ledger.trained(s) for s in range(2)) > n * 0.8)
    run.stop()
    run.follower.catch_up(time.monotonic())
    trained = sum(run.follower.ledger.trained(s) for s in range(2))
    run.resume()
    run.feed_rows(values[3000:], labels[3000:], end=False)
    run.start_worker("again")
    run.wait_for(lambda f: sum(f.ledger.trained(s) for s in range(2)) >= 5800)
    assert trained < 3001
    run.stop()
    run.follower.catch_up(time.monotonic())
    assert run.follower.summary().problems == ()
    run.assert_replayable()
