"""A sum that is lent: whoever has it finds it unchanged, and nothing is copied when nobody has it."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core.sums import Sum
from gossipdbn.kernels import codec


def ones() -> codec.Deltas:
    return codec.read(codec.EXACT, np.ones(4, "<i4").tobytes(), 1, 4)


def test_what_is_lent_does_not_change() -> None:
    s = Sum(np.zeros(4, np.int32))
    lent = s.lend()
    s.add([ones()])
    assert s.total.tolist() == [1] * 4 and lent.tolist() == [0] * 4
    s.give_back(lent)
    own = s.total
    s.add([ones()])
    assert s.total is own and own.tolist() == [2] * 4


def test_what_two_have_does_not_change_when_one_gives_it_back() -> None:
    s = Sum(np.zeros(4, np.int32))
    first, second = s.lend(), s.lend()
    assert first is second
    s.give_back(first)
    s.add([ones()])
    assert s.total.tolist() == [1] * 4 and second.tolist() == [0] * 4
    s.give_back(second)
    third = s.lend()
    s.give_back(second)  # an older one, again
    s.add([ones()])
    assert s.total.tolist() == [2] * 4 and third.tolist() == [1] * 4


def test_nothing_is_copied_when_all_is_given_back() -> None:
    start = np.zeros(4, np.int32)
    s = Sum(start)
    for _ in range(3):
        s.give_back(s.lend())
        s.add([ones()])
        assert s.total is start
    assert start.tolist() == [3] * 4


def test_only_who_has_it_sees_what_is_lent_beyond_the_sum() -> None:
    start = np.zeros(4, np.int32)
    s = Sum(start)
    lent = s.lend([ones(), ones()])
    assert lent is start and lent.tolist() == [2] * 4
    s.give_back(lent)
    assert s.total.tolist() == [0] * 4 and s.total is start


def test_what_is_read_of_a_sum_lent_with_more_is_the_sum_alone() -> None:
    s = Sum(np.zeros(4, np.int32))
    lent = s.lend([ones()])
    s.add([ones(), ones(), ones()])
    assert s.total.tolist() == [3] * 4 and lent.tolist() == [1] * 4
    s.give_back(lent)
    assert s.total.tolist() == [3] * 4
    other = s.lend([ones()])
    assert s.total.tolist() == [3] * 4 and other.tolist() == [4] * 4  # even if nothing was added


def test_two_may_have_more_than_the_sum_each_their_own() -> None:
    s = Sum(np.zeros(4, np.int32))
    plain = s.lend()
    first, second = s.lend([ones()]), s.lend([ones(), ones()])
    assert (plain.tolist(), first.tolist(), second.tolist()) == ([0] * 4, [1] * 4, [2] * 4)
    for lent in (first, plain, second, second):
        s.give_back(lent)
        assert s.total.tolist() == [0] * 4


def test_what_comes_back_is_not_added_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start, first, second, other = np.zeros(64, np.int32), ones(), ones(), ones()
    s = Sum(start)
    s.give_back(s.lend([first]))
    s.add([first, other])
    merged: list[codec.Deltas] = []
    merge = codec.merge
    monkeypatch.setattr(codec, "merge", lambda acc, batch: (merged.extend(batch), merge(acc, batch)))
    lent = s.lend([second])
    assert lent is start and lent[:4].tolist() == [3] * 4 and merged == [other, second]
    s.give_back(lent)
    assert s.total[:4].tolist() == [2] * 4


def test_equal_updates_are_as_many_as_they_are() -> None:
    one = ones()  # updates of the same bytes share their deltas
    s = Sum(np.zeros(4, np.int32))
    s.give_back(s.lend([one, one]))
    s.add([one])
    lent = s.lend([one, one])
    assert lent.tolist() == [3] * 4
    s.add([one])
    assert s.total.tolist() == [2] * 4 and lent.tolist() == [3] * 4


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_lent_and_read_it_is_the_sum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    s, total, out = Sum(np.zeros(4, np.int32)), 0, []
    pending: list[codec.Deltas] = []
    for _ in range(200):
        match rng.integers(6):
            case 0:
                pending.append(ones())
            case 1 if pending:
                s.add([pending.pop(0)])
                total += 1
            case 2:
                s.add([ones()])
                total += 1
            case 3:
                out.append((s.lend(pending), total + len(pending)))
                assert out[-1][0].tolist() == [out[-1][1]] * 4
            case 4 if out:
                lent, had = out.pop(rng.integers(len(out)))
                assert lent.tolist() == [had] * 4
                s.give_back(lent)
            case 5:
                assert s.total.tolist() == [total] * 4
    assert all(lent.tolist() == [had] * 4 for lent, had in out)
