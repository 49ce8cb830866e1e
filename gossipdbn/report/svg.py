"""Hand-written charts as SVG: they follow the page's colours (CSS variables), carry a title and a description."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

SERIES_COLOURS = 8
"""Number of series colours that the style sheet defines: --s0 to --s7."""


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a chart: name, points, index of its colour, whether it is drawn bold."""

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    colour: int
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Span:
    """One bar of a timeline: lane, start, end, index of its colour, what to say when pointed at."""

    lane: int
    start: float
    end: float
    colour: int
    label: str


def colour(index: int) -> str:
    """CSS colour of a series."""
    return f"var(--s{index % SERIES_COLOURS})"


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers between low and high, about ``wanted`` of them."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / max(wanted, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's text."""
    if value and abs(value) >= 10_000:
        return f"{value / 1e6:g}M" if abs(value) >= 1e6 else f"{value / 1e3:g}k"
    return f"{value:.6g}"


def frame(width: int, height: int, title: str, description: str, body: str) -> str:
    """An SVG element that scales with its column and tells its content to screen readers."""
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{escape(title)}. {escape(description)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{body}</svg>"
    )


def _axes(
    box: tuple[float, float, float, float], xs: Sequence[float], ys: Sequence[float], x_name: str, y_name: str
) -> str:
    """Grid lines, tick texts and names of axes; box = left, top, right, bottom; xs, ys = (low, high)."""
    left, top, right, bottom = box
    out = []
    for t in ticks(ys[0], ys[1], 4):
        y = bottom - (t - ys[0]) / (ys[1] - ys[0]) * (bottom - top)
        out.append(f'<line class="g" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label(t)}</text>')
    for t in ticks(xs[0], xs[1], 6):
        x = left + (t - xs[0]) / (xs[1] - xs[0]) * (right - left)
        out.append(f'<text x="{x:.1f}" y="{bottom + 15}" text-anchor="middle">{label(t)}</text>')
    out.append(f'<line class="a" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    out.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{escape(x_name)}</text>')
    out.append(f'<text x="{left - 38}" y="{top - 8}">{escape(y_name)}</text>')
    return "".join(out)


def line_chart(
    series: Sequence[Series], *, title: str, x_name: str, y_name: str, size: tuple[int, int] = (420, 230)
) -> str:
    """Lines over a common pair of axes."""
    points = [(x, y) for s in series for x, y in zip(s.xs, s.ys, strict=True)]
    if not points:
        return ""
    x_low, x_high = min(p[0] for p in points), max(p[0] for p in points)
    y_low, y_high = min(p[1] for p in points), max(p[1] for p in points)
    pad = 0.06 * (y_high - y_low) or abs(y_high) * 0.1 or 1.0
    y_low, y_high = max(y_low - pad, 0.0) if y_low >= 0 else y_low - pad, y_high + pad
    if x_high <= x_low:
        x_high = x_low + 1.0
    width, height = size
    box = (46.0, 22.0, width - 10.0, height - 36.0)
    left, top, right, bottom = box
    out = [_axes(box, (x_low, x_high), (y_low, y_high), x_name, y_name)]
    for s in series:
        across = [left + (x - x_low) / (x_high - x_low) * (right - left) for x in s.xs]
        up = [bottom - (y - y_low) / (y_high - y_low) * (bottom - top) for y in s.ys]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in zip(across, up, strict=True))
        kind, paint = ("l b" if s.bold else "l"), colour(s.colour)
        out.append(
            f'<polyline class="{kind}" points="{path}" style="stroke:{paint}">'
            f"<title>{escape(s.name)}</title></polyline>"
        )
    last = f"{len(series)} lines; {y_name} from {label(round(points[0][1], 4))} to {label(round(points[-1][1], 4))}."
    return frame(width, height, title, last, "".join(out))


def bar_chart(
    values: Sequence[tuple[str, float]], *, title: str, x_name: str, y_name: str, size: tuple[int, int] = (880, 200)
) -> str:
    """Upright bars with their names below."""
    if not values:
        return ""
    width, height = size
    left, top, right, bottom = 46.0, 22.0, width - 10.0, height - 36.0
    high = max(v for _, v in values) or 1.0
    out = []
    for t in ticks(0, high, 4):
        y = bottom - t / high * (bottom - top)
        out.append(f'<line class="g" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        out.append(f'<text x="{left - 6}" y="{y + 3.5:.1f}" text-anchor="end">{label(t)}</text>')
    step = (right - left) / len(values)
    every = math.ceil(len(values) / 12)
    for i, (name, value) in enumerate(values):
        x, tall = left + i * step, value / high * (bottom - top)
        out.append(
            f'<rect x="{x + 0.1 * step:.1f}" y="{bottom - tall:.1f}" width="{0.8 * step:.1f}" height="{tall:.1f}" '
            f'rx="1.5" style="fill:{colour(0)}"><title>{escape(name)}: {label(value)}</title></rect>'
        )
        if i % every == 0:
            out.append(f'<text x="{x + step / 2:.1f}" y="{bottom + 15}" text-anchor="middle">{escape(name)}</text>')
    out.append(f'<line class="a" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    out.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">{escape(x_name)}</text>')
    out.append(f'<text x="{left - 38}" y="{top - 8}">{escape(y_name)}</text>')
    told = ", ".join(f"{n}: {label(v)}" for n, v in values[:30])
    return frame(width, height, title, told, "".join(out))


def timeline(
    lanes: Sequence[str],
    spans: Sequence[Span],
    marks: Sequence[tuple[int, float, str]],
    *,
    title: str,
    width: int = 880,
) -> str:
    """Bars per lane over time; marks = (lane, when, what) as thin lines across a lane."""
    if not spans:
        return ""
    end = max(s.end for s in spans) or 1.0
    tall = 22 if len(lanes) <= 16 else 10
    left, right, top = 56.0, width - 10.0, 6.0
    bottom = top + tall * len(lanes)

    def at(t: float) -> float:
        return left + t / end * (right - left)

    out = []
    for i, name in enumerate(lanes):
        if len(lanes) <= 16 or i % 4 == 0:
            y = top + tall * (i + 0.5) + 3.5
            out.append(f'<text x="{left - 8}" y="{y:.1f}" text-anchor="end">{escape(name)}</text>')
    out += [
        (
            f'<rect x="{at(s.start):.1f}" y="{top + tall * s.lane + 2:.1f}" '
            f'width="{max(at(s.end) - at(s.start) - 0.6, 1):.1f}" height="{tall - 4}" rx="2" '
            f'style="fill:{colour(s.colour)}"><title>{escape(s.label)}</title></rect>'
        )
        for s in spans
    ]
    for lane, when, what in marks:
        x = at(when)
        y = top + tall * lane
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{y + 2:.1f}" y2="{y + tall - 2:.1f}"'
        out.append(f'<line class="m" {ends}><title>{escape(what)}</title></line>')
    out += [f'<text x="{at(t):.1f}" y="{bottom + 15}" text-anchor="middle">{label(t)}</text>' for t in ticks(0, end, 8)]
    out.append(f'<text x="{right}" y="{bottom + 30}" text-anchor="end">seconds</text>')
    told = f"{len(lanes)} slots, {len(spans)} turns over {end:.0f} seconds. " + "; ".join(s.label for s in spans[:20])
    return frame(width, int(bottom + 36), title, told, "".join(out))
