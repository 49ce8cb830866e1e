"""The parts of a run's page, each a function from facts to HTML; an empty string where there are no facts."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gossipdbn.models.files import Model
from gossipdbn.models.likelihood import unit_values
from gossipdbn.models.spec import PhaseSpec, layout
from gossipdbn.report import images as pictures
from gossipdbn.report.svg import SERIES_COLOURS, Series, Span, bar_chart, colour, line_chart, timeline

if TYPE_CHECKING:
    from gossipdbn.report.page import CurvePoint, LedgerSummary, Turn

POINTS_MAX = 160
"""Points per line: more are averaged in groups, to keep the page small."""


def _section(title: str, *parts: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{''.join(parts)}</section>"


def _legend(entries: Sequence[tuple[str, int]]) -> str:
    items = "".join(f'<li><i style="background:{colour(c)}"></i>{escape(n)}</li>' for n, c in entries)
    return f'<ul class="legend">{items}</ul>'


def _thin(xs: Sequence[float], ys: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means of groups so that at most `POINTS_MAX` points remain."""
    size = math.ceil(len(xs) / POINTS_MAX)
    return (
        [float(np.mean(xs[i : i + size])) for i in range(0, len(xs), size)],
        [float(np.mean(ys[i : i + size])) for i in range(0, len(ys), size)],
    )


def curves(points: Sequence[CurvePoint], phases: Sequence[PhaseSpec], names: Sequence[str]) -> str:
    """One chart per phase: error over time, a line per slot."""
    charts = []
    slots = sorted({p.slot for p in points})
    for i in sorted({p.phase for p in points}):
        lines = []
        for slot in slots:
            mine = [p for p in points if p.phase == i and p.slot == slot and math.isfinite(p.error)]
            if mine:
                xs, ys = _thin([p.time_s for p in mine], [p.error for p in mine])
                lines.append(Series(f"slot {slot}", xs, ys, slot))
        name = names[i] if i < len(names) else f"phase {i}"
        backprop = i < len(phases) and phases[i].learner == "backprop"
        measure = "loss" if backprop else "reconstruction error"
        chart = line_chart(lines, title=f"{name}: {measure} over time", x_name="seconds", y_name=measure)
        charts.append(f"<figure><h3>{escape(name)}</h3>{chart}</figure>" if chart else "")
    if not any(charts):
        return ""
    legend = _legend([(f"slot {s}", s) for s in slots]) if len(slots) <= SERIES_COLOURS else ""
    note = '<p class="note">Each update reports the error of its round, before the round changed the model.</p>'
    return _section("How it learned", note, legend, f'<div class="pair">{"".join(charts)}</div>')


def images(
    model: Model, values: NDArray[Any] | None, shape: tuple[int, int], generative: NDArray[np.int32] | None = None
) -> str:
    """First-layer filters, and test rows beside their reconstructions, as pictures inside the page.

    ``generative``: parameters before fine-tuning, which makes the way down meaningless; they reconstruct if given.
    """
    weights = model.tensor(layout(model.spec)[0].name)
    shown = min(100, weights.shape[1])
    filters = pictures.data_uri(pictures.png(pictures.filters(weights, shape, shown)))
    parts = []
    parts.append(
        f'<figure><h3>First layer</h3><img src="{filters}" alt="Weights of the {shown} strongest hidden units of the '
        f'first layer, each drawn as an image of {shape[0]} by {shape[1]} pixels">'
        f"<figcaption>What the {shown} strongest hidden units look for: red pixels switch a unit on, blue ones off."
        "</figcaption></figure>"
    )
    if values is not None and len(values) and model.spec.hidden_units == "binary":
        from gossipdbn.models.reading import reconstruct  # loads the kernels: only for pages that show rows

        rows = values[:20]
        again = reconstruct(model.spec, model.parameters if generative is None else generative, rows)
        both = np.concatenate((unit_values(model.spec, rows), np.asarray(again, np.float64)))
        tiles = np.rint(255 * np.clip(both, 0, 1)).astype(np.uint8).reshape(-1, *shape)
        uri = pictures.data_uri(pictures.png(pictures.grid(tiles, len(rows))))
        when = "" if generative is None else " as it was before fine-tuning"
        parts.append(
            f'<figure><h3>Test rows and what the model makes of them</h3><img src="{uri}" alt="{len(rows)} test images '
            'in the upper row, their reconstructions by the model in the lower row">'
            f"<figcaption>Above: test rows. Below: the same after a pass up and down the network{when}.</figcaption>"
            "</figure>"
        )
    return _section("What it sees", *parts)


