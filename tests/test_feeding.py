"""What a feed tells about how it shared the rows out."""

from __future__ import annotations

import pytest

from gossipdbn.launch.feeding import told_spread


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
