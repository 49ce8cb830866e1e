from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gossipdbn.embedded import artifacts
from gossipdbn.embedded.artifacts import ensure, jars, read_lock
from gossipdbn.embedded.java import find_java
from gossipdbn.errors import EmbeddedError

_SETTINGS = """<ivysettings><settings defaultResolver="r"/><caches defaultCacheDir="${{cache}}"/><resolvers>
<{kind} name="r" m2compatible="true" {where}</{kind}></resolvers></ivysettings>
"""


@pytest.fixture
def mirror(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ivy settings for a folder that holds the three small jars of a lock named ``small``."""
    lines = []
    for number in range(3):
        path = tmp_path / "mirror" / "org" / "x" / f"a{number}" / "1.0" / f"a{number}-1.0.jar"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"PK" * (100 + number))
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        lines.append(f"org.x:a{number}:1.0 sha256:{digest} {path.stat().st_size}")
    monkeypatch.setattr(artifacts, "_lock_text", lambda _name: "# three jars\n" + "\n".join(lines))
    pattern = f"{tmp_path}/mirror/[organisation]/[module]/[revision]/[artifact]-[revision].[ext]"
    settings = tmp_path / "settings.xml"
    settings.write_text(_SETTINGS.format(kind="filesystem", where=f'><artifact pattern="{pattern}"/>'))
    return settings


@pytest.mark.parametrize(("name", "count"), [(artifacts.KAFKA, 46), (artifacts.HDFS, 117), (artifacts.SPARK_KAFKA, 4)])
def test_locks_name_each_jar_once_with_its_sum(name: str, count: int) -> None:
    locked = read_lock(name)
    assert len(locked) == len({jar.file_name for jar in locked}) == count
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in locked)


def test_a_lock_that_does_not_exist_is_named() -> None:
    with pytest.raises(EmbeddedError, match=r"no-such.*kafka"):
        ensure("no-such")


def test_a_damaged_lock_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(artifacts, "_lock_text", lambda _name: "org.x:a:1 sha256:zz 1")
    with pytest.raises(EmbeddedError, match="cannot read the line"):
        read_lock("any")


def test_a_full_disk_is_noticed_before_fetching(mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(total=1, used=1, free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(EmbeddedError, match="the disk is full"):
        ensure("small", cache=tmp_path / "cache", ivy_settings=mirror)


def test_a_folder_that_cannot_be_written_is_named(mirror: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(EmbeddedError, match=r"cannot keep jars in .*cache"):
        ensure("small", cache=tmp_path / "cache", ivy_settings=mirror)


@pytest.mark.spark
def test_jars_are_fetched_checked_and_kept(mirror: Path, tmp_path: Path) -> None:
    told: list[str] = []
    folder = ensure("small", told.append, cache=tmp_path / "cache", ivy_settings=mirror)
    assert [path.name for path in jars("small", folder)] == ["a0-1.0.jar", "a1-1.0.jar", "a2-1.0.jar"]
    assert all(path.exists() for path in jars("small", folder))
    assert any("fetching 3 jars" in line for line in told)
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]
    shutil.rmtree(tmp_path / "mirror")
    assert ensure("small", told.append, cache=tmp_path / "cache", ivy_settings=mirror) == folder


@pytest.mark.spark
def test_a_changed_jar_is_thrown_away(mirror: Path, tmp_path: Path) -> None:
    jar = next((tmp_path / "mirror").rglob("a1-1.0.jar"))
    good = jar.read_bytes()
    jar.write_bytes(b"XX" + good[2:])
    with pytest.raises(EmbeddedError, match=r"a1-1.0.jar has sha256 .*the lock says"):
        ensure("small", cache=tmp_path / "cache", ivy_settings=mirror)
    jar.write_bytes(good)
    assert ensure("small", cache=tmp_path / "cache", ivy_settings=mirror).is_dir()


@pytest.mark.spark
def test_a_missing_jar_and_no_network_are_reported(mirror: Path, tmp_path: Path) -> None:
    next((tmp_path / "mirror").rglob("a1-1.0.jar")).unlink()
    with pytest.raises(EmbeddedError, match=r"1 of 3 jars could not be fetched \(first org.x:a1:1.0\)"):
        ensure("small", cache=tmp_path / "cache", ivy_settings=mirror)
    offline = tmp_path / "offline.xml"
    offline.write_text(
        _SETTINGS.format(
            kind="ibiblio", where='usepoms="false" useMavenMetadata="false" root="http://127.0.0.1:1/maven2">'
        )
    )
    with pytest.raises(EmbeddedError, match=r"3 of 3 jars.*refused.*Check the network"):
        ensure("small", cache=tmp_path / "elsewhere", ivy_settings=offline)


@pytest.mark.spark
def test_the_second_process_waits_for_the_first(mirror: Path, tmp_path: Path) -> None:
    root = tmp_path / "cache" / "jars"
    root.mkdir(parents=True)
    told: list[str] = []
    with open(root / f".small-{artifacts.lock_digest('small')}.lock", "w") as first:
        fcntl.flock(first, fcntl.LOCK_EX)
        thread = threading.Thread(
            target=ensure, args=("small", told.append), kwargs={"cache": tmp_path / "cache", "ivy_settings": mirror}
        )
        thread.start()
        deadline = time.monotonic() + 10
        while not told and time.monotonic() < deadline:
            time.sleep(0.02)
        assert "another process is fetching" in told[0]
    thread.join()
    assert "jars ready" in told[-1]


@pytest.mark.spark
def test_the_key_store_handed_to_java_is_one(tmp_path: Path) -> None:
    store = tmp_path / "trust.jks"
    store.write_bytes(artifacts._trust_store())
    done = subprocess.run(
        [str(find_java().home / "bin" / "keytool"), "-list", "-keystore", str(store), "-storepass", "changeit"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "trustedCertEntry" in done.stdout
