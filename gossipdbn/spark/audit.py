"""Reads the shards topic back while it is written: what the feed reports is what the topic holds."""

from __future__ import annotations

import time

from gossipdbn.errors import ConfigError, LogError, RemoteProtocolError
from gossipdbn.ports import Log, Writer
from gossipdbn.wire import envelope
from gossipdbn.wire.shards import ShardLimits, ShardSequence, encode_shard, open_shard

__all__ = ["TopicAudit"]

_MARK_S_MAX = 60.0


class TopicAudit:
    """The shards topic as every reader sees it.

    Parameters
    ----------
    log : where the topic is. topic, slots : its name and number of partitions.
    limits : what a shard of the run may be.
    from_start : read all of it (a bounded source, whose end must be counted), or only what comes from now on.

    Attributes
    ----------
    sequences : one ``ShardSequence`` per partition. copies : shards that came again. voids : records that are no shard.
    found_shards : distinct shards that were there before.
    """

    def __init__(
        self, log: Log, topic: str, slots: int, limits: ShardLimits, keys: envelope.Keyring, *, from_start: bool = True
    ) -> None:
        partitions = log.partitions(topic)
        if partitions != slots:
            have = f"has {partitions} partitions" if partitions else "does not exist"
            raise ConfigError(f"topic {topic} {have}, the run has {slots} slots; create the run's topics first")
        self.topic, self.slots = topic, slots
        self.sequences = [ShardSequence() for _ in range(slots)]
        self.copies = self.voids = self.found_shards = 0
        self._log, self._limits, self._keys = log, limits, keys
        self._next = []
        self._reader = log.reader()
        self._writer: Writer | None = None
        for slot in range(slots):
            first, end = log.offsets(topic, slot)
            if from_start and first > 0:
                raise LogError(
                    f"topic {topic}: the first {first} records of partition {slot} were dropped by retention"
                )
            start = first if from_start else end
            self._next.append(start)
            self._reader.add(topic, slot, start)

    @property
    def rows(self) -> int:
        return sum(s.rows for s in self.sequences)

    @property
    def shards(self) -> int:
        return sum(s.shards for s in self.sequences)

    @property
    def any_ended(self) -> bool:
        return any(s.ended for s in self.sequences)

    def advance(self, timeout_s: float) -> int:
        """Read what is there, waiting at most ``timeout_s``; the number of records.

        Raises
        ------
        DataError : a shard came again with other content, or an end mark does not fit.
        """
        records = self._reader.poll(timeout_s, 200)
        for record in records:
            self._next[record.partition] = record.offset + 1
            try:
                message = open_shard(record.value, self._limits, self._keys)
            except RemoteProtocolError:
                self.voids += 1
                continue
            sequence = self.sequences[record.partition]
            ended = sequence.ended
            if sequence.add(message) is None and not ended and not sequence.ended:
                self.copies += 1
        return len(records)

    def catch_up(self, timeout_s: float = 600.0) -> None:
        """Read on to the present end of the topic."""
        ends = [self._log.offsets(self.topic, slot)[1] for slot in range(self.slots)]
        deadline = time.monotonic() + timeout_s
        while any(here < end for here, end in zip(self._next, ends, strict=True)):
            if time.monotonic() > deadline:
                raise LogError(f"topic {self.topic} could not be read back within {timeout_s:.0f} s", retryable=True)
            self.advance(0.2)

    def remember(self) -> None:
        """What is there now was there before this feed."""
        self.found_shards = self.shards

    def prepare(self) -> None:
        """Open the writer of the end marks: a new one needs half a second before it can send."""
        self._writer = self._writer or self._log.writer()

    def finish(self, key_id: int, keys: envelope.Keyring) -> None:
        """Write the end marks that are missing, and see them on the topic; marks that are there are not doubled."""
        self.catch_up()
        open_slots = [s for s in range(self.slots) if not self.sequences[s].ended]
        if not open_slots:
            return
        self.prepare()
        assert self._writer is not None
        for slot in open_slots:
            body = encode_shard(self.sequences[slot].end_mark())
            self._writer.send(self.topic, slot, envelope.seal(body, key_id, keys))
        if not self._writer.flush(_MARK_S_MAX):
            why = self._writer.failure() or "no acknowledgement"
            raise LogError(f"the end marks could not be written to {self.topic}: {why}", retryable=True)
        self.catch_up()
        for slot in open_slots:
            if not self.sequences[slot].ended:
                raise LogError(f"topic {self.topic}, partition {slot}: another feed writes into the same run; stop it")

    def close(self) -> None:
        self._reader.close()
        if self._writer is not None:
            self._writer.close()
