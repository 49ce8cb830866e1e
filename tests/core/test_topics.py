from __future__ import annotations

import pytest

from gossipdbn.core.topics import run_names, run_of, run_topics
from gossipdbn.errors import ConfigError


def test_updates_have_one_partition_more_than_slots() -> None:
    shards, updates, control = run_topics("night", 4, prefix="lab.")
    assert (shards.name, shards.partitions) == ("lab.night.shards", 4)
    assert (updates.name, updates.partitions) == ("lab.night.updates", 5)
    assert (control.name, control.partitions) == ("lab.night.control", 1)


def test_updates_are_kept_for_ever_as_they_were_sent() -> None:
    config = dict(run_topics("r", 2)[1].config)
    assert config["compression.type"] == "uncompressed"
    assert config["message.timestamp.type"] == "LogAppendTime"
    assert config["cleanup.policy"] == "delete"
    assert config["retention.ms"] == config["retention.bytes"] == "-1"


def test_the_run_is_found_again_from_its_control_topic() -> None:
    assert run_of(run_names("a.b", "p-").control, "p-") == "a.b"
    assert run_of("p-a.shards", "p-") is None
    assert run_of("x.control", "p-") is None


@pytest.mark.parametrize("run", ["", "a/b", "a b", "ä", "x" * 201])
def test_names_that_kafka_refuses_are_refused_here(run: str) -> None:
    with pytest.raises(ConfigError, match="run"):
        run_topics(run, 1)


def test_a_run_has_a_slot() -> None:
    with pytest.raises(ConfigError, match="slots"):
        run_topics("r", 0)
