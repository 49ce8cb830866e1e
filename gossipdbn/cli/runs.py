"""``gossipdbn train``, ``feed``, ``worker``, ``runs``, ``show``, ``status``, ``stop``: runs and their processes."""

from __future__ import annotations

import enum
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console

from gossipdbn.cli.doctor import trust_this_machine
from gossipdbn.cli.options import HomeOption, JsonOption, home_of, notice, terminal, write_json
from gossipdbn.errors import ConfigError, GossipDbnError

if TYPE_CHECKING:
    from gossipdbn.config import Home

BootstrapOption = Annotated[
    str,
    typer.Option(
        "--bootstrap", metavar="HOST:PORT", help="Kafka brokers.", envvar="GOSSIPDBN_BOOTSTRAP",
        show_default="the embedded broker of this home",
    ),
]  # fmt: skip
PrefixOption = Annotated[str, typer.Option("--prefix", help="Prefix of the topics' names, as configured for the run.")]
KeyFileOption = Annotated[
    Path | None, typer.Option("--key-file", help="Keys of signed runs (security.key_file).", dir_okay=False)
]
KeyIdOption = Annotated[int, typer.Option("--key-id", help="Key to sign with (security.key_id).", min=0)]
KafkaOption = Annotated[
    list[str] | None,
    typer.Option("--kafka", metavar="KEY=VALUE", help="Setting passed to librdkafka; may be repeated."),
]
ParentOption = Annotated[int, typer.Option("--with-parent", hidden=True)]


class Placement(enum.StrEnum):
    """Where the workers of ``train`` run."""

    LOCAL = "local"
    SPARK = "spark"


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    for command in (train, worker, feed, runs, show, status, stop):
        app.command()(command)


def _die_with(parent: int) -> None:
    """Be ended by the kernel when the launcher dies, however it dies."""
    if parent:
        from gossipdbn.embedded.process import follow_parent

        follow_parent(parent)()


def _log_lines(verbose: bool = False) -> None:
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    if verbose:
        logging.getLogger("gossipdbn").setLevel(logging.DEBUG)


def _pairs(option: str, settings: list[str] | None) -> dict[str, str]:
    pairs = [s.partition("=") for s in settings or []]
    for key, equals, _ in pairs:
        if not equals:
            raise ConfigError(f"{option} {key}: needed is KEY=VALUE")
    return {key: value for key, _, value in pairs}


def _keys(key_file: Path | None, key_id: int = 0) -> dict[int, bytes]:
    from gossipdbn.config import read_keys

    return read_keys(key_file, key_id) if key_file else {}


@contextmanager
def _cluster(home: Home, bootstrap: str) -> Iterator[str]:
    """An address: the given one, the running embedded broker's, or one started for this command."""
    from gossipdbn.launch.train import whose_broker

    with whose_broker(home, bootstrap, "", notice) as address:
        yield address


