"""Workers on Spark executors: plain long tasks, each with one worker process that hosts slots.

No barrier stage: a task that dies is started again by Spark, alone, and the log fences what is left of the old one. The
worker is a process of its own beside Spark's Python worker; the kernel kills it when that one dies (cancelled, lost,
shot), so nothing outlives its task. Tasks wait for free cores like any others: executors that come later (dynamic
allocation) bring workers into the running run, executors that go take theirs away.

An interpreter with gossipdbn on the executors is Spark's business as usual: a packed environment
(``spark.archives`` and ``PYSPARK_PYTHON``), the same virtual environment on every machine, or ``package_zip`` given to
``--py-files`` where only gossipdbn itself is missing there.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
import zipfile
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from gossipdbn.embedded.java import cache_folder
from gossipdbn.embedded.process import follow_parent
from gossipdbn.errors import ConfigError, GossipDbnError

__all__ = ["PLACEMENT_SETTINGS", "Placement", "WorkerOrder", "package_zip", "place_workers"]

PLACEMENT_SETTINGS = {
    "spark.task.maxFailures": "1000",  # a worker that died is started again, however often
    "spark.python.task.killTimeout": "500ms",
    "spark.speculation": "false",  # a long task is not a slow one
    "spark.executor.heartbeatInterval": "2s",
    "spark.network.timeout": "60s",
}
"""Settings for a Spark application that places workers; ``open_session(extra=...)`` takes them."""

_HOPELESS = (2, 3)  # exit status of wrong configuration or data: starting again does not help
_TAIL_LINES = 15


@dataclass(frozen=True, slots=True)
class WorkerOrder:
    """What every placed worker is told; see ``gossipdbn worker --help``.

    ``name``: start of the workers' names; the placement and the task are added. ``key_file``: a path on the executors.
    ``environment``: variables for the worker processes.
    """

    run: str
    bootstrap: str
    name: str = "spark"
    prefix: str = ""
    store: str = ""
    key_file: str = ""
    key_id: int = 0
    kafka: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def arguments(self, number: int) -> list[str]:
        """Command line of the worker in task ``number``."""
        found = ["worker", "--run", self.run, "--bootstrap", self.bootstrap, "--name", f"{self.name}-{number}"]
        for option, value in (("--prefix", self.prefix), ("--store", self.store), ("--key-file", self.key_file)):
            found += [option, value] if value else []
        found += ["--key-id", str(self.key_id)] if self.key_id else []
        for key, value in self.kafka.items():
            found += ["--kafka", f"{key}={value}"]
        return found


def place_workers(spark: Any, order: WorkerOrder, workers: int = 0) -> Placement:
    """Start workers as tasks of a Spark application; returns at once.

    Call it again for more of them; a task that is started again takes its worker's name, and so its slots, over.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession, or its SparkContext, with ``PLACEMENT_SETTINGS`` or better.
    workers : tasks of one core (``spark.task.cpus``) each; 0 = one per core that Spark has now.

    Raises
    ------
    ConfigError : speculation is on: Spark would start a second copy of each long task and the two would fence each
        other.
    """
    context = getattr(spark, "sparkContext", spark)
    if context.getConf().get("spark.speculation", "false").lower() == "true":
        raise ConfigError("spark.speculation is on: long tasks look slow to it. Turn it off to place workers")
    return Placement(context, order, workers or int(context.defaultParallelism))


class Placement:
    """Workers that Spark runs.

    Attributes
    ----------
    results : what each worker wrote at its end (``gossipdbn worker --json``), once ``done``.
    """

    def __init__(self, context: Any, order: WorkerOrder, workers: int) -> None:
        self.workers = workers
        self.results: list[dict[str, Any]] = []
        self._context, self._failure, self._cancelled = context, "", False
        self._group = f"gossipdbn-{uuid.uuid4().hex}"
        order = replace(order, name=f"{order.name}-{self._group[-4:]}")
        self._done = threading.Event()
        task = partial(_host, json.dumps(asdict(order)))
        self._thread = threading.Thread(target=self._run, args=(task, order.run), name="placement", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """All tasks have ended, or the job failed or was cancelled."""
        return self._done.is_set()

    @property
    def failure(self) -> str:
        """Why the job failed, with the end of the worker's log; "" while it runs, ended well or was cancelled."""
        return self._failure

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until all workers have left; False at the timeout."""
        return self._done.wait(timeout_s)

    def cancel(self, timeout_s: float = 5.0) -> bool:
        """End all workers at once, as a crash would: nothing is lost, whoever resumes recomputes. False: not in time.

        For a clean leave (rounds finished, snapshots written) ask over the log: ``gossipdbn stop RUN``.
        """
        self._cancelled = True
        deadline = time.monotonic() + timeout_s
        while not self._done.is_set() and time.monotonic() < deadline:
            self._context.cancelJobGroup(self._group)  # again: the job may not have begun at the first call
            self._done.wait(0.2)
        return self._done.is_set()

    def _run(self, task: Any, run: str) -> None:
        try:
            self._context.setJobGroup(self._group, f"gossipdbn workers of run {run}", interruptOnCancel=True)
            numbers = self._context.parallelize(range(self.workers), self.workers)
            found = numbers.mapPartitionsWithIndex(task).collect()
            self.results = [json.loads(text) for text in found]
            self._failure = next((r["error"] for r in self.results if "error" in r), "")
        except Exception as error:  # noqa: BLE001 - Py4J's errors have no common base worth naming; kept for the caller
            if not self._cancelled:
                self._failure = _cause(str(error))
        finally:
            self._done.set()


def _cause(text: str) -> str:
    """The part of Spark's long message that says what happened in the task."""
    lines = [line.strip() for line in text.splitlines()]
    marked = [i for i, line in enumerate(lines) if "RuntimeError:" in line]
    if marked:
        return "\n".join(lines[marked[0] : marked[0] + _TAIL_LINES])
    return "\n".join(lines[:5])[:2000]


