#!/usr/bin/env python3
"""Builds gossipdbn/all:dev from what lies on this machine: no image registry, no network.

Into an empty image go: the interpreter that runs this script, the packages that gossipdbn[spark,hdfs] needs and
gossipdbn itself with its kernels as they are compiled for this machine, a Java runtime cut from the JDK at hand, the
locked jars of HDFS and of Spark's Kafka connector, bash and a static busybox, and the shared libraries that all these
link to.

    ../.venv/bin/python build-image.py [--base IMAGE] [--tag TAG]

needs docker, jlink (a full JDK 17 or newer) and busybox-static.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from importlib import metadata
from pathlib import Path

from numba.core.caching import CompileResultCacheImpl
from packaging.requirements import Requirement

from gossipdbn.embedded import artifacts
from gossipdbn.kernels import tiers

HERE = Path(__file__).resolve().parent
PACKAGE = HERE.parent / "gossipdbn"
MODULES = (
    "java.se,jdk.unsupported,jdk.crypto.ec,jdk.management,jdk.zipfs,jdk.security.auth,jdk.security.jgss,jdk.naming.dns,"
    "jdk.httpserver,jdk.incubator.vector"
)
LEFT_OUT = shutil.ignore_patterns(
    "__pycache__", "test", "tests", "idlelib", "tkinter", "ensurepip", "site-packages", "lib2to3", "*.a", "config-*"
)
SITE = "opt/gossipdbn"
RESOLVER = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2")


def needed(names: list[str]) -> list[str]:
    """The installed packages that ``names`` need, extras followed."""
    seen: dict[str, set[str]] = {}
    todo = [Requirement(name) for name in names]
    while todo:
        wanted = todo.pop()
        done = seen.setdefault(re.sub(r"[-_.]+", "-", wanted.name).lower(), set())
        extras = {"", *wanted.extras}
        if extras <= done:
            continue
        done |= extras
        for text in metadata.requires(wanted.name) or ():
            found = Requirement(text)
            if found.marker is None or any(found.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(found)
    return sorted(seen)


def copy_packages(target: Path) -> None:
    """Every file of every needed package, and gossipdbn's source."""
    for name in needed(["gossipdbn[spark,hdfs]"]):
        if name == "gossipdbn":
            continue
        distribution = metadata.distribution(name)
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            _take(source, target / file)
    shutil.copytree(PACKAGE, target / "gossipdbn", ignore=shutil.ignore_patterns("__pycache__"))
    ours = metadata.distribution("gossipdbn")
    info = target / f"gossipdbn-{ours.version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(ours.read_text("METADATA") or ours.read_text("PKG-INFO") or "")


def _take(source: Path, target: Path) -> None:
    """The file itself under another name where that is possible: they make a gigabyte, and nobody writes to it."""
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copy2(source, target)


def copy_tools(root: Path) -> None:
    """busybox under every name it answers to, bash for Spark's scripts, the interpreter."""
    for folder in ("bin", "sbin", "usr/bin", "tmp", "root", "proc", "sys", "dev", "etc", "var/lib", "state"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    busybox = shutil.which("busybox")
    bash = shutil.which("bash")
    assert busybox, "busybox-static is not installed"
    assert bash, "bash is not installed"
    shutil.copy2(busybox, root / "bin/busybox")
    shutil.copy2(bash, root / "bin/bash")
    for applet in subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split():
        for folder in ("bin", "usr/bin"):
            if not (root / folder / applet).exists():
                (root / folder / applet).symlink_to("/bin/busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/nsswitch.conf").write_text("hosts: files dns\n")
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (root / "opt/python/bin").mkdir(parents=True)
    shutil.copy2(Path(sys.base_prefix) / "bin" / version, root / "opt/python/bin/python3")
    shutil.copytree(sysconfig.get_path("stdlib", vars={"installed_base": sys.base_prefix}),
                    root / "opt/python/lib" / version, ignore=LEFT_OUT, symlinks=True)  # fmt: skip


def copy_libraries(root: Path) -> None:
    """The shared libraries that programs and extension modules link to, at their own places."""
    programs = [p for p in root.rglob("*") if p.is_file() and not p.is_symlink() and _is_elf(p)]
    listed = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    wanted = set(re.findall(r"(?:=>\s*|^\s+)(/[^ ]+) \(0x", listed, re.MULTILINE))
    wanted |= {str(p) for name in RESOLVER for d in ("/lib", "/usr/lib") for p in Path(d).glob(f"*-linux-gnu/{name}")}
    for name in sorted(wanted):
        target = root / name.lstrip("/")
        if not name.startswith(str(root)) and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(name, target)


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def copy_java(root: Path) -> None:
    """A Java runtime, HDFS, and the jars of Spark's connector where gossipdbn looks for them."""
    subprocess.run(
        ["jlink", "--strip-debug", "--no-man-pages", "--no-header-files", "--compress=0", "--add-modules", MODULES,
         "--output", root / "opt/jre"], check=True,
    )  # fmt: skip
    shutil.copytree(artifacts.ensure(artifacts.HDFS), root / "opt/hdfs/lib")
    for service in ("hdfs", "datanode"):
        (root / "opt/hdfs/conf/webapps" / service).mkdir(parents=True)
        (root / "opt/hdfs/conf/webapps" / service / "keep").touch()
    for name in ("core-site.xml", "hdfs-site.xml"):
        shutil.copy(HERE / "hdfs" / "hdfs-site.xml", root / "opt/hdfs/conf" / name)
    connector = artifacts.ensure(artifacts.SPARK_KAFKA)
    shutil.copytree(connector, root / "var/cache/gossipdbn" / connector.relative_to(artifacts.cache_folder()))


def copy_kernels(root: Path, site: str) -> None:
    """Machine code of the kernels, compiled now if it is not there yet, under the name that numba gives its place."""
    subprocess.run([sys.executable, HERE / "gossipdbn" / "warm.py"], check=True)
    caches = root / "var/cache/gossipdbn" / tiers.CACHE_FOLDER.name
    there = CompileResultCacheImpl._locator_classes[0].get_suitable_cache_subpath
    here = tiers.CACHE_FOLDER / there(str(Path(str(tiers.__file__)).resolve()))
    if here.is_dir():  # else they are compiled anew in the image
        shutil.copytree(here, caches / there(f"/{site}/gossipdbn/kernels/tiers.py"))


def main() -> None:
    """Collect and build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tag", default="gossipdbn/all:dev")
    parser.add_argument("--base", default="scratch", help="base image, for users with a registry")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gossipdbn-image-") as name:
        root = Path(name) / "root"
        root.mkdir()
        copy_tools(root)
        copy_packages(root / SITE)
        copy_kernels(root, SITE)
        copy_java(root)
        copy_libraries(root)
        shutil.copy(HERE / "gossipdbn" / "Dockerfile", name)
        shutil.copy(HERE / "gossipdbn" / "warm.py", root / "opt")
        for script in ("gossipdbn", "healthy"):
            shutil.copy(HERE / "gossipdbn" / script, root / "bin" / script)
        subprocess.run(
            ["docker", "build", "-q", "--build-arg", f"BASE={options.base}", "-t", options.tag, name],
            check=True, env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip


if __name__ == "__main__":
    main()
