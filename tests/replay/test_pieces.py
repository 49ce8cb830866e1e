"""Pieces that go side by side: nothing but the time they take depends on who goes with whom."""

from __future__ import annotations

from pathlib import Path

import pytest

from gossipdbn.errors import LogError
from gossipdbn.replay.history import LoggedRun, judge_all
from gossipdbn.replay.pieces import Base, cut, recompute_pieces, side_by_side
from gossipdbn.replay.recent import Recent
from gossipdbn.replay.verify import letters_of
from tests.replay.scene import eventful, walk


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> LoggedRun:
    folder: Path = tmp_path_factory.mktemp("spool")
    return eventful().logged(folder)


@pytest.mark.parametrize("jobs", [1, 2, 3, 50])
def test_every_way_to_share_the_work_recomputes_every_update(logged: LoggedRun, jobs: int) -> None:
    history = judge_all(logged)
    pieces, letters, base = cut(history), letters_of(history), Base()
    tasks = side_by_side(logged, pieces, jobs)
    assert [p for task in tasks for p in task] == pieces
    assert len(tasks) >= min(jobs, len(pieces)) and max(map(len, tasks)) == max(1, -(-3 // jobs))
    results = [r for task in tasks for r in recompute_pieces(logged, task, letters, walk, base=base)]
    assert not any(r.problem or r.divergence for r in results)
    assert sum(r.updates for r in results) == sum(history.version)
    assert {(r.slot, r.start, r.updates, r.rows) for r in results} == {
        (p.slot, p.start, p.updates, p.rows) for p in pieces
    }


def test_a_base_that_lies_beyond_is_not_used(logged: LoggedRun) -> None:
    history = judge_all(logged)
    pieces, letters, base = cut(history), letters_of(history), Base()
    for task in reversed(side_by_side(logged, pieces, 1)):
        assert not any(r.problem or r.divergence for r in recompute_pieces(logged, task, letters, walk, base=base))


def test_a_base_that_could_not_be_moved_is_made_anew(logged: LoggedRun, monkeypatch: pytest.MonkeyPatch) -> None:
    history = judge_all(logged)
    pieces, letters, base = cut(history), letters_of(history), Base()
    first, second, *_ = side_by_side(logged, pieces, 1)
    recompute_pieces(logged, first, letters, walk, base=base)
    before, calls = LoggedRun.deltas, []

    def at_times(self: LoggedRun, partition: int, offset: int) -> object:
        calls.append(offset)
        if len(calls) == 5:
            raise LogError("the disk is slow today")
        return before(self, partition, offset)

    monkeypatch.setattr(LoggedRun, "deltas", at_times)
    assert "slow today" in recompute_pieces(logged, second[:1], letters, walk, base=base)[0].problem
    results = recompute_pieces(logged, second, letters, walk, base=base)
    assert not any(r.problem or r.divergence for r in results)


def test_what_was_made_last_is_kept_within_its_bytes() -> None:
    made: list[int] = []

    def make(n: int) -> bytes:
        made.append(n)
        return bytes(n)

    recent: Recent[bytes] = Recent(100, len)
    for n in (40, 50, 40, 30, 50, 40, 500, 500):
        assert len(recent.get(n, lambda n=n: make(n))) == n  # type: ignore[misc]
    assert made == [40, 50, 30, 50, 40, 500]
    with pytest.raises(ZeroDivisionError):
        recent.get("bad", lambda: bytes(1 // 0))
    assert recent.get("bad", lambda: b"good") == b"good"
