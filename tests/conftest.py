"""What all tests share: where nothing of the user's is touched, and why a test that needs a real part is skipped."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

pytest_plugins = ["gossipdbn.testing"]

# Inputs are drawn the same way everywhere; a slow first call is numba compiling.
settings.register_profile("gossipdbn", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "gossipdbn"))


def _without_engine() -> str | None:
    """Why no container engine can be used here, or None."""
    if shutil.which("docker") is None and not Path("/var/run/docker.sock").exists():
        return "no container engine: docker is not installed"
    if shutil.which("dockerd") is None and not os.access("/var/run/docker.sock", os.W_OK):
        return "no container engine: /var/run/docker.sock cannot be used and there is no dockerd to start"
    return None


def _without(module: str) -> str | None:
    return None if importlib.util.find_spec(module) else f"the Python package {module} is not installed"


_NEEDS = {"spark": lambda: _without("pyspark"), "hdfs": lambda: _without("hdfs_native"), "containers": _without_engine}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what this machine cannot run, with the reason; parts of the real world count as integration."""
    reasons = {marker: needed() for marker, needed in _NEEDS.items()}
    for item in items:
        if any(item.get_closest_marker(m) for m in ("kafka", "spark", "hdfs", "containers")):
            item.add_marker(pytest.mark.integration)
        for marker, reason in reasons.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of runs, used by the command line and by processes it starts."""
    folder = tmp_path / "home"
    monkeypatch.setenv("GOSSIPDBN_HOME", str(folder))
    return folder
