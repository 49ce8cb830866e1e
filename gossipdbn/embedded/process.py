"""Java processes that outlive or follow their starter, their folders, ports and log files.

A folder is in use exactly while somebody holds the file lock in it. The started process inherits the lock, so it is
held as long as that process lives, whatever becomes of its starter, and no process id has to be trusted alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from gossipdbn.errors import EmbeddedError

__all__ = ["JavaProcess", "Workspace", "end_process", "follow_parent", "free_ports", "port_is_free"]

_LOG_BYTES_MAX = 8 << 20
_FREE_BYTES_MIN = 256 << 20
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class Workspace:
    """The folder of one embedded service: its lock, its state file and its log files."""

    def __init__(self, folder: Path, service: str) -> None:
        self.folder = Path(folder).expanduser().absolute()
        self.service = service
        self.state_path = self.folder / f"{service}.json"
        self.lock_path = self.folder / f"{service}.lock"

    def prepare(self) -> None:
        """Make the folder; raises EmbeddedError without permission or space."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            probe = self.folder / ".write-probe"
            probe.write_bytes(b"")
            probe.unlink()
            free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self.disk_error(error) from error
        if free < _FREE_BYTES_MIN:
            raise self.disk_error(OSError(errno.ENOSPC, f"{free >> 20} MiB left"))

    def disk_error(self, error: OSError) -> EmbeddedError:
        reasons = {
            errno.EACCES: "no permission to write there",
            errno.EPERM: "no permission to write there",
            errno.EROFS: "it is on a read-only file system",
            errno.ENOSPC: f"the disk is full ({error.strerror})",
            errno.ENOTDIR: "a file is in its way",
            errno.EEXIST: "a file is in its way",
        }
        reason = reasons.get(error.errno or 0, str(error))
        return EmbeddedError(f"the {self.service} cannot use the folder {self.folder}: {reason}; choose another folder")

    @contextlib.contextmanager
    def hold(self, wait_s: float = 1.0) -> Iterator[int]:
        """Hold the folder's lock; yields its file descriptor, for the started process to inherit."""
        descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            deadline = time.monotonic() + wait_s
            while not _try_lock(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    state = self.read_state() or {}
                    who = f" by process {state['pid']}" if "pid" in state else ""
                    raise EmbeddedError(
                        f"the {self.service} folder {self.folder} is in use{who}; "
                        "stop that one first (gossipdbn down), use it, or choose another folder"
                    )
                time.sleep(0.05)
            yield descriptor
        finally:
            os.close(descriptor)

    def in_use(self) -> bool:
        """Whether a living process holds the folder."""
        try:
            descriptor = os.open(self.lock_path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        finally:
            os.close(descriptor)

    def write_state(self, state: Mapping[str, Any]) -> None:
        temporary = self.state_path.with_suffix(".tmp")
        temporary.write_text(json.dumps(state, indent=1, sort_keys=True))
        os.replace(temporary, self.state_path)

    def read_state(self) -> dict[str, Any] | None:
        try:
            state = json.loads(self.state_path.read_text())
        except (OSError, ValueError):
            return None
        return state if isinstance(state, dict) else None

    def log_path(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def open_log(self, name: str) -> IO[bytes]:
        """The log file to append to; a large one is put aside first."""
        path = self.log_path(name)
        if path.exists() and path.stat().st_size > _LOG_BYTES_MAX:
            os.replace(path, path.with_suffix(".log.1"))
        return open(path, "ab")

    def log_tail(self, name: str, lines: int = 15, start: int = 0) -> str:
        """The last lines of a log from byte ``start`` on, those that speak of errors first in line."""
        try:
            with open(self.log_path(name), "rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(start if start <= size else 0, size - 65536))
                text = stream.read().decode(errors="replace")
        except OSError:
            return "(no log file)"
        kept = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("at ")]
        loud = [line for line in kept if any(mark in line for mark in ("ERROR", "Exception", "FATAL", "Error:"))]
        return "\n".join((loud or kept)[-lines:]) or "(the log is empty)"


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait_for_turns() -> None:
    """Wake-ups of this thread, and of processes that it starts, interrupt nobody (on Linux; elsewhere all stays)."""
    if hasattr(os, "SCHED_BATCH"):
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))


class JavaProcess:
    """A child in its own session. With ``die_with_parent`` the kernel ends it when this process dies, however it dies.

    The kernel binds that to the *thread* that forked, so the fork happens on a thread of its own, which then waits
    for the child and so lives as long as the child does.

    Where processors are scarce the child waits for a turn (SCHED_BATCH) and does not interrupt whoever computes at each
    of its many wake-ups: training beside a broker loses less of its caches, and records wait some milliseconds more.
    """

    def __init__(
        self, command: list[str], log: IO[bytes], folder: Path, *, die_with_parent: bool, keep: tuple[int, ...] = ()
    ) -> None:
        self._command, self._log, self._folder, self._keep = command, log, folder, keep
        self._die_with_parent = die_with_parent
        self._started = threading.Event()
        self._ended = threading.Event()
        self._error: OSError | None = None
        self._process: subprocess.Popen[bytes] | None = None
        threading.Thread(target=self._live, name=f"wait for {folder.name}", daemon=True).start()
        self._started.wait()
        if self._error is not None:
            raise EmbeddedError(f"cannot start {command[0]}: {self._error}")

    def _live(self) -> None:
        _wait_for_turns()
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                pass_fds=self._keep,
                start_new_session=True,  # Ctrl-C at the terminal is for us, we stop the child ourselves
                # One system call on a library loaded beforehand: nothing in the child takes a lock.
                preexec_fn=follow_parent(os.getpid()) if self._die_with_parent else None,  # noqa: PLW1509
            )
        except OSError as error:
            self._error = error
            return
        finally:
            self._log.close()
            self._started.set()
        self._process.wait()
        self._ended.set()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process is not None and self._ended.is_set() else None

    def wait(self, timeout_s: float) -> bool:
        return self._ended.wait(timeout_s)

    def signal(self, number: int) -> None:
        if not self._ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, timeout_s: float) -> None:
        """Ask it to end; after ``timeout_s`` seconds make it."""
        self.signal(signal.SIGTERM)
        if not self.wait(timeout_s):
            self.signal(signal.SIGKILL)
            self.wait(5.0)


