"""Snapshot stores: a folder, HDFS, or anything that fsspec reaches; each publishes a name whole or not at all.

Names are relative, with ``/`` between parts; a part is made of letters, digits and ``. _ - + =`` and does not begin
with a dot. Content is checked by the caller, who knows the sha256.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from gossipdbn.errors import ConfigError, SnapshotCorrupt, SnapshotMissing, StoreError
from gossipdbn.ports import SnapshotStore

__all__ = ["TEMPORARY", "FolderStore", "FsspecStore", "check_name", "open_store", "pieces", "whole"]

TEMPORARY = ".tmp"
"""Folder below the root for files not yet published."""
SWEEP_AGE_S = 3600.0
"""Temporaries older than this are left-overs of dead processes."""

PIECE_BYTES = 4 << 20
"""Files are read and sent on in pieces of this size."""

_PART = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9._+=-]*")
_NAME_CHARS_MAX = 512
# Their uploads appear whole or not at all; elsewhere a file is written under another name and renamed.
_OBJECT_STORES = frozenset({"abfs", "abfss", "az", "gcs", "gs", "memory", "oci", "oss", "r2", "s3", "s3a"})


def open_store(url: str, **options: Any) -> SnapshotStore:
    """The store at ``url``.

    Parameters
    ----------
    url
        A path or ``file://`` URL, ``hdfs://namenode[:port]/path``, ``memory://name``, or any URL fsspec knows.
    options
        For ``hdfs://``: see :class:`~gossipdbn.adapters.hdfs_store.HdfsStore`; else passed to fsspec.

    Raises
    ------
    ConfigError
        For a URL that nothing installed can open.
    """
    parts = urlsplit(url)
    if not url.strip():
        raise ConfigError("store: is empty; give a folder or a URL such as hdfs://namenode/path or s3://bucket/path")
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ConfigError(f"store: {url!r} names a host; write file:///path")
        return FolderStore(Path(unquote(parts.path)))
    if "://" not in url:
        return FolderStore(Path(url))
    if parts.scheme == "hdfs":
        from gossipdbn.adapters.hdfs_store import HdfsStore

        return HdfsStore(url, **options)
    return FsspecStore(url, **options)


def check_name(name: str) -> str:
    """``name`` itself if it is a legal name of an object, else StoreError: such a name never gets near a file."""
    if 0 < len(name) <= _NAME_CHARS_MAX and all(_PART.fullmatch(part) for part in name.split("/")):
        return name
    raise StoreError(
        f"{name[:200]!r} is no name of an object: parts of letters, digits and '._-+=' that do not begin with "
        "a dot, joined by '/', without ':' and '..'"
    )


def pieces(data: bytes | BinaryIO) -> Iterator[bytes]:
    """Bytes, or what a file holds from its beginning, piece by piece."""
    if isinstance(data, bytes):
        for start in range(0, len(data), PIECE_BYTES):
            yield data[start : start + PIECE_BYTES]
        return
    data.seek(0)
    while piece := data.read(PIECE_BYTES):
        yield piece


def whole(data: bytes | BinaryIO) -> bytes:
    """Bytes, or all that a file holds."""
    return data if isinstance(data, bytes) else b"".join(pieces(data))


class FolderStore:
    """Objects as files below a folder of a local or mounted file system (see ``ports.SnapshotStore``).

    A file is written below ``.tmp``, forced to disk, and linked to its name, which fails where the name exists.
    """

    def __init__(self, folder: Path) -> None:
        self._root = folder.expanduser().absolute()
        self._swept = False

    def put(self, name: str, data: bytes | BinaryIO) -> None:
        target = self._root / check_name(name)
        with self._errors(f"{name} cannot be published"):
            if target.exists():
                return
            temporary = self._root / TEMPORARY / uuid.uuid4().hex
            _make_folders(temporary.parent)
            self._sweep()
            _make_folders(target.parent)
            try:
                _write_synced(temporary, data)
                _publish(temporary, target)
            finally:
                with contextlib.suppress(FileNotFoundError):
                    temporary.unlink()
            _sync_folder(target.parent)

    def get(self, name: str, max_bytes: int) -> bytes:
        path = self._root / check_name(name)
        with self._errors(f"{name} cannot be read"):
            try:
                with open(path, "rb") as stream:
                    _check_size(name, os.fstat(stream.fileno()).st_size, max_bytes)
                    return stream.read()
            except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
                raise SnapshotMissing(f"{self.url()} holds no object {name}") from None

    def names(self, prefix: str = "") -> list[str]:
        with self._errors("objects cannot be listed"):
            return sorted(name for name in _walk(self._root, "") if name.startswith(prefix))

    def delete(self, name: str) -> None:
        path = self._root / check_name(name)
        with self._errors(f"{name} cannot be deleted"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()

    def url(self) -> str:
        return str(self._root)

    def _sweep(self) -> None:
        """Once per process: a killed writer leaves its temporary file behind."""
        if self._swept:
            return
        self._swept = True
        for entry in os.scandir(self._root / TEMPORARY):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - entry.stat().st_mtime > SWEEP_AGE_S:
                    os.unlink(entry.path)

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise os_error(f"store {self.url()}: {what}", error) from error


def os_error(what: str, error: OSError) -> StoreError:
    """A StoreError for an error of the operating system, with advice."""
    advice = {
        errno.ENOSPC: ("the disk is full; free some space", True),
        errno.EDQUOT: ("the quota is used up; free some space", True),
        errno.EACCES: ("no permission; choose another folder or change its rights", False),
        errno.EPERM: ("no permission; choose another folder or change its rights", False),
        errno.EROFS: ("the file system is read-only; choose another folder", False),
        errno.ENOTDIR: ("a file lies where a folder is needed; choose another folder", False),
        errno.ENAMETOOLONG: ("the name is too long for this file system", False),
    }
    text, retryable = advice.get(error.errno or 0, (str(error) or type(error).__name__, True))
    return StoreError(f"{what}: {text}", retryable=retryable)


def _check_size(name: str, size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise SnapshotCorrupt(
            f"{name} has {size} bytes, at most {max_bytes} were expected: it is not what it should be"
        )


def _walk(folder: Path, prefix: str) -> Iterator[str]:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except FileNotFoundError:
        return
    for entry in entries:
        if not _PART.fullmatch(entry.name):
            continue
        if entry.is_dir():
            yield from _walk(folder / entry.name, f"{prefix}{entry.name}/")
        else:
            yield prefix + entry.name


def _make_folders(folder: Path) -> None:
    """Like makedirs, and each new folder is on disk before anything is put into it."""
    if folder.is_dir():
        return
    _make_folders(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
        _sync_folder(folder.parent)


def _write_synced(path: Path, data: bytes | BinaryIO) -> None:
    with open(path, "xb") as stream:
        stream.writelines(pieces(data))
        stream.flush()
        os.fsync(stream.fileno())


def _publish(temporary: Path, target: Path) -> None:
    """Give the file its name unless the name is taken."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS, errno.EXDEV):
            raise
        if not target.exists():  # no hard links here; two writers of one name bring the same bytes
            os.rename(temporary, target)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class FsspecStore:
    """Objects on anything fsspec reaches: object stores by one conditional upload, others by writing and renaming.

    An object lies in memory while it is uploaded.
    """

    def __init__(self, url: str, **options: Any) -> None:
        import fsspec

        self._url = url.rstrip("/")
        try:
            self._fs, root = fsspec.core.url_to_fs(self._url, **options)
        except (ImportError, ValueError, TypeError) as error:
            raise ConfigError(f"store: {url!r} cannot be opened: {error}") from error
        self._root = str(root).rstrip("/")
        self._whole_uploads = urlsplit(url).scheme in _OBJECT_STORES
        self._swept = False

    def put(self, name: str, data: bytes | BinaryIO) -> None:
        path = f"{self._root}/{check_name(name)}"
        with self._errors(f"{name} cannot be published"):
            if self._fs.exists(path):
                return
            if self._whole_uploads:
                self._upload(path, whole(data))
            else:
                self._rename_into_place(path, whole(data))

    def get(self, name: str, max_bytes: int) -> bytes:
        path = f"{self._root}/{check_name(name)}"
        with self._errors(f"{name} cannot be read"):
            try:
                info = self._fs.info(path)
                if info.get("type") == "directory":
                    raise FileNotFoundError(path)
                _check_size(name, int(info["size"] or 0), max_bytes)
                data = self._fs.cat_file(path)
            except (FileNotFoundError, IsADirectoryError):
                raise SnapshotMissing(f"{self._url} holds no object {name}") from None
        _check_size(name, len(data), max_bytes)
        return bytes(data)

    def names(self, prefix: str = "") -> list[str]:
        with self._errors("objects cannot be listed"):
            try:
                self._fs.invalidate_cache()
                paths = self._fs.find(self._root)
            except FileNotFoundError:
                return []
        found = [str(path).removeprefix(self._root).lstrip("/") for path in paths]
        return sorted(
            name for name in found if name.startswith(prefix) and all(_PART.fullmatch(part) for part in name.split("/"))
        )

    def delete(self, name: str) -> None:
        path = f"{self._root}/{check_name(name)}"
        with self._errors(f"{name} cannot be deleted"), contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(path)

    def url(self) -> str:
        return self._url

    def _upload(self, path: str, data: bytes) -> None:
        try:
            self._fs.pipe_file(path, data, mode="create")
        except FileExistsError:
            return
        except (
            TypeError,
            NotImplementedError,
            ValueError,
        ):  # a backend that cannot refuse to overwrite: same bytes anyway
            self._fs.pipe_file(path, data)

    def _rename_into_place(self, path: str, data: bytes) -> None:
        folder = f"{self._root}/{TEMPORARY}"
        temporary = f"{folder}/{uuid.uuid4().hex}"
        self._fs.makedirs(folder, exist_ok=True)
        self._sweep(folder)
        self._fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        try:
            self._fs.pipe_file(temporary, data)
            if not self._fs.exists(path):
                self._fs.mv(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                if self._fs.exists(temporary):
                    self._fs.rm_file(temporary)

    def _sweep(self, folder: str) -> None:
        if self._swept:
            return
        self._swept = True
        for entry in self._fs.ls(folder, detail=True):
            stamp = entry.get("mtime", entry.get("modificationTime", entry.get("created")))
            if isinstance(stamp, (int, float)):
                age_s = time.time() - (stamp / 1000 if stamp > 1e11 else stamp)
                if age_s > SWEEP_AGE_S:
                    with contextlib.suppress(OSError):
                        self._fs.rm_file(entry["name"])

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Backends raise whatever their libraries raise: all of it means that the store did not do it."""
        try:
            yield
        except (SnapshotMissing, SnapshotCorrupt):
            raise
        except OSError as error:
            raise os_error(f"store {self._url}: {what}", error) from error
        except Exception as error:
            raise StoreError(f"store {self._url}: {what}: {type(error).__name__}: {error}", retryable=True) from error
