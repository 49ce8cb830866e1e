"""Fetches the jars that a committed lock names, once, checks them and keeps them.

A lock has one line per jar, ``group:artifact:version sha256:<hex> <bytes>``. The jars are resolved by the Ivy inside
the PySpark package (its default resolver needs no address; a mirror is set by the user's own Ivy settings), so nothing
but Java and PySpark is needed. What lies in the cache is whole and checked: a temporary folder is renamed at the end.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import os
import re
import shutil
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import quoteattr

from gossipdbn.embedded.java import Java, cache_folder, find_java
from gossipdbn.errors import EmbeddedError

__all__ = ["HDFS", "KAFKA", "SPARK_KAFKA", "LockedJar", "ensure", "jars", "lock_digest", "read_lock"]

KAFKA = "kafka-4.3.1"
HDFS = "hdfs-3.5.0"
SPARK_KAFKA = "spark-kafka-4.2.0"

Progress = Callable[[str], None]

_LINE = re.compile(r"([\w.\-]+):([\w.\-]+):([\w.\-]+) sha256:([0-9a-f]{64}) (\d+)")
_NOT_FOUND = re.compile(r"module not found: ([^\s#]+)#([^\s;]+);(\S+)")
_RESOLVE_S_MAX = 900.0
_STALL_S_MAX = 120.0


@dataclass(frozen=True, slots=True)
class LockedJar:
    """One line of a lock: Maven coordinates, SHA-256 (hex) and size in bytes."""

    group: str
    artifact: str
    version: str
    sha256: str
    size: int

    @property
    def file_name(self) -> str:
        return f"{self.artifact}-{self.version}.jar"


def read_lock(lock_name: str) -> tuple[LockedJar, ...]:
    """The jars of a lock that comes with the package, in the lock's order."""
    found: list[LockedJar] = []
    for line in _lock_text(lock_name).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise EmbeddedError(f"lock {lock_name}: cannot read the line {line!r}; reinstall gossipdbn")
        group, artifact, version, digest, size = match.groups()
        found.append(LockedJar(group, artifact, version, digest, int(size)))
    return tuple(found)


def lock_digest(lock_name: str) -> str:
    """Twelve hex digits that change with the lock's content."""
    return hashlib.sha256(_lock_text(lock_name).encode()).hexdigest()[:12]


def jars(lock_name: str, folder: Path) -> list[Path]:
    """Paths of a lock's jars in ``folder``, sorted: the class path that class data archives need to be stable."""
    return sorted(folder / jar.file_name for jar in read_lock(lock_name))


def ensure(
    lock_name: str,
    on_progress: Progress | None = None,
    *,
    cache: Path | None = None,
    ivy_settings: Path | None = None,
    java: Java | None = None,
) -> Path:
    """The folder that holds the jars of ``lock_name``, fetching them first where they are not there yet.

    Parameters
    ----------
    lock_name
        ``KAFKA``, ``HDFS`` or ``SPARK_KAFKA``.
    on_progress
        Called with a line of text now and then while jars are fetched.
    cache
        Cache folder; default ``$XDG_CACHE_HOME/gossipdbn`` or ``~/.cache/gossipdbn``.
    ivy_settings
        The user's own Ivy settings file (a company mirror, credentials).
    java
        Runtime for Ivy; default :func:`find_java`.

    Raises
    ------
    EmbeddedError
        Offline, a wrong checksum, no disk space, no permission, no Java: the message says which and what to do.
    """
    tell = on_progress or (lambda _line: None)
    locked = read_lock(lock_name)
    root = cache_folder(cache) / "jars"
    target = root / f"{lock_name}-{lock_digest(lock_name)}"
    if _is_whole(target, locked):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(root / f".{target.name}.lock", tell, lock_name):
            if not _is_whole(target, locked):
                _fetch(lock_name, locked, target, tell, ivy_settings, java or find_java())
    except OSError as error:
        raise _disk_error(root, error) from error
    return target


def _lock_text(lock_name: str) -> str:
    path = files("gossipdbn.embedded").joinpath(f"locks/{lock_name}.lock")
    try:
        return path.read_text()
    except FileNotFoundError:
        raise EmbeddedError(f"there is no lock named {lock_name!r}; known: {KAFKA}, {HDFS}, {SPARK_KAFKA}") from None


def _is_whole(folder: Path, locked: tuple[LockedJar, ...]) -> bool:
    """Sizes only: hashes were checked before the rename that made the folder."""
    try:
        return all((folder / jar.file_name).stat().st_size == jar.size for jar in locked)
    except OSError:
        return False


def _disk_error(root: Path, error: OSError) -> EmbeddedError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "the disk is full; free some space"
    elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        what = "no permission to write there"
    else:
        what = str(error)
    return EmbeddedError(f"cannot keep jars in {root}: {what}, or choose another cache folder with XDG_CACHE_HOME")


