"""A real Apache Kafka broker of our own: one process, KRaft, durable, loopback only.

The folder given is its whole world: settings, log, state and data. A broker started with :class:`Broker` outlives its
starter, unless ``die_with_parent`` is set; other processes find it with :func:`running` and end it with :func:`stop`.
"""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from gossipdbn.embedded import artifacts
from gossipdbn.embedded.archive import ClassArchive
from gossipdbn.embedded.java import Java, cache_folder, find_java
from gossipdbn.embedded.process import JavaProcess, Workspace, end_process, free_ports, port_is_free
from gossipdbn.errors import EmbeddedError

__all__ = ["Broker", "BrokerState", "running", "stop"]

_SERVICE = "broker"
_READY_S_MAX = 60.0
_STOP_S_MAX = 15.0
_PORT_TRIES = 5
_QUICK = "-XX:TieredStopAtLevel=1"
"""Java's first compiler alone. The second costs 12 CPU seconds in two minutes, and saves a third of all afterwards."""
_FLAGS = (
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
    "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd HH:mm:ss.SSS",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.log.kafka.server=info",
)


@dataclass(frozen=True, slots=True)
class BrokerState:
    """A running embedded broker as any process can see it.

    Attributes
    ----------
    pid, port
        Its process and its port on 127.0.0.1.
    bootstrap
        Address for Kafka clients.
    data_dir
        Its folder.
    started_ms
        Wall time of its start, milliseconds since 1970.
    version
        The lock it was started from.
    """

    pid: int
    port: int
    bootstrap: str
    data_dir: Path
    started_ms: int
    version: str


def running(data_dir: Path | str) -> BrokerState | None:
    """The broker that runs in ``data_dir``, whoever started it; None when there is none (or it is still starting)."""
    space = Workspace(Path(data_dir), _SERVICE)
    state = space.read_state() if space.in_use() else None
    if state is None:
        return None
    try:
        port = int(state["port"])
        return BrokerState(
            pid=int(state["pid"]),
            port=port,
            bootstrap=f"127.0.0.1:{port}",
            data_dir=space.folder,
            started_ms=int(state["started_ms"]),
            version=str(state["version"]),
        )
    except (KeyError, TypeError, ValueError):
        return None


def stop(data_dir: Path | str, timeout_s: float = _STOP_S_MAX) -> bool:
    """Stop the broker that runs in ``data_dir``; False when there was none. Raises EmbeddedError if it will not end."""
    state = running(data_dir)
    if state is None:
        return False
    space = Workspace(Path(data_dir), _SERVICE)
    if not end_process(state.pid, lambda: not space.in_use(), timeout_s):
        log = space.log_path("broker")
        raise EmbeddedError(f"the broker (process {state.pid}, folder {data_dir}) does not end; see {log}")
    return True


