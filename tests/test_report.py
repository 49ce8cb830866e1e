"""The status view on a terminal and without one, and the report page."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest

from gossipdbn.report.status import RunView, SlotView, StatusDisplay, count, duration, remaining_s, render_line

VIEW = RunView(
    run="mnist-7",
    state="training",
    elapsed_s=42.4,
    phase=1,
    phases=3,
    phase_name="layer 1",
    rows_done=300_000,
    rows_planned=1_200_000,
    rows_per_s=45_000.0,
    updates_per_s=11.5,
    updates=300,
    error=0.0123,
    error_name="error",
    workers=("w1", "w2"),
    claims=4,
    slots=(
        SlotView(0, "w1", 1, 1, "layer 1", 75_000, 300_000, 75, 2, 3.0, 0.012),
        SlotView(1, "w2", 2, 1, "layer 1", 80_000, 300_000, 80, 1, 5.0, 0.0126, note="waits for rows"),
    ),
)


def test_numbers_read_like_a_person_writes_them() -> None:
    assert [count(n) for n in (0, 950, 12_345, 123_456, 4_560_000, 7.25)] == [
        "0",
        "950",
        "12.3k",
        "123k",
        "4.6M",
        "7.2",
    ]
    assert [duration(s) for s in (7, 125, 3723)] == ["7 s", "2:05", "1:02:03"]
    assert remaining_s(VIEW) == pytest.approx(20.0)
    assert remaining_s(replace(VIEW, rows_planned=None)) is None


def test_a_line_tells_phase_rows_rates_error_and_staleness() -> None:
    line = render_line(VIEW)
    for part in (
        "42 s",
        "training",
        "phase 2/3 layer 1",
        "25 % of 1.2M rows",
        "45.0k rows/s",
        "11.5 updates/s",
        "error 0.0123",
        "staleness 4.0",
        "2 workers",
    ):
        assert part in line
    assert "void" not in line
    assert "2 void, 1 undecided" in render_line(replace(VIEW, voids=2, undecided=1))


def test_plain_display_prints_only_what_changed() -> None:
    out = io.StringIO()
    with StatusDisplay(out, every_s=3600) as display:
        assert display.plain
        display.show(VIEW)
        display.show(replace(VIEW, rows_done=310_000))
        display.show(replace(VIEW, phase=2, phase_name="fine-tuning"))
        display.show(replace(VIEW, phase=2, phase_name="fine-tuning", messages=("slot 1 was claimed by w1",)))
        display.show(replace(VIEW, phase=2, phase_name="fine-tuning", messages=("slot 1 was claimed by w1",)))
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "\x1b" not in out.getvalue()
    assert lines[-1].endswith("slot 1 was claimed by w1")


def test_live_display_draws_every_slot() -> None:
    out = io.StringIO()
    with StatusDisplay(out, plain=False) as display:
        display.console.width = 140
        display.show(VIEW)
        display.say("a line that stays")
        display.show(replace(VIEW, state="done"))
    text = out.getvalue()
    assert "\x1b[" in text
    for part in ("mnist-7", "waits for rows", "layer 1", "done", "a line that stays", "45.0k rows/s"):
        assert part in text