def train(
    config: Annotated[
        Path | None, typer.Argument(help="Configuration (TOML); see `gossipdbn config --explain`.", dir_okay=False)
    ] = None,
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers", help="Worker processes started here; 0 starts none.", min=0, show_default="run.workers"
        ),
    ] = None,
    resume: Annotated[str, typer.Option("--resume", metavar="RUN", help="Go on with a run that was stopped.")] = "",
    master: Annotated[
        str, typer.Option("--master", help="Spark master of the feed; with --placement spark, of the workers.")
    ] = "local[*]",
    placement: Annotated[
        Placement, typer.Option("--placement", help="Where workers run: processes here, or tasks of Spark.")
    ] = Placement.LOCAL,
    spark_conf: Annotated[
        list[str] | None,
        typer.Option("--spark-conf", metavar="KEY=VALUE", help="Spark setting for placed workers; may be repeated."),
    ] = None,
    ship: Annotated[bool, typer.Option("--ship", help="Give this package to the executors (--py-files).")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Lines instead of a live table.")] = False,
    json: JsonOption = None,
) -> None:
    """Train a deep belief network: broker, feed, workers, and the result, in one command.

    Starts an embedded Kafka broker (or uses `--bootstrap`), feeds the rows with Spark Structured Streaming, runs worker
    processes that exchange small updates over Kafka, shows progress, and ends with a model and a page.

    Ctrl-C stops cleanly: workers finish their round and write snapshots. Nothing is lost; go on with `--resume RUN`.

    Examples:

        gossipdbn train examples/mnist.toml

        gossipdbn train my.toml --bootstrap kafka1:9092 --workers 4 --json result.json

        gossipdbn train my.toml --bootstrap kafka1:9092 --placement spark --master spark://head:7077 --workers 16

        gossipdbn train --resume mnist-20250101-120000
    """
    from gossipdbn.config import load
    from gossipdbn.launch.placing import PlacementOptions
    from gossipdbn.launch.train import TrainOptions, load_remembered
    from gossipdbn.launch.train import train as run_training
    from gossipdbn.report.status import StatusDisplay
    from gossipdbn.worker.process import stop_on_signals

    where = home_of(home)
    if config is None and not resume:
        raise ConfigError("train: give a configuration file, or --resume RUN; `gossipdbn train --help` shows examples")
    if config is not None:
        settings, path = load(config), config
    else:
        settings, path = load_remembered(where, resume)
    for warning in settings.warnings():
        notice(f"warning: {warning}")
    options = TrainOptions(where, path, bootstrap, resume, workers, master)
    if placement is Placement.SPARK:
        placed = PlacementOptions(master, tuple(sorted(_pairs("--spark-conf", spark_conf).items())), ship)
        options = replace(options, spark_master="local[*]", placement=placed)
    with (
        stop_on_signals() as asked,
        StatusDisplay(sys.stderr if str(json) == "-" else None, plain=plain or None) as view,
    ):
        result = run_training(settings, options, asked, view)
    write_json(json, result)
    _tell(result, json)
    if result.state == "failed":
        raise typer.Exit(5)
    if result.state == "stopped":
        raise typer.Exit(130)


def _tell(r: Any, json: Path | None) -> None:
    out = terminal(json)
    ledger = r.ledger
    same = len(set(r.digests.values())) == 1
    out.print(f"\nrun {r.run}: {r.state}" + (f" - {r.failed}" if r.failed else ""))
    if r.test_error is not None:
        out.print(f"test error    {100 * r.test_error:.2f} % of {r.test_rows} rows never trained on")
    planned = f"{ledger.planned_rows:,}" if ledger.planned_rows is not None else "endless"
    out.print(
        f"ledger        {ledger.trained_rows:,} of {planned} rows trained"
        + (", each exactly as often as planned" if ledger.exact and not ledger.outstanding_rows else "")
        + (f", {ledger.outstanding_rows:,} outstanding" if ledger.outstanding_rows else "")
    )
    for problem in ledger.problems:
        out.print(f"              {problem}")
    out.print(
        f"updates       {r.updates:,} of {r.bytes_per_update / 1000:.1f} kB; {r.claims} claims, {r.voids} void records"
    )
    agree = "all equal" if same else "THEY DIFFER"
    out.print(f"digests       {agree}: " + ", ".join(f"{who} {d}" for who, d in r.digests.items()))
    out.print("time          " + ", ".join(f"{k.replace('_', ' ')} {v:.1f} s" for k, v in r.wall_seconds.items()))
    out.print(f"model         {r.model}\npage          {r.page}")
    if r.state == "stopped":
        out.print(f"\nGo on with:   gossipdbn train --resume {r.run}")
        return
    out.print(
        "\nTry next:     gossipdbn up, then train again: it starts faster, and while it trains\n"
        "              join a third worker:  gossipdbn worker --run RUN\n"
        "              kill one (kill -9 PID) and watch its slots move: nothing is lost\n"
        f"              look at the run:      gossipdbn show {r.run}"
    )


