"""``gossipdbn sim``: whole clusters with their faults in this process, one per seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gossipdbn.cli.options import JsonOption, notice, terminal, write_json
from gossipdbn.errors import ConfigError

_EVERY = 100


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(sim)


def sim(
    seeds: Annotated[int, typer.Option("--seeds", help="How many schedules to run.", min=1)] = 300,
    first: Annotated[int, typer.Option("--first", help="Seed of the first one.", min=0)] = 0,
    seed: Annotated[int | None, typer.Option("--seed", help="Run this schedule alone.", show_default="many")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="With --seed: print it as a readable transcript.")] = False,
    least: Annotated[
        bool, typer.Option("--least", help="With --trace: with the fewest faults that still break an invariant.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", help="Instead: how rows/s scale up to so many workers.", min=1)
    ] = None,
    json: JsonOption = None,
) -> None:
    """Run the production core on virtual time with faults drawn from the seed, checking every invariant at every step.

    Workers are killed, paused and cut off, brokers lose connections, stores tear files. A violation ends with status 5;
    its seed replays it.

    Examples:

        gossipdbn sim --seeds 1000

        gossipdbn sim --seed 17 --trace

        gossipdbn sim --workers 1000
    """
    from gossipdbn.sim import run

    if trace and seed is None:
        raise ConfigError("sim: --trace prints one schedule; name it with --seed N")
    if least and not trace:
        raise ConfigError("sim: --least belongs to --trace")
    out = terminal(json)
    if workers is not None:
        _scaling(workers, out, json)
        return
    if seed is not None and trace:
        for line in run.trace(seed, least):
            out.print(line, markup=False)
    result = run.run_seeds([seed] if seed is not None else _told(first, seeds))
    out.print(f"{result.seeds} schedules, {result.events} events, {len(result.failures)} violations")
    for failure in result.failures:
        out.print(f"seed {failure.seed}: {failure.violation}", markup=False)
    write_json(json, result.facts())
    if result.failures:
        raise typer.Exit(5)


def _scaling(workers: int, out: Console, json: Path | None) -> None:
    """Measure what a round, an update and a merge cost here, then let that many workers run on virtual time."""
    from gossipdbn.sim.costs import measure
    from gossipdbn.sim.scaling import curve

    notice("measuring rounds, updates and merges of 784x500 on one thread")
    costs = measure()
    points = curve(costs, tuple(sorted({min(2**i, workers) for i in range(workers.bit_length() + 1)})))
    for p in points:
        way = f"{p.relays} relay{'s' if p.relays > 1 else ''}" if p.relays else "broadcast"
        out.print(
            f"{p.slots:5d} workers, {way:9s} {p.rows_per_s:12,.0f} rows/s ({p.efficiency:4.0%}), "
            f"{p.stale_rounds:4.1f} rounds stale, {p.bytes_per_worker_s / 1e6:5.1f} MB/s each; limit: {p.limit}",
            markup=False,
            highlight=False,
        )
    write_json(json, {"costs": asdict(costs), "points": [asdict(p) for p in points]})


def _told(first: int, seeds: int) -> Iterator[int]:
    """The seeds in order, saying now and then how far it is."""
    for n in range(seeds):
        if n and n % _EVERY == 0:
            notice(f"{n} of {seeds} schedules")
        yield first + n
