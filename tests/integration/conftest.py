"""Real parts for integration tests: one broker and one HDFS per session, started when a test first asks for them.

``GOSSIPDBN_TEST_BOOTSTRAP`` names a broker to use instead, ``GOSSIPDBN_TEST_IMAGE`` a container image.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.embedded.hdfs import Hdfs
from gossipdbn.embedded.provision import provide_broker


@pytest.fixture(scope="session")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a broker that the whole session shares; tests choose topic names of their own."""
    with provide_broker(
        tmp_path_factory.mktemp("broker"),
        address=os.environ.get("GOSSIPDBN_TEST_BOOTSTRAP", ""),
        image=os.environ.get("GOSSIPDBN_TEST_IMAGE", ""),
    ) as broker:
        yield broker.bootstrap


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
def hdfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hdfs]:
    """An HDFS that the whole session shares; who breaks a part of it restarts that part."""
    with Hdfs(tmp_path_factory.mktemp("hdfs"), die_with_parent=True) as hdfs:
        yield hdfs


@pytest.fixture
def hdfs_folder(hdfs: Hdfs, run_name: str) -> str:
    """URL of a fresh folder on it."""
    return f"{hdfs.url}/{run_name}"


@pytest.fixture
def broker_folder(tmp_path: Path) -> Path:
    """A folder for a broker of the test's own, which it may kill."""
    return tmp_path / "kafka"
