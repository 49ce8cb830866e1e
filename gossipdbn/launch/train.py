"""``gossipdbn train``: broker, run, feed, workers, live view, and the result, in one call.

The launcher is only a convenience. It holds no state that training needs: the run is its log, the feed its checkpoint,
and workers go on without it wherever they were started by somebody else.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from gossipdbn.adapters.clock import SystemClock
from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.stores import open_store
from gossipdbn.config import Home, RunConfig, RunFolder, loads
from gossipdbn.config.keys import read_keys
from gossipdbn.core.values import Manifest
from gossipdbn.embedded import broker as embedded
from gossipdbn.errors import ConfigError, DataError, GossipDbnError
from gossipdbn.launch.children import Child, tail, words
from gossipdbn.launch.feeding import told_spread
from gossipdbn.launch.follow import Follower, rows_of_slots
from gossipdbn.launch.placing import PlacedWorkers, PlacementOptions
from gossipdbn.launch.result import TrainResult, finish
from gossipdbn.launch.runs import build_manifest, create_run, new_run_id, request_stop, resume_run
from gossipdbn.report.status import RunState, StatusDisplay
from gossipdbn.spark.feed import fit_source_schema
from gossipdbn.spark.placement import WorkerOrder
from gossipdbn.wire.envelope import Keyring
from gossipdbn.worker.control import Control, load_control
from gossipdbn.worker.process import run_settings

__all__ = ["TrainOptions", "kafka_of", "train", "whose_broker"]

STOP_S = 25.0
LAST_WORDS_S = 10.0
FEED_RESTART_S = 2.0


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """What the command line adds to a configuration.

    ``resume``: run id to go on with. ``bootstrap``: a cluster other than the configuration's. ``workers``: None = as
    configured. ``config_path``: the configuration's file, for the feed. ``spark_master``: for the feed.
    ``placement``: workers on Spark executors; None = processes here.
    """

    home: Home
    config_path: Path | None = None
    bootstrap: str = ""
    resume: str = ""
    workers: int | None = None
    spark_master: str = "local[*]"
    restart_workers: bool = True
    placement: PlacementOptions | None = None


@dataclass(slots=True)
class Session:
    """One ``train`` call while it runs."""

    options: TrainOptions
    config: RunConfig
    display: StatusDisplay
    started_s: float
    bootstrap: str
    log: KafkaLog
    keys: Keyring
    control: Control
    folder: RunFolder
    children: dict[str, Child] = field(default_factory=dict)
    wall: dict[str, float] = field(default_factory=dict)
    feed_again_s: float | None = None
    first_update_s: float | None = None
    placed: PlacedWorkers | None = None


def kafka_of(config: RunConfig) -> dict[str, str]:
    """librdkafka's settings of a configuration."""
    return dict(config.broker.options)


def keys_of(config: RunConfig) -> Keyring:
    """The keyring of a configuration; empty without a key file."""
    security = config.security
    return read_keys(security.key_file, security.key_id) if security.key_file else {}


@contextlib.contextmanager
def whose_broker(home: Home, wanted: str, data_dir: str, say: Callable[[str], None]) -> Iterator[str]:
    """The bootstrap address: the user's cluster, a running embedded broker, or one that lives as long as this block."""
    if wanted:
        yield wanted
        return
    folder = Path(data_dir) if data_dir else home.broker
    state = embedded.running(folder)
    if state is not None:
        yield state.bootstrap
        return
    with embedded.Broker(folder, die_with_parent=True, on_progress=say) as broker:
        yield broker.bootstrap


def train(config: RunConfig, options: TrainOptions, stop: threading.Event, display: StatusDisplay) -> TrainResult:
    """Train a run to its end, or until ``stop`` is set; returns what came of it.

    Raises
    ------
    ConfigError, DataError, LogError, EmbeddedError, StoreError : see the message; nothing that was trained is lost.
    """
    started = time.monotonic()
    wanted = options.bootstrap or config.broker.bootstrap
    with ThreadPoolExecutor(1) as pool:
        fit = None
        if not options.resume and config.source.kind != "kafka":
            fit = pool.submit(fit_source_schema, config.source, config.schema)
        with whose_broker(options.home, wanted, config.broker.data_dir, display.say) as bootstrap:
            log = KafkaLog(bootstrap, kafka=kafka_of(config))
            keys = keys_of(config)
            if options.resume:
                control = resume_run(log, options.resume, config.broker.prefix, config.security.key_id, keys)
            else:
                schema = fit.result() if fit else fit_source_schema(config.source, config.schema, bootstrap)
                run = new_run_id(config.run.name, SystemClock().wall_ms())
                folder = options.home.run(run)
                store = config.snapshots.store or str(folder.snapshots)
                manifest = build_manifest(config, schema, run, store, SystemClock().wall_ms())
                create_run(log, manifest, config.broker.prefix, config.security.key_id, keys)
                control = load_control(log, run, keys, config.broker.prefix)
            folder = options.home.run(control.run)
            _remember(config, options, folder, control, bootstrap)
            session = Session(options, config, display, started, bootstrap, log, keys, control, folder)
            session.wall["start"] = time.monotonic() - started
            try:
                return _run(session, stop)
            finally:
                _end_children(session)
                log.close()