def confusion(table: NDArray[np.int64], classes: Sequence[str]) -> str:
    """True classes by row, predicted ones by column; shades grow with the share of the row."""
    n = len(table)
    shares = table / np.maximum(table.sum(1, keepdims=True), 1)
    worst = max(float((shares * (1 - np.eye(n))).max()), 1e-9)
    names = list(classes) if classes else [str(i) for i in range(n)]
    head = "".join(f'<th scope="col">{escape(c)}</th>' for c in names)
    lines = []
    for i in range(n):
        total = max(int(table[i].sum()), 1)
        cells = []
        for j in range(n):
            x = int(table[i, j])
            share = float(shares[i, j])
            strength = 0.12 + 0.3 * share if i == j else 0.06 + 0.5 * share / worst
            shade = f"rgb(var({'--hit' if i == j else '--heat'}) / {strength:.2f})"
            style = f' style="background:{shade}"' if x else ""
            cells.append(f"<td{style}>{x}</td>" if x else '<td class="zero">0</td>')
        wrong = 100 * (1 - table[i, i] / total)
        lines.append(f'<tr><th scope="row">{escape(names[i])}</th>{"".join(cells)}<td>{wrong:.2f} %</td></tr>')
    caption = '<p class="note">True class by row, predicted class by column; then the share of wrong ones.</p>'
    top = f'<thead><tr><th></th>{head}<th scope="col">error</th></tr></thead>'
    body = f'<table class="confusion">{top}<tbody>{"".join(lines)}</tbody></table>'
    return _section("What it confuses", caption, f'<div class="scroll">{body}</div>')


def _turn(t: Turn) -> str:
    return f"slot {t.slot}, claim {t.incarnation}: {t.worker}, {t.start_s:.0f} to {t.end_s:.0f} s"


def who_trained_what(
    turns: Sequence[Turn], points: Sequence[CurvePoint], names: Sequence[str], slots: int, staleness: Sequence[int]
) -> str:
    """Slots over time, coloured by worker, and how stale updates were."""
    parts = []
    if turns:
        workers = list(dict.fromkeys(t.worker for t in turns))
        spans = [Span(t.slot, t.start_s, t.end_s, workers.index(t.worker), _turn(t)) for t in turns]
        starts: dict[tuple[int, int], float] = {}
        for p in points:
            key = (p.slot, p.phase)
            starts[key] = min(starts.get(key, math.inf), p.time_s)
        titles = [*names, *(f"phase {i}" for i in range(len(names), 1 + max((p.phase for p in points), default=0)))]
        marks = [(s, t, f"slot {s} starts {titles[i]}") for (s, i), t in starts.items() if i > 0]
        chart = timeline([f"slot {i}" for i in range(slots)], spans, marks, title="Who hosted which slot when")
        caption = (
            "A bar is one claim of a slot, coloured by the worker that made it; thin lines are the starts of phases."
        )
        legend = _legend([(w, i) for i, w in enumerate(workers)]) if len(workers) <= SERIES_COLOURS else ""
        parts.append(f"<figure>{legend}{chart}<figcaption>{caption}</figcaption></figure>")
    if staleness:
        seen = Counter(staleness)
        top = max(seen)
        width = math.ceil((top + 1) / 24)
        bars = [
            (str(a) if width == 1 else f"{a}-{a + width - 1}", float(sum(seen[a + i] for i in range(width))))
            for a in range(0, top + 1, width)
        ]
        chart = bar_chart(
            bars, title="Staleness of updates", x_name="updates of others not contained", y_name="updates"
        )
        mean = sum(staleness) / len(staleness)
        caption = f"How many updates of other slots an update had not seen when its round began: {mean:.1f} on average."
        parts.append(f"<figure><h3>Staleness</h3>{chart}<figcaption>{caption}</figcaption></figure>")
    return _section("Who trained what, when", *parts) if parts else ""


