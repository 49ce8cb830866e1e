"""A pytest plugin to test training jobs against real parts: a Kafka broker, worker processes, kills and pauses.

Enable it in ``conftest.py``::

    pytest_plugins = ["gossipdbn.testing"]

and write what should hold::

    def test_a_killed_worker_loses_nothing(gossip_run):
        run = gossip_run(hidden=(32,), phases=[PhaseSpec("cd", epochs=3, batch=20)], visible=64)
        run.feed_rows(rows)
        run.start_workers(2)
        run.wait_for(lambda f: f.ledger.updates > 20)
        run.kill_worker("w1")
        run.start_worker("w3")
        run.wait_until_finished()
        run.assert_exact_ledger()
        run.assert_replayable()

Fixtures
--------
gossip_broker : bootstrap address, for the whole test session: ``--gossip-bootstrap``, else a container of
    ``--gossip-image`` if that image is on this machine, else an embedded broker.
gossip_hdfs : URL of a fresh folder on an HDFS: ``--gossip-hdfs``, else an embedded one.
gossip_hdfs_server : the embedded :class:`~gossipdbn.embedded.hdfs.Hdfs` itself, whose parts a test may kill.
gossip_spark : master URL of a standalone Spark cluster with four cores: ``--gossip-spark``, else an embedded one.
gossip_run : a function that creates a run and returns a :class:`RunHarness`; everything it started is ended after the
    test, with the workers' logs in the report when the test failed.
"""

from __future__ import annotations

import contextlib
import itertools
import signal
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.stores import open_store
from gossipdbn.core.topics import run_names
from gossipdbn.core.values import Manifest
from gossipdbn.embedded.hdfs import Hdfs
from gossipdbn.embedded.provision import provide_broker
from gossipdbn.embedded.spark import SparkCluster
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.launch.children import Child, tail
from gossipdbn.launch.follow import Follower
from gossipdbn.launch.runs import create_run, request_stop, resume_run, software
from gossipdbn.models.spec import ModelSpec, PhaseSpec, VisibleUnits
from gossipdbn.ports import Log, Writer
from gossipdbn.replay.history import open_run
from gossipdbn.replay.spool import collect
from gossipdbn.replay.verify import Verification, divergence_text, verify
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import Shard, ShardSequence, dtype_code, encode_shard, make_shard, shard_id, slot_of
from gossipdbn.worker.control import load_control

__all__ = [
    "RunHarness",
    "cut_shards",
    "gossip_broker",
    "gossip_hdfs",
    "gossip_hdfs_server",
    "gossip_run",
    "gossip_spark",
]

_numbers = itertools.count(1)


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--gossip-bootstrap``, ``--gossip-image``, ``--gossip-hdfs``, ``--gossip-spark``: instead of embedded parts."""
    group = parser.getgroup("gossipdbn")
    group.addoption("--gossip-bootstrap", default="", metavar="HOST:PORT", help="Kafka brokers for the fixtures")
    group.addoption("--gossip-image", default="", metavar="IMAGE", help="Kafka image to start in a container instead")
    group.addoption("--gossip-hdfs", default="", metavar="URL", help="folder on an HDFS for the fixtures")
    group.addoption("--gossip-spark", default="", metavar="URL", help="master of a Spark cluster for the fixtures")


@pytest.fixture(scope="session")
def gossip_broker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The bootstrap address of a real broker."""
    address = str(request.config.getoption("--gossip-bootstrap"))
    image = str(request.config.getoption("--gossip-image"))
    with provide_broker(tmp_path_factory.mktemp("broker"), address=address, image=image) as broker:
        yield broker.bootstrap


@pytest.fixture(scope="session")
def gossip_hdfs_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """A real NameNode and DataNode; who breaks one of them restarts it. Skipped where the HDFS is somebody else's."""
    if request.config.getoption("--gossip-hdfs"):
        pytest.skip("the HDFS is given by --gossip-hdfs: its servers are not ours to start and stop")
    with Hdfs(tmp_path_factory.mktemp("hdfs"), die_with_parent=True) as hdfs:
        yield hdfs