def _remember(config: RunConfig, options: TrainOptions, folder: RunFolder, control: Control, bootstrap: str) -> None:
    """Keep the configuration and the broker's address beside the run, for resume and other commands."""
    folder.path.mkdir(parents=True, exist_ok=True)
    if config.text and not folder.config.exists():
        folder.config.write_text(config.text)
    origin = str(options.config_path.absolute().parent) if options.config_path else ""
    facts = {"run": control.run, "bootstrap": bootstrap, "prefix": config.broker.prefix, "config_folder": origin,
             "embedded": not (options.bootstrap or config.broker.bootstrap)}  # fmt: skip
    if not folder.facts.exists():
        folder.facts.write_bytes(msgspec.json.encode(facts))


def load_remembered(home: Home, run: str) -> tuple[RunConfig, Path]:
    """The configuration a run was started with on this machine, and its path; ConfigError when it is not here."""
    folder = home.run(run)
    try:
        text = folder.config.read_text()
        origin = msgspec.json.decode(folder.facts.read_bytes(), type=dict[str, object])["config_folder"]
    except (OSError, KeyError, msgspec.MsgspecError) as error:
        raise ConfigError(f"run {run} was not started in {home.path}: give its configuration file too") from error
    folder_of = Path(str(origin)) if origin else folder.path
    return loads(text, folder=folder_of, name=f"configuration of run {run}"), folder.config


# ---- the run --------------------------------------------------------------------------------------------------------
def _run(s: Session, stop: threading.Event) -> TrainResult:
    store = open_store(str(run_settings(_manifest(s))["store"]))
    follower = Follower(s.log, s.control, store, s.keys, s.config.broker.prefix)
    try:
        s.display.say(f"run {s.control.run}: broker {s.bootstrap}, files in {s.folder.path}")
        follower.summary()
        if any(r is None for r in follower.rows.values()):
            _child(s, "feed", _feed_arguments(s)).start()
        workers = s.options.workers if s.options.workers is not None else s.config.run.workers
        if s.options.placement is not None:
            s.placed = _place(s, s.options.placement, max(1, workers))
        else:
            for i in range(1, workers + 1):
                _child(s, f"w{i}", _worker_arguments(s, f"w{i}")).start()
        stopped = _watch(s, follower, stop)
        if stopped:
            _stop_all(s, follower)
        else:
            for child in s.children.values():
                child.wait(STOP_S)
            if s.placed is not None:
                s.placed.wait(STOP_S)
        follower.catch_up(time.monotonic())
        if not stopped:
            _await_last_words(follower, s.children)
        return finish(
            config=s.config, follower=follower, folder=s.folder, stopped=stopped, wall=s.wall, started_s=s.started_s,
            bootstrap=s.bootstrap, say=s.display.say,
        )  # fmt: skip
    finally:
        follower.close()


def _await_last_words(follower: Follower, ours: Container[str]) -> None:
    """Workers elsewhere say what they hold when they leave, soon after the last update. ``ours`` have left already.

    One that left for good before the end, its slots closed, says no more: it is waited for in vain.
    """
    owners = {c.worker.partition("#")[0] for c in follower.replica.chains[:-1]}
    elsewhere = {name for name in owners if name and name not in ours}
    until_s = time.monotonic() + LAST_WORDS_S
    while elsewhere - follower.level().keys() and time.monotonic() < until_s:
        follower.poll(0.2, time.monotonic())


def _place(s: Session, options: PlacementOptions, workers: int) -> PlacedWorkers:
    c = s.config
    store = str(run_settings(_manifest(s))["store"])
    if "://" not in store:
        s.display.say(
            f"snapshots go to the folder {store}: every executor must reach it, or use an hdfs:// or s3:// store"
        )
    order = WorkerOrder(
        s.control.run, s.bootstrap, prefix=c.broker.prefix, key_file=c.security.key_file, key_id=c.security.key_id,
        kafka=dict(c.broker.options),
    )  # fmt: skip
    return PlacedWorkers(options, order, workers, s.folder.path, s.display.say)


def _manifest(s: Session) -> Manifest:
    assert s.control.manifest is not None
    return s.control.manifest


def _child(s: Session, name: str, arguments: list[str]) -> Child:
    s.children[name] = Child(name, arguments, s.folder.logs / f"{name}.log")
    return s.children[name]


def _common(s: Session) -> list[str]:
    c = s.config
    arguments = ["--run", s.control.run, "--bootstrap", s.bootstrap]
    if c.broker.prefix:
        arguments += ["--prefix", c.broker.prefix]
    if c.security.key_file:
        arguments += ["--key-file", c.security.key_file, "--key-id", str(c.security.key_id)]
    return arguments