def worker(
    run: Annotated[str, typer.Option("--run", help="Run id, or its beginning.")],
    bootstrap: BootstrapOption = "",
    name: Annotated[str, typer.Option("--name", help="Name, unique among live workers.", show_default="host-pid")] = "",
    home: HomeOption = None,
    store: Annotated[str, typer.Option("--store", help="Snapshot store, if it is mounted elsewhere here.")] = "",
    wait: Annotated[
        float,
        typer.Option(
            "--wait", metavar="SECONDS", min=0.0, envvar="GOSSIPDBN_WAIT", show_default="0",
            help="How long to wait for a run that is not there yet, and for brokers that do not answer yet.",
        ),
    ] = 0.0,
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    key_id: KeyIdOption = 0,
    kafka: KafkaOption = None,
    json: JsonOption = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every round.")] = False,
    with_parent: ParentOption = 0,
) -> None:
    """Join a run as a worker: from anywhere, at any time.

    The slots of the run are spread over its live workers by a Kafka consumer group; this one gets its share, recovers
    their state from snapshots and the log, and trains on. Ctrl-C or SIGTERM leaves cleanly; SIGKILL loses nothing.

    Example:

        gossipdbn worker --run mnist-20250101-120000 --bootstrap kafka1:9092

        gossipdbn worker --run mnist --bootstrap kafka1:9092 --wait 600
    """
    _die_with(with_parent)
    _log_lines(verbose)
    trust_this_machine()
    from gossipdbn.adapters.kafka_log import KafkaLog
    from gossipdbn.launch.look import await_run
    from gossipdbn.worker.process import WorkerSpec, run_worker, stop_on_signals

    address = bootstrap or _running(home_of(home), run)
    keys, settings = _keys(key_file, key_id), _pairs("--kafka", kafka)
    with stop_on_signals() as asked:
        log = KafkaLog(address, kafka=settings)
        try:
            whole = await_run(log, run, prefix, keys, wait, notice, asked.wait)
        finally:
            log.close()
        known_as = name or f"{os.uname().nodename}-{os.getpid()}"
        result = run_worker(WorkerSpec(whole, address, known_as, prefix, store, key_id, keys, settings), asked)
    write_json(json, {**msgspec.to_builtins(result), "digest": f"{result.digest:016x}"})
    notice(f"worker {result.name}: {result.rounds} rounds, {result.rows} rows; digest {result.digest:016x}")


def _running(home: Home, run: str = "") -> str:
    """The cluster that a run was started on from here; else the embedded broker, if it runs."""
    from gossipdbn.embedded import broker as embedded

    state = embedded.running(home.broker)
    if elsewhere := _elsewhere(home, run):
        return elsewhere
    if state is None:
        raise ConfigError(f"no embedded broker runs in {home.broker}; `gossipdbn up` starts it, or give --bootstrap")
    return state.bootstrap


def _elsewhere(home: Home, run: str) -> str:
    """The user's own cluster that `train` noted for a run (by its id or its beginning); "" for others."""
    found = [p for p in home.runs.glob("*/run.json") if run and p.parent.name.startswith(run)]
    exact = [p for p in found if p.parent.name == run] or found
    if len(exact) != 1:
        return ""
    try:
        facts = msgspec.json.decode(exact[0].read_bytes(), type=dict[str, object])
    except (OSError, msgspec.MsgspecError):
        return ""
    return "" if facts.get("embedded") else str(facts.get("bootstrap", ""))


def feed(
    config: Annotated[Path, typer.Argument(help="Configuration with the [source] table.", dir_okay=False)],
    run: Annotated[str, typer.Option("--run", help="Run id.")],
    bootstrap: BootstrapOption = "",
    home: HomeOption = None,
    checkpoint: Annotated[
        str,
        typer.Option("--checkpoint", help="Folder or URL of Spark's checkpoint.", show_default="in the run's folder"),
    ] = "",
    master: Annotated[str, typer.Option("--master", help="Spark master.")] = "local[*]",
    json: JsonOption = None,
    with_parent: ParentOption = 0,
) -> None:
    """Feed a run's rows with Spark Structured Streaming: pack them into shards on its topic.

    Restarting on the same checkpoint goes on where it stopped; rows that Spark writes twice are recognised and count
    once. A bounded source ends with an end mark in every partition.

    Example:

        gossipdbn feed my.toml --run mnist-20250101-120000 --bootstrap kafka1:9092 --checkpoint hdfs://nn/feeds/mnist
    """
    _die_with(with_parent)
    _log_lines()
    from gossipdbn.config import load
    from gossipdbn.launch.feeding import feed_run
    from gossipdbn.launch.train import load_remembered
    from gossipdbn.worker.process import stop_on_signals

    where = home_of(home)
    address = bootstrap or _running(where, run)
    ours = config.absolute() == where.run(run).config.absolute()  # its relative paths start where it came from
    settings = load_remembered(where, run)[0] if ours else load(config)
    with stop_on_signals() as asked:
        result = feed_run(settings, where, run, address, checkpoint, master, asked, notice)
    write_json(json, result)


