from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gossipdbn.embedded.process import JavaProcess, Workspace, end_process, free_ports, port_is_free
from gossipdbn.errors import EmbeddedError

_STARTER = """
import sys, time
from pathlib import Path
from gossipdbn.embedded.process import JavaProcess, Workspace
space = Workspace(Path(sys.argv[1]), "thing")
with space.hold() as lock:
    process = JavaProcess(["sleep", "60"], space.open_log("thing"), space.folder,
                          die_with_parent=sys.argv[2] == "follow", keep=(lock,))
    space.write_state({"pid": process.pid})
print("started", flush=True)
time.sleep(60)
"""


def _wait(condition: object, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("mode", ["follow", "stay"])
def test_a_child_follows_its_killed_starter_only_when_asked(tmp_path: Path, mode: str) -> None:
    starter = subprocess.Popen([sys.executable, "-c", _STARTER, str(tmp_path), mode], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    assert starter.stdout.readline() == b"started\n"
    space = Workspace(tmp_path, "thing")
    assert space.in_use()
    with pytest.raises(EmbeddedError, match=r"is in use by process \d+"), space.hold(0.0):
        pass
    starter.kill()
    starter.wait()
    starter.stdout.close()
    if mode == "follow":
        assert _wait(lambda: not space.in_use())
    else:
        time.sleep(0.3)
        assert space.in_use()
        assert end_process((space.read_state() or {})["pid"], lambda: not space.in_use(), 5.0)
    with space.hold(0.0):
        assert space.in_use()
    assert not space.in_use()


def test_a_process_that_ignores_the_request_is_made_to_end(tmp_path: Path) -> None:
    space = Workspace(tmp_path, "thing")
    command = ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 0.05; done"]
    process = JavaProcess(command, space.open_log("thing"), tmp_path, die_with_parent=True)
    assert _wait(lambda: space.log_path("thing").stat().st_size > 0)
    process.stop(0.2)
    assert process.exit_code() == -signal.SIGKILL


@pytest.mark.skipif(not hasattr(os, "SCHED_BATCH"), reason="scheduling classes are Linux's")
def test_a_child_waits_for_its_turn_and_its_starter_does_not(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    space = Workspace(tmp_path, "thing")
    process = JavaProcess(["sleep", "60"], space.open_log("thing"), tmp_path, die_with_parent=True)
    try:
        assert os.sched_getscheduler(process.pid) == os.SCHED_BATCH
        assert os.sched_getscheduler(0) == before
    finally:
        process.stop(5.0)


def test_a_program_that_is_not_there_is_reported(tmp_path: Path) -> None:
    log = Workspace(tmp_path, "thing").open_log("thing")
    with pytest.raises(EmbeddedError, match="cannot start /no/such"):
        JavaProcess(["/no/such"], log, tmp_path, die_with_parent=False)


def test_the_log_tail_prefers_errors_and_begins_where_told(tmp_path: Path) -> None:
    space = Workspace(tmp_path, "thing")
    path = space.log_path("thing")
    assert space.log_tail("thing") == "(no log file)"
    path.write_text("ERROR old\n")
    assert space.log_tail("thing", start=10) == "(the log is empty)"
    path.write_text("ERROR old\n" + "info\n" * 30 + "java.net.BindException: taken\n\tat x.y\ninfo\n")
    assert space.log_tail("thing", start=10) == "java.net.BindException: taken"
    path.write_bytes(b"x" * (9 << 20))
    space.open_log("thing").close()
    assert path.stat().st_size == 0
    assert (tmp_path / "thing.log.1").exists()


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EACCES, "no permission"), (errno.ENOSPC, "disk is full"), (errno.EROFS, "read-only")]
)
def test_a_folder_that_cannot_be_used_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    def refuse(*_args: object, **_more: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EmbeddedError, match=f"cannot use the folder .*{words}"):
        Workspace(tmp_path / "x", "thing").prepare()


def test_a_damaged_state_file_is_no_state(tmp_path: Path) -> None:
    space = Workspace(tmp_path, "thing")
    for text in ("", "[1]", "{"):
        space.state_path.write_text(text)
        assert space.read_state() is None


def test_ports_used_before_are_preferred_while_they_are_free() -> None:
    first = free_ports(2)
    assert free_ports(2, tuple(first)) == first
    with socket.socket() as other:
        other.bind(("127.0.0.1", first[0]))
        other.listen()
        assert not port_is_free(first[0])
        again = free_ports(2, tuple(first))
        assert again[0] != first[0]
        assert again[1] == first[1]
    assert len(set(free_ports(5))) == 5
