"""``gossipdbn doctor``: what this machine can do, and whether it computes right."""

from __future__ import annotations

import subprocess
import time

import typer

from gossipdbn.cli.options import JsonOption, notice, terminal, write_json
from gossipdbn.errors import EmbeddedError, GossipDbnError


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(doctor)


def trust_this_machine() -> None:
    """Run the kernels' self-test in a child process, once for each machine and version; falls back or raises."""
    from gossipdbn.kernels import doctor as kernels

    problem = kernels.ensure_trusted(lambda command: subprocess.run(command, check=False).returncode)
    if problem:
        raise EmbeddedError(problem)


def doctor(json: JsonOption = None) -> None:
    """Examine this machine: CPU features, the tier of kernels that is used, a self-test, measured rates, Java.

    The self-test trains small layers and compares every bit with the known result. Exit status 5 when it fails.

    Example:

        gossipdbn doctor
    """
    from gossipdbn.embedded.java import find_java
    from gossipdbn.kernels.doctor import examine

    trust_this_machine()
    found = examine(time.perf_counter)
    out = terminal(json)
    out.print(f"numerics    {found.numerics}")
    out.print(f"tier        {found.tier}  (kernels cached in {found.cache})")
    out.print(f"features    {' '.join(found.features)}")
    out.print(f"self-test   {'passed, to the bit' if found.passed else 'FAILED: ' + found.digest}")
    out.print(f"CD-1        {found.cd1_rows_per_s:,.0f} rows/s (784 x 500, 100 rows a minibatch, one thread)")
    out.print(
        f"update      encoded in {found.encode_us:.0f} us, checked and applied in {found.apply_us:.0f} us (784 x 500)"
    )
    try:
        java = find_java()
        out.print(f"java        {java.version} from {java.source}: {java.executable}")
    except GossipDbnError as error:
        notice(f"java        none: {error}")
    write_json(json, found)
    if not found.passed:
        raise typer.Exit(5)
