"""What all commands share: common options, where results go, and how errors end a command.

Exit statuses: 0 done; 1 a bug (with a traceback); 2 usage or configuration; 3 data; 4 the outside world (broker, store,
embedded services); 5 a result that is not what it should be (snapshot, replay, ledger); 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from typer.core import TyperGroup

from gossipdbn.errors import (
    ConfigError,
    DataError,
    EmbeddedError,
    GossipDbnError,
    LogError,
    ReplayDivergence,
    SnapshotError,
    StoreError,
)

if TYPE_CHECKING:
    from gossipdbn.config import Home

EXIT_STATUS: tuple[tuple[type[GossipDbnError], int], ...] = (
    (ConfigError, 2),
    (DataError, 3),
    (LogError, 4),
    (StoreError, 4),
    (EmbeddedError, 4),
    (SnapshotError, 5),
    (ReplayDivergence, 5),
)
INTERRUPTED = 130

HomeOption = Annotated[
    Path | None,
    typer.Option(
        "--home",
        help="Folder that holds runs and the embedded broker.",
        envvar="GOSSIPDBN_HOME",
        show_default="$XDG_DATA_HOME/gossipdbn or ~/.local/share/gossipdbn",
        file_okay=False,
    ),
]
JsonOption = Annotated[
    Path | None, typer.Option("--json", metavar="FILE", help="Write the result as JSON to FILE; - is standard output.")
]


class Commands(TyperGroup):
    """Turns errors raised on purpose into one clear message and an exit status; everything else keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except GossipDbnError as error:
            notice(f"error: {error}")
            raise typer.Exit(exit_status(error)) from error
        except KeyboardInterrupt:
            notice("stopped")
            raise typer.Exit(INTERRUPTED) from None


def exit_status(error: GossipDbnError) -> int:
    """The exit status that stands for an error."""
    return next((status for kind, status in EXIT_STATUS if isinstance(error, kind)), 1)


def home_of(option: Path | None) -> Home:
    """The home of runs: the option, else the environment's."""
    from gossipdbn.config import Home, default_home

    return Home(option.expanduser().absolute()) if option else default_home(os.environ)


def terminal(json: Path | None = None) -> Console:
    """Standard output for people (standard error when JSON goes there): colour on a terminal, whole lines elsewhere."""
    aside = str(json) == "-"
    stream = sys.stderr if aside else sys.stdout
    return Console(highlight=False, stderr=aside, soft_wrap=not stream.isatty())


def notice(text: str) -> None:
    """One line on standard error."""
    typer.echo(text, err=True)


def write_json(target: Path | None, result: object) -> None:
    """Write a result where ``--json`` asks for it; raises ConfigError when that is impossible."""
    if target is None:
        return
    text = msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2) + b"\n"
    if str(target) == "-":
        sys.stdout.write(text.decode())
        return
    try:
        target.write_bytes(text)
    except OSError as error:
        raise ConfigError(f"--json: cannot write {target}: {error.strerror}") from error
