"""The Kafka adapter against a real broker: topics, gaps, refusals, fencing of broken writers, membership."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.kafka_membership import KafkaMembership
from gossipdbn.adapters.kafka_reader import KafkaReader
from gossipdbn.core.topics import TopicSpec, run_names, run_topics
from gossipdbn.embedded.broker import Broker
from gossipdbn.errors import ConfigError, LogError, RetentionError
from gossipdbn.ports import Record, SlotAssigned, SlotRevoked

pytestmark = pytest.mark.kafka


@pytest.fixture
def topic(log: KafkaLog, run_name: str) -> Iterator[str]:
    log.create_topics([TopicSpec(run_name, 3)])
    yield run_name
    log.delete_topics([run_name])


def _fill(log: KafkaLog, topic: str, partition: int, count: int, first: int = 0) -> None:
    writer = log.writer()
    for number in range(first, first + count):
        writer.send(topic, partition, b"%d:%d" % (partition, number))
    assert writer.flush(20), writer.failure()
    writer.close()


def test_a_writer_says_where_its_records_stand(log: KafkaLog, topic: str) -> None:
    _fill(log, topic, 1, 2)
    heard: list[Record] = []
    writer = log.writer(heard.append)
    for value in (b"a", b"b"):
        writer.send(topic, 1, value)
    assert writer.flush(20), writer.failure()
    writer.close()
    assert [(r.topic, r.partition, r.offset, r.value) for r in heard] == [(topic, 1, 2, b"a"), (topic, 1, 3, b"b")]
    assert [r._replace(timestamp_ms=0) for r in heard] == [
        r._replace(timestamp_ms=0) for r in log.read(topic, 1, 2, 4)
    ]


def _poll(reader: KafkaReader, count: int, seconds: float = 15.0) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < deadline:
        found += reader.poll(0.1)
    return found


def _poll_error(reader: KafkaReader, seconds: float = 20.0) -> LogError:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            reader.poll(0.1)
        except LogError as error:
            return error
    raise AssertionError("the reader raised nothing")


# topics


def test_the_topics_of_a_run_are_made_once_with_their_settings(log: KafkaLog, run_name: str, bootstrap: str) -> None:
    specs = run_topics(run_name, 2, "lab.")
    log.create_topics(specs)
    log.create_topics(specs)
    assert {spec.name for spec in specs} <= set(log.topics())
    assert [log.partitions(spec.name) for spec in specs] == [2, 3, 1]
    assert log.partitions("no-such-topic") == 0
    before = time.time_ns() // 1_000_000
    _fill(log, specs[1].name, 2, 1)
    (record,) = log.read(specs[1].name, 2, 0, 1)
    assert before - 60_000 <= record.timestamp_ms <= before + 60_000
    log.delete_topics([spec.name for spec in specs])


def test_a_topic_of_another_shape_is_refused(log: KafkaLog, topic: str) -> None:
    with pytest.raises(LogError, match=f"topic {topic} has 3 partitions, 5 are needed"):
        log.create_topics([TopicSpec(topic, 5)])
    with pytest.raises(ConfigError, match=rf"cleanup.policy is delete, compact is needed.*--topic {topic}"):
        log.create_topics([TopicSpec(topic, 3, (("cleanup.policy", "compact"),))])
    with pytest.raises(ConfigError, match=r"max.message.bytes is \d+, 99999999 is needed"):
        log.create_topics([TopicSpec(topic, 3, (("max.message.bytes", "99999999"),))])


def test_a_setting_kafka_does_not_know_is_reported(log: KafkaLog, run_name: str) -> None:
    with pytest.raises(LogError, match=f"topic {run_name} cannot be created: INVALID_CONFIG"):
        log.create_topics([TopicSpec(run_name, 1, (("no.such.setting", "1"),))])


# readers


def test_partitions_come_and_go_while_reading(log: KafkaLog, topic: str) -> None:
    for partition in range(3):
        _fill(log, topic, partition, 50)
    reader = log.reader()
    reader.add(topic, 0, 10)
    assert [record.offset for record in _poll(reader, 40)] == list(range(10, 50))
    reader.add(topic, 1, 0)
    reader.remove(topic, 0)
    _fill(log, topic, 0, 5, first=50)
    assert {record.partition for record in _poll(reader, 50)} == {1}
    assert reader.poll(0.3) == []
    reader.add(topic, 1, 25)  # back again
    assert [record.value for record in _poll(reader, 25)] == [b"1:%d" % number for number in range(25, 50)]
    assert [len(reader.poll(1.0, 3)) for _ in range(2)] == [0, 0]
    reader.add(topic, 2, 0)
    assert 0 < len(reader.poll(5.0, 3)) <= 3
    reader.close()


def test_retention_that_dropped_needed_records_stops_that_partition_only(log: KafkaLog, topic: str) -> None:
    _fill(log, topic, 0, 100)
    _fill(log, topic, 1, 100)
    log.delete_records(topic, 0, 60)
    assert log.offsets(topic, 0) == (60, 100)
    reader = log.reader()
    reader.add(topic, 0, 20)
    reader.add(topic, 1, 0)
    found: list[Record] = []
    errors: list[LogError] = []
    deadline = time.monotonic() + 15
    while (len(found) < 100 or not errors) and time.monotonic() < deadline:
        try:
            found += reader.poll(0.1)
        except LogError as error:
            errors.append(error)
    (error,) = errors
    assert isinstance(error, RetentionError)
    assert f"{topic}[0]: offset 20 is needed, the log begins at 60" in str(error)
    assert [record.offset for record in found] == list(range(100))
    reader.add(topic, 0, 60)
    assert [record.offset for record in _poll(reader, 40)] == list(range(60, 100))
    reader.close()
    with pytest.raises(RetentionError):
        list(log.read(topic, 0, 20, 100))


def test_an_offset_beyond_the_end_means_that_records_were_lost(log: KafkaLog, topic: str) -> None:
    _fill(log, topic, 0, 5)
    reader = log.reader()
    reader.add(topic, 0, 9)
    error = _poll_error(reader)
    assert not isinstance(error, RetentionError)
    assert "the log ends at 5: acknowledged records have been lost" in str(error)
    reader.close()


def test_a_hole_in_the_log_is_never_stepped_over(log: KafkaLog, topic: str, bootstrap: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "transactional.id": f"{topic}-t"})
    producer.init_transactions(20)
    for _ in range(2):  # the end mark of a transaction takes an offset that no reader sees
        producer.begin_transaction()
        producer.produce(topic, b"x", partition=0)
        producer.commit_transaction(20)
    reader = log.reader()
    reader.add(topic, 0, 0)
    assert [record.offset for record in _poll(reader, 1)] == [0]
    assert "offsets 1 to 1 are missing" in str(_poll_error(reader))
    reader.close()


def test_reading_a_range_ends_at_its_stop(log: KafkaLog, topic: str) -> None:
    _fill(log, topic, 0, 2000)
    assert [record.offset for record in log.read(topic, 0, 5, 1995)] == list(range(5, 1995))
    assert list(log.read(topic, 0, 7, 7)) == []
    assert log.offsets(topic, 1) == (0, 0)


def test_a_topic_that_does_not_exist_is_reported(log: KafkaLog, run_name: str) -> None:
    reader = log.reader()
    reader.add(run_name, 0, 0)
    assert "does not exist" in str(_poll_error(reader, 40.0))
    reader.close()
    with pytest.raises(LogError, match="its offsets cannot be asked for"):
        log.offsets(run_name, 0)


# writers


def test_a_record_larger_than_the_topic_takes_breaks_the_writer(bootstrap: str, log: KafkaLog, run_name: str) -> None:
    log.create_topics([TopicSpec(run_name, 1, (("max.message.bytes", "2000"),))])
    writer = log.writer()
    writer.send(run_name, 0, b"x" * 5000)
    assert not writer.flush(10)
    assert "a record was given up: MSG_SIZE_TOO_LARGE" in (writer.failure() or "")
    with pytest.raises(LogError, match="this writer is broken"):
        writer.send(run_name, 0, b"y")
    writer.close()
    assert log.offsets(run_name, 0) == (0, 0)
    small = KafkaLog(bootstrap, message_bytes_max=1024).writer()
    with pytest.raises(LogError, match="a record of 4000 bytes cannot be sent"):
        small.send(run_name, 0, b"x" * 4000)
    assert small.failure() is None
    small.close()
    log.delete_topics([run_name])


def test_a_full_queue_is_the_callers_to_wait_for() -> None:
    writer = KafkaLog("127.0.0.1:1").writer()
    with pytest.raises(LogError, match="the queue is full") as caught:
        for _ in range(20_000):
            writer.send("t", 0, b"x")
    assert caught.value.retryable
    assert writer.failure() is None
    writer._fail("the test is over")
    writer.close()


def test_a_broker_gone_for_long_breaks_the_writer_only_when_it_may_give_up(broker_folder: Path) -> None:
    with Broker(broker_folder, die_with_parent=True) as broker:
        log = KafkaLog(broker.bootstrap)
        log.create_topics([TopicSpec("t", 2)])
        patient, hasty = log.writer(), KafkaLog(broker.bootstrap, give_up_s=1.0).writer()
        for writer in (patient, hasty):
            writer.send("t", 0, b"before")
            assert writer.flush(10)
        broker.kill()
        patient.send("t", 1, b"patient")
        hasty.send("t", 1, b"hasty 1")
        hasty.send("t", 1, b"hasty 2")
        deadline = time.monotonic() + 10
        while hasty.failure() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert "_MSG_TIMED_OUT" in (hasty.failure() or "")
        with pytest.raises(LogError, match="broken"):
            hasty.send("t", 1, b"hasty 3")
        assert patient.failure() is None
        assert patient.trouble() is not None
        broker.start()
        assert patient.flush(20)
        assert [record.value for record in log.read("t", 1, 0, 1)] == [b"patient"]
        assert log.offsets("t", 1) == (0, 1)
        for client in (patient, hasty, log):
            client.close()


# membership


def _until(seconds: float, *members: tuple[KafkaMembership, set[int]], goal: object) -> float:
    began = time.monotonic()
    while not goal():  # type: ignore[operator]
        assert time.monotonic() - began < seconds, [held for _, held in members]
        for member, held in members:
            for event in member.poll(0.05):
                if isinstance(event, SlotAssigned):
                    assert event.slot not in held
                    held.add(event.slot)
                else:
                    assert isinstance(event, SlotRevoked)
                    held.remove(event.slot)
    return time.monotonic() - began


def test_slots_spread_over_members_and_return_at_once_when_one_leaves(log: KafkaLog, run_name: str) -> None:
    log.create_topics(run_topics(run_name, 4))
    names = run_names(run_name)
    _fill(log, names.shards, 0, 3)  # what is in the partitions is never read here
    first, second = (log.membership(names.group, names.shards, f"w{n}") for n in range(2))
    one: set[int] = set()
    two: set[int] = set()
    _until(15, (first, one), (second, two), goal=lambda: len(one) == len(two) == 2)
    assert one | two == {0, 1, 2, 3}
    first.close()
    took = _until(15, (second, two), goal=lambda: len(two) == 4)
    assert took < 3.0  # the session timeout is 6 s
    second.close()


def test_a_slot_that_moves_is_given_to_nobody_before_it_is_handed_over(log: KafkaLog, run_name: str) -> None:
    log.create_topics(run_topics(run_name, 2))
    names = run_names(run_name)
    one: set[int] = set()
    two: set[int] = set()
    handed: list[int] = []

    def hand_over(slots: list[int]) -> None:
        if handed:
            return  # at the end
        handed.extend(slots)
        until = time.monotonic() + 1.0
        while time.monotonic() < until:  # much longer than a rebalance takes
            assert not second.poll(0.05)

    first = log.membership(names.group, names.shards, "w0", hand_over)
    _until(15, (first, one), goal=lambda: len(one) == 2)
    second = log.membership(names.group, names.shards, "w1")
    _until(15, (first, one), (second, two), goal=lambda: len(one) == len(two) == 1)
    assert handed == list(two) and one | two == {0, 1}
    first.close()
    second.close()


def test_what_goes_wrong_while_a_slot_is_handed_over_is_raised_by_poll(log: KafkaLog, run_name: str) -> None:
    log.create_topics(run_topics(run_name, 2))
    names = run_names(run_name)

    def hand_over(_: list[int]) -> None:
        raise LogError("no snapshot, no slot")

    held: set[int] = set()
    first = log.membership(names.group, names.shards, "w0", hand_over)
    _until(15, (first, held), goal=lambda: len(held) == 2)
    second = log.membership(names.group, names.shards, "w1")
    with pytest.raises(LogError, match="no snapshot, no slot"):
        _until(15, (first, held), (second, set()), goal=lambda: False)
    second.close()
    first.close()


def test_a_worker_of_the_same_name_takes_the_place_of_the_first(log: KafkaLog, run_name: str) -> None:
    log.create_topics(run_topics(run_name, 2))
    names = run_names(run_name)
    first = log.membership(names.group, names.shards, "twin")
    held: set[int] = set()
    _until(15, (first, held), goal=lambda: len(held) == 2)
    second = log.membership(names.group, names.shards, "twin")
    theirs: set[int] = set()
    _until(15, (second, theirs), goal=lambda: len(theirs) == 2)
    deadline = time.monotonic() + 10
    with pytest.raises(LogError, match="another worker named 'twin'"):
        while time.monotonic() < deadline:
            first.poll(0.1)
    second.close()
    first.close()


def test_a_session_timeout_the_brokers_do_not_allow_is_reported(log: KafkaLog, bootstrap: str, run_name: str) -> None:
    log.create_topics(run_topics(run_name, 1))
    names = run_names(run_name)
    member = KafkaLog(bootstrap, session_timeout_ms=3_000_000).membership(names.group, names.shards, "w")
    deadline = time.monotonic() + 15
    with pytest.raises(LogError, match="INVALID_SESSION_TIMEOUT"):
        while time.monotonic() < deadline:
            member.poll(0.1)
    member.close()


_MEMBER = """
import sys
from gossipdbn.adapters.kafka_log import KafkaLog
bootstrap, group, topic, name = sys.argv[1:]
member = KafkaLog(bootstrap, session_timeout_ms=2000).membership(group, topic, name)
held = 0
while True:
    held += len(member.poll(0.1))
    if held:
        print("holding", flush=True)
