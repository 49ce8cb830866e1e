"""``gossipdbn up``, ``down``, ``prepare``: the embedded broker, and what is done once after installation."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from gossipdbn.cli.options import HomeOption, JsonOption, home_of, notice, terminal, write_json
from gossipdbn.embedded import broker


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(up)
    app.command()(down)
    app.command()(prepare)


def up(
    home: HomeOption = None,
    port: Annotated[
        int, typer.Option(help="Port on 127.0.0.1; 0 takes the one used before, or a free one.", min=0, max=65_535)
    ] = 0,
    json: JsonOption = None,
) -> None:
    """Start the embedded Kafka broker and leave it running.

    It is a real Apache Kafka broker on this machine's loopback, with its data in the home of runs. `train` starts one
    by itself where none runs; use `up` to keep one for several runs, `gossipdbn down` to stop it. Records stay.

    Example:

        gossipdbn up && gossipdbn train examples/mnist.toml
    """
    folder = home_of(home).broker
    state = broker.running(folder)
    if state is None:
        broker.Broker(folder, port, on_progress=notice).start()
        state = broker.running(folder)
    elif port not in (0, state.port):
        notice(f"the broker already runs on port {state.port}; stop it with `gossipdbn down` to choose another")
    if state is not None:
        terminal(json).print(f"broker: {state.bootstrap}  (process {state.pid}, data in {state.data_dir})")
        write_json(json, state)


def down(home: HomeOption = None) -> None:
    """Stop the embedded broker. Runs and their records stay; `up` or `train` continue with them.

    Example:

        gossipdbn down
    """
    folder = home_of(home).broker
    stopped = broker.stop(folder)
    terminal().print("broker stopped" if stopped else f"no embedded broker runs in {folder}")


def prepare() -> None:
    """Do now what the first run would do: fetch the Java parts, compile the kernels, record Spark's classes.

    Everything lands in caches of this user; running it again does nothing.

    Example:

        gossipdbn prepare
    """
    from gossipdbn.embedded import artifacts
    from gossipdbn.models import learners
    from gossipdbn.models.spec import ModelSpec, PhaseSpec
    from gossipdbn.spark.prepare import prepare as prepare_spark

    began = time.monotonic()
    artifacts.ensure(artifacts.KAFKA, notice)
    notice("compiling the kernels for this machine")
    phases = (PhaseSpec("cd"), PhaseSpec("cd", layer=1), PhaseSpec("backprop", optimizer="adam"))
    learners.warm(ModelSpec(8, (4, 4), "grey", 2), phases)
    prepare_spark(notice)
    terminal().print(f"prepared in {time.monotonic() - began:.0f} s")
