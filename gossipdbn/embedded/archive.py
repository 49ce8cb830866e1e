"""Class data archives: a Java program starts about a second faster from the second time on.

A run that records writes the archive when it ends in order (2 to 6 s, once); it is taken into use only then, by a
rename. The Java runtime itself checks that archive, runtime and jars fit together, and ignores an archive otherwise.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gossipdbn.embedded.java import Java

__all__ = ["ClassArchive"]

_ONE_STEP_VERSION = 25  # from here on the runtime records and assembles its newer kind of archive in one step
_STALE_S = 3600.0


@dataclass(slots=True)
class ClassArchive:
    """The archive of one program, one runtime and one cache; ``recording`` while a run writes a new one."""

    path: Path
    one_step: bool
    recording: Path | None = None

    @classmethod
    def of(cls, java: Java, program: str, cache: Path) -> ClassArchive | None:
        """None where the runtime cannot use one."""
        one_step = java.version >= _ONE_STEP_VERSION
        if not one_step and not java.has_base_archive:
            return None
        try:
            stamp = (java.home / "lib" / "modules").stat().st_mtime_ns
        except OSError:
            return None
        key = hashlib.sha256(f"{program} {java.home} {java.version} {stamp}".encode()).hexdigest()[:16]
        return cls(cache / "class-data" / f"{key}.{'aot' if one_step else 'jsa'}", one_step)

    def flags(self, *, record: bool = False) -> list[str]:
        """Flags of the runtime: use the archive, or record one when there is none and ``record`` is set."""
        self.recording = None
        if self.path.exists():
            return [f"-XX:AOTCache={self.path}"] if self.one_step else [f"-XX:SharedArchiveFile={self.path}"]
        if not record:
            return []
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            folder = Path(tempfile.mkdtemp(prefix=".record-", dir=self.path.parent))
            self.recording = folder / self.path.name
        if self.recording is None:
            return []
        option = "AOTCacheOutput" if self.one_step else "ArchiveClassesAtExit"
        return [f"-XX:{option}={self.recording}"]

    def adopt(self, exit_code: int | None) -> None:
        """Take what a run recorded into use if that run ended in order."""
        if self.recording is None:
            return
        in_order = exit_code in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
        with contextlib.suppress(OSError):
            if in_order and self.recording.exists():
                os.replace(self.recording, self.path)
            _remove_folder(self.recording.parent)
        self.recording = None

    def _sweep(self) -> None:
        for folder in self.path.parent.glob(".record-*"):
            if time.time() - folder.stat().st_mtime > _STALE_S:
                _remove_folder(folder)


def _remove_folder(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
