"""Membership of the consumer group that spreads a run's slots over its live workers."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from gossipdbn.adapters.kafka_client import KafkaOptions, OwnProcess, describe, is_fatal, is_refusal, log_error
from gossipdbn.errors import LogError
from gossipdbn.ports import HandOver, SlotAssigned, SlotRevoked

__all__ = ["KafkaMembership"]

_SLICE_S = 0.02
_LEAVE_S = 3.0


class KafkaMembership:
    """A group member whose partitions stay paused: being assigned one means hosting that slot, nothing is read here.

    The member is static (``group.instance.id``), so a process of the same name that comes back within the session
    timeout finds its slots again. The library lets static members close without leaving; :meth:`close` therefore
    unsubscribes first, which does leave.

    A slot that shall move stays this member's while ``hand_over`` runs; the group gives it to nobody else before.
    """

    def __init__(
        self,
        bootstrap: str,
        options: KafkaOptions,
        group: str,
        topic: str,
        member: str,
        hand_over: HandOver = lambda _slots: None,
    ) -> None:
        self._own = OwnProcess()
        self._topic = topic
        self._member = member
        self._hand_over = hand_over
        self._events: deque[SlotAssigned | SlotRevoked] = deque()
        self._held: set[int] = set()
        self._error: KafkaError | None = None
        self._raised: Exception | None = None
        self._trouble: str | None = None
        self._cut_off = False
        self._settings: dict[str, Any] = {
            **options.common(bootstrap, self._on_error),
            **options.reading(),
            "group.id": group,
            "group.instance.id": member,
            "partition.assignment.strategy": "cooperative-sticky",
            "session.timeout.ms": options.session_timeout_ms,
            "heartbeat.interval.ms": min(300, options.session_timeout_ms // 3),  # members learn of changes by these
            "max.poll.interval.ms": max(300_000, options.session_timeout_ms),
            "queued.max.messages.kbytes": 1024,
            # The library looks at its heartbeats once a second, unless a timer wakes it more often.
            "statistics.interval.ms": 200,
        }
        self._consumer = self._joined()

    def _joined(self) -> Any:
        consumer = Consumer(self._settings)
        consumer.subscribe([self._topic], on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._lost)
        return consumer

    def poll(self, timeout_s: float) -> list[SlotAssigned | SlotRevoked]:
        """Slots given and taken since the last call, in order; waits up to ``timeout_s`` for the first."""
        self._own.check()
        deadline = time.monotonic() + timeout_s
        while True:
            left = deadline - time.monotonic()
            self._serve(max(0.0, min(left, _SLICE_S)))
            if self._events or left <= _SLICE_S:
                break
        events = list(self._events)
        self._events.clear()
        return events

    def trouble(self) -> str | None:
        """The last transient error, for a status display."""
        return self._trouble

    def close(self) -> None:
        self._own.check()
        try:
            self._consumer.unsubscribe()
            deadline = time.monotonic() + _LEAVE_S
            while self._consumer.memberid() and time.monotonic() < deadline:
                self._consumer.poll(_SLICE_S)
        except KafkaException:  # no broker to say goodbye to: the session timeout does it
            pass
        self._consumer.close()

    def _serve(self, timeout_s: float) -> None:
        message = self._consumer.poll(timeout_s)
        if self._raised is not None:
            raised, self._raised = self._raised, None
            raise raised
        error = message.error() if message is not None else None
        if error is not None:
            self._on_error(error)
        if self._error is not None:
            error, self._error = self._error, None
            if "fenced" in error.str() and self._cut_off:
                # Requests of before the session ended came late and made a second member of this name: join anew.
                self._cut_off = False
                self._consumer.close()
                self._consumer = self._joined()
                return
            if "fenced" in error.str():
                raise LogError(f"another worker named {self._member!r} joined the group and took this one's place")
            raise log_error(f"worker {self._member!r} cannot take part in the group of {self._topic}", error)

    def _on_error(self, error: KafkaError) -> None:
        self._trouble = describe(error)
        lasting = (KafkaError.INVALID_SESSION_TIMEOUT, KafkaError.INCONSISTENT_GROUP_PROTOCOL)
        if is_fatal(error) or is_refusal(error) or error.code() in lasting:
            self._error = error

    # Rebalance callbacks, called from within poll() on the same thread.

    def _assigned(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        # An explicit offset spares a look-up of committed ones; nothing is read from it.
        consumer.incremental_assign([TopicPartition(p.topic, p.partition, 0) for p in partitions])
        consumer.pause([TopicPartition(p.topic, p.partition) for p in partitions])
        for part in partitions:
            self._held.add(part.partition)
            self._events.append(SlotAssigned(part.partition))

    def _revoked(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        try:
            self._hand_over([p.partition for p in partitions])
        except Exception as e:  # noqa: BLE001 - the library's callbacks cannot raise; poll does it for them
            self._raised = e
        self._take(consumer, partitions, lost=False)

    def _lost(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        self._cut_off = True
        self._take(consumer, partitions, lost=True)

    def _take(self, consumer: Consumer, partitions: list[TopicPartition], *, lost: bool) -> None:
        consumer.incremental_unassign([TopicPartition(p.topic, p.partition) for p in partitions])
        for part in partitions:
            if part.partition in self._held:
                self._held.remove(part.partition)
                self._events.append(SlotRevoked(part.partition, lost))
