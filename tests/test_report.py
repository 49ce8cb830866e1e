"""The status view on a terminal and without one, and the report page."""

from __future__ import annotations

import io
import zlib
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from gossipdbn.errors import StoreError
from gossipdbn.models.files import Model
from gossipdbn.models.spec import ModelSpec, PhaseSpec, parameter_count
from gossipdbn.report import images
from gossipdbn.report.page import CurvePoint, LedgerSummary, RunReport, Turn, render, write_page
from gossipdbn.report.status import RunView, SlotView, StatusDisplay, count, duration, remaining_s, render_line
from gossipdbn.report.svg import ticks

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


def test_live_display_draws_every_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")  # a dumb terminal gets no cursor movements
    out = io.StringIO()
    with StatusDisplay(out, plain=False) as display:
        display.console.width = 140
        display.show(VIEW)
        display.say("a line that stays")
        display.show(replace(VIEW, state="done", snapshot_every_s=7.25))
    text = out.getvalue()
    assert "\x1b[" in text
    for part in ("mnist-7", "waits for rows", "layer 1", "done", "a line that stays", "45.0k rows/s", "every 7.25 s"):
        assert part in text


def _report(**change: object) -> RunReport:
    rng = np.random.default_rng(0)
    spec = ModelSpec(16, (8, 6), "grey", 3)
    model = Model(spec, rng.integers(-(2**22), 2**22, parameter_count(spec), dtype=np.int32), classes=("a<b", "b", "c"))
    curve = tuple(CurvePoint(q + s / 2, s, q, q // 200, 1 / (q + 1), 100) for s in range(2) for q in range(400))
    facts: dict[str, object] = {
        "run": "<script>alert(1)</script>",
        "model": model,
        "model_path": "runs/m.safetensors",
        "phases": (PhaseSpec("cd"), PhaseSpec("backprop", optimizer="adam")),
        "slots": 2,
        "wall_seconds": (("feed", 2.0), ("training", 8.0)),
        "updates": 800,
        "bytes_per_update": 100.0,
        "test_error": 0.0125,
        "test_rows": 80,
        "confusion": np.array([[9, 1, 0], [0, 5, 0], [0, 0, 7]]),
        "image_shape": (4, 4),
        "curve": curve,
        "turns": (Turn(0, "w1", 1, 0.0, 9.0), Turn(1, "w2", 1, 0.0, 4.0), Turn(1, "w1", 2, 5.0, 9.0)),
        "staleness": (0, 1, 1, 3, 60),
        "ledger": LedgerSummary(True, 80_000, 80_000),
        "digests": (("w1", "ab12"), ("w2", "ab12")),
        "next_steps": (("Look & see", "gossipdbn show <run>"),),
    }
    return RunReport(**(facts | change))  # type: ignore[arg-type]


class _Check(HTMLParser):
    """Every element is closed; nothing is loaded from elsewhere; every image says what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        facts = dict(attrs)
        assert all(not (v or "").startswith(("http", "//")) for v in facts.values())
        if tag == "img":
            assert facts["alt"] and (facts["src"] or "").startswith("data:image/png")
        if tag == "svg":
            assert facts["role"] == "img" and facts["aria-label"]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_safe_and_needs_nothing_else(tmp_path: Path) -> None:
    write_page(tmp_path / "out" / "report.html", _report())
    text = (tmp_path / "out" / "report.html").read_text()
    check = _Check()
    check.feed(text)
    assert check.open == [] and "script" not in check.seen and check.seen.count("svg") == 4
    for part in (
        "1.25 %",
        "equal",
        "exact",
        "10.00 %",
        "a&lt;b",
        "gossipdbn show &lt;run&gt;",
        "16-8-6-3",
        "fine-tuning",
    ):
        assert part in text
    assert len(text) < 100_000
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["report.html"]


def test_parts_without_facts_are_left_out() -> None:
    spec = ModelSpec(4, (2,))
    text = render(RunReport("bare", Model(spec, np.zeros(parameter_count(spec), np.int32))))
    assert "<section>" not in text and "bare" in text
    text = render(
        _report(ledger=LedgerSummary(False, 10, 4, 6), digests=(("a", "1"), ("b", "2")), curve=(), staleness=())
    )
    for part in ("6 rows are outstanding", "Replicas differ", "differ"):
        assert part in text


def test_a_page_that_cannot_be_written_says_where(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another folder"):
        write_page(tmp_path / "file" / "x.html", _report())


def test_pictures_are_what_they_should_be() -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    data = images.png(pixels)
    assert data.startswith(b"\x89PNG")
    at = data.index(b"IDAT")
    size = int.from_bytes(data[at - 4 : at], "big")
    raw = np.frombuffer(zlib.decompress(data[at + 4 : at + 4 + size]), np.uint8).reshape(2, 13)
    np.testing.assert_array_equal(raw[:, 1:].reshape(2, 4, 3), pixels)
    tiles = images.grid(np.full((3, 2, 2), 7, np.uint8), 2)
    assert tiles.shape == (6, 6, 4) and tiles[0, 0].tolist() == [7, 7, 7, 255] and tiles[2, 2, 3] == 0
    colours = images.diverging(np.array([[-1.0, 0.0, 1.0]]))
    assert colours[0].tolist() == [[33, 102, 172], [247, 247, 247], [178, 24, 43]]


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.037), (3, 88_000), (5, 5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    seen = ticks(low, high)
    assert seen and all(low - 1e-9 <= t <= high + 1e-9 for t in seen) and len(seen) <= 11


@pytest.mark.parametrize(
    ("ledger", "text"),
    [
        (LedgerSummary(True, 10, 10), "exactly as often as the plan says"),
        (LedgerSummary(True, 0, 10), "endless"),
        (LedgerSummary(False, 10, 4, 6), "6 rows are outstanding"),
        (LedgerSummary(False, 10, 12), "do not add up"),
    ],
)
def test_the_books_say_what_the_ledger_says(ledger: LedgerSummary, text: str) -> None:
    assert text in render(_report(ledger=ledger))


def test_a_stated_total_is_not_counted_twice() -> None:
    report = _report(wall_seconds=(("feed", 2.0), ("training", 8.0), ("total", 11.0)))
    assert "<dd>11 s" in render(report)