"""


def test_slots_of_a_killed_process_move_after_the_session_timeout(log: KafkaLog, bootstrap: str, run_name: str) -> None:
    log.create_topics(run_topics(run_name, 3))
    names = run_names(run_name)
    arguments = [bootstrap, names.group, names.shards, "killed"]
    process = subprocess.Popen([sys.executable, "-c", _MEMBER, *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"holding\n"
    process.kill()
    process.wait()
    process.stdout.close()
    successor = KafkaLog(bootstrap, session_timeout_ms=2000).membership(names.group, names.shards, "successor")
    held: set[int] = set()
    took = _until(20, (successor, held), goal=lambda: len(held) == 3)
    assert took < 8.0
    successor.close()


# refusals


def test_a_listener_that_speaks_otherwise_is_reported(bootstrap: str) -> None:
    log = KafkaLog(bootstrap, timeout_s=3.0, kafka={"security.protocol": "ssl"})
    with pytest.raises(LogError, match="_SSL|no Kafka broker answers"):
        log.topics()
    log.close()


def test_topics_made_by_hand_are_used_when_they_fit(log: KafkaLog, bootstrap: str, run_name: str) -> None:
    specs = run_topics(run_name, 1)
    admin = AdminClient({"bootstrap.servers": bootstrap})
    made = admin.create_topics([NewTopic(spec.name, spec.partitions, 1, config=dict(spec.config)) for spec in specs])
    for future in made.values():
        future.result(10)
    log.create_topics(specs)
    log.delete_topics([spec.name for spec in specs])
