"""The embedded broker: found, refused, killed, continued."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.core.topics import TopicSpec
from gossipdbn.embedded import broker as embedded
from gossipdbn.embedded.broker import Broker
from gossipdbn.embedded.provision import provide_broker
from gossipdbn.errors import EmbeddedError

pytestmark = pytest.mark.kafka


def _wait(condition: object, seconds: float = 15.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():  # type: ignore[operator]
            return True
        time.sleep(0.02)
    return False


def test_a_broker_is_found_refused_to_others_and_continues_with_its_records(broker_folder: Path) -> None:
    assert embedded.running(broker_folder) is None
    with Broker(broker_folder, die_with_parent=True) as first:
        log = KafkaLog(first.bootstrap)
        log.create_topics([TopicSpec("t", 1)])
        writer = log.writer()
        writer.send("t", 0, b"kept")
        assert writer.flush(10)
        writer.close()
        log.close()
        state = embedded.running(broker_folder)
        assert state is not None
        assert (state.pid, state.bootstrap) == (first.pid, first.bootstrap)
        with pytest.raises(EmbeddedError, match=rf"is in use by process {first.pid}"):
            Broker(broker_folder).start()
        address = first.bootstrap
    assert embedded.running(broker_folder) is None
    with Broker(broker_folder, die_with_parent=True) as second:
        assert second.bootstrap == address
        log = KafkaLog(second.bootstrap)
        assert [record.value for record in log.read("t", 0, 0, 1)] == [b"kept"]
        log.close()


def test_records_of_eight_mebibytes_pass(bootstrap: str, run_name: str) -> None:
    log = KafkaLog(bootstrap)
    log.create_topics([TopicSpec(run_name, 1, (("max.message.bytes", str((8 << 20) + 65536)),))])
    writer = log.writer()
    data = os.urandom(8 << 20)
    writer.send(run_name, 0, data)
    assert writer.flush(20), writer.failure()
    writer.close()
    assert next(log.read(run_name, 0, 0, 1)).value == data
    log.delete_topics([run_name])
    log.close()


def test_a_port_in_use_is_refused_or_avoided(broker_folder: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EmbeddedError, match=f"port {port} on 127.0.0.1 is in use"):
            Broker(broker_folder, port).start()
        broker_folder.mkdir(exist_ok=True)
        (broker_folder / "broker.json").write_text(json.dumps({"port": port, "controller_port": port}))
        with Broker(broker_folder, die_with_parent=True) as broker:
            assert broker.port != port


def test_a_broken_folder_is_explained_by_the_end_of_the_log(broker_folder: Path) -> None:
    Broker(broker_folder, die_with_parent=True).start().stop()
    meta = broker_folder / "data" / "meta.properties"
    meta.write_text(meta.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(EmbeddedError, match=r"(?s)ended while it started.*broker.log says:.*node.?id"):
        Broker(broker_folder).start()
    assert embedded.running(broker_folder) is None


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("")
    with pytest.raises(EmbeddedError, match="a file is in its way"):
        Broker(tmp_path / "x").start()


def test_no_acknowledged_record_is_lost_when_the_broker_is_killed_under_load(broker_folder: Path) -> None:
    broker = Broker(broker_folder, die_with_parent=True).start()
    log = KafkaLog(broker.bootstrap)
    log.create_topics([TopicSpec("t", 1, (("message.timestamp.type", "LogAppendTime"),))])
    writer = log.writer()
    stop = threading.Event()
    restarted = threading.Event()

    def crash_and_restart() -> None:
        time.sleep(1.0)
        broker.kill()
        assert not broker.alive()
        time.sleep(0.5)
        broker.start()
        restarted.set()
        time.sleep(0.5)
        stop.set()

    killer = threading.Thread(target=crash_and_restart)
    killer.start()
    sent = 0
    while not stop.is_set():
        if sent < 9000 or restarted.is_set():
            writer.send("t", 0, b"%08d" % sent + b"x" * 2000)
            sent += 1
        assert writer.failure() is None
        time.sleep(0.0005)
    killer.join()
    assert writer.flush(30)
    assert writer.failure() is None
    writer.close()
    assert log.offsets("t", 0) == (0, sent)
    found = [int(record.value[:8]) for record in log.read("t", 0, 0, sent)]
    assert found == list(range(sent))
    log.close()
    broker.stop()


_STARTER = """
import sys, time
from gossipdbn.embedded.broker import Broker
Broker(sys.argv[1], die_with_parent=sys.argv[2] == "follow").start()
print("ready", flush=True)
time.sleep(120)
"""


@pytest.mark.parametrize("mode", ["follow", "stay"])
def test_a_broker_outlives_its_starter_unless_asked_to_follow(broker_folder: Path, mode: str) -> None:
    starter = subprocess.Popen([sys.executable, "-c", _STARTER, str(broker_folder), mode], stdout=subprocess.PIPE)
    assert starter.stdout is not None
    try:
        assert starter.stdout.readline() == b"ready\n"
    finally:
        starter.send_signal(signal.SIGKILL)
        starter.wait()
        starter.stdout.close()
    if mode == "follow":
        assert _wait(lambda: embedded.running(broker_folder) is None)
    else:
        state = embedded.running(broker_folder)
        assert state is not None
        log = KafkaLog(state.bootstrap)
        assert log.topics() == []
        log.close()
        assert embedded.stop(broker_folder)
        assert not embedded.stop(broker_folder)
    assert embedded.running(broker_folder) is None


def test_a_broker_that_was_given_is_used_and_left_alone(tmp_path: Path, bootstrap: str) -> None:
    with provide_broker(tmp_path / "unused", address=bootstrap) as provided:
        assert (provided.bootstrap, provided.source) == (bootstrap, "given")
    assert not (tmp_path / "unused").exists()
    log = KafkaLog(bootstrap)
    assert isinstance(log.topics(), list)
    log.close()


def test_an_image_that_is_not_here_is_passed_over(tmp_path: Path) -> None:
    with provide_broker(tmp_path / "b", image="gossipdbn/no-such-image:0") as provided:
        assert provided.source == "embedded"
