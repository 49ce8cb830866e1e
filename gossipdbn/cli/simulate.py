"""``gossipdbn sim``: whole clusters with their faults in this process, one per seed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from gossipdbn.cli.options import JsonOption, notice, terminal, write_json

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
    json: JsonOption = None,
) -> None:
    """Run the production core on virtual time with faults drawn from the seed, checking every invariant at every step.

    Workers are killed, paused and cut off, brokers lose connections, stores tear files. A violation ends with status 5;
    its seed replays it.

    Examples:

        gossipdbn sim --seeds 1000

        gossipdbn sim --seed 17 --trace
    """
    from gossipdbn.sim import run

    out = terminal(json)
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


def _told(first: int, seeds: int) -> Iterator[int]:
    """The seeds in order, saying now and then how far it is."""
    for n in range(seeds):
        if n and n % _EVERY == 0:
            notice(f"{n} of {seeds} schedules")
        yield first + n