def _worker_arguments(s: Session, name: str) -> list[str]:
    arguments = ["worker", *_common(s), "--name", name]
    for key, value in s.config.broker.options:
        arguments += ["--kafka", f"{key}={value}"]
    return arguments


def _feed_arguments(s: Session) -> list[str]:
    config = s.options.config_path if s.options.config_path is not None else s.folder.config
    return ["feed", str(config), "--run", s.control.run, "--bootstrap", s.bootstrap, "--home", str(s.options.home.path),
            "--master", s.options.spark_master]  # fmt: skip


def _watch(s: Session, follower: Follower, stop: threading.Event) -> bool:
    """Follow the run until it is finished (False) or shall stop (True); restarts children that die."""
    training_from = time.monotonic()
    while not follower.finished:
        if stop.is_set() or s.control.stop:
            s.wall["training"] = time.monotonic() - training_from
            return True
        now = time.monotonic()
        follower.poll(0.2, now)
        if s.first_update_s is None and follower.ledger.updates:
            s.first_update_s = now - s.started_s
            s.wall["first_update"] = s.first_update_s
        _look_after(s, now)
        if s.placed is not None and s.placed.done:
            follower.catch_up(now)
            if not follower.replica.finished and not s.control.stop:
                why = s.placed.failure or "they left before the end"
                raise GossipDbnError(f"the workers on Spark are gone: {why}")
        if follower.rows and any(r is None for r in follower.rows.values()) and "feed" not in _alive(s):
            follower.summary()
        state, waits = _said_of(bool(follower.ledger.updates), "feed" in _alive(s))
        alive = tuple(f"{n} ({c.pid})" for n, c in s.children.items() if n != "feed" and c.alive)
        alive += ("on Spark",) if s.placed is not None and not s.placed.done else ()
        s.display.show(follower.view(state, now - s.started_s, now, alive, waits))
    s.wall["training"] = time.monotonic() - training_from
    return False


def _alive(s: Session) -> set[str]:
    return {n for n, c in s.children.items() if c.alive}


def _said_of(trains: bool, feeds: bool) -> tuple[RunState, tuple[str, ...]]:
    """What the run is doing, and what it waits for before its first update."""
    if trains:
        return "training", ()
    if feeds:
        return "feeding", ("Spark starts and packs the first rows",)
    return "starting", ("workers load the kernels; the first run on a machine compiles them, a minute or two",)


def _look_after(s: Session, now: float) -> None:
    """Say when a process died; start it again."""
    for name, child in s.children.items():
        code = child.died()
        if code is None:
            continue
        if name == "feed":
            _feed_ended(s, child, code, now)
        elif code != 0:
            _worker_died(s, child, code)
    feed = s.children.get("feed")
    if feed is not None and s.feed_again_s is not None and now >= s.feed_again_s:
        s.feed_again_s = None
        feed.restart()


def _feed_ended(s: Session, child: Child, code: int, now: float) -> None:
    if code == 0:
        s.wall["feed"] = now - s.started_s
        s.display.say("feed: all rows are in the log")
        assert s.control.manifest is not None
        rows = rows_of_slots(s.log, s.control.manifest, s.keys, s.config.broker.prefix)
        told_spread([n or 0 for n in rows.values()], s.display.say)
        return
    if code in (2, 3):
        raise DataError(f"the feed stopped: {tail(child.log, 4)}")
    if child.hopeless:
        raise GossipDbnError(f"the feed {words(code)} again and again; its log is {child.log}:\n{tail(child.log)}")
    s.display.say(f"feed {words(code)}; it goes on from its checkpoint")
    s.feed_again_s = now + FEED_RESTART_S


def _worker_died(s: Session, child: Child, code: int) -> None:
    if not s.options.restart_workers:
        s.display.say(f"worker {child.name} {words(code)}; its slots go to the others")
        return
    if child.hopeless:
        raise GossipDbnError(
            f"worker {child.name} {words(code)} again and again; its log is {child.log}:\n{tail(child.log)}"
        )
    s.display.say(f"worker {child.name} {words(code)}; nothing is lost: a new one takes its slots and recomputes")
    child.restart()


def _stop_all(s: Session, follower: Follower) -> None:
    """Flush, snapshot, leave: ask over the log, so that workers started elsewhere stop too; then end what is ours."""
    s.display.say("stopping: workers finish their rounds and write snapshots")
    if not s.control.stop:
        by = "the launcher"
        request_stop(s.log, s.control.run, by, s.config.broker.prefix, s.config.security.key_id, s.keys)
    for child in s.children.values():
        child.terminate()
    deadline = time.monotonic() + STOP_S
    while _any_left(s) and time.monotonic() < deadline:
        follower.poll(0.2, time.monotonic())


def _any_left(s: Session) -> bool:
    return any(c.alive for c in s.children.values()) or (s.placed is not None and not s.placed.done)


def _end_children(s: Session) -> None:
    if s.placed is not None:
        s.placed.close()
    for child in s.children.values():
        child.terminate()
    for child in s.children.values():
        child.wait(5.0)
