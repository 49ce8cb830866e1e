"""Replay recomputes every update; where one is not what it claims to be, it is named to the value."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gossipdbn.core import rounds
from gossipdbn.core.values import Manifest, WorkerState
from gossipdbn.models.spec import layout
from gossipdbn.replay.history import LoggedRun, judge_all, open_run
from gossipdbn.replay.pieces import cut
from gossipdbn.replay.verify import Progress, divergence_text, verify
from gossipdbn.wire.messages import encode_control
from tests.replay.scene import Scene, eventful, manifest, rows, walk


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[Scene, LoggedRun]:
    scene = eventful()
    return scene, scene.logged(tmp_path_factory.mktemp("spool"))


def test_a_run_with_takeovers_voids_and_a_reset_is_bit_identical(story: tuple[Scene, LoggedRun]) -> None:
    v = verify(story[1], train=walk)
    assert v.identical, (v.problems, v.divergences)
    assert v.state == "finished"
    assert v.voids == 1 and v.resets == 1 and v.claims >= 9
    assert v.rows == 5 * 300
    assert v.updates == sum(v.version)
    assert v.digest in {f"{w.digest:016x}" for w in story[1].control.workers.values()}


def test_pieces_cover_every_update_once(story: tuple[Scene, LoggedRun]) -> None:
    history = judge_all(story[1])
    pieces = cut(history)
    assert sum(p.updates for p in pieces) == sum(history.version)
    assert len(pieces) >= 3 * 3  # phases of slots; a reset in the middle of one makes two
    for slot in range(3):
        places = sorted((p.start, p.stop) for p in pieces if p.slot == slot)
        assert all(a[1] <= b[0] for a, b in pairwise(places))


def test_the_first_divergence_is_named_to_the_value(tmp_path: Path) -> None:
    tensor = layout(manifest(3).spec)[4]

    def wrong_once(m: Manifest, job: rounds.RoundJob, values: Any, labels: Any, total: int) -> Any:
        stats = walk(m, job, values, labels, total)
        if job.slot == 1 and job.phase == 1 and job.rows.first == 30:
            job.parameters[tensor.offset + 7] ^= 1 << 20
        return stats

    scene = Scene(train=wrong_once, manifest=manifest(3, codec=0))
    scene.feed(*rows())
    scene.work("only")
    v = verify(scene.logged(tmp_path), train=walk)
    assert not v.identical and not v.problems
    assert len(v.divergences) == 1  # the next phase starts from an empty state: its updates are true again
    found = v.divergences[0]
    assert (found.slot, found.difference.tensor, found.difference.index) == (1, tensor.name, 7)
    assert found.difference.logged != found.difference.recomputed
    assert f"{tensor.name}[7]" in divergence_text(found)


def test_a_worker_that_states_another_digest_is_named(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows(100))
    scene.work("only")
    stated = WorkerState(scene.run, "liar", (1, 0, 0, 0), 12345, "left")
    scene.log.append(scene.names.control, 0, encode_control(stated))
    v = verify(scene.logged(tmp_path), train=walk)
    assert not v.identical and not v.divergences
    assert "liar" in v.problems[0]


def test_a_partition_that_cannot_be_judged_is_not_passed_in_silence(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows(100))
    scene.work("only", until=15)
    scene.log.append(scene.names.updates, 2, b"gdbn" + bytes([99]) + bytes(60))  # a format of the future
    v = verify(scene.logged(tmp_path), train=walk)
    assert not v.identical
    assert "partition 2" in v.problems[0] and "format 99" in v.problems[0]


def test_rows_that_are_gone_are_a_problem_not_a_pass(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows(100))
    scene.work("only")
    del scene.log.data[scene.names.shards][1][-2:]
    v = verify(scene.logged(tmp_path), train=walk)
    assert not v.identical
    assert any("slot 1" in p and "shards end" in p for p in v.problems)


def test_spilled_payloads_come_along(tmp_path: Path) -> None:
    scene = Scene(manifest=manifest(3, inline_bytes=0))
    scene.feed(*rows(100))
    scene.work("only")
    run = scene.logged(tmp_path)
    assert run.spool.index.objects
    v = verify(run, train=walk)
    assert v.identical and v.updates > 10


def test_processes_find_the_same(tmp_path: Path) -> None:
    scene = Scene(train=rounds.run)
    scene.feed(*rows(150))
    scene.work("only")
    run = scene.logged(tmp_path)
    one, two = verify(run), verify(run, jobs=2)
    assert one.identical and two.identical
    assert (one.digest, one.updates, one.version) == (two.digest, two.updates, two.version)
    assert two.jobs == 2 and np.uint64(int(two.digest, 16)) > 0


def test_a_signed_run_needs_its_keys(tmp_path: Path) -> None:
    scene = Scene(keys={1: b"k" * 32}, manifest=manifest(3, inline_bytes=200))
    scene.feed(*rows(100))
    scene.work("only")
    assert verify(scene.logged(tmp_path), train=walk).identical
    stranger = verify(open_run(tmp_path, {}), train=walk)
    assert not stranger.identical and stranger.updates == 0
    assert any("key 1" in p for p in stranger.problems)
    forger = verify(open_run(tmp_path, {1: b"x" * 32}), train=walk)
    assert not forger.identical and forger.voids > 0 and "wrong keys" in forger.problems[0]


def test_progress_is_told_while_partitions_are_judged_and_rows_recomputed(story: tuple[Scene, LoggedRun]) -> None:
    told: list[Progress] = []
    v = verify(story[1], on_progress=told.append, train=walk)
    partitions = story[1].manifest.slots + 1
    judging = [p for p in told if p.judged < partitions]
    assert [(p.judged, p.partitions, p.rows_all) for p in judging] == [(n, partitions, 0) for n in range(partitions)]
    later = told[len(judging) :]
    assert 0 < later[0].rows < v.rows == later[-1].rows == later[-1].rows_all  # a single process looks up as well
    assert later[-1].pieces == later[-1].pieces_all == v.pieces
