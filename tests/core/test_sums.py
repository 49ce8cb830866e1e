"""A sum that is lent: whoever has it finds it unchanged, and nothing is copied when nobody has it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

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
    """Updates of all codecs, each another; what comes back is the owner's deltas, or the same bytes read again."""
    rng = np.random.default_rng(seed)
    s, total = Sum(np.zeros(60, np.int32)), np.zeros(60, np.int32)
    out: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []
    pending: list[tuple[int, bytes, codec.Deltas]] = []

    def update() -> tuple[int, bytes, codec.Deltas]:
        kind = int(rng.choice([codec.EXACT, codec.TERNARY, codec.INT8]))
        d = np.where(rng.random((3, 20)) < 0.3, rng.integers(-90_000, 90_000, (3, 20)), 0).astype(np.int32)
        data = codec.quantise(kind, d, 4)
        return kind, data, codec.read(kind, data, 3, 20)

    for _ in range(300):
        match rng.integers(6):
            case 0:
                pending.append(update())
            case 1 | 2:
                kind, data, deltas = pending.pop(0) if pending and rng.random() < 0.7 else update()
                s.add([codec.read(kind, data, 3, 20) if rng.random() < 0.3 else deltas])
                codec.merge(total, [deltas])
            case 3:
                expected = total.copy()
                codec.merge(expected, [d for _, _, d in pending])
                out.append((s.lend([d for _, _, d in pending]), expected))
                np.testing.assert_array_equal(*out[-1])
            case 4 if out:
                lent, had = out.pop(rng.integers(len(out)))
                np.testing.assert_array_equal(lent, had)
                s.give_back(lent)
            case 5 if rng.random() < 0.3:
                np.testing.assert_array_equal(s.total, total)
    for lent, had in out:
        np.testing.assert_array_equal(lent, had)
    np.testing.assert_array_equal(s.total, total)
