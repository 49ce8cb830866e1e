"""Reads chosen partitions of Kafka topics from chosen offsets, without gaps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from gossipdbn.adapters.kafka_client import (
    KafkaOptions,
    OwnProcess,
    describe,
    is_fatal,
    is_refusal,
    log_error,
    record_of,
)
from gossipdbn.errors import LogError, RetentionError
from gossipdbn.ports import Record

__all__ = ["KafkaReader", "read_range"]

_BAD_BYTES = frozenset({KafkaError._BAD_MSG, KafkaError._BAD_COMPRESSION, KafkaError.INVALID_MSG})
_GONE = frozenset({KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_PARTITION, KafkaError._UNKNOWN_TOPIC})
_STANDSTILL_S = 30.0
_LAZY = {"fetch.min.bytes": 1 << 20, "fetch.wait.max.ms": 250}  # a request per partition's leader, not one per record


class KafkaReader:
    """A consumer that never joins a group and never skips (see ``ports.Reader``).

    A partition that cannot be read on is stopped and its error is raised once; the others go on at the next
    :meth:`poll`, and nothing that was read before is lost.
    """

    def __init__(self, bootstrap: str, options: KafkaOptions, eager: bool = True) -> None:
        self._own = OwnProcess()
        self._options = options
        self._trouble: str | None = None
        self._next: dict[tuple[str, int], int] = {}
        self._failed: LogError | None = None
        self._unknown: list[KafkaError] = []
        settings: dict[str, Any] = {
            **options.common(bootstrap, self._on_error),
            **options.reading(),
            "group.id": f"{options.client_id}-reader",  # required by the library; never joined
            **({} if eager else _LAZY),
        }
        self._consumer = Consumer(settings)

    def add(self, topic: str, partition: int, offset: int) -> None:
        self._own.check()
        if offset < 0:
            raise LogError(f"cannot read {topic}[{partition}] from offset {offset}")
        if (topic, partition) in self._next:
            self._consumer.incremental_unassign([TopicPartition(topic, partition)])
        self._consumer.incremental_assign([TopicPartition(topic, partition, offset)])
        self._next[topic, partition] = offset

    def remove(self, topic: str, partition: int) -> None:
        self._own.check()
        if (topic, partition) in self._next:
            self._stop((topic, partition))

    def poll(self, timeout_s: float, max_records: int = 500) -> list[Record]:
        self._own.check()
        self._raise_failure()
        # consume() waits for a full batch, poll() for the first message: poll first, then take what is there.
        first = self._consumer.poll(timeout_s)
        messages = [] if first is None else [first]
        if first is not None and max_records > 1:
            messages += self._consumer.consume(max_records - 1, 0.0)
        self._stop_unknown()
        found: list[Record] = []
        for message in messages:
            try:
                record = self._accept(message)
            except LogError as error:  # kept for the next call: what was read before it must not be lost
                self._failed = self._failed or error
            else:
                if record is not None:
                    found.append(record)
        if not found:
            self._raise_failure()
        return found

    def trouble(self) -> str | None:
        """The last transient error reported since the last record, for a status display."""
        return self._trouble

    def close(self) -> None:
        self._next.clear()
        self._consumer.close()

    def _on_error(self, error: KafkaError) -> None:
        self._trouble = describe(error)
        if is_fatal(error) or is_refusal(error):
            self._failed = self._failed or log_error("the log cannot be read", error)
        elif error.code() in _GONE:
            self._unknown.append(error)

    def _stop_unknown(self) -> None:
        """A topic that does not exist is reported beside the messages; its text names the partition."""
        while self._unknown:
            error = self._unknown.pop()
            for topic, partition in list(self._next):
                if f"{topic} [{partition}]" in error.str():
                    self._stop((topic, partition))
                    self._failed = self._failed or log_error(f"{topic}[{partition}] cannot be read", error)

    def _raise_failure(self) -> None:
        if self._failed is not None:
            error, self._failed = self._failed, None
            raise error

    def _accept(self, message: Message) -> Record | None:
        record = record_of(message)
        key = (record.topic, record.partition)
        wanted = self._next.get(key)
        error = message.error()
        if error is not None:
            self._partition_error(key, wanted, error)
            return None
        if wanted is None or record.offset < wanted:  # from before a remove() or add()
            return None
        if record.offset > wanted:
            self._stop(key)
            raise self._gap(key, wanted, record.offset)
        self._next[key] = wanted + 1
        self._trouble = None
        return record

    def _partition_error(self, key: tuple[str, int], wanted: int | None, error: KafkaError) -> None:
        if is_fatal(error) or is_refusal(error):
            raise log_error(f"{key[0] or 'the log'} cannot be read", error)
        if wanted is None:
            return
        place = f"{key[0]}[{key[1]}]"
        if error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._stop(key)
            raise self._out_of_range(key, wanted)
        if error.code() in _BAD_BYTES:
            self._stop(key)
            raise LogError(f"{place} holds a damaged record at offset {wanted} or after: {describe(error)}")
        if error.code() in _GONE:
            self._stop(key)
            raise log_error(f"{place} cannot be read", error)
        self._trouble = describe(error)

    def _stop(self, key: tuple[str, int]) -> None:
        self._next.pop(key, None)
        self._consumer.incremental_unassign([TopicPartition(*key)])

    def _gap(self, key: tuple[str, int], wanted: int, found: int) -> LogError:
        place = f"{key[0]}[{key[1]}]"
        try:
            low, _high = self._bounds(key)
        except KafkaException:
            low = 0
        if low > wanted:
            return RetentionError(
                f"{place}: offset {wanted} is needed, the log now begins at {low}: its retention dropped records"
            )
        return LogError(
            f"{place}: offsets {wanted} to {found - 1} are missing. Topics of a run must neither be compacted nor "
            "written in transactions"
        )

    def _out_of_range(self, key: tuple[str, int], wanted: int) -> LogError:
        place = f"{key[0]}[{key[1]}]"
        try:
            low, high = self._bounds(key)
        except KafkaException as error:
            return log_error(f"{place}: offset {wanted} cannot be read", error.args[0])
        if wanted < low:
            return RetentionError(
                f"{place}: offset {wanted} is needed, the log begins at {low}: its retention dropped records. "
                "Start from a newer snapshot, and raise the topic's retention"
            )
        return LogError(
            f"{place}: offset {wanted} is needed, the log ends at {high}: acknowledged records have been lost, "
            "or the topic was deleted and made anew"
        )

    def _bounds(self, key: tuple[str, int]) -> tuple[int, int]:
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=self._options.timeout_s)
        return low, high


def read_range(
    bootstrap: str, options: KafkaOptions, topic: str, partition: int, start: int, stop: int
) -> Iterator[Record]:
    """Records ``start``..``stop - 1`` of one partition; waits for them, but not for ever.

    Raises RetentionError when some are gone, LogError when nothing comes for 30 s or the partition cannot be read.
    """
    if start >= stop:
        return
    reader = KafkaReader(bootstrap, options)
    try:
        reader.add(topic, partition, start)
        patience = max(_STANDSTILL_S, options.timeout_s)
        quiet_s = 0.0
        while True:
            records = reader.poll(0.2, 1000)
            quiet_s = 0.0 if records else quiet_s + 0.2
            if quiet_s > patience:
                why = reader.trouble() or "the log may not hold them yet"
                raise LogError(
                    f"{topic}[{partition}]: no record came for {patience:.0f} s on the way to offset {stop}: {why}",
                    retryable=True,
                )
            for record in records:
                if record.offset >= stop:
                    return
                yield record
                if record.offset == stop - 1:
                    return
    finally:
        reader.close()
