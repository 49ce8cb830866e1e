"""``gossipdbn config``: check a configuration file, or explain every key there is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from gossipdbn.cli.options import JsonOption, notice, terminal, write_json
from gossipdbn.errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("config")(config)


def config(
    file: Annotated[Path | None, typer.Argument(help="Configuration file (TOML).", show_default=False)] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Print every key: default, allowed values, meaning.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Check a configuration file and show the plan it stands for, or explain every key.

    Examples:

        gossipdbn config examples/mnist.toml

        gossipdbn config --explain
    """
    from gossipdbn.config import explain_all, load

    show = terminal(json)
    if explain:
        _explain(show)
        write_json(json, explain_all())
        return
    if file is None:
        raise ConfigError("config: name a file to check, or ask for --explain")
    found = load(file)
    layers = "-".join(
        ["rows", *map(str, found.model.hidden), *([str(found.model.classes)] if found.model.classes else [])]
    )
    show.print(f"{file}: valid. {layers}, {found.run.slots} slots, {found.run.workers} workers here")
    for i, phase in enumerate(found.phases):
        what = f"layer {phase.layer}" if phase.learner in ("cd", "pcd") else "whole stack"
        passes = "until stopped" if phase.epochs is None else f"{phase.epochs} epochs"
        show.print(
            f"  phase {i}: {phase.learner}, {what}, {passes}, {phase.batch} rows a minibatch, "
            f"{phase.tau} minibatches a round, lr {phase.lr:g} -> {phase.lr_final:g}"
        )
    for warning in found.warnings():
        notice(f"warning: {warning}")
    write_json(json, {"phases": found.phases, "run": found.run, "model": found.model, "warnings": found.warnings()})


def _explain(show: Console) -> None:
    from gossipdbn.config import explain_all

    table = ""
    for row in explain_all():
        if row.path.partition(".")[0] != table:
            table = row.path.partition(".")[0]
            show.print(Text(f"\n[[{table[:-2]}]]" if table.endswith("[]") else f"\n[{table}]", style="bold"))
        key = row.path.partition(".")[2] or row.path
        allowed = f"; {row.allowed}" if row.allowed else ""
        show.print(Text.assemble((key, "bold cyan"), f"  = {row.default}{allowed}"))
        show.print(Text("    " + row.doc))
