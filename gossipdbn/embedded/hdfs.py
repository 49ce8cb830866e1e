"""A real HDFS of our own for development and tests: a NameNode and a DataNode on loopback, durable in one folder."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from xml.sax.saxutils import escape

from gossipdbn.embedded import artifacts
from gossipdbn.embedded.java import find_java
from gossipdbn.embedded.process import JavaProcess, Workspace, end_process, free_ports
from gossipdbn.errors import EmbeddedError

__all__ = ["Hdfs", "HdfsState", "running", "stop"]

_SERVICE = "hdfs"
_READY_S_MAX = 90.0
_STOP_S_MAX = 15.0
_PORT_TRIES = 5
_PORTS = ("NN", "NNHTTP", "DN", "DNHTTP", "DNIPC")
_MAIN = {
    "namenode": "org.apache.hadoop.hdfs.server.namenode.NameNode",
    "datanode": "org.apache.hadoop.hdfs.server.datanode.DataNode",
}
_OPENED = (
    "java.io", "java.lang", "java.lang.reflect", "java.math", "java.net", "java.nio", "java.text", "java.util",
    "java.util.concurrent", "java.util.zip", "sun.nio.ch",
)  # fmt: skip
_FLAGS = (
    "-Xms64m",
    "-Xmx256m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-Djava.net.preferIPv4Stack=true",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    *(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in _OPENED),
    "--add-exports=java.base/sun.security.util=ALL-UNNAMED",
    "--add-exports=java.base/sun.security.x509=ALL-UNNAMED",
)


@dataclass(frozen=True, slots=True)
class HdfsState:
    """A running embedded HDFS: its address, its processes and its folder."""

    url: str
    namenode_pid: int
    datanode_pid: int
    work_dir: Path
    started_ms: int


def running(work_dir: Path | str) -> HdfsState | None:
    """The HDFS that runs in ``work_dir``, whoever started it, or None."""
    space = Workspace(Path(work_dir), _SERVICE)
    state = space.read_state() if space.in_use() else None
    if state is None:
        return None
    try:
        return HdfsState(
            url=f"hdfs://127.0.0.1:{int(state['ports']['NN'])}",
            namenode_pid=int(state["pids"]["namenode"]),
            datanode_pid=int(state["pids"]["datanode"]),
            work_dir=space.folder,
            started_ms=int(state["started_ms"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def stop(work_dir: Path | str, timeout_s: float = _STOP_S_MAX) -> bool:
    """Stop the HDFS that runs in ``work_dir``; False when there was none."""
    state = running(work_dir)
    if state is None:
        return False
    space = Workspace(Path(work_dir), _SERVICE)
    for pid in (state.datanode_pid, state.namenode_pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in (state.datanode_pid, state.namenode_pid):
        end_process(pid, lambda pid=pid: not _exists(pid) or not space.in_use(), timeout_s)  # type: ignore[misc]
    if space.in_use():
        raise EmbeddedError(f"the HDFS in {work_dir} does not end; see the logs there")
    return True


class Hdfs:
    """One embedded HDFS.

    Parameters
    ----------
    work_dir
        Folder for everything it writes; a folder used before is continued.
    die_with_parent
        End it when this process ends, however that happens (Linux).
    cache, ivy_settings
        See :func:`gossipdbn.embedded.artifacts.ensure`.
    on_progress
        Called with a line of text now and then.
    """

    def __init__(
        self,
        work_dir: Path | str,
        *,
        die_with_parent: bool = False,
        cache: Path | None = None,
        ivy_settings: Path | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._space = Workspace(Path(work_dir), _SERVICE)
        self._die_with_parent = die_with_parent
        self._cache = cache
        self._ivy_settings = ivy_settings
        self._tell = on_progress or (lambda _line: None)
        self._processes: dict[str, JavaProcess] = {}
        self._ports: dict[str, int] = {}
        self._command: list[str] = []

    @property
    def url(self) -> str:
        """``hdfs://127.0.0.1:port``, the root of the file system."""
        if not self._ports:
            raise EmbeddedError(f"the HDFS of {self._space.folder} has not been started")
        return f"hdfs://127.0.0.1:{self._ports['NN']}"

    @property
    def bootstrap(self) -> str:
        """The same as :attr:`url`, under the name a broker's address has."""
        return self.url

    @property
    def http(self) -> str:
        """Address of the NameNode's web server (WebHDFS, metrics)."""
        return f"http://127.0.0.1:{self._ports['NNHTTP']}"

    def start(self, timeout_s: float = _READY_S_MAX) -> Self:
        """Start both processes and wait until files can be written.

        Raises
        ------
        EmbeddedError
            Folder in use, no permission, disk full, no Java, jars not to be had, or a process ended: with its log.
        """
        if self._processes:
            return self
        self._space.prepare()
        java = find_java()
        folder = artifacts.ensure(
            artifacts.HDFS, self._tell, cache=self._cache, ivy_settings=self._ivy_settings, java=java
        )
        began = time.monotonic()
        try:
            conf = self._space.folder / "conf"
            for name in ("hdfs", "datanode"):
                (conf / "webapps" / name).mkdir(parents=True, exist_ok=True)  # the jar lacks them, the servers look
            paths = [str(conf), *map(str, artifacts.jars(artifacts.HDFS, folder))]
            self._command = [str(java.executable), *_FLAGS, "-cp", os.pathsep.join(paths)]
            with self._space.hold() as lock:
                self._launch(lock, began + timeout_s)
        except OSError as error:
            self._abandon()
            raise self._space.disk_error(error) from error
        except BaseException:
            self._abandon()
            raise
        self._tell(f"HDFS ready on {self.url} after {time.monotonic() - began:.1f} s")
        return self

    def stop(self, timeout_s: float = _STOP_S_MAX) -> None:
        """Stop both processes in order."""
        for process in self._processes.values():
            process.signal(signal.SIGTERM)
        for process in self._processes.values():
            process.stop(timeout_s)
        self._abandon()

    def kill(self, part: str) -> None:
        """End ``"namenode"`` or ``"datanode"`` at once (SIGKILL), as a crash would."""
        process = self._processes[part]
        process.signal(signal.SIGKILL)
        process.wait(10.0)

    def restart(self, part: str, timeout_s: float = _READY_S_MAX) -> None:
        """Start a part that ended and wait until files can be written again."""
        try:
            with self._space.hold(0.0) as lock:
                self._begin(part, (lock,))
        except EmbeddedError:  # the other part holds the folder
            self._begin(part, ())
        deadline = time.monotonic() + timeout_s
        while not self.healthy():
            self._check_alive([part], deadline)
            time.sleep(0.05)
        self._write_state()

    def safe_mode(self, on: bool) -> None:
        """Make the NameNode refuse every change, or take changes again, as an operator would."""
        self._admin("-safemode", "enter" if on else "leave")

    def reserve(self, bytes_: int) -> None:
        """Restart the DataNode with so much of its disk kept for others: more than there is makes it a full one."""
        settings = self._space.folder / "conf" / "hdfs-site.xml"
        name = "dfs.datanode.du.reserved"
        ours = re.compile(rf"<property><name>{name}</name>.*?</property>\n")
        mine = f"<property><name>{name}</name><value>{bytes_}</value></property>\n"
        text = ours.sub("", settings.read_text())
        settings.write_text(text.replace("</configuration>", f"{mine}</configuration>"))
        self.kill("datanode")
        self.restart("datanode")

    def _admin(self, *arguments: str) -> None:
        command = [*self._command, "org.apache.hadoop.hdfs.tools.DFSAdmin", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        if done.returncode != 0:
            raise EmbeddedError(f"hdfs dfsadmin {' '.join(arguments)}: {done.stderr.strip()[-500:]}")

    def healthy(self) -> bool:
        """Whether the NameNode is out of safe mode and has a live DataNode."""
        name = _bean(self._ports["NNHTTP"], "service=NameNode,name=FSNamesystemState")
        if name.get("FSState") != "Operational" or name.get("NumLiveDataNodes", 0) < 1:
            return False
        # The NameNode believes in a dead DataNode for a while: ask that one too.
        data = _bean(self._ports["DNHTTP"], "service=DataNode,name=DataNodeInfo")
        return "RUNNING" in str(data.get("BPServiceActorInfo"))

    def log_file(self, part: str) -> Path:
        return self._space.log_path(part)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _launch(self, lock: int, deadline: float) -> None:
        previous = (self._space.read_state() or {}).get("ports", {})
        for attempt in range(_PORT_TRIES):
            known = tuple(previous.get(name, 0) for name in _PORTS) if attempt == 0 else ()
            self._ports = dict(zip(_PORTS, free_ports(len(_PORTS), known), strict=True))
            self._write_settings()
            if not (self._space.folder / "nn" / "current" / "VERSION").exists():
                self._format()
            self._begin("namenode", (lock,))
            self._begin("datanode", (lock,))
            if self._wait_ready(deadline):
                self._write_state()
                return
            taken = any("Address already in use" in self._space.log_tail(part, 400) for part in _MAIN)
            for process in self._processes.values():
                process.stop(3.0)
            if not taken:
                break
        ended = [part for part, process in self._processes.items() if process.exit_code() is not None]
        self._check_alive(ended, deadline)

    def _wait_ready(self, deadline: float) -> bool:
        while not self.healthy():
            if any(process.exit_code() is not None for process in self._processes.values()):
                return False
            self._check_alive([], deadline)
            time.sleep(0.05)
        return True

    def _check_alive(self, parts: list[str], deadline: float) -> None:
        for part in parts:
            if self._processes[part].exit_code() is not None:
                raise EmbeddedError(
                    f"the {part} in {self._space.folder} ended. Its log {self.log_file(part)} says:\n"
                    + self._space.log_tail(part)
                )
        if time.monotonic() > deadline:
            tails = "\n".join(f"{part}: {self._space.log_tail(part, 6)}" for part in _MAIN)
            raise EmbeddedError(
                f"the HDFS in {self._space.folder} did not become ready in time. Its logs say:\n{tails}"
            )

    def _begin(self, part: str, keep: tuple[int, ...]) -> None:
        log = self._space.open_log(part)
        self._processes[part] = JavaProcess(
            [*self._command, _MAIN[part]],
            log,
            self._space.folder,
            die_with_parent=self._die_with_parent,
            keep=keep,
        )

    def _format(self) -> None:
        command = [
            *self._command, _MAIN["namenode"], "-format", "-nonInteractive", "-force", "-clusterid", "gossipdbn",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=90, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedError(f"formatting the HDFS in {self._space.folder} took too long") from error
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise EmbeddedError(f"cannot format the HDFS in {self._space.folder}: {tail}")

    def _write_settings(self) -> None:
        text = files("gossipdbn.embedded").joinpath("templates/hdfs-site.xml").read_text()
        text = text.replace("@WORK@", escape(str(self._space.folder)))
        for name, port in self._ports.items():
            text = text.replace(f"@{name}@", str(port))
        for name in ("core-site.xml", "hdfs-site.xml"):
            (self._space.folder / "conf" / name).write_text(text)

    def _write_state(self) -> None:
        self._space.write_state(
            {
                "pids": {part: process.pid for part, process in self._processes.items()},
                "ports": self._ports,
                "started_ms": time.time_ns() // 1_000_000,
                "version": artifacts.HDFS,
            }
        )

    def _abandon(self) -> None:
        for process in self._processes.values():
            process.stop(2.0)
        self._processes.clear()


def _bean(port: int, name: str) -> dict[str, Any]:
    """What a Hadoop server tells about itself; empty when it does not."""
    query = f"http://127.0.0.1:{port}/jmx?qry=Hadoop:{name}"
    try:
        with urllib.request.urlopen(query, timeout=2.0) as answer:
            beans: list[dict[str, Any]] = json.load(answer)["beans"]
    except (OSError, ValueError, KeyError):
        return {}
    return beans[0] if beans else {}


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