def package_zip(folder: Path) -> Path:
    """The installed package as ``gossipdbn.zip`` in ``folder``, for ``--py-files`` or ``SparkContext.addPyFile``."""
    import gossipdbn

    root = Path(str(gossipdbn.__file__)).parent
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "gossipdbn.zip"
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
            for path in sorted(root.rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    archive.write(path, Path("gossipdbn") / path.relative_to(root))
    except OSError as error:
        raise GossipDbnError(f"cannot write {target}: {error.strerror}") from error
    return target


# ---- in the executor's Python worker --------------------------------------------------------------------------------
def _host(order_json: str, number: int, _rows: Iterator[int]) -> Iterator[str]:
    """One task: run a worker process to its end."""
    order = WorkerOrder(**json.loads(order_json))
    lines: deque[str] = deque(maxlen=_TAIL_LINES)
    process = subprocess.Popen(
        [sys.executable, "-m", "gossipdbn", *order.arguments(number), "--json", "-"],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, errors="replace",
        env={**os.environ, **_python_path(), **order.environment},
        preexec_fn=follow_parent(os.getpid(), signal.SIGKILL),  # noqa: PLW1509 - a Python worker's main thread
    )  # fmt: skip
    try:
        assert process.stderr is not None and process.stdout is not None
        reader = threading.Thread(target=_forward, args=(process.stderr, lines), daemon=True)
        reader.start()
        answer = process.stdout.read()
        code = process.wait()
        reader.join(2.0)
    finally:
        process.kill()
        process.wait()
    if code in _HOPELESS:
        yield json.dumps({"name": f"{order.name}-{number}", "error": "\n".join(lines)})
        return
    if code != 0:
        raise RuntimeError(f"worker {order.name}-{number} ended with status {code}:\n" + "\n".join(lines))
    yield answer


def _forward(stream: IO[str], lines: deque[str]) -> None:
    """The worker's log goes to the executor's; its end is kept for the driver."""
    for line in stream:
        lines.append(line.rstrip())
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(line)
            sys.stderr.flush()


def _python_path() -> dict[str, str]:
    """What Spark put on this process's path (``--py-files``), for the child."""
    from pyspark import SparkFiles

    root = SparkFiles.getRootDirectory()
    shipped = [_unpacked(path) for path in sys.path if path.startswith(root)]
    inherited = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([*shipped, *([inherited] if inherited else [])])}


def _unpacked(path: str) -> str:
    """A shipped gossipdbn as a folder that is the same for all tasks and applications of its version.

    Compiled kernels are kept by where their source lies, and Spark puts each application's zip into a new place.
    """
    if not zipfile.is_zipfile(path):
        return path
    with zipfile.ZipFile(path) as archive:
        digest = hashlib.sha256(b"".join(name.encode() + archive.read(name) for name in sorted(archive.namelist())))
    folder = cache_folder() / "shipped" / digest.hexdigest()[:16]
    with zipfile.ZipFile(path) as archive, contextlib.suppress(OSError):  # no place to write: the zip will do
        if not folder.is_dir() and "gossipdbn/__init__.py" in archive.namelist():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent, ignore_cleanup_errors=True) as staging:
                archive.extractall(Path(staging) / "new")
                (Path(staging) / "new").rename(folder)  # fails where another task was faster, which is as good
    return str(folder) if folder.is_dir() else path
