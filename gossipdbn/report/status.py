"""The live view of a run: frozen numbers in, a table on a terminal or plain lines elsewhere out.

The view model knows nothing of logs or workers: whoever watches a run fills in a `RunView` from the chains it has read
and hands it to a `StatusDisplay` as often as it likes. On a terminal the display redraws one table; where there is none
(a pipe, CI, ``TERM=dumb``) it prints a line when something worth a line has happened.
"""

from __future__ import annotations

from dataclasses import dataclass
from time import monotonic
from types import TracebackType
from typing import Literal, Self, TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

RunState = Literal["starting", "feeding", "training", "stopping", "stopped", "done", "failed"]

_STYLES: dict[str, str] = {
    "training": "green",
    "done": "bold green",
    "failed": "bold red",
    "stopped": "yellow",
    "stopping": "yellow",
}


@dataclass(frozen=True, slots=True)
class SlotView:
    """One slot as its own chain tells it.

    Parameters
    ----------
    slot : number of the slot.
    worker : who hosts it (name or uid of the owner of the newest claim); "" before the first claim.
    incarnation : number of accepted claims, counted as the claims count them.
    phase : index of the phase the slot is in. phase_name : what a reader calls it ("layer 0", "fine-tuning").
    rows_done, rows_planned : rows trained in all phases, and what the plan owes in all (None: endless).
    updates : accepted updates. pending : sent and not read back yet.
    staleness : updates of other slots not contained in the start version of the newest update; None if unknown.
    error : newest reconstruction error or loss; None before the first update.
    closed : whether the slot has finished its plan.
    note : why it waits, if it does ("waits for rows").
    """

    slot: int
    worker: str = ""
    incarnation: int = 0
    phase: int = 0
    phase_name: str = ""
    rows_done: int = 0
    rows_planned: int | None = None
    updates: int = 0
    pending: int = 0
    staleness: float | None = None
    error: float | None = None
    closed: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True)
class RunView:
    """One look at a run.

    Parameters
    ----------
    run : run id. state : what it is doing. elapsed_s : seconds since this command started.
    phase, phases : the earliest phase any open slot is in, and how many there are. phase_name : its name.
    rows_done, rows_planned : trained rows over all slots, and what the plan owes (None: endless).
    rows_fed : rows in the shards topic so far; None where nobody counts them.
    rows_per_s, updates_per_s : rates over the last seconds. updates : accepted updates in all.
    error : mean of the slots' newest errors. error_name : what it measures.
    workers : names of live workers. claims, voids, undecided : counts over all partitions.
    snapshot_every_s : seconds between two snapshots of a slot, as their writers chose it; None while none is known.
    waits : named reasons for which somebody waits. messages : last events worth telling, oldest first.
    """

    run: str
    state: RunState = "starting"
    elapsed_s: float = 0.0
    phase: int = 0
    phases: int = 0
    phase_name: str = ""
    rows_done: int = 0
    rows_planned: int | None = None
    rows_fed: int | None = None
    rows_per_s: float = 0.0
    updates_per_s: float = 0.0
    updates: int = 0
    error: float | None = None
    error_name: str = "error"
    workers: tuple[str, ...] = ()
    claims: int = 0
    voids: int = 0
    undecided: int = 0
    snapshot_every_s: float | None = None
    slots: tuple[SlotView, ...] = ()
    waits: tuple[str, ...] = ()
    messages: tuple[str, ...] = ()


def count(n: float) -> str:
    """A number in at most five characters for a person: 950, 12.3k, 4.56M."""
    if abs(n) < 1000:
        return f"{n:.0f}" if n == int(n) or abs(n) >= 100 else f"{n:.1f}"
    for limit, unit in ((1e6, "k"), (1e9, "M"), (1e12, "G")):
        if abs(n) < limit:
            value = n / (limit / 1000)
            return f"{value:.0f}{unit}" if value >= 100 else f"{value:.1f}{unit}"
    return f"{n / 1e12:.1f}T"


def duration(seconds: float) -> str:
    """Seconds as a person writes them: 7 s, 2:05, 1:02:03."""
    s = round(max(seconds, 0.0))
    if s < 60:
        return f"{s} s"
    return f"{s // 60}:{s % 60:02d}" if s < 3600 else f"{s // 3600}:{s // 60 % 60:02d}:{s % 60:02d}"


def remaining_s(view: RunView) -> float | None:
    """Seconds that the planned rows still take at the present rate; None when that cannot be told."""
    if view.rows_planned is None or view.rows_per_s <= 0 or view.state != "training":
        return None
    return max(view.rows_planned - view.rows_done, 0) / view.rows_per_s


def render_line(view: RunView) -> str:
    """The run in one line without colour or control characters."""
    parts = [f"[{duration(view.elapsed_s):>5}]", view.state]
    if view.phases:
        parts.append(f"phase {min(view.phase + 1, view.phases)}/{view.phases} {view.phase_name}".rstrip())
    if view.rows_planned:
        share = 100 * view.rows_done / view.rows_planned
        parts.append(f"{share:3.0f} % of {count(view.rows_planned)} rows")
    elif view.rows_done:
        parts.append(f"{count(view.rows_done)} rows")
    if view.rows_per_s:
        parts.append(f"{count(view.rows_per_s)} rows/s, {view.updates_per_s:.1f} updates/s")
    if view.error is not None:
        parts.append(f"{view.error_name} {view.error:.4g}")
    stale = [s.staleness for s in view.slots if s.staleness is not None]
    if stale:
        parts.append(f"staleness {sum(stale) / len(stale):.1f}")
    if view.workers:
        parts.append(f"{len(view.workers)} worker{'s' if len(view.workers) != 1 else ''}")
    if view.voids or view.undecided:
        parts.append(f"{view.voids} void, {view.undecided} undecided")
    parts += view.waits
    return " · ".join(parts)


