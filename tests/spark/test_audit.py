from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.adapters.memory import MemoryLog
from gossipdbn.errors import ConfigError, DataError
from gossipdbn.ports import TopicSpec
from gossipdbn.spark.audit import TopicAudit
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import BITS, Shard, ShardLimits, encode_shard, make_shard

LIMITS = ShardLimits(4, BITS)


def _shard(i: int, value: int = 0) -> Shard:
    return make_shard(f"a#{i}:0+2", np.full((2, 4), value, np.uint8), None, BITS)


@pytest.fixture
def log() -> MemoryLog:
    log = MemoryLog()
    log.create_topics([TopicSpec("s", 2)])
    return log


def _send(log: MemoryLog, partition: int, *shards: Shard) -> None:
    writer = log.writer()
    for shard in shards:
        writer.send("s", partition, envelope.seal(encode_shard(shard)))
    writer.flush(1)


def test_copies_and_foreign_records_are_counted(log):
    _send(log, 0, _shard(0), _shard(2), _shard(0))
    log.writer().send("s", 1, envelope.seal(b"noise"))
    audit = TopicAudit(log, "s", 2, LIMITS, {})
    audit.catch_up()
    assert (audit.shards, audit.rows, audit.copies, audit.voids) == (2, 4, 1, 1)


def test_end_marks_of_a_feed_that_died_between_them_are_completed_once(log):
    _send(log, 0, _shard(0), _shard(2))
    _send(log, 1, _shard(1))
    first = TopicAudit(log, "s", 2, LIMITS, {})
    first.catch_up()
    writer = log.writer()
    writer.send("s", 0, envelope.seal(encode_shard(first.sequences[0].end_mark())))  # then it died
    second = TopicAudit(log, "s", 2, LIMITS, {})
    second.catch_up()
    assert second.any_ended
    second.finish(0, {})
    assert [log.offsets("s", p)[1] for p in (0, 1)] == [3, 2]
    third = TopicAudit(log, "s", 2, LIMITS, {})
    third.finish(0, {})
    assert [log.offsets("s", p)[1] for p in (0, 1)] == [3, 2]
    assert all(s.ended for s in third.sequences)
    assert (third.rows, third.copies) == (6, 0)


def test_what_follows_the_end_mark_is_void(log):
    _send(log, 0, _shard(0))
    audit = TopicAudit(log, "s", 2, LIMITS, {})
    audit.finish(0, {})
    _send(log, 0, _shard(1))
    audit.catch_up()
    assert (audit.shards, audit.copies) == (1, 0)


def test_changed_content_and_wrong_topics_stop_the_feed(log):
    _send(log, 0, _shard(0), _shard(0, value=1))
    with pytest.raises(DataError, match="other content"):
        TopicAudit(log, "s", 2, LIMITS, {}).catch_up()
    with pytest.raises(ConfigError, match="does not exist"):
        TopicAudit(log, "t", 2, LIMITS, {})


def test_an_endless_feed_begins_at_the_end(log):
    _send(log, 0, _shard(0))
    audit = TopicAudit(log, "s", 2, LIMITS, {}, from_start=False)
    _send(log, 0, _shard(1))
    audit.catch_up()
    assert audit.shards == 1
