"""The books of a run as one HTML page, without scripts and without anything to load."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Sequence
from html import escape

from gossipdbn.replay.audit import Audit, AuditedUpdate

__all__ = ["render"]

UPDATES_SHOWN = 2000
SHARDS_SHOWN = 2000
BETWEEN_SHOWN = 200
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; width: 100%; font-size: .86rem; }
th, td { text-align: left; padding: .2rem .6rem .2rem 0; border-bottom: 1px solid #8884; vertical-align: top; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
code { font-size: .92em; } .good { color: #0a7d32; } .bad { color: #c0262d; } .wide { overflow-x: auto; }
.sum { display: flex; flex-wrap: wrap; gap: .4rem 2rem; } .sum b { font-variant-numeric: tabular-nums; }
summary { cursor: pointer; margin: .6rem 0; }
"""


def render(audit: Audit) -> str:
    """The page as HTML."""
    parts = [
        f"<h1>Books of run {escape(audit.run)}</h1>", _verdict(audit), _sums(audit), _slots(audit), _claims(audit),
        _revocations(audit), _dropped(audit), _voids(audit), _shards(audit), _updates(audit),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Books of {escape(audit.run)}</title><style>{_STYLE}</style></head><body>"
        + "".join(p for p in parts if p) + "</body></html>\n"
    )  # fmt: skip


def _time(at_ms: int) -> str:
    return dt.datetime.fromtimestamp(at_ms / 1000, dt.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3] if at_ms else ""


def _n(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; heads that begin with # are columns of numbers."""
    numeric = [h.startswith("#") for h in heads]
    klass = [' class="n"' if x else "" for x in numeric]
    head = "".join(f"<th{k}>{escape(h.lstrip('#'))}</th>" for h, k in zip(heads, klass, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{k}>{escape(str(v))}</td>" for v, k in zip(row, klass, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _verdict(audit: Audit) -> str:
    if audit.exact:
        text = "Every row was trained exactly as often as planned, or is named as outstanding; nothing twice."
        return f'<p class="good"><b>The books are exact.</b> {text}</p>'
    items = "".join(f"<li>{escape(p)}</li>" for p in audit.problems)
    return f'<p class="bad"><b>The books do not add up.</b></p><ul>{items}</ul>'


def _sums(audit: Audit) -> str:
    s = audit.summary
    pairs = [
        ("state", audit.state), ("rows planned", _n(s.planned_rows)), ("trained", _n(s.trained_rows)),
        ("outstanding", _n(s.outstanding_rows)), ("revoked", _n(s.revoked_rows)), ("updates", _n(s.updates)),
        ("claims", _n(sum(c.accepted for c in audit.claims))), ("void records", _n(len(audit.voids))),
        ("shards dropped", _n(len(audit.dropped))), ("digest", audit.digest),
    ]  # fmt: skip
    return '<p class="sum">' + "".join(f"<span>{escape(k)} <b>{escape(v)}</b></span>" for k, v in pairs) + "</p>"


def _slots(audit: Audit) -> str:
    rows = [
        (s.slot, _n(s.rows), _n(s.shards), "yes" if s.ended else "no", _n(s.updates), _n(s.trained_rows),
         _n(s.outstanding_rows), f"{s.times_min} to {s.times_max} of {_n(s.planned_times)}", s.incarnations, s.resets,
         s.closed + (f": {s.note}" if s.note else ""), s.tip)
        for s in audit.slots
    ]  # fmt: skip
    heads = ("#slot", "#rows", "#shards", "end mark", "#updates", "#trained", "#outstanding", "times per row",
             "#claims", "#resets", "closed", "tip")  # fmt: skip
    return "<h2>Slots</h2>" + _table(heads, rows)


def _claims(audit: Audit) -> str:
    rows = [
        (_time(c.at_ms), c.slot, c.incarnation, c.worker, "reset" if c.reset else "", "" if c.accepted else c.why_void)
        for c in audit.claims
    ]
    return "<h2>Who claimed what when</h2>" + _table(
        ("time (UTC)", "#slot", "#incarnation", "worker", "", "void"), rows
    )


def _revocations(audit: Audit) -> str:
    if not audit.revocations:
        return ""
    rows = []
    for r in audit.revocations:
        named = ", ".join(f"{s}:{q}" for s, q in r.in_between[:BETWEEN_SHOWN])
        more = f" and {len(r.in_between) - BETWEEN_SHOWN:,} more" if len(r.in_between) > BETWEEN_SHOWN else ""
        rows.append((_time(r.at_ms), r.slot, f"{r.first_seq} to {r.last_seq}", _n(r.rows), r.reason, named + more))
    heads = ("time (UTC)", "#slot", "updates", "#rows", "reason", "trained in between (slot:update)")
    return "<h2>Revocations</h2>" + _table(heads, rows)


def _dropped(audit: Audit) -> str:
    if not audit.dropped:
        return ""
    rows = [(d.slot, d.offset, d.id, d.why) for d in audit.dropped]
    return "<h2>Shards that do not count</h2>" + _table(("#slot", "#offset", "shard", "why"), rows)


def _voids(audit: Audit) -> str:
    if not audit.voids:
        return ""
    rows = [(_time(v.at_ms), v.partition, v.offset, v.why) for v in audit.voids]
    return "<h2>Void records</h2>" + _table(("time (UTC)", "#partition", "#offset", "why"), rows)


def _shards(audit: Audit) -> str:
    rows = [
        (s.slot, s.offset, s.id, s.first_row, s.rows, f"{s.times_min} to {s.times_max}", s.trainings,
         s.revoked_trainings, s.digest)
        for s in audit.shards[:SHARDS_SHOWN]
    ]  # fmt: skip
    heads = (
        "#slot",
        "#offset",
        "shard",
        "#first row",
        "#rows",
        "times per row",
        "#trainings",
        "#of them revoked",
        "digest",
    )
    return _details("shards", len(audit.shards), SHARDS_SHOWN, _table(heads, rows))


def _update_row(u: AuditedUpdate) -> tuple[object, ...]:
    what = u.closing or f"epoch {u.epoch}, rows {u.first_row:,} to {u.first_row + u.rows - 1:,}"
    what += ", revoked" if u.revoked else ""
    return (_time(u.at_ms), u.slot, u.seq, u.worker.partition("#")[0], u.phase, what, u.bytes,
            sum(u.start_version), u.start_digest, u.digest, u.previous_tip, u.tip)  # fmt: skip


def _updates(audit: Audit) -> str:
    heads = ("time (UTC)", "#slot", "#update", "worker", "#phase", "what", "#bytes", "#updates contained",
             "start digest", "digest", "previous tip", "tip")  # fmt: skip
    table = _table(heads, (_update_row(u) for u in audit.updates[:UPDATES_SHOWN]))
    return _details("updates", len(audit.updates), UPDATES_SHOWN, table)


def _details(what: str, count: int, shown: int, table: str) -> str:
    note = f" (the first {shown:,} here; all in the JSON)" if count > shown else ""
    return f"<h2>{what.capitalize()}</h2><details><summary>{count:,} {what}{note}</summary>{table}</details>"
