"""``gossipdbn up``, ``down``, ``prepare``: the embedded broker and HDFS, and what is done once after installation."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import typer

from gossipdbn.cli.options import HomeOption, JsonOption, home_of, notice, terminal, write_json


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command()(up)
    app.command()(down)
    app.command()(prepare)


HdfsOption = Annotated[bool, typer.Option("--hdfs", help="The embedded HDFS too.")]


def up(
    home: HomeOption = None,
    port: Annotated[
        int,
        typer.Option(help="The broker's port on 127.0.0.1; 0: the one used before, or a free one.", min=0, max=65_535),
    ] = 0,
    with_hdfs: HdfsOption = False,
    json: JsonOption = None,
) -> None:
    """Start the embedded Kafka broker, with `--hdfs` an HDFS beside it, and leave them running.

    Both are the real thing on this machine's loopback, with their data in the home of runs. `train` starts a broker by
    itself where none runs; use `up` to keep one for several runs, `gossipdbn down` to stop it. Records and files stay.
    HDFS is for development and tests of `snapshots.store = "hdfs://..."`: one NameNode, one DataNode, no copies.

    Examples:

        gossipdbn up && gossipdbn train examples/mnist.toml

        gossipdbn up --hdfs
    """
    from gossipdbn.embedded import broker, hdfs

    where = home_of(home)
    folder = where.broker
    state = broker.running(folder)
    if state is None:
        broker.Broker(folder, port, on_progress=notice).start()
        state = broker.running(folder)
    elif port not in (0, state.port):
        notice(f"the broker already runs on port {state.port}; stop it with `gossipdbn down` to choose another")
    files = hdfs.running(where.hdfs)
    if with_hdfs and files is None:
        hdfs.Hdfs(where.hdfs, on_progress=notice).start()
        files = hdfs.running(where.hdfs)
    out = terminal(json)
    if state is not None:
        out.print(f"broker: {state.bootstrap}  (process {state.pid}, data in {state.data_dir})")
    if files is not None:
        out.print(
            f"hdfs:   {files.url}  (processes {files.namenode_pid} and {files.datanode_pid}, in {files.work_dir})"
        )
    write_json(json, {"broker": state, "hdfs": files})


def down(home: HomeOption = None) -> None:
    """Stop the embedded broker, and the HDFS if one runs. Records and files stay; `up` or `train` go on with them.

    Example:

        gossipdbn down
    """
    from gossipdbn.embedded import broker, hdfs

    where = home_of(home)
    stopped = [name for name, part in (("broker", broker.stop(where.broker)), ("HDFS", hdfs.stop(where.hdfs))) if part]
    terminal().print(f"{' and '.join(stopped)} stopped" if stopped else f"no embedded broker runs in {where.broker}")


def prepare() -> None:
    """Do now what the first run would do: fetch the Java parts, compile the kernels, record Spark's classes.

    Everything lands in caches of this user; running it again does nothing.

    Example:

        gossipdbn prepare
    """
    from gossipdbn.embedded import artifacts
    from gossipdbn.kernels import tiers  # noqa: F401 - loading numba hides modules for a moment: before two threads run
    from gossipdbn.spark.prepare import prepare as prepare_spark

    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:  # beside the Java parts, which mostly wait: for files, for a JVM
        kernels = pool.submit(_compile_kernels)
        artifacts.ensure(artifacts.KAFKA, notice)
        prepare_spark(notice)
        if not kernels.done():
            notice("waiting for the kernels")
        kernels.result()
    terminal().print(f"prepared in {time.monotonic() - began:.0f} s")


def _compile_kernels() -> None:
    import numpy as np

    from gossipdbn.cli.doctor import trust_this_machine
    from gossipdbn.models import learners, reading
    from gossipdbn.models.spec import ModelSpec, PhaseSpec

    notice("compiling and testing the kernels for this machine")
    trust_this_machine()
    phases = (PhaseSpec("cd"), PhaseSpec("cd", layer=1), PhaseSpec("backprop", optimizer="adam"))
    spec, rows = ModelSpec(8, (4, 4), "grey", 2), np.zeros((2, 8), np.uint8)
    learners.warm(spec, phases)
    reading.reconstruct(spec, learners.initial_parameters(spec, 0, np.full(8, 0.5, np.float32)), rows)  # for the page