def _head(view: RunView) -> Table:
    grid = Table.grid(padding=(0, 2))
    state = Text(view.state, style=_STYLES.get(view.state, "cyan"))
    phase = f"phase {min(view.phase + 1, view.phases)} of {view.phases}: {view.phase_name}" if view.phases else ""
    grid.add_row(Text(view.run, style="bold"), state, phase, duration(view.elapsed_s))
    return grid


def _bar(view: RunView) -> RenderableType:
    if view.rows_planned is None:
        return Text(f"{count(view.rows_done)} rows so far, endless source")
    grid = Table.grid(padding=(0, 1))
    left = remaining_s(view)
    grid.add_row(
        ProgressBar(total=max(view.rows_planned, 1), completed=min(view.rows_done, view.rows_planned), width=40),
        f"{100 * view.rows_done / max(view.rows_planned, 1):.0f} %",
        f"{count(view.rows_done)} of {count(view.rows_planned)} rows",
        f"about {duration(left)} left" if left is not None else "",
    )
    return grid


def _slots(view: RunView) -> Table:
    table = Table(box=None, padding=(0, 1), pad_edge=False, header_style="dim")
    for name in (
        "slot",
        "worker",
        "claim",
        "phase",
        "rows",
        "done",
        "error",
        "updates",
        "stale",
        "",
    ):
        table.add_column(name, justify="left" if name in ("worker", "phase", "") else "right", no_wrap=True)
    for s in view.slots:
        table.add_row(
            str(s.slot),
            s.worker or "-",
            str(s.incarnation),
            s.phase_name,
            count(s.rows_done),
            f"{100 * s.rows_done / s.rows_planned:.0f} %" if s.rows_planned else "-",
            f"{s.error:.4g}" if s.error is not None else "-",
            str(s.updates),
            f"{s.staleness:.1f}" if s.staleness is not None else "-",
            Text("closed", style="green") if s.closed else Text(s.note, style="yellow"),
        )
    return table


def render_table(view: RunView) -> RenderableType:
    """The run as a block for a terminal: heading, progress, rates, slots, waits and last messages."""
    facts = [
        f"{count(view.rows_per_s)} rows/s",
        f"{view.updates_per_s:.1f} updates/s",
        f"{view.error_name} {view.error:.4g}" if view.error is not None else "",
        f"{len(view.workers)} worker{'s' if len(view.workers) != 1 else ''}",
    ]
    rates = Text("   ".join(f for f in facts if f))
    log = Text(f"{view.updates} updates, {view.claims} claims", style="dim")
    if view.snapshot_every_s is not None:
        log.append(f", a snapshot of each slot every {view.snapshot_every_s:.3g} s")
    log.append(f", {view.voids} void", style="yellow" if view.voids else "dim")
    log.append(f", {view.undecided} undecided", style="bold red" if view.undecided else "dim")
    parts: list[RenderableType] = [_head(view), _bar(view), rates, log]
    if view.slots:
        parts.append(_slots(view))
    parts += [Text(w, style="yellow") for w in view.waits]
    parts += [Text(m, style="dim") for m in view.messages[-5:]]
    return Group(*parts)


class StatusDisplay:
    """Shows views of one run until it is closed; use it as a context manager.

    Parameters
    ----------
    stream : where to write; None for standard output.
    plain : True for lines, False for the live table, None to decide by the stream (a capable terminal gets the table).
    every_s : plain lines come at most this often, except when phase, state, workers or waits change.
    """

    def __init__(self, stream: TextIO | None = None, *, plain: bool | None = None, every_s: float = 5.0) -> None:
        self.console = Console(file=stream, force_terminal=None if plain is None else not plain, highlight=False)
        self.plain = (not self.console.is_terminal or self.console.is_dumb_terminal) if plain is None else plain
        self.every_s = every_s
        self._live: Live | None = None
        self._key: tuple[object, ...] | None = None
        self._told: tuple[str, ...] = ()
        self._printed_s = float("-inf")

    def __enter__(self) -> Self:
        return self

    def show(self, view: RunView) -> None:
        """Show this view in place of the last one."""
        if self.plain:
            self._print(view)
            return
        if self._live is None:
            self._live = Live(console=self.console, auto_refresh=False, transient=False)
            self._live.start()
        self._live.update(render_table(view), refresh=True)

    def say(self, message: str) -> None:
        """A line that stays, above the table where there is one."""
        self.console.print(message, soft_wrap=True, markup=False)

    def _print(self, view: RunView) -> None:
        fresh = [m for m in view.messages if m not in self._told]
        for m in fresh:
            self.say(f"[{duration(view.elapsed_s):>5}] {m}")
        self._told = view.messages
        key = (view.state, view.phase, view.phase_name, view.workers, view.waits, view.undecided)
        now = monotonic()
        if key != self._key or now - self._printed_s >= self.every_s:
            self.say(render_line(view))
            self._key, self._printed_s = key, now

    def close(self) -> None:
        """Leave the last table standing and give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
