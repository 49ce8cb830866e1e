"""``gossipdbn audit``: the books of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gossipdbn.cli.options import HomeOption, JsonOption, terminal, write_json
from gossipdbn.cli.replay import (
    WRONG,
    JobsOption,
    LastOption,
    RunArgument,
    check_folder,
    history_of,
    recorded_run,
    time_text,
    where_of,
)
from gossipdbn.cli.runs import BootstrapOption, KafkaOption, KeyFileOption, PrefixOption
from gossipdbn.errors import ConfigError

if TYPE_CHECKING:
    from gossipdbn.replay.history import History


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(audit)


def audit(
    run: RunArgument = "",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Page to write (HTML).", dir_okay=False)] = None,
    row: Annotated[
        str, typer.Option("--row", metavar="SLOT:ROW", help="Only: which updates trained this row of a slot.")
    ] = "",
    last: LastOption = False,
    jobs: JobsOption = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    kafka: KafkaOption = None,
    json: JsonOption = None,
) -> None:
    """The books of a run: every row of every shard, who trained it and how often; claims, revocations, digests.

    Exit status 5 when the books do not add up. `--json` has every update with its place in the chain of tips.

    Examples:

        gossipdbn audit --last -o books.html --json books.json

        gossipdbn audit mnist.zip --row 2:117
    """
    slot_row = _slot_row(row)
    check_folder("-o", output)
    with recorded_run(where_of(home, bootstrap, prefix, key_file, 0, kafka), run, last) as found:
        history = history_of(found, jobs)
        if slot_row is not None:
            _tell_row(history, *slot_row, json)
            return
        exact = _books(history, output, json)
    if not exact:
        raise typer.Exit(WRONG)


def _slot_row(name: str) -> tuple[int, int] | None:
    slot, colon, row = name.partition(":")
    if name and (not colon or not slot.isdecimal() or not row.isdecimal()):
        raise ConfigError(f"--row {name}: needed is SLOT:ROW, such as 2:117")
    return (int(slot), int(row)) if name else None


def _tell_row(history: History, slot: int, row: int, json: Path | None) -> None:
    from gossipdbn.replay.audit import row_history

    found = row_history(history, slot, row)
    write_json(json, found)
    out = terminal(json)
    out.print(f"row {row} of slot {slot} was trained {len(found)} times")
    for t in found:
        who = t.worker.partition("#")[0]
        revoked = ", revoked" if t.revoked else ""
        out.print(f"  update {t.seq}, epoch {t.epoch}, phase {t.phase}, by {who}, {time_text(t.at_ms)}{revoked}")


def _books(history: History, output: Path | None, json: Path | None) -> bool:
    from gossipdbn.replay.audit import audit as draw_up
    from gossipdbn.replay.audit_page import render

    books = draw_up(history)
    write_json(json, books)
    if output is not None:
        try:
            output.write_text(render(books), encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"-o: cannot write {output}: {error.strerror}") from error
    out, s = terminal(json), books.summary
    planned = f"{s.planned_rows:,}" if s.planned_rows is not None else "endless"
    out.print(f"run {books.run}: {books.state}, {s.updates:,} updates, digest {books.digest}")
    open_rows = f"{s.outstanding_rows:,}" if s.outstanding_rows is not None else "an unknown number"
    out.print(f"rows: {s.trained_rows:,} of {planned} trained, {open_rows} outstanding, {s.revoked_rows:,} revoked")
    out.print(
        f"shards: {len(books.shards):,}, {len(books.dropped):,} records of theirs dropped; "
        f"{len(books.claims)} claims, {len(books.voids)} void records"
    )
    for r in books.revocations:
        out.print(
            f"revoked: slot {r.slot} updates {r.first_seq} to {r.last_seq} ({r.rows:,} rows); "
            f"{len(r.in_between)} updates were trained in between"
        )
    for problem in books.problems:
        out.print(f"problem: {problem}")
    out.print("the books are exact" if books.exact else "THE BOOKS DO NOT ADD UP")
    if output is not None:
        out.print(f"page: {output}")
    return books.exact
