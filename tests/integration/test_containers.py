"""Brokers in containers: one by testcontainers, three by compose with the leader killed under load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.core.topics import TopicSpec, run_topics
from gossipdbn.embedded.provision import provide_broker

pytestmark = [pytest.mark.containers, pytest.mark.kafka]

BROKERS = "127.0.0.1:39091,127.0.0.1:39092,127.0.0.1:39093"
FOLDER = Path(__file__).parents[2] / "compose"


def test_one_broker_from_our_image(kafka_image: str, tmp_path: Path) -> None:
    pytest.importorskip("testcontainers")
    with provide_broker(tmp_path / "unused", image=kafka_image) as provided:
        assert provided.source == "container"
        log = KafkaLog(provided.bootstrap, timeout_s=20.0)
        log.create_topics(run_topics("r", 2))
        writer = log.writer()
        writer.send("r.updates", 1, b"x")
        assert writer.flush(20)
        assert [record.value for record in log.read("r.updates", 1, 0, 1)] == [b"x"]
        writer.close()
        log.close()


@pytest.fixture
def compose(kafka_image: str) -> Iterator[Callable[..., None]]:
    """Three brokers that are up, and a way to give compose further commands."""
    plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False).returncode == 0
    if not plugin and shutil.which("docker-compose") is None:
        pytest.skip("neither 'docker compose' nor docker-compose is installed")
    program = ["docker", "compose"] if plugin else ["docker-compose"]
    project = f"gossipdbn{uuid.uuid4().hex[:8]}"

    def run(*arguments: str) -> None:
        command = [*program, "-p", project, "-f", str(FOLDER / "compose.yaml"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)
        assert done.returncode == 0, done.stderr

    try:
        run("up", "-d", "k1", "k2", "k3")
        yield run
    finally:
        run("down", "-v", "-t", "2")


def _wait_for_brokers(count: int, seconds: float = 90.0) -> AdminClient:
    admin = AdminClient({"bootstrap.servers": BROKERS, "log_level": 0})
    deadline = time.monotonic() + seconds
    while len(admin.list_topics(timeout=60).brokers) < count:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return admin


def test_no_acknowledged_record_is_lost_or_doubled_when_the_leader_is_killed(compose: Callable[..., None]) -> None:
    admin = _wait_for_brokers(3)
    log = KafkaLog(BROKERS, timeout_s=20.0)
    log.create_topics([TopicSpec("t", 1)])
    state = admin.list_topics(timeout=10).topics["t"].partitions[0]
    assert len(state.replicas) == 3
    writer = log.writer()
    writer.send("t", 0, b"%08d" % 0)
    assert writer.flush(20)
    killed = threading.Event()

    def kill_leader() -> None:
        time.sleep(1.0)
        compose("kill", f"k{state.leader}")
        killed.set()

    killer = threading.Thread(target=kill_leader)
    killer.start()
    reader = log.reader()
    reader.add("t", 0, 0)
    sent, found, pause_s, last = 1, 0, 0.0, time.monotonic()
    end = last + 60.0
    after = 0
    while time.monotonic() < end and after < 300:
        if sent - found < 200:
            writer.send("t", 0, b"%08d" % sent + b"x" * 2000)
            sent += 1
        assert writer.failure() is None
        for record in reader.poll(0.005):
            assert int(record.value[:8]) == record.offset == found
            found += 1
            after += killed.is_set()
            pause_s = max(pause_s, time.monotonic() - last)
            last = time.monotonic()
    killer.join()
    assert writer.flush(30)
    assert log.offsets("t", 0) == (0, sent)
    assert [int(record.value[:8]) for record in log.read("t", 0, 0, sent)] == list(range(sent))
    print(f"leader killed: {sent} records, longest pause {pause_s:.1f} s")
    assert pause_s < 15.0
    assert admin.list_topics(timeout=10).topics["t"].partitions[0].leader != state.leader
    for client in (writer, reader, log):
        client.close()


@pytest.mark.hdfs
@pytest.mark.spark
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.skipif(
    not os.environ.get("GOSSIPDBN_WHOLE_JOB"), reason="builds a 1.3 GB image and runs for minutes: `make whole-job`"
)
def test_a_whole_job_on_kafka_hdfs_and_spark_in_containers(kafka_image: str) -> None:
    assert kafka_image
    done = subprocess.run(
        [FOLDER / "run-job.sh", "2"],
        capture_output=True, text=True, timeout=1100, check=False,
        env={**os.environ, "PYTHON": sys.executable, "PROJECT": f"gossipdbn{uuid.uuid4().hex[:8]}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "right: 113160 rows" in done.stdout