def ledger(summary: LedgerSummary | None, digests: Sequence[tuple[str, str]]) -> str:
    """Rows planned and trained, and the digests of the replicas."""
    parts = []
    if summary:
        if summary.exact and summary.planned_rows:
            kind, text = "good", "Every row was trained exactly as often as the plan says."
        elif summary.exact:
            kind, text = "good", "Every row was trained once; a stream has no last row."
        elif summary.outstanding_rows:
            kind, text = "bad", f"{summary.outstanding_rows:,} rows are outstanding: the plan is not finished."
        else:
            kind, text = "bad", "The books do not add up: compare the run's updates with its plan."
        verdict = f'<p class="{kind}">{text}</p>'
        cells = (
            ("planned", summary.planned_rows or "endless"), ("trained", summary.trained_rows),
            ("outstanding", summary.outstanding_rows), ("revoked", summary.revoked_rows),
        )  # fmt: skip
        rows = "".join(
            f'<tr><th scope="row">{n}</th><td>{v if isinstance(v, str) else f"{v:,}"}</td></tr>' for n, v in cells
        )
        parts.append(f"<div>{verdict}<table><tbody>{rows}</tbody></table></div>")
    if digests:
        same = len({d for _, d in digests}) == 1
        kind, text = ("good", "All replicas are equal, bit for bit.") if same else ("bad", "Replicas differ.")
        verdict = f'<p class="{kind}">{text}</p>'
        rows = "".join(
            f'<tr><th scope="row">{escape(w)}</th><td><code>{escape(d)}</code></td></tr>' for w, d in digests
        )
        parts.append(f'<div>{verdict}<div class="scroll"><table><tbody>{rows}</tbody></table></div></div>')
    return _section("The books", f'<div class="pair">{"".join(parts)}</div>') if parts else ""


def next_steps(steps: Sequence[tuple[str, str]]) -> str:
    """What to try next, with the commands."""
    if not steps:
        return ""
    return _section("What to do next", "".join(f"<p>{escape(a)}</p><pre>{escape(b)}</pre>" for a, b in steps))


def _plan(phases: Sequence[PhaseSpec], names: Sequence[str]) -> str:
    titles = ("epochs", "rows per minibatch", "minibatches per round", "learning rate", "momentum")
    head = "".join(f'<th scope="col">{n}</th>' for n in titles)
    lines = []
    for name, p in zip(names, phases, strict=True):
        learner = f"{p.learner}, {p.optimizer}" if p.learner == "backprop" else p.learner
        cells = (p.epochs or "endless", p.batch, p.tau, f"{p.lr:g} to {p.lr_final:g}", f"{p.momentum:g}")
        row = "".join(f"<td>{c}</td>" for c in cells)
        lines.append(f'<tr><th scope="row">{escape(f"{name} ({learner})")}</th>{row}</tr>')
    top = f'<thead><tr><th class="t" scope="col">phase</th>{head}</tr></thead>'
    return f'<div class="scroll"><table>{top}<tbody>{"".join(lines)}</tbody></table></div>'


def particulars(
    model: Model,
    path: str,
    phases: Sequence[PhaseSpec],
    names: Sequence[str],
    seconds: Sequence[tuple[str, float]],
    versions: Sequence[tuple[str, str]],
) -> str:
    """The plan, where the model lies, what took how long, and the software."""
    parts = [f"<h3>Plan</h3>{_plan(phases, names)}" if phases else ""]
    if path:
        size = f"{len(model.parameters):,} parameters as exact integers"
        parts.append(f"<h3>Model</h3><p><code>{escape(path)}</code>, {size}.</p>")
    if seconds:
        parts.append(f"<h3>Time</h3><p>{escape(', '.join(f'{n} {s:.1f} s' for n, s in seconds))}.</p>")
    if versions:
        software = ", ".join(f"{n} {v}" for n, v in versions)
        parts.append(f"<details><summary>Software</summary><p>{escape(software)}</p></details>")
    return _section("Particulars", *parts) if any(parts) else ""
