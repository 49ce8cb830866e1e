"""The HDFS store against a real NameNode and DataNode, with both failing in turn."""

from __future__ import annotations

import os
import threading
import time
import urllib.request
from pathlib import Path

import pytest

from gossipdbn.adapters import hdfs_store
from gossipdbn.adapters.hdfs_store import HdfsStore
from gossipdbn.adapters.stores import TEMPORARY, open_store
from gossipdbn.embedded import hdfs as embedded
from gossipdbn.embedded.hdfs import Hdfs
from gossipdbn.errors import (
    ConfigError,
    EmbeddedError,
    LocalProtocolError,
    SnapshotCorrupt,
    SnapshotMissing,
    StoreError,
)

pytestmark = pytest.mark.hdfs


@pytest.fixture
def store(hdfs_folder: str) -> HdfsStore:
    store = open_store(hdfs_folder)
    assert isinstance(store, HdfsStore)
    return store


def _temporaries(store: HdfsStore) -> list[str]:
    folder = f"{store._root}/{TEMPORARY}"
    return store._call("list", lambda client: [status.path for status in client.list_status(folder, False)])


def test_what_was_put_is_got_and_keeps_its_first_content(store: HdfsStore) -> None:
    data = os.urandom(6 << 20)  # more than one piece
    assert store.names() == []
    store.put("snap/0/abc.st", data)
    store.put("snap/0/abc.st", b"other")
    store.put("empty", b"")
    assert store.get("snap/0/abc.st", len(data)) == data
    assert store.get("empty", 0) == b""
    assert store.names() == ["empty", "snap/0/abc.st"]
    assert store.names("snap/") == ["snap/0/abc.st"]
    assert open_store(store.url()).names() == store.names()
    assert _temporaries(store) == []
    store.delete("empty")
    store.delete("empty")
    assert store.names() == ["snap/0/abc.st"]


def test_missing_and_too_long_objects(store: HdfsStore) -> None:
    for name in ("never", "a"):
        with pytest.raises(SnapshotMissing, match="holds no object"):
            store.get(name, 10)
        store.put("a/b", b"x" * 100)  # makes "a" a folder
    with pytest.raises(SnapshotCorrupt, match="100 bytes"):
        store.get("a/b", 99)


