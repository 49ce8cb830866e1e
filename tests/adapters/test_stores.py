from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest

from gossipdbn.adapters import stores
from gossipdbn.adapters.stores import TEMPORARY, FolderStore, open_store
from gossipdbn.errors import ConfigError, SnapshotCorrupt, SnapshotMissing, StoreError
from gossipdbn.ports import SnapshotStore


@pytest.fixture(params=["folder", "file", "memory", "local"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> SnapshotStore:
    """A folder, the same by URL, an object store and a file system of fsspec."""
    urls = {
        "folder": f"{tmp_path}/a store",
        "file": f"file://{tmp_path}/a%20store",
        "memory": f"memory://{uuid.uuid4().hex}",
        "local": f"local://{tmp_path}/s",
    }
    return open_store(urls[request.param])


def test_what_was_put_is_got(store: SnapshotStore) -> None:
    store.put("snap/0/abc.st", b"x" * 1000)
    store.put("empty", b"")
    assert store.get("snap/0/abc.st", 1000) == b"x" * 1000
    assert store.get("empty", 0) == b""
    assert store.names() == ["empty", "snap/0/abc.st"]
    assert store.names("snap/") == ["snap/0/abc.st"]


def test_a_name_keeps_its_first_content(store: SnapshotStore) -> None:
    store.put("a", b"first")
    store.put("a", b"second")
    assert store.get("a", 10) == b"first"


def test_deleted_and_absent_names_are_missing(store: SnapshotStore) -> None:
    store.put("d/a", b"1")
    store.delete("d/a")
    store.delete("d/a")
    for name in ("d/a", "d", "never"):
        with pytest.raises(SnapshotMissing, match="holds no object"):
            store.get(name, 10)
    assert store.names() == []


def test_an_object_longer_than_expected_is_corrupt_and_not_read(store: SnapshotStore) -> None:
    store.put("a", b"x" * 100)
    with pytest.raises(SnapshotCorrupt, match="100 bytes"):
        store.get("a", 99)


@pytest.mark.parametrize("name", ["", "/etc/x", "../x", "a/../b", "a//b", "a:b", ".tmp/x", "a/.b", "a\\b", "x" * 600])
def test_names_that_could_leave_the_store_are_refused(store: SnapshotStore, name: str) -> None:
    for action in (lambda: store.put(name, b""), lambda: store.get(name, 1), lambda: store.delete(name)):
        with pytest.raises(StoreError, match="no name of an object") as caught:
            action()
        assert not caught.value.retryable


def test_the_url_opens_the_same_store(store: SnapshotStore) -> None:
    store.put("a", b"1")
    assert open_store(store.url()).get("a", 1) == b"1"


def test_an_empty_or_unknown_address_is_a_setting_to_correct() -> None:
    for url in ("", "nosuch://x/y", "file://host/x", "hdfs:///x", "hdfs://h/a:b"):
        with pytest.raises(ConfigError, match="store"):
            open_store(url)


def test_two_writers_of_one_name_leave_one_whole_object(tmp_path: Path) -> None:
    contents = [bytes([n]) * 200_000 for n in range(8)]
    threads = [threading.Thread(target=FolderStore(tmp_path).put, args=("n", data)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert FolderStore(tmp_path).get("n", 200_000) in contents
    assert os.listdir(tmp_path / TEMPORARY) == []


_KILLED = """
import os, signal, sys
from pathlib import Path
from gossipdbn.adapters import stores
stores._publish = lambda temporary, target: os.kill(os.getpid(), signal.SIGKILL)
stores.FolderStore(Path(sys.argv[1])).put("n", b"x" * 1000)
"""


def test_a_writer_killed_before_the_rename_publishes_nothing_and_is_swept(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = (tmp_path / TEMPORARY).iterdir()
    store = FolderStore(tmp_path)
    assert store.names() == []
    with pytest.raises(SnapshotMissing):
        store.get("n", 1000)
    store.put("other", b"1")
    assert left.exists()  # young: it might be another writer at work
    os.utime(left, (0, 0))
    FolderStore(tmp_path).put("n", b"2")
    assert not left.exists()
    assert store.get("n", 1) == b"2"


def test_without_hard_links_a_rename_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    store = FolderStore(tmp_path)
    store.put("a/b", b"1")
    store.put("a/b", b"2")
    assert store.get("a/b", 1) == b"1"
    assert os.listdir(tmp_path / TEMPORARY) == []


@pytest.mark.parametrize(
    ("number", "words", "retryable"),
    [(errno.ENOSPC, "disk is full", True), (errno.EACCES, "no permission", False), (errno.EIO, "Input/output", True)],
)
def test_errors_of_the_disk_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str, retryable: bool
) -> None:
    def fail(path: Path, data: bytes) -> None:
        path.write_bytes(data[:1])
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(stores, "_write_synced", fail)
    store = FolderStore(tmp_path)
    with pytest.raises(StoreError, match=words) as caught:
        store.put("a", b"123")
    assert caught.value.retryable is retryable
    assert store.names() == []
    assert os.listdir(tmp_path / TEMPORARY) == []


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "s").write_text("")
    with pytest.raises(StoreError, match="a file lies where a folder is needed"):
        FolderStore(tmp_path / "s").put("a", b"")


def test_an_old_temporary_of_a_renaming_store_is_swept(tmp_path: Path) -> None:
    left = tmp_path / TEMPORARY / "left"
    left.parent.mkdir()
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    open_store(f"local://{tmp_path}").put("a", b"1")
    assert not left.exists()
