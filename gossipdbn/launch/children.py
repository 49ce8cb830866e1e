"""Processes that a launcher starts and looks after: workers and the feed, each the program itself with a command.

They get a session of their own, so that Ctrl-C reaches the launcher alone, which then ends them in order. They ask the
kernel to be terminated when the launcher dies (``--with-parent``).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Child", "tail"]

RESTARTS_MAX = 5
HEALTHY_S = 30.0


def tail(path: Path, lines: int = 12, bytes_max: int = 8192) -> str:
    """The last lines of a text file, or ""."""
    try:
        with path.open("rb") as f:
            f.seek(max(0, path.stat().st_size - bytes_max))
            return "\n".join(f.read().decode(errors="replace").splitlines()[-lines:])
    except OSError:
        return ""


@dataclass(slots=True)
class Child:
    """One supervised process.

    Attributes
    ----------
    name : for messages and its log file. arguments : of ``python -m gossipdbn``.
    restarts : how often it was started again; after five quick deaths it is given up (``hopeless``).
    """

    name: str
    arguments: Sequence[str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    restarts: int = 0
    started_s: float = 0.0
    seen_code: int | None = field(default=None)

    def start(self) -> None:
        """Start (again), output appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "gossipdbn", *self.arguments, "--with-parent", str(os.getpid())]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True
            )
        self.started_s, self.seen_code = time.monotonic(), None

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None else None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def died(self) -> int | None:
        """The exit status, once, when the process has ended since the last call."""
        code = self.process.poll() if self.process is not None else None
        if code is None or code == self.seen_code:
            return None
        self.seen_code = code
        return code

    @property
    def hopeless(self) -> bool:
        """It died again and again soon after its start."""
        return self.restarts >= RESTARTS_MAX

    def restart(self) -> None:
        """Start again after a death; a process that had lived for a while gets all its chances back."""
        lived = time.monotonic() - self.started_s
        self.restarts = 1 if lived > HEALTHY_S else self.restarts + 1
        self.start()

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        if self.process is not None and self.alive:
            self.process.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> bool:
        """Wait for its end; kills it at the timeout and returns False."""
        if self.process is None:
            return True
        try:
            self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return False
        return True


def words(code: int) -> str:
    """An exit status in words."""
    if code < 0:
        try:
            return f"was ended by {signal.Signals(-code).name}"
        except ValueError:
            return f"was ended by signal {-code}"
    return f"ended with status {code}"
