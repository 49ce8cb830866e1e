"""A standalone Spark cluster of our own for development and tests: a master and a worker on loopback, from PySpark."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self

from gossipdbn.embedded.java import find_java, spark_java_home
from gossipdbn.embedded.process import follow_parent, free_ports
from gossipdbn.errors import EmbeddedError

__all__ = ["SparkCluster"]

_READY_S_MAX = 60.0
_STOP_S_MAX = 15.0


class SparkCluster:
    """One master and one worker; both end when this process ends, however that happens.

    Parameters
    ----------
    work_dir : folder for logs and the executors' files.
    cores, memory_mb : what the worker offers to applications.
    """

    def __init__(self, work_dir: Path | str, cores: int = 4, memory_mb: int = 2048) -> None:
        self._folder, self._cores, self._memory_mb = Path(work_dir), cores, memory_mb
        self._processes: list[subprocess.Popen[bytes]] = []
        self._port = 0

    @property
    def master(self) -> str:
        """``spark://127.0.0.1:port``."""
        return f"spark://127.0.0.1:{self._port}"

    def start(self) -> Self:
        """Start both processes; returns when the master takes connections.

        Raises
        ------
        EmbeddedError : no PySpark, no Java, or the master does not come up: with the end of its log.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._port, master_web, worker_web = free_ports(3)
        here = ["--host", "127.0.0.1"]
        self._begin("master.Master", [*here, "--port", str(self._port), "--webui-port", str(master_web)])
        deadline = time.monotonic() + _READY_S_MAX
        while not _listens(self._port):
            if self._processes[0].poll() is not None or time.monotonic() > deadline:
                log = self._folder / "Master.log"
                self.stop()
                raise EmbeddedError(f"the Spark master did not start; the end of {log}:\n{log.read_text()[-1500:]}")
            time.sleep(0.1)
        offer = ["--cores", str(self._cores), "--memory", f"{self._memory_mb}m", "--webui-port", str(worker_web)]
        self._begin("worker.Worker", [*here, *offer, self.master])
        return self

    def stop(self) -> None:
        """End both, and what they started."""
        for process in reversed(self._processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(_STOP_S_MAX)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        self._processes.clear()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _begin(self, what: str, arguments: list[str]) -> None:
        spec = find_spec("pyspark")
        if spec is None or spec.origin is None:
            raise EmbeddedError("PySpark is not installed: pip install 'gossipdbn[spark]'")
        home = Path(spec.origin).parent
        environment = {
            **os.environ, "SPARK_HOME": str(home), "SPARK_SCALA_VERSION": "2.13", "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_WORKER_DIR": str(self._folder / "work"), "SPARK_DAEMON_MEMORY": "256m",
            "JAVA_HOME": str(spark_java_home(find_java())),
        }  # fmt: skip
        with (self._folder / f"{what.partition('.')[2]}.log").open("wb") as out:
            self._processes.append(
                subprocess.Popen(
                    [home / "bin" / "spark-class", f"org.apache.spark.deploy.{what}", *arguments],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True,
                    preexec_fn=follow_parent(os.getpid()),  # noqa: PLW1509 - two system calls, no locks
                )
            )  # fmt: skip


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
        return True
    return False
