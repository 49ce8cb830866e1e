from __future__ import annotations

import os
import time

import pytest

from gossipdbn.adapters.clock import SystemClock
from gossipdbn.adapters.kafka_client import OwnProcess
from gossipdbn.adapters.kafka_log import KafkaLog, _suffices
from gossipdbn.core.topics import TopicSpec
from gossipdbn.errors import ConfigError, LocalProtocolError, LogError


@pytest.mark.parametrize("key", ["enable.idempotence", "auto.offset.reset", "isolation.level", "bootstrap.servers"])
def test_settings_that_the_guarantees_rest_on_cannot_be_changed(key: str) -> None:
    with pytest.raises(ConfigError, match=f"kafka.{key}"):
        KafkaLog("127.0.0.1:1", kafka={key: "x"})


def test_unknown_and_impossible_options_are_named() -> None:
    with pytest.raises(ConfigError, match=r"speed.*allowed are timeout_s"):
        KafkaLog("127.0.0.1:1", speed=3)
    with pytest.raises(ConfigError, match="session_timeout_ms: 10 is too small"):
        KafkaLog("127.0.0.1:1", session_timeout_ms=10)
    with pytest.raises(ConfigError, match="bootstrap"):
        KafkaLog(" ")
    with pytest.raises(ConfigError, match=r"no\.such.setting"):
        KafkaLog("127.0.0.1:1", kafka={"no.such.setting": "1"}).topics()


def test_a_broker_that_does_not_answer_is_reported_in_bounded_time() -> None:
    began = time.monotonic()
    with pytest.raises(LogError, match=r"no Kafka broker answers at 127.0.0.1:1 within 1 s.*refused") as caught:
        KafkaLog("127.0.0.1:1", timeout_s=1.0).create_topics([TopicSpec("t", 1)])
    assert caught.value.retryable
    assert time.monotonic() - began < 5.0


def test_a_client_used_after_a_fork_says_so() -> None:
    own = OwnProcess()
    child = os.fork()
    if child == 0:
        try:
            own.check()
        except LocalProtocolError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    own.check()


@pytest.mark.parametrize(
    ("key", "found", "wanted", "enough"),
    [
        ("max.message.bytes", "2000", "1000", True),
        ("max.message.bytes", "999", "1000", False),
        ("retention.ms", "-1", "-1", True),
        ("retention.ms", "604800000", "-1", False),
        ("retention.ms", "-1", "1000", True),
        ("cleanup.policy", "compact", "delete", False),
        ("cleanup.policy", None, "delete", False),
    ],
)
def test_settings_are_enough_or_not(key: str, found: str | None, wanted: str, enough: bool) -> None:
    assert _suffices(key, found, wanted) is enough


def test_the_clock_goes_on() -> None:
    clock = SystemClock()
    assert clock.monotonic_s() <= clock.monotonic_s()
    assert abs(clock.wall_ms() - time.time() * 1000) < 5000