@contextlib.contextmanager
def _one_at_a_time(path: Path, tell: Progress, lock_name: str) -> Iterator[None]:
    """Hold a file lock, which the kernel gives back when its holder dies."""
    with open(path, "w") as handle:
        deadline = time.monotonic() + _RESOLVE_S_MAX
        waiting = False
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not waiting:
                    tell(f"{lock_name}: another process is fetching these jars, waiting for it")
                    waiting = True
                if time.monotonic() > deadline:
                    raise EmbeddedError(f"another process has held {path} for too long; end it and try again") from None
                time.sleep(0.1)
        yield


def _fetch(
    lock_name: str, locked: tuple[LockedJar, ...], target: Path, tell: Progress, settings: Path | None, java: Java
) -> None:
    size = sum(jar.size for jar in locked)
    free = shutil.disk_usage(target.parent).free
    if free < 3 * size:
        raise OSError(errno.ENOSPC, f"{free >> 20} MiB free, {3 * size >> 20} MiB needed")
    tell(f"{lock_name}: fetching {len(locked)} jars, {size / 1e6:.0f} MB (once)")
    began = time.monotonic()
    ivy_cache = target.parent / f".ivy-{target.name}"  # kept after a failure: the next try goes on from there
    prefix = f".fetch-{target.name}-"
    for left in target.parent.glob(f"{prefix}*"):  # of a killed process: we hold the lock, nobody is at work there
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        output = _resolve(java, locked, work, ivy_cache, settings, [], tell, lock_name)
        if _missing(work, locked) and "PKIX" in output:
            # The runtime does not know the certificates this machine trusts (a company proxy): hand them over.
            store = work / "trust.jks"
            store.write_bytes(_trust_store())
            output = _resolve(java, locked, work, ivy_cache, settings, _trust_flags(store), tell, lock_name)
        _check(lock_name, locked, work, ivy_cache, output)
        if target.exists():  # an incomplete folder from outside; ours appear whole
            shutil.rmtree(target)
        os.replace(work / "jars", target)
        shutil.rmtree(ivy_cache, ignore_errors=True)
        tell(f"{lock_name}: {len(locked)} jars ready after {time.monotonic() - began:.1f} s")
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _missing(work: Path, locked: tuple[LockedJar, ...]) -> list[LockedJar]:
    return [jar for jar in locked if not (work / "jars" / jar.file_name).exists()]


def _check(lock_name: str, locked: tuple[LockedJar, ...], work: Path, ivy_cache: Path, output: str) -> None:
    missing = _missing(work, locked)
    if missing:
        reason = _reason(output)
        if "No space left" in output:
            raise OSError(errno.ENOSPC, reason)
        # One that is not found keeps all from being handed out: name the culprits, not the hostages.
        named = {f"{group}:{artifact}:{version}" for group, artifact, version in _NOT_FOUND.findall(output)}
        culprits = sorted(named) or [f"{jar.group}:{jar.artifact}:{jar.version}" for jar in missing]
        raise EmbeddedError(
            f"{lock_name}: {len(culprits)} of {len(locked)} jars could not be fetched (first {culprits[0]}): {reason}. "
            "Check the network and try again; behind a proxy set HTTPS_PROXY, for a mirror give your own Ivy settings"
        )
    for jar in locked:
        path = work / "jars" / jar.file_name
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
            os.fsync(stream.fileno())
        if found != jar.sha256:
            shutil.rmtree(ivy_cache, ignore_errors=True)
            raise EmbeddedError(
                f"{lock_name}: {jar.file_name} has sha256 {found}, the lock says {jar.sha256}: it was changed or "
                "damaged on its way and is thrown away. Try again; if it stays, your mirror serves another file"
            )


def _reason(output: str) -> str:
    """The line of Ivy's output that tells most."""
    lines = [line.strip(" :\t") for line in output.splitlines()]
    marks = ("PKIX", "No space left", "UnknownHost", "Connect", "timed out", "Server access", "Exception", "not found")
    for mark in marks:
        for line in lines:
            if mark in line:
                return line[:300]
    return next((line[:300] for line in reversed(lines) if line), "no output")