class Broker:
    """One embedded broker.

    Parameters
    ----------
    data_dir
        Folder for everything it writes; a folder used before is continued, with all its records.
    port
        Port on 127.0.0.1; 0 takes the one used before in this folder, or a free one.
    die_with_parent
        End it when this process ends, however that happens (Linux). Without it the broker stays until :func:`stop`.
    lasting
        Let Java compile it for a long life: dearer in the first two minutes, cheaper by a third afterwards. None: when
        it does not die with its parent.
    cache, ivy_settings
        See :func:`gossipdbn.embedded.artifacts.ensure`.
    heap_mb
        Bound of the Java heap, MiB.
    settings
        More lines of its configuration, over the usual ones; ``@PORT@`` and ``@CPORT@`` stand for its two ports.
    on_progress
        Called with a line of text while jars are fetched and the broker starts.

    Examples
    --------
    >>> with Broker("run/kafka") as broker:  # doctest: +SKIP
    ...     print(broker.bootstrap)
    """

    def __init__(
        self,
        data_dir: Path | str,
        port: int = 0,
        *,
        die_with_parent: bool = False,
        lasting: bool | None = None,
        cache: Path | None = None,
        ivy_settings: Path | None = None,
        heap_mb: int = 512,
        settings: Mapping[str, str] | None = None,
        on_progress: Callable[[str], None] | None = None,
    ) -> None:
        self._space = Workspace(Path(data_dir), _SERVICE)
        self._wanted_port = port
        self._die_with_parent = die_with_parent
        self._lasting = not die_with_parent if lasting is None else lasting
        self._cache = cache
        self._ivy_settings = ivy_settings
        self._heap_mb = heap_mb
        self._settings = dict(settings or {})
        self._tell = on_progress or (lambda _line: None)
        self._process: JavaProcess | None = None
        self._port = 0
        self._log_start = 0
        self._archive: ClassArchive | None = None

    @property
    def data_dir(self) -> Path:
        return self._space.folder

    @property
    def port(self) -> int:
        return self._port

    @property
    def bootstrap(self) -> str:
        """Address for Kafka clients; raises EmbeddedError before :meth:`start`."""
        if self._port == 0:
            raise EmbeddedError(f"the broker of {self.data_dir} has not been started")
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def log_file(self) -> Path:
        return self._space.log_path("broker")

    def alive(self) -> bool:
        return self._process is not None and self._process.exit_code() is None

    def start(self, timeout_s: float = _READY_S_MAX) -> Self:
        """Start it and wait until clients can use it.

        Raises
        ------
        EmbeddedError
            Folder in use, no permission, disk full, port taken, no Java, jars not to be had, or the broker ended: the
            message quotes the end of its log.
        """
        if self.alive():
            return self
        self._space.prepare()
        java = find_java()
        folder = artifacts.ensure(
            artifacts.KAFKA, self._tell, cache=self._cache, ivy_settings=self._ivy_settings, java=java
        )
        class_path = os.pathsep.join(map(str, artifacts.jars(artifacts.KAFKA, folder)))
        self._archive = ClassArchive.of(java, artifacts.lock_digest(artifacts.KAFKA), cache_folder(self._cache))
        began = time.monotonic()
        try:
            with self._space.hold() as lock:
                self._launch(java, class_path, lock, began + timeout_s)
        except OSError as error:
            raise self._space.disk_error(error) from error
        self._tell(f"broker ready on {self.bootstrap} after {time.monotonic() - began:.1f} s")
        return self

    def stop(self, timeout_s: float = _STOP_S_MAX) -> None:
        """Stop it in order; records are safe either way."""
        if self._process is None:
            return
        self._process.stop(timeout_s)
        if self._archive is not None:
            self._archive.adopt(self._process.exit_code())
        self._process = None

    def kill(self) -> None:
        """End it at once (SIGKILL), as a crash would."""
        if self._process is not None:
            self._process.signal(9)
            self._process.wait(10.0)
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # starting

    def _launch(self, java: Java, class_path: str, lock: int, deadline: float) -> None:
        previous = self._space.read_state() or {}
        settings = self.data_dir / "server.properties"
        data = self.data_dir / "data"
        cluster = self._cluster_id(data)
        for attempt in range(_PORT_TRIES):
            port, controller_port = self._choose_ports(previous, fresh=attempt > 0)
            settings.write_text(_settings(port, controller_port, data, self._settings))
            if cluster is None:
                cluster = self._format(java, class_path, settings)
            log = self._space.open_log("broker")
            self._log_start = log.tell()
            heap = [f"-Xms{min(128, self._heap_mb)}m", f"-Xmx{self._heap_mb}m"]
            archive = self._archive.flags(record=self._die_with_parent) if self._archive else []
            flags = [*heap, *([] if self._lasting else [_QUICK]), *_FLAGS, *archive]
            command = [str(java.executable), *flags, "-cp", class_path, "kafka.Kafka", str(settings)]
            process = JavaProcess(command, log, self.data_dir, die_with_parent=self._die_with_parent, keep=(lock,))
            try:
                ready = self._wait_ready(process, port, cluster, deadline)
            except BaseException:
                process.stop(2.0)
                raise
            if ready:
                self._process, self._port = process, port
                self._space.write_state(
                    {
                        "pid": process.pid,
                        "port": port,
                        "controller_port": controller_port,
                        "started_ms": time.time_ns() // 1_000_000,
                        "version": artifacts.KAFKA,
                        "cluster": cluster,
                    }
                )
                return
            process.stop(5.0)
            if "Address already in use" not in self._tail(400) or self._wanted_port:
                break
        raise EmbeddedError(
            f"the broker in {self.data_dir} ended while it started. Its log {self.log_file} says:\n{self._tail()}"
        )

    def _choose_ports(self, previous: dict[str, object], *, fresh: bool) -> tuple[int, int]:
        if self._wanted_port and not port_is_free(self._wanted_port):
            raise EmbeddedError(
                f"port {self._wanted_port} on 127.0.0.1 is in use by another program; "
                "choose another port, or 0 for a free one"
            )
        known = tuple(port for key in ("port", "controller_port") if isinstance(port := previous.get(key), int))
        if fresh or len(known) != 2:
            known = ()
        if self._wanted_port:
            known = (self._wanted_port, *known[1:])
        port, controller_port = free_ports(2, known)
        return port, controller_port

    def _cluster_id(self, data: Path) -> str | None:
        """The cluster id of a formatted folder, else None."""
        try:
            lines = (data / "meta.properties").read_text().splitlines()
        except FileNotFoundError:
            return None
        return next((line.split("=", 1)[1] for line in lines if line.startswith("cluster.id=")), None)

    def _format(self, java: Java, class_path: str, settings: Path) -> str:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        if cluster.startswith("-"):  # the tool would take it for an option
            cluster = "g" + cluster[1:]
        archive = self._archive.flags() if self._archive else []
        command = [
            str(java.executable), "-Xmx256m", _QUICK, *_FLAGS, *archive, "-cp", class_path,
            "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings), "-g",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise EmbeddedError(f"formatting the broker folder {self.data_dir} took more than a minute") from error
        if done.returncode != 0:
            tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-8:])
            raise EmbeddedError(f"cannot format the broker folder {self.data_dir}: {tail}")
        return cluster

    def _wait_ready(self, process: JavaProcess, port: int, cluster: str, deadline: float) -> bool:
        """True when it serves clients, False when it ended; EmbeddedError at the deadline."""
        while process.exit_code() is None:
            if time.monotonic() > deadline:
                raise EmbeddedError(
                    f"the broker in {self.data_dir} did not become ready in time. "
                    f"Its log {self.log_file} says:\n{self._tail()}"
                )
            if _accepts(port) and _serves(port, cluster):
                return True
            time.sleep(0.03)
        return False

    def _tail(self, lines: int = 15) -> str:
        return self._space.log_tail("broker", lines, self._log_start)


def _settings(port: int, controller_port: int, data: Path, more: Mapping[str, str]) -> str:
    text = files("gossipdbn.embedded").joinpath("templates/server.properties").read_text()
    text += "".join(f"{key}={value}\n" for key, value in more.items())  # the last line for a key counts
    escaped = str(data).replace("\\", "\\\\")
    return text.replace("@PORT@", str(port)).replace("@CPORT@", str(controller_port)).replace("@DIR@", escaped)


def _accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=0.5):
        return True
    return False


def _serves(port: int, cluster: str) -> bool:
    """Whether the broker behind the port is ours and takes part in its cluster."""
    admin = AdminClient({"bootstrap.servers": f"127.0.0.1:{port}", "reconnect.backoff.max.ms": 200, "log_level": 0})
    try:
        metadata = admin.list_topics(timeout=2.0)
    except KafkaException:  # not yet
        return False
    return metadata.cluster_id == cluster and len(metadata.brokers) == 1
