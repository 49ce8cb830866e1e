"""What all Kafka clients here share: settings, the checks on a user's own settings, and readable errors."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from confluent_kafka import KafkaError, Message

from gossipdbn.errors import ConfigError, LocalProtocolError, LogError
from gossipdbn.ports import Record

__all__ = ["KafkaOptions", "OwnProcess", "describe", "is_fatal", "is_refusal", "log_error", "record_of"]

_LOGGER = logging.getLogger("gossipdbn.kafka")
_LOGGER.addHandler(logging.NullHandler())

# The guarantees of the protocol rest on these; a user's settings may not touch them.
_OURS = frozenset(
    {
        "acks", "allow.auto.create.topics", "auto.offset.reset", "bootstrap.servers", "check.crcs", "compression.codec",
        "compression.type", "enable.auto.commit", "enable.auto.offset.store", "enable.idempotence",
        "enable.partition.eof", "group.id", "group.instance.id", "isolation.level", "max.in.flight",
        "max.in.flight.requests.per.connection", "message.max.bytes", "message.send.max.retries", "message.timeout.ms",
        "metadata.broker.list", "partition.assignment.strategy", "request.required.acks", "retries",
        "session.timeout.ms", "transactional.id",
    }
)  # fmt: skip

_REFUSALS = frozenset(
    {
        KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED, KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    }
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class KafkaOptions:
    """Settings of a :class:`~gossipdbn.adapters.kafka_log.KafkaLog`.

    Attributes
    ----------
    timeout_s
        Longest wait for an answer of the brokers, seconds.
    session_timeout_ms
        After this long without a sign of life a worker's slots move to others, milliseconds. Brokers allow 6000 and
        more unless configured otherwise; the embedded one 1000 and more.
    message_bytes_max
        Largest record sent or read, bytes.
    linger_ms
        How long a record may wait for company, milliseconds. A worker's records are few and large: none waits.
    give_up_s
        A record not acknowledged after this long breaks its writer, seconds; 0: never, the writer waits for the log.
    client_id
        Name under which brokers see us.
    kafka
        More settings of librdkafka: ``security.protocol``, ``sasl.*``, ``ssl.*`` and the like.
    """

    timeout_s: float = 10.0
    session_timeout_ms: int = 6000
    message_bytes_max: int = (8 << 20) + (1 << 16)
    linger_ms: float = 0.0
    give_up_s: float = 0.0
    client_id: str = "gossipdbn"
    kafka: Mapping[str, str] = field(default_factory=dict)

    def check(self) -> None:
        """Raise ConfigError for what cannot work."""
        for key in self.kafka:
            if key in _OURS:
                raise ConfigError(f"kafka.{key}: set by gossipdbn, its guarantees rest on it; remove it")
        for name, least in (("timeout_s", 0.1), ("session_timeout_ms", 1000), ("message_bytes_max", 1024)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: {getattr(self, name)} is too small; at least {least}")

    def common(self, bootstrap: str, on_error: Callable[[KafkaError], None]) -> dict[str, object]:
        """Settings of every client."""
        return {
            "reconnect.backoff.ms": 50,
            "reconnect.backoff.max.ms": 1000,  # a broker that comes back is used soon
            "socket.keepalive.enable": True,
            "socket.nagle.disable": True,
            **self.kafka,
            "bootstrap.servers": bootstrap,
            "client.id": self.client_id,
            "error_cb": on_error,
            "logger": _LOGGER,
        }

    def reading(self) -> dict[str, object]:
        """Settings of consumers: no group business, no silent jumps."""
        return {
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "enable.partition.eof": False,
            "allow.auto.create.topics": False,
            "check.crcs": True,
            "isolation.level": "read_uncommitted",  # what is in the log counts; nothing here is transactional
            "topic.metadata.propagation.max.ms": 10_000,  # how long an unknown topic is taken for a new one
            "fetch.wait.max.ms": 100,
            "fetch.error.backoff.ms": 50,
            "fetch.queue.backoff.ms": 10,  # the default of a second would hold a reader of large records to 16 MB/s
            "queued.max.messages.kbytes": 16384,
            "fetch.message.max.bytes": self.message_bytes_max,
            "fetch.max.bytes": 2 * self.message_bytes_max,
            "receive.message.max.bytes": 2 * self.message_bytes_max + (1 << 20),
        }


class OwnProcess:
    """Kafka clients do not survive a fork: used in a child they hang, so say so instead."""

    def __init__(self) -> None:
        self._pid = os.getpid()

    def check(self) -> None:
        if os.getpid() != self._pid:
            raise LocalProtocolError("a Kafka client was made before a fork and used after it; make it in the child")


def describe(error: KafkaError) -> str:
    """The error's name and text in one line."""
    text = " ".join(error.str().split())
    return f"{error.name()}: {text}" if text else error.name()


def is_refusal(error: KafkaError) -> bool:
    """Whether the brokers refuse us; waiting does not help then."""
    return error.code() in _REFUSALS


def is_fatal(error: KafkaError) -> bool:
    """Whether the client is beyond repair. Consumers report that by a code of its own, without the mark."""
    return bool(error.fatal()) or error.code() == KafkaError._FATAL


def log_error(what: str, error: KafkaError) -> LogError:
    """A LogError that says what failed, why, and what to do about it."""
    if is_refusal(error):
        advice = "; check user, password, certificates and the permissions of this user"
    elif error.code() in (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_MSG_SIZE):
        advice = "; raise max.message.bytes of the topic, or send smaller shards or updates"
    elif error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
        advice = "; the topic does not exist (was it deleted?)"
    else:
        advice = ""
    return LogError(f"{what}: {describe(error)}{advice}", retryable=error.retriable() and not is_fatal(error))


def record_of(message: Message) -> Record:
    """The record of a message; its offset is negative where the library does not know it."""
    partition, offset, value = message.partition(), message.offset(), message.value()
    return Record(
        message.topic() or "",
        -1 if partition is None else partition,
        -1 if offset is None else offset,
        value if isinstance(value, bytes) else b"",
        message.timestamp()[1],
    )