def follow_parent(parent: int, number: int = signal.SIGTERM) -> Callable[[], None]:
    """What a child calls to get signal ``number`` when the process ``parent`` dies; ends at once if that is dead."""

    def prepare() -> None:
        if _LIBC is not None:
            _LIBC.prctl(_PR_SET_PDEATHSIG, number)
            if os.getppid() != parent:  # it died in between
                os._exit(1)

    return prepare


def end_process(pid: int, gone: Callable[[], bool], timeout_s: float) -> bool:
    """End a process that another one started: ask, wait until ``gone()``, then make it; whether it is gone."""
    for number, wait_s in ((signal.SIGTERM, timeout_s), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        except PermissionError as error:
            raise EmbeddedError(f"process {pid} belongs to another user, ask them to stop it") from error
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            if gone():
                return True
            time.sleep(0.02)
    return gone()


def free_ports(count: int, prefer: tuple[int, ...] = ()) -> list[int]:
    """``count`` loopback ports that are free now, preferring some; whoever binds them must be ready to fail."""
    with contextlib.ExitStack() as stack:
        ports: list[int] = []
        wanted = [port for port in prefer if port > 0][:count]
        for port in wanted + [0] * (count - len(wanted)):
            holder = stack.enter_context(socket.socket())
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                holder.bind(("127.0.0.1", port))
            except OSError:
                holder.bind(("127.0.0.1", 0))
            ports.append(holder.getsockname()[1])
        return ports


def port_is_free(port: int) -> bool:
    """Whether a loopback port can be bound now."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
