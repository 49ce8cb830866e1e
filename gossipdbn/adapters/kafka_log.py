"""The log on Apache Kafka: topics, readers, writers and group membership.

Delivery is at least once; order, completeness and fencing come from the records themselves, so nothing here uses
transactions or committed offsets.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ClusterMetadata, ConfigResource, NewTopic

from gossipdbn.adapters.kafka_client import KafkaOptions, OwnProcess, describe, is_refusal, log_error
from gossipdbn.adapters.kafka_membership import KafkaMembership
from gossipdbn.adapters.kafka_reader import KafkaReader, read_range
from gossipdbn.adapters.kafka_writer import KafkaWriter
from gossipdbn.errors import ConfigError, LogError
from gossipdbn.ports import HandOver, Record, TopicSpec

__all__ = ["KafkaLog"]

_AT_LEAST = frozenset({"max.message.bytes", "retention.bytes", "retention.ms"})
_SLICE_S = 1.0
_LEADERLESS = frozenset({KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE})


class KafkaLog:
    """Topics of a Kafka cluster (see ``ports.Log``).

    Parameters
    ----------
    bootstrap
        ``host:port[,host:port...]``.
    options
        Fields of :class:`~gossipdbn.adapters.kafka_client.KafkaOptions`.

    Raises
    ------
    ConfigError
        For options that cannot work. Brokers are asked only when something is wanted of them; one that does not answer
        within ``timeout_s`` is a LogError then.
    """

    def __init__(self, bootstrap: str, **options: Any) -> None:
        try:
            self._options = KafkaOptions(**options)
        except TypeError as error:
            known = ", ".join(KafkaOptions.__dataclass_fields__)
            raise ConfigError(f"kafka: {error}; allowed are {known}") from error
        self._options.check()
        if not bootstrap.strip():
            raise ConfigError("kafka.bootstrap: is empty; give host:port of one or more brokers")
        self._bootstrap = bootstrap
        self._own = OwnProcess()
        self._last_error: KafkaError | None = None
        self._admin_client: AdminClient | None = None
        self._bounds_client: Consumer | None = None

    @property
    def bootstrap(self) -> str:
        return self._bootstrap

    def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create missing topics, wait until they have leaders, and check partitions and settings of all.

        Replication is 3 (or the number of brokers, if smaller), with two in-sync replicas where there are three.

        Raises
        ------
        LogError
            No broker, no permission, or a topic with another number of partitions.
        ConfigError
            A topic of the cluster whose settings do not suffice, with the command that changes them.
        """
        metadata = self._metadata()
        brokers = len(metadata.brokers)
        safety = {"min.insync.replicas": "2", "unclean.leader.election.enable": "false"} if brokers >= 3 else {}
        missing = [spec for spec in topics if spec.name not in metadata.topics]
        if missing:
            new = [
                NewTopic(
                    spec.name,
                    num_partitions=spec.partitions,
                    replication_factor=min(3, brokers),
                    config={**safety, **dict(spec.config)},
                )
                for spec in missing
            ]
            for name, future in self._admin().create_topics(new, operation_timeout=self._options.timeout_s).items():
                try:
                    future.result(self._options.timeout_s + 5.0)
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process was faster: fine
                        raise log_error(f"topic {name} cannot be created", error.args[0]) from error
                except TimeoutError as error:
                    raise LogError(f"topic {name}: the brokers did not create it in time", retryable=True) from error
        self._wait_for_leaders(topics)
        self._check_settings(topics)
        # A fresh cluster makes its groups topic at the first question about a group, which takes seconds: ask now, so
        # that the first member need not wait. The answer does not matter.
        self._admin().describe_consumer_groups([f"{self._options.client_id}-reader"])

    def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics for good; missing ones are fine."""
        for name, future in self._admin().delete_topics(list(names)).items() if names else ():
            try:
                future.result(self._options.timeout_s + 5.0)
            except KafkaException as error:
                if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise log_error(f"topic {name} cannot be deleted", error.args[0]) from error

    def delete_records(self, topic: str, partition: int, before: int) -> None:
        """Drop the records before offset ``before`` for good (trimming below what every kept snapshot contains)."""
        future = self._admin().delete_records([TopicPartition(topic, partition, before)])
        for done in future.values():
            try:
                done.result(self._options.timeout_s + 5.0)
            except KafkaException as error:
                raise log_error(f"{topic}[{partition}] cannot be trimmed", error.args[0]) from error

    def topics(self) -> list[str]:
        return sorted(self._metadata().topics)

    def partitions(self, topic: str) -> int:
        found = self._metadata().topics.get(topic)
        return 0 if found is None else len(found.partitions)

    def offsets(self, topic: str, partition: int) -> tuple[int, int]:
        self._own.check()
        if self._bounds_client is None:
            settings: dict[str, Any] = {
                **self._options.common(self._bootstrap, self._on_error),
                **self._options.reading(),
                "group.id": f"{self._options.client_id}-reader",
            }
            self._bounds_client = Consumer(settings)
        deadline = time.monotonic() + self._options.timeout_s
        while True:
            try:
                low, high = self._bounds_client.get_watermark_offsets(
                    TopicPartition(topic, partition), timeout=self._options.timeout_s, cached=False
                )
                return low, high
            except KafkaException as error:
                # Right after a broker's start, or while a leader moves, partitions have none for a moment.
                if error.args[0].code() not in _LEADERLESS or time.monotonic() > deadline:
                    raise log_error(f"{topic}[{partition}]: its offsets cannot be asked for", error.args[0]) from error
                time.sleep(0.05)

    def read(self, topic: str, partition: int, start: int, stop: int) -> Iterator[Record]:
        self._own.check()
        return read_range(self._bootstrap, self._options, topic, partition, start, stop)

    def reader(self, eager: bool = True) -> KafkaReader:
        self._own.check()
        return KafkaReader(self._bootstrap, self._options, eager)

    def writer(self, acknowledged: Callable[[Record], None] | None = None) -> KafkaWriter:
        self._own.check()
        return KafkaWriter(self._bootstrap, self._options, acknowledged)

    def membership(
        self, group: str, topic: str, member: str, hand_over: HandOver = lambda _slots: None
    ) -> KafkaMembership:
        self._own.check()
        return KafkaMembership(self._bootstrap, self._options, group, topic, member, hand_over)

    def close(self) -> None:
        if self._bounds_client is not None:
            self._bounds_client.close()
        self._bounds_client = None
        self._admin_client = None

    def _on_error(self, error: KafkaError) -> None:
        self._last_error = error

    def _admin(self) -> AdminClient:
        self._own.check()
        if self._admin_client is None:
            settings: dict[str, Any] = self._options.common(self._bootstrap, self._on_error)
            try:
                self._admin_client = AdminClient(settings)
            except KafkaException as error:
                raise ConfigError(f"kafka: {describe(error.args[0])}; see [kafka] in the configuration") from error
        return self._admin_client

    def _metadata(self) -> ClusterMetadata:
        """All topics (asking for one by name might create it). A refusal is raised at once, silence at the deadline."""
        admin = self._admin()
        deadline = time.monotonic() + self._options.timeout_s
        while True:
            self._last_error = None
            try:
                return admin.list_topics(timeout=max(0.1, min(_SLICE_S, deadline - time.monotonic())))
            except KafkaException as error:
                admin.poll(0)  # serves the error callback
                cause = self._cause(error)
                if is_refusal(cause):
                    raise log_error(f"the Kafka brokers at {self._bootstrap} refuse us", cause) from error
                if time.monotonic() >= deadline:
                    raise LogError(
                        f"no Kafka broker answers at {self._bootstrap} within {self._options.timeout_s:g} s "
                        f"({describe(cause)}); start one (gossipdbn up) or correct the address",
                        retryable=True,
                    ) from error

    def _cause(self, error: KafkaException) -> KafkaError:
        """What a client reported in the background, which says more than a timeout."""
        cause: KafkaError = error.args[0] if self._last_error is None else self._last_error
        return cause

    def _wait_for_leaders(self, topics: Sequence[TopicSpec]) -> None:
        deadline = time.monotonic() + self._options.timeout_s
        pause_s = 0.01
        while True:
            known = self._metadata().topics
            waiting: list[str] = []
            for spec in topics:
                found = known.get(spec.name)
                if found is not None and found.partitions and len(found.partitions) != spec.partitions:
                    raise LogError(
                        f"topic {spec.name} has {len(found.partitions)} partitions, {spec.partitions} are needed; "
                        "choose another run name, or delete the topic if nothing needs it"
                    )
                if found is None or not found.partitions or any(p.leader < 0 for p in found.partitions.values()):
                    waiting.append(spec.name)
            if not waiting:
                return
            if time.monotonic() > deadline:
                raise LogError(
                    f"topics {', '.join(waiting)}: some partitions have no leader after {self._options.timeout_s:g} s; "
                    "are all brokers up?",
                    retryable=True,
                )
            time.sleep(pause_s)
            pause_s = min(0.2, 2 * pause_s)

    def _check_settings(self, topics: Sequence[TopicSpec]) -> None:
        if not topics:
            return
        resources = [ConfigResource(ConfigResource.Type.TOPIC, spec.name) for spec in topics]
        futures = self._admin().describe_configs(resources, request_timeout=self._options.timeout_s)
        effective: dict[str, dict[str, str]] = {}
        for resource, future in futures.items():
            try:
                entries = future.result(self._options.timeout_s + 5.0)
            except KafkaException as error:
                raise log_error(f"the settings of topic {resource.name} cannot be read", error.args[0]) from error
            effective[resource.name] = {name: entry.value for name, entry in entries.items()}
        for spec in topics:
            for key, wanted in spec.config:
                found = effective[spec.name].get(key)
                if not _suffices(key, found, wanted):
                    raise ConfigError(
                        f"topic {spec.name}: {key} is {found}, {wanted} is needed; change it with kafka-configs "
                        f"--bootstrap-server {self._bootstrap} --alter --topic {spec.name} --add-config {key}={wanted}"
                    )


def _suffices(key: str, found: str | None, wanted: str) -> bool:
    if found is None:
        return False
    if key not in _AT_LEAST:
        return found == wanted
    if int(found) == -1 or int(wanted) == -1:  # -1: without limit
        return int(found) == -1
    return int(found) >= int(wanted)
