"""What a person reads when a run has ended: a few lines on the terminal."""

from __future__ import annotations

from gossipdbn.report.page import RunReport, network
from gossipdbn.report.status import count, duration


def summary_lines(report: RunReport, page_path: str = "") -> list[str]:
    """Plain lines: test error, time, updates, whether replicas and books agree, where things lie, what to try next."""
    r = report
    lines = []
    if r.test_error is not None:
        wrong = round(r.test_error * r.test_rows)
        of = f"{wrong:,} of {r.test_rows:,} rows, network {network(r.model)}"
        lines.append(f"test error    {100 * r.test_error:.2f} %  ({of})")
    if r.wall_seconds:
        seconds = dict(r.wall_seconds)
        total = seconds.pop("total", sum(seconds.values()))
        parts = ", ".join(f"{name} {duration(s)}" for name, s in seconds.items())
        lines.append(f"time          {duration(total)}  ({parts})")
    if r.updates:
        share = 4 * len(r.model.parameters) / r.bytes_per_update if r.bytes_per_update else 0
        smaller = f", {share:.0f} times smaller than the model" if share > 1 else ""
        lines.append(f"updates       {count(r.updates)}, {r.bytes_per_update / 1000:.1f} kB each{smaller}")
    if r.digests:
        same = len({d for _, d in r.digests}) == 1
        each = ", ".join(f"{w} {d}" for w, d in r.digests)
        verdict = f"equal, digest {r.digests[0][1]}" if same else f"DIFFER: {each}"
        lines.append(f"replicas      {len(r.digests)}, {verdict}")
    if r.ledger:
        trained = f"{r.ledger.trained_rows:,} of {r.ledger.planned_rows:,} rows trained"
        verdict = "exact" if r.ledger.exact else "open"
        lines.append(f"ledger        {verdict}: {trained}, {r.ledger.outstanding_rows:,} outstanding")
    if r.model_path:
        lines.append(f"model         {r.model_path}")
    if page_path:
        lines.append(f"page          {page_path}")
    for what, command in r.next_steps:
        lines += ["", what, f"    {command}"]
    return lines
