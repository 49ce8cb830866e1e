"""A member that was cut off is not the same as one whose name somebody else took."""

from __future__ import annotations

import pytest
from confluent_kafka import KafkaError, TopicPartition

from gossipdbn.adapters import kafka_membership
from gossipdbn.adapters.kafka_client import KafkaOptions
from gossipdbn.errors import LogError
from gossipdbn.ports import SlotAssigned, SlotRevoked


class Library:
    """Stands for the consumer: keeps the callbacks, gives what the test has put there."""

    made: list[Library]

    def __init__(self, settings):
        self.settings, self.error, self.closed = settings, None, False
        Library.made.append(self)

    def subscribe(self, topics, on_assign, on_revoke, on_lost):
        self.assign, self.revoke, self.lose = on_assign, on_revoke, on_lost

    def poll(self, timeout):
        if self.error is not None:
            error, self.error = self.error, None
            self.settings["error_cb"](error)

    def close(self):
        self.closed = True

    def __getattr__(self, name):
        return lambda *_: None


@pytest.fixture
def member(monkeypatch):
    Library.made = []
    monkeypatch.setattr(kafka_membership, "Consumer", Library)
    return kafka_membership.KafkaMembership("nowhere:1", KafkaOptions(), "group", "topic", "w1")


FENCED = KafkaError(KafkaError.FENCED_INSTANCE_ID, "Static consumer fenced", fatal=True)


def test_a_member_that_comes_back_from_a_cut_joins_anew(member):
    (first,) = Library.made
    first.assign(first, [TopicPartition("topic", 3)])
    first.lose(first, [TopicPartition("topic", 3)])
    first.error = FENCED
    assert member.poll(0.0) == [SlotAssigned(3), SlotRevoked(3, lost=True)]
    second = Library.made[1]
    assert first.closed and second is not first
    second.assign(second, [TopicPartition("topic", 3)])
    assert member.poll(0.0) == [SlotAssigned(3)]


def test_a_member_whose_name_is_taken_ends(member):
    (first,) = Library.made
    first.assign(first, [TopicPartition("topic", 3)])
    first.error = FENCED
    with pytest.raises(LogError, match="another worker named 'w1'"):
        member.poll(0.0)