def test_two_writers_of_one_name_leave_one_whole_object(hdfs_folder: str) -> None:
    contents = [bytes([n]) * 300_000 for n in range(4)]
    errors: list[StoreError] = []

    def publish(data: bytes) -> None:
        try:
            open_store(hdfs_folder).put("n", data)
        except StoreError as error:
            errors.append(error)

    threads = [threading.Thread(target=publish, args=(data,)) for data in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    store = HdfsStore(hdfs_folder)
    assert store.get("n", 300_000) in contents
    assert _temporaries(store) == []


def test_a_reader_during_a_write_sees_nothing_or_the_whole(hdfs_folder: str) -> None:
    data = os.urandom(8 << 20)
    seen: list[int] = []
    done = threading.Event()

    def watch() -> None:
        reader = open_store(hdfs_folder)
        while not done.is_set():
            try:
                seen.append(len(reader.get("n", len(data))))
            except SnapshotMissing:
                seen.append(0)

    thread = threading.Thread(target=watch)
    thread.start()
    open_store(hdfs_folder).put("n", data)
    time.sleep(0.2)
    done.set()
    thread.join()
    assert set(seen) <= {0, len(data)}
    assert seen[-1] == len(data)


def test_the_namenode_is_killed_and_comes_back(hdfs: Hdfs, store: HdfsStore) -> None:
    store.put("before", b"1")
    hdfs.kill("namenode")
    try:
        began = time.monotonic()
        with pytest.raises(StoreError) as caught:
            store.put("during", b"2")
        assert caught.value.retryable
        with pytest.raises(StoreError):
            store.get("before", 1)
        assert time.monotonic() - began < 15.0
    finally:
        hdfs.restart("namenode")
    store.put("during", b"2")  # the same client
    assert [store.get(name, 1) for name in ("before", "during")] == [b"1", b"2"]


def test_the_datanode_is_killed_and_comes_back(hdfs: Hdfs, hdfs_folder: str) -> None:
    store = HdfsStore(hdfs_folder, timeout_s=5.0)
    store.put("before", b"1" * 1000)
    hdfs.kill("datanode")
    try:
        began = time.monotonic()
        for action in (lambda: store.get("before", 1000), lambda: store.put("during", b"2")):
            with pytest.raises(StoreError) as caught:
                action()
            assert caught.value.retryable
        assert time.monotonic() - began < 12.0
        assert store.names() == ["before"]
    finally:
        hdfs.restart("datanode")
    deadline = time.monotonic() + 30
    while True:
        try:
            store.put("during", b"2")
            break
        except StoreError:
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert store.get("before", 1000) == b"1" * 1000
    assert store.get("during", 1) == b"2"


def test_safe_mode_refuses_writes_and_says_so(hdfs: Hdfs, store: HdfsStore) -> None:
    store.put("before", b"1")
    hdfs.safe_mode(on=True)
    try:
        with pytest.raises(StoreError, match="the NameNode is in safe mode") as caught:
            store.put("during", b"2")
        assert caught.value.retryable
        assert store.get("before", 1) == b"1"
    finally:
        hdfs.safe_mode(on=False)
    store.put("during", b"2")


def test_a_full_disk_refuses_writes_and_says_so(hdfs: Hdfs, store: HdfsStore) -> None:
    store.put("before", b"1")
    hdfs.reserve(1 << 50)
    try:
        with pytest.raises(StoreError, match="no DataNode has room") as caught:
            store.put("during", b"2")
        assert caught.value.retryable
        assert store.get("before", 1) == b"1"
    finally:
        hdfs.reserve(0)
    store.put("during", b"2")
    assert _temporaries(store) == []


def test_old_temporaries_are_swept(hdfs: Hdfs, store: HdfsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    left = f"{store._root}/{TEMPORARY}/left"
    store.put("a", b"1")
    store._call("make", lambda client: client.create(left).close())
    HdfsStore(store.url()).put("b", b"2")
    assert _temporaries(store) == [left]
    monkeypatch.setattr(hdfs_store, "SWEEP_AGE_S", -60.0)
    HdfsStore(store.url()).put("c", b"3")
    assert _temporaries(store) == []
    assert store.names() == ["a", "b", "c"]


def test_a_call_that_hangs_is_left_behind_at_its_deadline(hdfs_folder: str) -> None:
    store = HdfsStore(hdfs_folder, timeout_s=0.2)
    go_on = threading.Event()
    for _ in range(4):
        with pytest.raises(StoreError, match="no answer within 0.2 s"):
            store._call("it hangs", lambda _client: go_on.wait(20))
    with pytest.raises(StoreError, match="4 earlier calls still hang"):
        store.names()
    go_on.set()
    deadline = time.monotonic() + 5
    while store._lost and time.monotonic() < deadline:
        time.sleep(0.01)
    store._timeout_s = 10.0
    assert store.names() == []


def test_a_client_used_after_a_fork_says_so(store: HdfsStore) -> None:
    store.put("a", b"1")
    child = os.fork()
    if child == 0:
        try:
            store.get("a", 1)
        except LocalProtocolError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_unknown_options_are_named(hdfs_folder: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown options \['speed'\]"):
        open_store(hdfs_folder, speed=1)


def test_webhdfs_is_a_way_too(hdfs: Hdfs, run_name: str) -> None:
    host, port = hdfs.http.removeprefix("http://").split(":")
    store = open_store(f"webhdfs://{host}:{port}/{run_name}", user=os.environ.get("USER", "root"))
    store.put("a/b", b"123")
    store.put("a/b", b"456")
    assert store.get("a/b", 3) == b"123"
    assert store.names() == ["a/b"]
    assert HdfsStore(f"{hdfs.url}/{run_name}").get("a/b", 3) == b"123"


def test_an_hdfs_is_found_refused_to_others_and_continues_with_its_files(tmp_path: Path) -> None:
    assert embedded.running(tmp_path) is None
    first = Hdfs(tmp_path, die_with_parent=True).start()
    url = first.url
    open_store(f"{url}/x").put("a", b"kept")
    state = embedded.running(tmp_path)
    assert state is not None
    assert state.url == url
    with pytest.raises(EmbeddedError, match="is in use"):
        Hdfs(tmp_path).start()
    assert embedded.stop(tmp_path)
    assert not embedded.stop(tmp_path)
    with Hdfs(tmp_path, die_with_parent=True) as second:
        assert second.url == url
        assert open_store(f"{url}/x").get("a", 10) == b"kept"
        with urllib.request.urlopen(f"{second.http}/jmx", timeout=5) as answer:
            assert answer.status == 200
    assert embedded.running(tmp_path) is None
