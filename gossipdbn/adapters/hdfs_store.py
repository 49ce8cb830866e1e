"""Snapshot store on HDFS: written under a temporary name, checked, renamed. No Java on this side.

A NameNode or DataNode that is down delays a call only up to its deadline: retries are capped, and each call runs on a
thread that is left behind when it does not come back.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar
from urllib.parse import unquote, urlsplit

from gossipdbn.adapters.stores import SWEEP_AGE_S, TEMPORARY, check_name, pieces
from gossipdbn.errors import (
    ConfigError,
    LocalProtocolError,
    SnapshotCorrupt,
    SnapshotError,
    SnapshotMissing,
    StoreError,
)

if TYPE_CHECKING:
    from hdfs_native import Client

__all__ = ["HdfsStore"]

T = TypeVar("T")

_LOST_CALLS_MAX = 4
_CAPPED = {
    "dfs.client.failover.max.attempts": "3",
    "dfs.client.failover.sleep.base.millis": "100",
    "dfs.client.failover.sleep.max.millis": "1000",
}
_LASTING = ("AccessControlException", "InvalidToken", "QuotaExceededException", "InvalidPathException")


class HdfsStore:
    """Objects as files below a folder of an HDFS (see ``ports.SnapshotStore``).

    Parameters
    ----------
    url
        ``hdfs://namenode[:port]/path`` or ``hdfs://nameservice/path``.
    timeout_s
        Longest time a call may take, seconds.
    config
        Hadoop settings; they go before those in ``HADOOP_CONF_DIR``, which is read as usual (HA nameservices).
    config_dir, kerberos_principal, kerberos_keytab, kerberos_cache
        Passed to hdfs-native.
    """

    def __init__(
        self, url: str, *, timeout_s: float = 30.0, config: Mapping[str, str] | None = None, **options: Any
    ) -> None:
        parts = urlsplit(url)
        path = posixpath.normpath(unquote(parts.path) or "/")
        if parts.scheme != "hdfs" or not parts.netloc or ":" in path:
            raise ConfigError(
                f"store: {url!r} is no HDFS address; write hdfs://namenode:port/path, without ':' in the path"
            )
        allowed = {"config_dir", "kerberos_principal", "kerberos_keytab", "kerberos_cache"}
        if set(options) - allowed:
            raise ConfigError(f"store: unknown options {sorted(set(options) - allowed)}; allowed are {sorted(allowed)}")
        self._server = f"hdfs://{parts.netloc}"
        self._root = path.rstrip("/")
        self._timeout_s = timeout_s
        self._config = {**_CAPPED, **(config or {})}
        self._options = options
        self._pid = os.getpid()
        self._client_: Client | None = None
        self._lock = threading.Lock()
        self._lost = 0
        self._swept = False

    def put(self, name: str, data: bytes | BinaryIO) -> None:
        target = f"{self._root}/{check_name(name)}"
        self._call(f"{name} cannot be published", lambda client: self._put(client, target, data))

    def get(self, name: str, max_bytes: int) -> bytes:
        path = f"{self._root}/{check_name(name)}"

        def read(client: Client) -> bytes:
            try:
                status = client.get_file_info(path)
                if status.isdir:
                    raise FileNotFoundError(path)
                if status.length > max_bytes:
                    raise SnapshotCorrupt(f"{name} has {status.length} bytes, at most {max_bytes} were expected")
                with client.read(path) as stream:
                    data = stream.read_range(0, status.length)
            except FileNotFoundError:
                raise SnapshotMissing(f"{self.url()} holds no object {name}") from None
            if len(data) != status.length:
                raise StoreError(f"{name}: {len(data)} of {status.length} bytes came", retryable=True)
            return bytes(data)

        return self._call(f"{name} cannot be read", read)

    def names(self, prefix: str = "") -> list[str]:
        def find(client: Client) -> list[str]:
            try:
                files = [status.path for status in client.list_status(self._root or "/", True) if not status.isdir]
            except FileNotFoundError:
                return []
            found = [path.removeprefix(self._root).lstrip("/") for path in files]
            return sorted(name for name in found if name.startswith(prefix) and not name.startswith("."))

        return self._call("objects cannot be listed", find)

    def delete(self, name: str) -> None:
        path = f"{self._root}/{check_name(name)}"

        def remove(client: Client) -> None:
            with contextlib.suppress(FileNotFoundError):
                client.delete(path)

        self._call(f"{name} cannot be deleted", remove)

    def url(self) -> str:
        return f"{self._server}{self._root or '/'}"

    def _put(self, client: Client, target: str, data: bytes | BinaryIO) -> None:
        from hdfs_native import WriteOptions

        if _exists(client, target):
            return
        folder = f"{self._root}/{TEMPORARY}"
        temporary = f"{folder}/{uuid.uuid4().hex}"
        self._sweep(client, folder)
        try:
            writer = client.create(temporary, WriteOptions(overwrite=False, create_parent=True))
            size = 0
            for piece in pieces(data):
                writer.write(piece)
                size += len(piece)
            if size:
                writer.hsync()
            writer.close()
            length = client.get_file_info(temporary).length
            if length != size:
                raise StoreError(f"{length} of {size} bytes arrived", retryable=True)
            client.mkdirs(posixpath.dirname(target), create_parent=True)
            with contextlib.suppress(FileExistsError):  # the other writer of this name brought the same bytes
                client.rename(temporary, target)
                return
        except BaseException:
            _delete_quietly(client, temporary)
            raise
        _delete_quietly(client, temporary)

    def _sweep(self, client: Client, folder: str) -> None:
        """Once per process: a killed writer, or a dead DataNode, leaves a temporary file behind."""
        if self._swept:
            return
        try:
            for status in client.list_status(folder, False):
                if not status.isdir and time.time() - status.modification_time / 1000 > SWEEP_AGE_S:
                    _delete_quietly(client, status.path)
        except FileNotFoundError:
            pass
        self._swept = True

    def _client(self) -> Client:
        try:
            from hdfs_native import Client
        except ImportError as error:
            raise ConfigError(
                "store: hdfs:// needs a package that is missing: pip install 'gossipdbn[hdfs]'"
            ) from error
        with self._lock:
            if self._client_ is None:
                self._client_ = Client(self._server, dict(self._config), **self._options)
            return self._client_

    def _call(self, what: str, action: Callable[[Client], T]) -> T:
        """Run ``action`` on a thread of its own and wait for it up to the deadline."""
        if os.getpid() != self._pid:
            raise LocalProtocolError("an HDFS client was made before a fork and used after it; make it in the child")
        if self._lost >= _LOST_CALLS_MAX:
            raise StoreError(f"store {self.url()}: {what}: {self._lost} earlier calls still hang", retryable=True)
        call = _Call(lambda: action(self._client()))
        if not call.done.wait(self._timeout_s):
            self._leave(call)
            raise StoreError(f"store {self.url()}: {what}: no answer within {self._timeout_s:g} s", retryable=True)
        if call.error is None:
            result: T = call.result
            return result
        if isinstance(call.error, (SnapshotError, ConfigError)):
            raise call.error
        text = " ".join(str(call.error).split())[:400] or type(call.error).__name__
        raise StoreError(
            f"store {self.url()}: {what}: {_explain(text)}", retryable=not any(mark in text for mark in _LASTING)
        ) from call.error

    def _leave(self, call: _Call) -> None:
        with self._lock:
            self._lost += 1

        def found_again() -> None:
            call.done.wait()
            with self._lock:
                self._lost -= 1

        threading.Thread(target=found_again, name="hdfs call left behind", daemon=True).start()


class _Call:
    """One call on a daemon thread: its result or its error, once done."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self.done = threading.Event()
        self.result: Any = None
        self.error: Exception | None = None
        self._action = action
        threading.Thread(target=self._run, name="hdfs call", daemon=True).start()

    def _run(self) -> None:
        try:
            self.result = self._action()
        except Exception as error:  # noqa: BLE001 - handed to the caller
            self.error = error
        finally:
            self.done.set()


def _exists(client: Client, path: str) -> bool:
    try:
        return not client.get_file_info(path).isdir
    except FileNotFoundError:
        return False


def _delete_quietly(client: Client, path: str) -> None:
    """The sweep finds what stays."""
    with contextlib.suppress(OSError, RuntimeError):
        client.delete(path)


def _explain(text: str) -> str:
    if "SafeModeException" in text or "safe mode" in text.lower():
        return f"the NameNode is in safe mode and takes no writes ({text})"
    if "could only be written to" in text:
        return f"no DataNode has room for it; free some space or add DataNodes ({text})"
    if "AccessControlException" in text:
        return f"no permission ({text})"
    return text
