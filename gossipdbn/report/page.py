"""The page of a finished run: one HTML file that needs nothing else.

`RunReport` holds the facts, all of them readable from the run's own topics and model; `write_page` renders them. Parts
for which a run has no facts (no labels, no images) are left out.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import StoreError
from gossipdbn.models.files import Model
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.report import sections
from gossipdbn.report.status import count, duration


class CurvePoint(NamedTuple):
    """What one update said of its round: seconds since the run's start, slot, seq, phase, error, rows."""

    time_s: float
    slot: int
    seq: int
    phase: int
    error: float
    rows: int


class Turn(NamedTuple):
    """A time in which one incarnation owned a slot: from its claim to its last update, in seconds of the run."""

    slot: int
    worker: str
    incarnation: int
    start_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class LedgerSummary:
    """What the ledger says: whether trained rows equal planned ones exactly, and the counts (planned 0: endless)."""

    exact: bool
    planned_rows: int
    trained_rows: int
    outstanding_rows: int = 0
    revoked_rows: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """Everything the page tells.

    Parameters
    ----------
    run, model, model_path : run id, the final model, where it lies.
    phases : the plan. slots : number of slots.
    wall_seconds : (part, seconds), for example ("training", 71.2); a part "total" is the whole, else they add up to it.
    updates, bytes_per_update : accepted updates; mean bytes of one on the log.
    test_error, test_rows : fraction of wrong classes on rows never trained; None without labels.
    confusion : int [classes, classes], true class by row; None without labels.
    test_values : a few test rows as the model takes them, to be reconstructed.
    image_shape : (height, width) when a row is an image. generative : int32 [P] before fine-tuning, or None.
    curve, turns, staleness : per update its error; who owned which slot when; per update how many were not contained.
    ledger, digests : the ledger's sums; (worker, digest in hexadecimal) of each replica at the end.
    versions : (package, version). created : date as text. next_steps : (what, command).
    """

    run: str
    model: Model
    model_path: str = ""
    phases: tuple[PhaseSpec, ...] = ()
    slots: int = 1
    wall_seconds: tuple[tuple[str, float], ...] = ()
    updates: int = 0
    bytes_per_update: float = 0.0
    test_error: float | None = None
    test_rows: int = 0
    confusion: NDArray[np.int64] | None = None
    test_values: NDArray[Any] | None = None
    image_shape: tuple[int, int] | None = None
    generative: NDArray[np.int32] | None = None
    curve: tuple[CurvePoint, ...] = ()
    turns: tuple[Turn, ...] = ()
    staleness: tuple[int, ...] = ()
    ledger: LedgerSummary | None = None
    digests: tuple[tuple[str, str], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()
    created: str = ""
    next_steps: tuple[tuple[str, str], ...] = field(default_factory=tuple)


def phase_name(phase: PhaseSpec) -> str:
    """What a reader calls a phase."""
    if phase.learner == "backprop":
        return "fine-tuning"
    return "joint training" if phase.learner == "joint" else f"layer {phase.layer}"


def network(model: Model) -> str:
    """The network as its widths: 784-500-500-10."""
    s = model.spec
    return "-".join(str(n) for n in (s.visible, *s.hidden, *((s.outputs,) if s.outputs else ())))


def _facts(r: RunReport) -> str:
    trained = r.ledger.trained_rows if r.ledger else sum(p.rows for p in r.curve)
    facts: list[tuple[str, str, str]] = []
    if r.test_error is not None:
        facts.append(("test error", f"{100 * r.test_error:.2f} %", f"{count(r.test_rows)} rows never trained on"))
    seconds = dict(r.wall_seconds)
    if seconds:
        total = seconds.pop("total", sum(seconds.values()))
        training = seconds.get("training", total)
        facts.append(("time", duration(total), f"training {duration(training)}"))
        if trained and training:
            facts.append(("speed", f"{count(trained / training)}/s", f"rows per second, {count(trained)} in all"))
    if r.updates:
        full = 4 * len(r.model.parameters)
        share = f"{full / r.bytes_per_update:.0f} times smaller than the model" if r.bytes_per_update else ""
        facts.append(
            ("updates", count(r.updates), f"{r.bytes_per_update / 1000:.1f} kB each, {share}" if share else "")
        )
    if len(r.digests) > 1:
        same = len({d for _, d in r.digests}) == 1
        facts.append(("replicas", "equal" if same else "differ", f"{len(r.digests)} replicas, every bit compared"))
    if r.ledger:
        left = f"{count(r.ledger.outstanding_rows)} rows outstanding"
        facts.append(("ledger", "exact" if r.ledger.exact else "open", left))
    body = "".join(
        f"<div><dt>{escape(a)}</dt><dd>{escape(b)}<small>{escape(c)}</small></dd></div>" for a, b, c in facts
    )
    return f'<dl class="facts">{body}</dl>' if facts else ""


def _body(r: RunReport) -> Sequence[str]:
    names = [phase_name(p) for p in r.phases]
    shape = r.image_shape
    return (
        sections.curves(r.curve, r.phases, names),
        sections.images(r.model, r.test_values, shape, r.generative) if shape else "",
        sections.confusion(r.confusion, r.model.classes) if r.confusion is not None else "",
        sections.who_trained_what(r.turns, r.curve, names, r.slots, r.staleness),
        sections.ledger(r.ledger, r.digests),
        sections.next_steps(r.next_steps),
        sections.particulars(r.model, r.model_path, r.phases, names, r.wall_seconds, r.versions),
    )


def render(report: RunReport) -> str:
    """The page as HTML."""
    css = files("gossipdbn.report").joinpath("page.css").read_text(encoding="utf-8")
    slots = f"{report.slots} slot{'s' if report.slots != 1 else ''}"
    workers = len({t.worker for t in report.turns})
    who = f", hosted by {workers} worker{'s' if workers != 1 else ''}" if workers else ""
    lead = f"A {network(report.model)} deep belief network, trained by gossip: {slots}{who}."
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(report.run)} · gossipdbn</title><style>{css}</style></head><body>"
        f'<header><h1>{escape(report.run)}</h1><p class="lead">{escape(lead)}</p>{_facts(report)}</header>'
        f"<main>{''.join(_body(report))}</main>"
        f"<footer>{escape(report.created)} · made by gossipdbn from the run's own log</footer></body></html>\n"
    )


def write_page(path: str | os.PathLike[str], report: RunReport) -> None:
    """Write the page atomically; raises StoreError when the folder cannot be written."""
    target = Path(path)
    text = render(report)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".page-", dir=target.parent) as folder:
            temporary = Path(folder) / "page.html"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(target)
    except OSError as e:
        raise StoreError(f"cannot write the page to {target}: {e.strerror or e}; choose another folder") from e
