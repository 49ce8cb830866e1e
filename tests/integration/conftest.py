"""Real parts for integration tests: one broker and one HDFS per session, started when a test first asks for them.

They are those of ``gossipdbn.testing``: ``--gossip-bootstrap``, ``--gossip-image`` and ``--gossip-hdfs`` name others.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.embedded.hdfs import Hdfs
from gossipdbn.embedded.provision import image_present

KAFKA_IMAGE = "gossipdbn/kafka:7.9.0"
COMPOSE = Path(__file__).parents[2] / "compose"


@pytest.fixture(scope="session")
def bootstrap(gossip_broker: str) -> str:
    """Address of a broker that the whole session shares; tests choose topic names of their own."""
    return gossip_broker


@pytest.fixture
def log(bootstrap: str) -> Iterator[KafkaLog]:
    """The log of the session's broker."""
    log = KafkaLog(bootstrap)
    yield log
    log.close()


@pytest.fixture
def run_name() -> str:
    """A run id, and so topic names, that no other test uses."""
    return f"test-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def hdfs(gossip_hdfs_server: Hdfs) -> Hdfs:
    """An HDFS that the whole session shares; who breaks a part of it restarts that part."""
    return gossip_hdfs_server


@pytest.fixture
def hdfs_folder(hdfs: Hdfs, run_name: str) -> str:
    """URL of a fresh folder on it."""
    return f"{hdfs.url}/{run_name}"


@pytest.fixture
def broker_folder(tmp_path: Path) -> Path:
    """A folder for a broker of the test's own, which it may kill."""
    return tmp_path / "kafka"


@pytest.fixture(scope="session")
def engine() -> Iterator[str]:
    """Address of a container engine: the one at hand, or one that is started for this session."""
    folder = Path(os.environ.get("GOSSIPDBN_ENGINE_DIR", f"{tempfile.gettempdir()}/gossipdbn-engine"))
    ours = not (folder / "docker.pid").exists()
    done = subprocess.run([COMPOSE / "engine.sh", "start"], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode != 0:
        pytest.skip(done.stderr.strip())
    address = done.stdout.split("'")[1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", address)
        yield address
    if ours:
        subprocess.run([COMPOSE / "engine.sh", "stop"], timeout=60, check=False)


@pytest.fixture(scope="session")
def kafka_image(engine: str) -> str:
    """The broker's image, built from local files when it is not there."""
    if not image_present(KAFKA_IMAGE):
        missing = [tool for tool in ("jlink", "busybox") if shutil.which(tool) is None]
        if missing:
            pytest.skip(f"{KAFKA_IMAGE} is not here and cannot be built: {', '.join(missing)} not installed")
        subprocess.run(
            [COMPOSE / "build-kafka-image.sh"],
            check=True, timeout=300, env={**os.environ, "PYTHON": sys.executable},
        )  # fmt: skip
    return KAFKA_IMAGE
