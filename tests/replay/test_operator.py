"""Revoking is exact, giving up lets a run finish, a child run starts from its parent's integers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from gossipdbn.adapters.memory import MemoryLog
from gossipdbn.core.revocation import minus
from gossipdbn.core.values import GIVEN_UP, Claim, TensorDelta
from gossipdbn.errors import ConfigError, SnapshotCorrupt, SnapshotMissing
from gossipdbn.kernels import codec
from gossipdbn.models.spec import PhaseSpec, parameter_count
from gossipdbn.replay.fork import child_manifest, child_parameters
from gossipdbn.replay.history import judge_all
from gossipdbn.replay.moments import Timeline, parse_moment
from gossipdbn.replay.operator import Operator
from gossipdbn.replay.verify import verify
from gossipdbn.wire.messages import RunWire
from tests.replay.scene import Scene, manifest, rows, walk


def operator(scene: Scene) -> Operator:
    return Operator(scene.log, scene.manifest, scene.store, RunWire(), "operator@test", wait=lambda _s: None)


@pytest.mark.parametrize("inline_bytes", [512 << 10, 0])
def test_a_revocation_subtracts_exactly_and_the_run_goes_on(tmp_path: Path, inline_bytes: int) -> None:
    scene = Scene(manifest=manifest(3, inline_bytes=inline_bytes))
    scene.feed(*rows())
    scene.work("first", until=25)
    before = Timeline(judge_all(scene.logged(tmp_path / "before")))
    with_it, without = (before.parameters(v) for v in (before.history.version, _less(before, 1, 2)))
    done = operator(scene).revoke(1, 2, reason="a broken sensor")
    assert (done.slot, done.first, done.numbers) == (1, 2, (0,))
    assert done.rows > 0
    after = Timeline(judge_all(scene.logged(tmp_path / "after")))
    now = after.parameters(after.history.version)
    assert np.array_equal(now, without) and not np.array_equal(now, with_it)
    scene.work("second")
    v = verify(scene.logged(tmp_path / "end"), train=walk)
    assert v.identical and v.state == "finished" and v.revocations == 1, v.problems


@pytest.mark.parametrize("honest", [True, False])
def test_a_copy_adds_a_lost_revocation_up_again(tmp_path: Path, honest: bool) -> None:
    scene = Scene(manifest=manifest(3, inline_bytes=0))
    scene.feed(*rows())
    scene.work("only")
    before = set(scene.store.names("payloads/"))
    act = operator(scene)
    if honest:
        act.revoke(1, 1, 2)
    else:
        act._revoke_range(1, 1, 2, minus(scene.manifest, np.ones(parameter_count(scene.manifest.spec), np.int32)), "")
    (lost,) = set(scene.store.names("payloads/")) - before
    scene.store.delete(lost)
    v = verify(scene.logged(tmp_path), train=walk)
    assert (v.identical, v.revocations) == ((True, 1) if honest else (False, 0)), v.problems


def _less(timeline: Timeline, slot: int, seq: int) -> tuple[int, ...]:
    version = list(timeline.history.version)
    version[slot] = seq
    return tuple(version)


def test_what_is_not_there_or_revoked_already_cannot_be_revoked() -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("only")
    act = operator(scene)
    act.revoke(0, 3, 5)
    for slot, first, last, why in ((0, 5, 6, "already"), (0, 0, 999, "has updates"), (7, 0, 0, "not a slot"),
                                   (1, 4, 2, "before the first")):  # fmt: skip
        with pytest.raises(ConfigError, match=why):
            act.revoke(slot, first, last)
    assert act.revoke(0, 6, 6).numbers == (1,)


def test_how_long_a_run_trained_leaves_out_what_the_operator_did_later(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("only")
    before = judge_all(scene.logged(tmp_path / "before")).training_seconds()
    records = scene.log.data[scene.names.updates]
    operator(scene).revoke(0, 3, 5)
    value, at_ms = records[-1][-1]
    records[-1][-1] = (value, at_ms + 3_600_000)
    assert judge_all(scene.logged(tmp_path / "after")).training_seconds() == before


def test_a_sum_beyond_the_codec_is_revoked_in_pieces() -> None:
    scene = Scene()
    big = np.full((1, 8), 1 << 29, np.int32)
    payload = (TensorDelta(5, 0, codec.quantise(0, big, 1)),)
    pieces = list(operator(scene)._payloads(dict.fromkeys(range(4), payload), 0, 3))
    assert [(a, b) for a, b, _ in pieces] == [(0, 1), (2, 3)]
    total = sum(codec.decode(p.codec, p.data, 1, 8).astype(np.int64) for _, _, parts in pieces for p in parts)
    assert (total == -4 * (1 << 29)).all()


def test_a_false_revocation_is_found_by_anyone(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows(100))
    scene.work("only")
    act = operator(scene)
    act._revoke_range(0, 0, 1, (), "claims that two updates were nothing")
    v = verify(scene.logged(tmp_path), train=walk)
    assert not v.identical and "not minus the sum" in v.problems[0]


def test_a_slot_given_up_lets_the_run_finish_with_rows_outstanding(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("first", until=20)
    done = operator(scene).give_up(2, "its rows are poisoned")
    assert done.slot == 2 and done.before.startswith("first")
    scene.work("second")
    run = scene.logged(tmp_path)
    history = judge_all(run)
    assert history.state == "finished"
    last = [x.message for x in history.partitions[2].updates()][-1]
    assert last is not None and last.closing == GIVEN_UP and last.note == "its rows are poisoned"  # type: ignore[union-attr]
    v = verify(run, train=walk)
    assert v.identical, v.problems
    assert v.rows < 5 * 300
    with pytest.raises(ConfigError, match="closed already"):
        operator(scene).give_up(2)


def test_a_slot_whose_owner_never_pauses_is_given_up(tmp_path: Path) -> None:
    """Between the operator's last look and its claim the owner always gets another update in."""
    scene = Scene()
    scene.feed(*rows(1000))
    worker = scene.worker("owner", threading.Event())
    turns, turned, turn = threading.Semaphore(0), threading.Semaphore(0), worker._turn

    def gated() -> None:
        turns.acquire()
        turn()
        turned.release()

    def an_update_more() -> None:
        before, left = scene.logged_chain(2).count, 1000
        while scene.logged_chain(2).count == before and left:
            left -= 1
            turns.release()
            turned.acquire()
        assert left

    worker._turn = gated  # type: ignore[method-assign]
    thread = threading.Thread(target=worker.run, daemon=True)
    thread.start()
    an_update_more()
    act = operator(scene)
    act._log = Hasty(scene.log, an_update_more)  # type: ignore[assignment]
    done = act.give_up(2, "its owner is never quiet")
    assert done.before.startswith("owner") and scene.logged_chain(2).closed
    turns.release(100_000)
    thread.join(60)
    v = verify(scene.logged(tmp_path), train=walk)
    assert v.identical and v.state == "finished", v.problems


