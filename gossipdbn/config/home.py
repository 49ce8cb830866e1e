"""Where runs live on this machine: one folder per run, and the embedded broker's beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The local files of one run."""

    path: Path

    @property
    def facts(self) -> Path:
        """``run.json``: what the launcher and others note about the run (address of the broker, state, results)."""
        return self.path / "run.json"

    @property
    def config(self) -> Path:
        """The configuration the run was started with."""
        return self.path / "config.toml"

    @property
    def checkpoint(self) -> Path:
        """Spark's checkpoint of the feed."""
        return self.path / "checkpoint"

    @property
    def snapshots(self) -> Path:
        """The default snapshot store."""
        return self.path / "snapshots"

    @property
    def model(self) -> Path:
        """The trained model."""
        return self.path / "model.safetensors"

    @property
    def logs(self) -> Path:
        """Logs of the feed and of local workers."""
        return self.path / "logs"


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds runs, the embedded broker's data and caches."""

    path: Path

    @property
    def broker(self) -> Path:
        """Data and state of the embedded broker."""
        return self.path / "broker"

    @property
    def hdfs(self) -> Path:
        """Data and state of the embedded HDFS."""
        return self.path / "hdfs"

    @property
    def cache(self) -> Path:
        """Downloaded artifacts."""
        return self.path / "cache"

    @property
    def runs(self) -> Path:
        """Folder of all runs."""
        return self.path / "runs"

    def run(self, run: str) -> RunFolder:
        """The folder of one run, existing or not."""
        return RunFolder(self.runs / run)


def default_home(environ: Mapping[str, str]) -> Home:
    """``$GOSSIPDBN_HOME``, else ``$XDG_DATA_HOME/gossipdbn``, else ``~/.local/share/gossipdbn``."""
    if environ.get("GOSSIPDBN_HOME"):
        return Home(Path(environ["GOSSIPDBN_HOME"]))
    base = environ.get("XDG_DATA_HOME")
    data = Path(base) if base else Path(environ.get("HOME") or "~").expanduser() / ".local" / "share"
    return Home(data / "gossipdbn")
