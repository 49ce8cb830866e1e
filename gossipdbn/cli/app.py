"""The program ``gossipdbn``: its commands live one file per group beside this one."""

from __future__ import annotations

from typing import Annotated

import typer

from gossipdbn.cli import books, cluster, doctor, model, operate, replay, runs, settings, simulate
from gossipdbn.cli.options import Commands

app = typer.Typer(
    cls=Commands,
    name="gossipdbn",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Deep belief networks trained by gossip over Apache Kafka, fed by Apache Spark.\n\n"
        "Every command explains itself with --help. Exit status: 0 done, 1 a bug, 2 usage or configuration, 3 data, "
        "4 broker, store or embedded service, 5 a result that is not what it should be, 130 Ctrl-C."
    ),
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gossipdbn {version('gossipdbn')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Options before the command."""


for _group in (runs, model, replay, books, operate, cluster, settings, doctor, simulate):
    _group.register(app)


def main() -> None:
    """Entry point of the console script."""
    app()


if __name__ == "__main__":
    main()
