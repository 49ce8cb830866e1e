"""``gossipdbn revoke``, ``give-up``, ``fork``: what an operator may do to a run."""

from __future__ import annotations

import datetime as dt
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossipdbn.cli.options import HomeOption, JsonOption, notice, terminal, write_json
from gossipdbn.cli.replay import history_of, where_of
from gossipdbn.cli.runs import BootstrapOption, KafkaOption, KeyFileOption, KeyIdOption, PrefixOption
from gossipdbn.errors import ConfigError

if TYPE_CHECKING:
    from gossipdbn.launch.records import Connected, Where

LiveArgument = Annotated[str, typer.Argument(metavar="RUN", help="Run id, or its beginning.")]
SlotOption = Annotated[int, typer.Option("--slot", help="Which slot.", min=0)]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why; stays in the log.")]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(revoke)
    app.command("give-up")(give_up)
    app.command()(fork)


@contextmanager
def connected_run(where: Where, run: str) -> Iterator[Connected]:
    """A run on its live log; what changes a run is never pointed at one by chance."""
    from gossipdbn.launch.records import connected

    if not run:
        raise ConfigError("name a run, by its id or its beginning; `gossipdbn runs` lists them")
    if Path(run).is_file():
        raise ConfigError(f"{run} is a file: an archive cannot be changed; name the run, `gossipdbn runs` lists them")
    with connected(where, run, notice) as live:
        yield live


def _operator_name() -> str:
    return f"operator@{os.uname().nodename}-{os.getpid()}"


def revoke(
    run: LiveArgument,
    slot: SlotOption,
    first: Annotated[int, typer.Option("--from", help="First update to revoke.", min=0)],
    last: Annotated[int | None, typer.Option("--to", help="Last one.", min=0, show_default="the newest")] = None,
    reason: ReasonOption = "",
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    key_id: KeyIdOption = 0,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """Subtract updates of a slot from every replica, exactly; the run goes on.

    Updates count from 0 in each slot; `gossipdbn audit RUN -o PAGE` lists them with their rows, `--row` finds those of
    a row, `gossipdbn bisect` the one that broke a measure. What was trained in between from parameters that contained
    them stays, and audit names it. Nothing is revoked twice, and a revocation cannot be taken back.

    Example:

        gossipdbn revoke mnist-20250101-120000 --slot 2 --from 117 --to 130 --reason "mislabelled rows"
    """
    with connected_run(where_of(home, bootstrap, prefix, key_file, key_id, kafka), run) as live:
        done = live.operator(_operator_name()).revoke(slot, first, last, reason)
    write_json(json, done)
    terminal(json).print(
        f"run {done.run}: updates {done.first} to {done.last} of slot {done.slot} ({done.rows:,} rows) are subtracted "
        f"from every replica that reads on; `gossipdbn audit {done.run}` names rounds trained in between\n"
        f"models written before still contain them: gossipdbn replay {done.run} --until end -o MODEL writes one without"
    )


def give_up(
    run: LiveArgument,
    slot: SlotOption,
    reason: ReasonOption = "",
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    key_id: KeyIdOption = 0,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """Close a slot that nobody shall run, so that the run can finish; its other rows stay outstanding.

    Whoever has the slot is fenced. What it trained stays in the model. This cannot be undone.

    Example:

        gossipdbn give-up mnist-20250101-120000 --slot 3 --reason "its rows are poisoned"
    """
    with connected_run(where_of(home, bootstrap, prefix, key_file, key_id, kafka), run) as live:
        done = live.operator(_operator_name()).give_up(slot, reason)
    write_json(json, done)
    terminal(json).print(
        f"run {done.run}: slot {done.slot} is closed at update {done.seq} (epoch {done.cursor[0]}, row "
        f"{done.cursor[1]}); its other rows are outstanding"
    )


def fork(
    run: LiveArgument,
    at: Annotated[
        str, typer.Option("--at", metavar="MOMENT", help="Where the child starts; see `replay --help`.")
    ] = "end",
    config: Annotated[
        Path | None, typer.Option("--config", help="Plan, slots and feed of the child.", dir_okay=False)
    ] = None,
    slots: Annotated[int | None, typer.Option("--slots", help="Slots of the child.", min=1)] = None,
    name: Annotated[str, typer.Option("--name", help="Id of the child.", show_default="PARENT-fork-TIME")] = "",
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    key_id: KeyIdOption = 0,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """Start a child run from any moment of a run: other slots, another plan, the same model and schema.

    The child is a run of its own on the same cluster. `gossipdbn train --resume CHILD` feeds and trains it; for a live
    stream, feed it on from a copy of the parent's checkpoint (`gossipdbn feed --checkpoint`).

    Example:

        gossipdbn fork mnist-20250101-120000 --at +30s --slots 8
    """
    from gossipdbn.config import load
    from gossipdbn.launch.records import fork as make_child
    from gossipdbn.launch.records import recorded
    from gossipdbn.replay.moments import Timeline, check_moment, parse_moment

    check_moment(at)
    where = where_of(home, bootstrap, prefix, key_file, key_id, kafka)
    settings = load(config) if config is not None else None
    with connected_run(where, run) as live, recorded(where, live.manifest.run, notice) as found:
        timeline = Timeline(history_of(found, None))
        moment = parse_moment(timeline, at)
        now = time.time_ns() // 1_000_000
        child = name or f"{live.manifest.run}-fork-{dt.datetime.now(dt.UTC):%H%M%S}"
        manifest = make_child(live, timeline, moment, child, now, slots=slots, config=settings)
    write_json(json, {"run": child, "parent": manifest.parent, "slots": manifest.slots})
    terminal(json).print(
        f"run {child}: starts at {moment.updates} updates of {live.manifest.run}, {manifest.slots} slots, "
        f"{len(manifest.phases)} phases\ntrain it: gossipdbn train --resume {child}"
    )
