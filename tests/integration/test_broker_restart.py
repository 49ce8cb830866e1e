"""What happens right after a broker came back."""

from __future__ import annotations

import pytest

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.embedded.broker import Broker
from gossipdbn.ports import TopicSpec

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(120)]


def test_offsets_are_known_as_soon_as_a_restarted_broker_is_ready(tmp_path):
    topics = [TopicSpec(f"t{i}", 8, ()) for i in range(12)]
    with Broker(tmp_path, die_with_parent=True) as broker:
        log = KafkaLog(broker.bootstrap)
        log.create_topics(topics)
        log.close()
    with Broker(tmp_path, die_with_parent=True) as broker:
        log = KafkaLog(broker.bootstrap)
        assert [log.offsets(t.name, p) for t in topics for p in range(8)] == [(0, 0)] * 96
        log.close()