def _resolve(
    java: Java,
    locked: tuple[LockedJar, ...],
    work: Path,
    ivy_cache: Path,
    settings: Path | None,
    flags: list[str],
    tell: Progress,
    lock_name: str,
) -> str:
    """Run Ivy into ``work/jars``; returns its output. Bounded by an overall and a standstill deadline."""
    (work / "jars").mkdir(exist_ok=True)
    (work / "ivy.xml").write_text(_ivy_file(locked))
    if settings is None:
        settings = work / "ivysettings.xml"
        settings.write_text(files("gossipdbn.embedded").joinpath("templates/ivysettings.xml").read_text())
    command = [
        str(java.executable), f"-Dcache={ivy_cache}", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx256m",
        "-Dsun.net.client.defaultConnectTimeout=20000", "-Dsun.net.client.defaultReadTimeout=60000",
        *_proxy_flags(), *flags, "-cp", os.pathsep.join(map(str, _ivy_jars())), "org.apache.ivy.Main",
        "-settings", str(settings), "-ivy", str(work / "ivy.xml"), "-confs", "default", "-retrieve",
        f"{work}/jars/[artifact]-[revision](-[classifier]).[ext]", "-warn",
    ]  # fmt: skip
    log = work / "ivy.log"
    with open(log, "wb") as stream:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT)
    try:
        _watch(process, ivy_cache, len(locked), tell, lock_name)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
    return log.read_text(errors="replace")


def _watch(process: subprocess.Popen[bytes], ivy_cache: Path, total: int, tell: Progress, lock_name: str) -> None:
    began = last_change = last_told = time.monotonic()
    seen = (-1, -1)
    while process.poll() is None:
        now = time.monotonic()
        sizes = [path.stat().st_size for path in ivy_cache.glob("**/*.jar*") if path.exists()]
        if (len(sizes), sum(sizes)) != seen:
            seen, last_change = (len(sizes), sum(sizes)), now
        if now - last_told > 2.0:
            tell(f"{lock_name}: {len(sizes)} of {total} jars, {sum(sizes) / 1e6:.0f} MB")
            last_told = now
        if now - last_change > _STALL_S_MAX or now - began > _RESOLVE_S_MAX:
            raise EmbeddedError(
                f"{lock_name}: fetching jars stands still after {now - began:.0f} s ({len(sizes)} of {total} there). "
                "Check the network and try again; what was fetched is kept"
            )
        time.sleep(0.05 if now - began < 2 else 0.2)


def _ivy_jars() -> list[Path]:
    spec = importlib.util.find_spec("pyspark")
    folder = Path(spec.origin).parent / "jars" if spec is not None and spec.origin else None
    found = [] if folder is None else sorted(folder.glob("ivy-2*.jar")) + sorted(folder.glob("commons-cli-*.jar"))
    if len(found) < 2:
        raise EmbeddedError("a tool inside PySpark fetches jars, but it is missing: pip install 'gossipdbn[spark]'")
    return found


def _ivy_file(locked: tuple[LockedJar, ...]) -> str:
    lines = [
        f"<dependency org={quoteattr(jar.group)} name={quoteattr(jar.artifact)} rev={quoteattr(jar.version)} "
        'transitive="false" conf="default->default"/>'
        for jar in locked
    ]
    return (
        '<ivy-module version="2.0"><info organisation="gossipdbn" module="embedded"/>'
        '<configurations><conf name="default"/></configurations><dependencies>\n'
        + "\n".join(lines)
        + "\n</dependencies></ivy-module>\n"
    )


def _proxy_flags() -> list[str]:
    """Java does not read the proxy variables that everything else on a machine reads."""
    flags: list[str] = []
    for scheme in ("http", "https"):
        value = os.environ.get(f"{scheme}_proxy") or os.environ.get(f"{scheme.upper()}_PROXY") or ""
        parts = urlsplit(value if "//" in value else f"//{value}")
        if parts.hostname:
            flags += [f"-D{scheme}.proxyHost={parts.hostname}", f"-D{scheme}.proxyPort={parts.port or 3128}"]
    skip = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if flags and skip:
        hosts = (host.strip() for host in skip.split(","))
        flags.append("-Dhttp.nonProxyHosts=" + "|".join(f"*{h}" if h.startswith(".") else h for h in hosts if h))
    return flags


def _trust_flags(store: Path) -> list[str]:
    return [
        f"-Djavax.net.ssl.trustStore={store}",
        "-Djavax.net.ssl.trustStoreType=jks",
        "-Djavax.net.ssl.trustStorePassword=changeit",
    ]


def _trust_store() -> bytes:
    """The certificates that Python trusts on this machine, as a Java key store (the public JKS format, version 2)."""
    certificates = ssl.create_default_context().get_ca_certs(binary_form=True)
    body = struct.pack(">IiI", 0xFEEDFEED, 2, len(certificates))
    for number, der in enumerate(certificates):
        alias = b"ca%d" % number
        body += struct.pack(">IH", 2, len(alias)) + alias + struct.pack(">qH", 0, 5) + b"X.509"
        body += struct.pack(">I", len(der)) + der
    # The format's own integrity sum, with its well-known password; no secret is involved.
    password = "changeit".encode("utf-16-be")
    return body + hashlib.sha1(password + b"Mighty Aphrodite" + body, usedforsecurity=False).digest()
