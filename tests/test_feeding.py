"""What a feed tells about how it shared the rows out."""

from __future__ import annotations

import pytest

from gossipdbn.launch.feeding import told_spread
from gossipdbn.launch.train import _said_of


@pytest.mark.parametrize(
    ("rows", "uneven"),
    [
        ((1500, 0, 0), True), ((901, 100), True),
        ((500, 500, 400), False), ((700, 300), False), ((7,), False), ((0, 0), False),
    ],
)  # fmt: skip
def test_slots_that_have_far_more_than_their_share_are_noticed(rows: tuple[int, ...], uneven: bool) -> None:
    told: list[str] = []
    told_spread(rows, told.append)
    assert bool(told) is uneven
    assert not told or all(f"{n:,}" in told[0] and "source.shard_rows" in told[0] for n in rows)


def test_the_time_before_the_first_update_is_explained():
    """Kernels that are compiled for minutes after the last row came must not look like a feed that hangs."""
    assert _said_of(True, True) == ("training", ())
    state, why = _said_of(False, True)
    assert state == "feeding" and "rows" in why[0]
    state, why = _said_of(False, False)
    assert state == "starting" and "compiles" in why[0]
