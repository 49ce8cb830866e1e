"""The books: rows counted one by one, what was dropped and why, who claimed what, what a revocation left behind."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from gossipdbn.errors import ConfigError
from gossipdbn.replay.audit import Audit, audit, row_history
from gossipdbn.replay.audit_page import render
from gossipdbn.replay.history import History, judge_all
from gossipdbn.replay.operator import Operator
from gossipdbn.wire.messages import RunWire
from tests.replay.scene import Scene, eventful, rows


@pytest.fixture(scope="module")
def story(tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Audit]:
    history = judge_all(eventful().logged(tmp_path_factory.mktemp("spool")))
    return history, audit(history)


def test_books_of_a_finished_run_are_exact(story: tuple[History, Audit]) -> None:
    books = story[1]
    assert books.exact and not books.problems
    assert all((s.times_min, s.times_max, s.outstanding_rows, s.closed) == (5, 5, 0, "done") for s in books.slots)
    assert sum(s.trainings for s in books.shards) == books.summary.trained_rows == 5 * 300
    assert all((s.times_min, s.times_max) == (5, 5) for s in books.shards)


def test_what_does_not_count_is_named_with_its_reason(story: tuple[History, Audit]) -> None:
    books = story[1]
    assert [d.why for d in books.dropped] == ["a copy of a shard that counts already"]
    assert books.dropped[0].id in {s.id for s in books.shards}
    assert len(books.voids) == 1 and "envelope" in books.voids[0].why
    assert sum(c.reset for c in books.claims) == 1
    assert {c.worker.partition("#")[0] for c in books.claims} == {"first", "second", "third", "passer-by"}


def test_tips_form_one_chain_per_slot(story: tuple[History, Audit]) -> None:
    history, books = story
    for slot in range(3):
        ours = sorted((u for u in books.updates if u.slot == slot), key=lambda u: u.seq)
        tips = {x.offset: x.tip.hex() for x in history.partitions[slot].lines if x.accepted}
        assert [u.seq for u in ours] == list(range(len(ours)))
        assert all(u.previous_tip in {"00" * 8, *tips.values()} and u.tip == tips[u.offset] for u in ours)


def test_every_training_of_a_row_is_found(story: tuple[History, Audit]) -> None:
    history, books = story
    for slot, row in ((0, 0), (1, 7), (2, books.slots[2].rows - 1)):
        found = row_history(history, slot, row)
        assert [t.epoch for t in found] == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError):
        row_history(history, 0, 10_000)


def test_a_run_that_is_cut_off_names_outstanding_rows(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("only", until=12)
    books = audit(judge_all(scene.logged(tmp_path)))
    assert books.exact and books.state == "open"
    assert books.summary.outstanding_rows == 5 * 300 - books.summary.trained_rows
    assert sum(s.outstanding_rows or 0 for s in books.slots) == books.summary.outstanding_rows


def test_rounds_between_a_revoked_update_and_its_revocation_are_named(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("first", until=25)
    Operator(scene.log, scene.manifest, scene.store, RunWire(), "op", wait=lambda _s: None).revoke(0, 3, 4, "why not")
    scene.work("second")
    books = audit(judge_all(scene.logged(tmp_path)))
    (found,) = books.revocations
    assert found.reason == "why not" and found.rows == books.summary.revoked_rows > 0
    assert found.in_between
    by_name = {(u.slot, u.seq): u for u in books.updates}
    for name in found.in_between:
        assert by_name[name].start_version[0] > 3 and by_name[name].start_version[-1] == 0
    assert (0, 3) not in found.in_between and (0, 5) in found.in_between
    assert [u.seq for u in books.updates if u.revoked] == [3, 4]
    assert sum(s.revoked_trainings for s in books.shards) == found.rows
    assert "why not" in render(books)


def test_the_page_stands_alone_and_escapes(story: tuple[History, Audit]) -> None:
    page = render(story[1])
    assert "The books are exact" in page and story[1].run in page
    assert "<script" not in page and "http" not in page
    assert len(page) < 200_000
    assert msgspec.json.decode(msgspec.json.encode(story[1]))["exact"] is True