class Hasty:
    """A log that something happens on just before a claim is appended."""

    def __init__(self, log: MemoryLog, first: Callable[[], None]) -> None:
        self._log, self._first = log, first

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def writer(self) -> object:
        writer = self._log.writer()
        send = writer.send

        def later(topic: str, partition: int, value: bytes) -> None:
            if isinstance(RunWire().reopen(value), Claim):
                self._first()
            send(topic, partition, value)

        writer.send = later  # type: ignore[method-assign]
        return writer


def test_a_child_run_starts_from_its_parents_integers(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("only")
    timeline = Timeline(judge_all(scene.logged(tmp_path / "parent")))
    moment = parse_moment(timeline, "#30")
    data, origin = child_parameters(timeline, moment)
    plan = (PhaseSpec("backprop", epochs=1, batch=10, tau=2, optimizer="adam", lr=0.01),)
    child, name = child_manifest(scene.manifest, "child", origin, slots=2, phases=plan)
    assert child.run_key != scene.manifest.run_key and child.parent == origin
    heir = Scene(manifest=child, store=scene.store)
    heir.feed(*rows())
    with pytest.raises(SnapshotMissing):
        heir.work("too early")
    heir.store.put(name, data)
    heir.work("only")
    run = heir.logged(tmp_path / "child")
    assert np.array_equal(run.initial(), timeline.parameters(moment.version))
    assert verify(run, train=walk).identical
    heir.store.objects[name] = data[:-1] + b"\xff"
    with pytest.raises(SnapshotCorrupt):
        heir.logged(tmp_path / "damaged").initial()


def test_a_plan_that_does_not_fit_is_refused() -> None:
    parent = msgspec.structs.replace(manifest(3), run="p")
    with pytest.raises(ConfigError, match="does not fit"):
        child_manifest(parent, "c", {"digest": "0"}, phases=(PhaseSpec("cd", layer=5),))
