"""Appends records to Kafka topics, each once, in order, acknowledged by all in-sync replicas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from gossipdbn.adapters.kafka_client import (
    KafkaOptions,
    OwnProcess,
    describe,
    is_fatal,
    is_refusal,
    log_error,
    record_of,
)
from gossipdbn.errors import LogError
from gossipdbn.ports import Record

__all__ = ["KafkaWriter"]

_QUEUE_RECORDS = 10_000
_QUEUE_KBYTES = 64 << 10
_CLOSE_S = 5.0


class KafkaWriter:
    """An idempotent producer (see ``ports.Writer``). After one failure it sends nothing more."""

    def __init__(
        self, bootstrap: str, options: KafkaOptions, acknowledged: Callable[[Record], None] | None = None
    ) -> None:
        self._own = OwnProcess()
        self._acknowledged = acknowledged
        self._failure: str | None = None
        self._trouble: str | None = None
        settings: dict[str, Any] = {
            **options.common(bootstrap, self._on_error),
            "enable.idempotence": True,
            "acks": "all",
            "max.in.flight.requests.per.connection": 5,
            "message.timeout.ms": round(options.give_up_s * 1000),
            "linger.ms": options.linger_ms,
            "retry.backoff.ms": 50,
            "compression.type": "none",
            "message.max.bytes": options.message_bytes_max,
            "queue.buffering.max.messages": _QUEUE_RECORDS,
            "queue.buffering.max.kbytes": _QUEUE_KBYTES,
        }
        self._producer = Producer(settings)

    def send(self, topic: str, partition: int, value: bytes) -> None:
        self._own.check()
        if self._failure is not None:
            raise LogError(f"this writer is broken ({self._failure}); claim again with a new one")
        try:
            self._producer.produce(topic, value, partition=partition, on_delivery=self._on_delivery)
        except BufferError as error:
            raise LogError(
                f"{topic}[{partition}]: {len(self._producer)} records wait for the brokers, the queue is full"
                + (f" ({self._trouble})" if self._trouble else ""),
                retryable=True,
            ) from error
        except KafkaException as error:
            raise log_error(
                f"{topic}[{partition}]: a record of {len(value)} bytes cannot be sent", error.args[0]
            ) from error

    def failure(self) -> str | None:
        self._own.check()
        self._producer.poll(0)
        return self._failure

    def trouble(self) -> str | None:
        """The last transient error reported since the last acknowledgement, for a status display."""
        return self._trouble

    def flush(self, timeout_s: float) -> bool:
        self._own.check()
        return self._producer.flush(timeout_s) == 0 and self._failure is None

    def close(self) -> None:
        """Send what is waiting for up to 5 s, drop the rest."""
        if self._failure is None:
            self._producer.flush(_CLOSE_S)
        self._producer.purge()
        self._producer.poll(0)
        self._failure = self._failure or "it was closed"

    def _on_delivery(self, error: KafkaError | None, message: Message) -> None:
        if error is None:
            self._trouble = None
            if self._acknowledged is not None:
                self._acknowledged(record_of(message))
        elif self._failure is None:
            self._fail(str(log_error(f"{message.topic()}[{message.partition()}]: a record was given up", error)))

    def _on_error(self, error: KafkaError) -> None:
        self._trouble = describe(error)
        if (is_fatal(error) or is_refusal(error)) and self._failure is None:
            self._fail(describe(error))

    def _fail(self, why: str) -> None:
        self._failure = why
        self._producer.purge()  # nothing after the first failure may reach the log