@pytest.fixture(scope="session")
def gossip_spark(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Master URL of a Spark cluster."""
    given = str(request.config.getoption("--gossip-spark"))
    if given:
        yield given
        return
    with SparkCluster(tmp_path_factory.mktemp("spark")) as cluster:
        yield cluster.master


@pytest.fixture
def gossip_hdfs(request: pytest.FixtureRequest) -> str:
    """URL of a folder on HDFS that no other test uses, for ``gossip_run(store=...)``."""
    given = str(request.config.getoption("--gossip-hdfs"))
    root = given.rstrip("/") if given else request.getfixturevalue("gossip_hdfs_server").url
    return f"{root}/gossip-test-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def gossip_run(
    gossip_broker: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., RunHarness]]:
    """Create runs: ``gossip_run(visible=64, hidden=(32,), phases=[...], slots=4, ...)``."""
    made: list[RunHarness] = []

    def create(**options: Any) -> RunHarness:
        made.append(RunHarness(gossip_broker, tmp_path / f"run{len(made)}", name=request.node.name, **options))
        return made[-1]

    yield create
    for run in made:
        run.close()


def cut_shards(
    manifest: Manifest,
    values: NDArray[Any],
    labels: NDArray[np.int32] | None = None,
    shard_rows: int = 50,
    shards: int = 0,
    rows: int = 0,
) -> Iterator[Shard]:
    """Encoded rows [n, V] as the shards that a harness feeds, ``shards`` of them and ``rows`` rows before."""
    dtype = dtype_code(manifest.spec.visible_units)
    for number, first in enumerate(range(0, len(values), shard_rows), shards):
        part = values[first : first + shard_rows]
        names = None if labels is None else labels[first : first + shard_rows]
        yield make_shard(shard_id("test", number, rows + first, len(part)), part, names, dtype)


class RunHarness:
    """One run under test: feed it, work on it, break it, check it.

    Parameters
    ----------
    visible, hidden, visible_units, classes : the model. phases : the plan. slots : logical trainers.
    store : folder or URL of the snapshots; default a folder of the test's own.
    manifest : more fields of :class:`gossipdbn.core.values.Manifest` (``inline_bytes``, ``codec``, ``gate``, ...).
    settings : more operational settings, as a run's manifest keeps them.
    snapshot_every_s, session_timeout_ms : operational settings, short by default so that tests are quick.
    """

    def __init__(
        self,
        bootstrap: str,
        folder: Path,
        *,
        visible: int,
        hidden: Sequence[int],
        phases: Sequence[PhaseSpec],
        slots: int = 4,
        visible_units: VisibleUnits = "binary",
        classes: int = 0,
        name: str = "test",
        seed: int = 1,
        store: str = "",
        settings: Mapping[str, object] | None = None,
        snapshot_every_s: float = 1.0,
        session_timeout_ms: int = 3000,
        visible_mean: NDArray[np.float32] | None = None,
        **manifest: Any,
    ) -> None:
        self.folder, self.bootstrap = folder, bootstrap
        folder.mkdir(parents=True, exist_ok=True)
        safe = "".join(c if c.isalnum() else "-" for c in name)[:60]
        mean = np.full(visible, 0.5, np.float32) if visible_mean is None else visible_mean
        self.manifest = Manifest(
            run=f"{safe}-{time.time_ns() // 1_000_000}-{next(_numbers)}", slots=slots,
            spec=ModelSpec(visible, tuple(hidden), visible_units, classes), phases=tuple(phases), run_key=seed,
            visible_mean=mean.astype("<f4").tobytes(), versions=software(), numerics=NUMERICS,
            config={"store": store or str(folder / "store"), "snapshot_every_s": snapshot_every_s, "keep": 2,
                    "session_timeout_ms": session_timeout_ms, "memory_mb": 256, "linger_s": 0.2, **(settings or {})},
            created_ms=time.time_ns() // 1_000_000, **manifest,
        )  # fmt: skip
        self.run = self.manifest.run
        self.log: Log = KafkaLog(bootstrap)
        create_run(self.log, self.manifest)
        self.topics = run_names(self.run)
        self.store = open_store(store or str(folder / "store"))
        self.workers: dict[str, Child] = {}
        self._writer: Writer = self.log.writer()
        self._sequences = [ShardSequence() for _ in range(slots)]
        self._shards = 0
        self._rows_fed = 0
        self.follower = Follower(self.log, load_control(self.log, self.run, {}), self.store, {})

    def close(self) -> None:
        """End everything that was started."""
        for child in self.workers.values():
            if child.process is not None and child.alive:
                child.process.send_signal(signal.SIGCONT)
                child.process.kill()
            child.wait(5.0)
        self.follower.close()
        self._writer.close()
        self.log.close()

    # ---- rows -------------------------------------------------------------------------------------------------------
    def feed_rows(
        self, values: NDArray[Any], labels: NDArray[np.int32] | None = None, *, end: bool = True, shard_rows: int = 50
    ) -> None:
        """Put encoded rows [n, V] on the shards topic, and end marks if ``end``. Call it as often as rows come."""
        for shard in cut_shards(self.manifest, values, labels, shard_rows, self._shards, self._rows_fed):
            self._shards += 1
            slot = slot_of(shard.id, self.manifest.slots)
            self._sequences[slot].add(shard)
            self._writer.send(self.topics.shards, slot, envelope.seal(encode_shard(shard)))
        self._rows_fed += len(values)
        if end:
            for slot, sequence in enumerate(self._sequences):
                self._writer.send(self.topics.shards, slot, envelope.seal(encode_shard(sequence.end_mark())))
        assert self._writer.flush(30.0), self._writer.failure()

    # ---- workers ----------------------------------------------------------------------------------------------------
    def start_worker(self, name: str, *options: str) -> Child:
        """Start a worker process; ``options``: more of its command line (a later ``--bootstrap`` wins)."""
        arguments = ["worker", "--run", self.run, "--bootstrap", self.bootstrap, "--name", name, *options]
        child = Child(name, arguments, self.folder / f"{name}.log")
        self.workers[name] = child
        child.start()
        return child

    def start_workers(self, count: int, *options: str) -> None:
        """Start workers w1, w2, ..."""
        for i in range(1, count + 1):
            self.start_worker(f"w{i}", *options)

    def stop_worker(self, name: str, timeout_s: float = 30.0) -> None:
        """SIGTERM: it finishes its rounds, writes snapshots and leaves; waits for that."""
        self.workers[name].terminate()
        assert self.workers[name].wait(timeout_s), f"worker {name} did not leave\n{self.report()}"

    def kill_worker(self, name: str) -> None:
        """SIGKILL: no goodbye, no snapshot."""
        process = self.workers[name].process
        assert process is not None
        process.kill()
        process.wait()

    def pause_worker(self, name: str) -> None:
        """SIGSTOP: the process hangs with everything it has in its buffers."""
        process = self.workers[name].process
        assert process is not None
        process.send_signal(signal.SIGSTOP)

    def resume_worker(self, name: str) -> None:
        """SIGCONT."""
        process = self.workers[name].process
        assert process is not None
        process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """Ask all workers to flush, snapshot and leave, and wait for it."""
        request_stop(self.log, self.run, "the test")
        for child in self.workers.values():
            assert child.wait(30.0), self.report()

    def resume(self) -> None:
        """Let workers work again after ``stop``."""
        resume_run(self.log, self.run)

    # ---- waiting ----------------------------------------------------------------------------------------------------
    def wait_for(self, condition: Callable[[Follower], Any], timeout_s: float = 60.0) -> None:
        """Follow the run until ``condition`` holds; fails with the workers' logs at the timeout."""
        deadline = time.monotonic() + timeout_s
        while not condition(self.follower):
            self.follower.poll(0.05, time.monotonic())
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached within {timeout_s:.0f} s\n{self.report()}")

    def follow(self, seconds: float) -> None:
        """Let the run go on for a while."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.follower.poll(0.05, time.monotonic())

    def wait_until_finished(self, timeout_s: float = 120.0) -> None:
        """Follow the run to its end and wait for its workers to leave."""
        self.wait_for(lambda f: f.finished, timeout_s)
        for child in self.workers.values():
            if child.process is not None and child.process.poll() is None:
                child.wait(20.0)

    def report(self) -> str:
        """What is known: version, and the end of every worker's log."""
        lines = [f"version {self.follower.replica.version}, held {self.follower.held}"]
        for name, child in self.workers.items():
            lines += [f"--- {name} ({'alive' if child.alive else 'ended'})", tail(child.log, 15)]
        return "\n".join(lines)

    # ---- checks -----------------------------------------------------------------------------------------------------
    def assert_exact_ledger(self) -> None:
        """Every row was trained exactly as often as the plan says."""
        summary = self.follower.summary()
        assert summary.exact and summary.outstanding_rows == 0, (summary, self.report())

    def digests(self) -> dict[str, str]:
        """Final digest as each worker states it, and as the log gives it."""
        self.follower.catch_up(time.monotonic())
        return self.follower.digests()

    def assert_replayable(self, jobs: int = 1) -> Verification:
        """Copy the run's records, recompute every update of every slot from them and compare it byte for byte."""
        folder = self.folder / f"replay-{uuid.uuid4().hex[:8]}"
        collect(self.log, self.manifest, self.store, {}, folder)
        found = verify(open_run(folder, {}), jobs)
        reasons = [*(divergence_text(d) for d in found.divergences), *found.problems]
        assert found.identical, "\n".join(["the run does not replay to the same bytes", *reasons, self.report()])
        return found


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Add the workers' logs to the report of a failed test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" and report.failed:
        for value in getattr(item, "funcargs", {}).values():
            if isinstance(value, RunHarness):
                with contextlib.suppress(Exception):
                    report.sections.append(("gossipdbn workers", value.report()))