def runs(
    home: HomeOption = None, bootstrap: BootstrapOption = "", prefix: PrefixOption = "", json: JsonOption = None
) -> None:
    """List the runs of a cluster, newest first.

    Examples:

        gossipdbn runs

        gossipdbn runs --bootstrap kafka1:9092 --json -
    """
    out = terminal(json)
    with _cluster(home_of(home), bootstrap) as address:
        found = _list(address, prefix, out)
    write_json(json, found)


def _list(address: str, prefix: str, out: Console) -> list[Any]:
    """Print the runs of a cluster; returns them."""
    from gossipdbn.adapters.kafka_log import KafkaLog
    from gossipdbn.launch.runs import RunInfo, list_runs

    log = KafkaLog(address)
    try:
        found = list_runs(log, prefix)
    finally:
        log.close()
    for r in found:
        if isinstance(r, RunInfo):
            made = time.strftime("%Y-%m-%d %H:%M", time.gmtime(r.created_ms / 1000))
            out.print(f"{r.run:40s} {r.state:9s} {r.network:20s} {r.slots} slots  {made} UTC")
        else:
            out.print(f"{r[0]:40s} unreadable: {r[1]}")
    if not found:
        out.print(f"no runs on {address}")
    return [msgspec.to_builtins(r) for r in found]


def show(
    run: Annotated[str, typer.Argument(help="Run id, or its beginning.")],
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    json: JsonOption = None,
) -> None:
    """Show one run from its log: phase, rows, every slot, ledger and digest.

    Example:

        gossipdbn show mnist
    """
    from gossipdbn.launch.look import look

    where = home_of(home)
    with _cluster(where, bootstrap or _elsewhere(where, run)) as address:
        seen = look(address, run, prefix, _keys(key_file))
    write_json(json, seen.facts)
    terminal(json).print(seen.table)


def status(
    home: HomeOption = None, bootstrap: BootstrapOption = "", prefix: PrefixOption = "", json: JsonOption = None
) -> None:
    """What runs here: the embedded broker and HDFS, and the runs of the cluster; `show RUN` looks closer.

    Example:

        gossipdbn status
    """
    from gossipdbn.embedded import broker as embedded
    from gossipdbn.embedded import hdfs as embedded_hdfs

    where = home_of(home)
    state = embedded.running(where.broker)
    out = terminal(json)
    out.print(
        f"broker: {state.bootstrap} (process {state.pid})" if state else f"no embedded broker runs in {where.broker}"
    )
    files = embedded_hdfs.running(where.hdfs)
    if files:
        out.print(f"hdfs:   {files.url} (processes {files.namenode_pid} and {files.datanode_pid})")
    address = bootstrap or (state.bootstrap if state else "")
    found = _list(address, prefix, out) if address else []
    write_json(json, {"broker": state, "hdfs": files, "bootstrap": address, "runs": found})


def stop(
    run: Annotated[str, typer.Argument(help="Run id, or its beginning.")],
    home: HomeOption = None,
    bootstrap: BootstrapOption = "",
    prefix: PrefixOption = "",
    key_file: KeyFileOption = None,
    key_id: KeyIdOption = 0,
) -> None:
    """Ask all workers of a run to flush, snapshot and leave. `gossipdbn train --resume RUN` goes on.

    Example:

        gossipdbn stop mnist-20250101-120000
    """
    from gossipdbn.adapters.kafka_log import KafkaLog
    from gossipdbn.launch.look import find_run
    from gossipdbn.launch.runs import request_stop

    address = bootstrap or _running(home_of(home), run)
    log = KafkaLog(address)
    try:
        name = find_run(log, run, prefix)
        number = request_stop(log, name, f"stop from {os.uname().nodename}", prefix, key_id, _keys(key_file, key_id))
    except GossipDbnError:
        log.close()
        raise
    terminal().print(f"run {name}: stop request {number} is in the log; workers finish their rounds and leave")
