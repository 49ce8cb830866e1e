"""What an operator may do to a running run: subtract updates exactly, and close a slot that nobody will run.

Both are records like any other: appended, read back and judged; nothing is done unless the log shows it as accepted.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from gossipdbn.core import chain as chains
from gossipdbn.core import rounds
from gossipdbn.core.replica import Replica
from gossipdbn.core.revocation import minus
from gossipdbn.core.topics import run_names
from gossipdbn.core.values import (
    GIVEN_UP,
    RESET,
    Accepted,
    Claim,
    Manifest,
    Payload,
    Revocation,
    Undecided,
    Update,
    Verdict,
)
from gossipdbn.errors import ConfigError, LogError
from gossipdbn.kernels import codec
from gossipdbn.models.spec import layout, parameter_count
from gossipdbn.ports import Log, Reader, Record, SnapshotStore, Writer
from gossipdbn.wire.messages import RunWire, payload_name
from gossipdbn.worker.recover import fetch_payload

__all__ = ["GivenUp", "Operator", "Revoked"]

ATTEMPTS = 20
FLUSH_S = 15.0
READ_BACK_S = 15.0
_PAUSE_S = 0.1


@dataclass(frozen=True, slots=True)
class Revoked:
    """Updates ``first`` .. ``last`` of a slot are subtracted, by the operator's records ``numbers``."""

    run: str
    slot: int
    first: int
    last: int
    rows: int
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A slot is closed by the operator at update ``seq``; ``cursor`` is the (epoch, row) it had reached."""

    run: str
    slot: int
    seq: int
    incarnation: int
    phase: int
    cursor: tuple[int, int]
    before: str


class Operator:
    """Acts on one run of a log.

    Parameters
    ----------
    wire : seals with the operator's key. name : who acts; shows in the claims of slots given up.
    """

    def __init__(
        self, log: Log, manifest: Manifest, store: SnapshotStore, wire: RunWire, name: str, prefix: str = "",
        wait: Callable[[float], None] = time.sleep,
    ) -> None:  # fmt: skip
        self.manifest = manifest
        self._log, self._store, self._wire, self._name, self._wait = log, store, wire, name, wait
        self._topic = run_names(manifest.run, prefix).updates

    # ---- reading ----------------------------------------------------------------------------------------------------
    def _judged(self, partition: int) -> Iterator[tuple[chains.Chain, bytes, object, Payload | None]]:
        """(chain after it, bytes, accepted message or None, payload) of every record of a partition."""
        chain = chains.genesis(self.manifest.slots)
        start, end = self._log.offsets(self._topic, partition)
        if start:
            raise LogError(
                f"{self._topic} partition {partition} starts at offset {start}: what came before was trimmed"
            )
        for record in self._log.read(self._topic, partition, start, end):
            payload = None
            decoded = self._wire.decode(record.value)
            verdict = chains.judge(self.manifest, chain, partition, decoded)
            if isinstance(verdict, Undecided) and verdict.wants is not None:
                payload = fetch_payload(self._store, verdict.wants)
                verdict = chains.judge(self.manifest, chain, partition, decoded, payload)
            if isinstance(verdict, Undecided):
                raise LogError(f"{self._topic} partition {partition}, offset {record.offset}: {verdict.reason}")
            chain = chains.fold(self.manifest, chain, record.value, verdict)
            message = verdict.message if isinstance(verdict, Accepted) else None
            if isinstance(message, Update | Revocation) and message.payload is not None:
                payload = message.payload
            yield chain, record.value, message, payload

    def _take(self, replica: Replica, record: Record) -> Verdict:
        """Read a record of the updates; the verdict is final."""
        verdict = replica.read(record.partition, record.offset, record.value)
        if isinstance(verdict, Undecided) and verdict.wants is not None:
            payload = fetch_payload(self._store, verdict.wants)
            verdict = replica.read(record.partition, record.offset, record.value, payload)
        if isinstance(verdict, Undecided):
            raise LogError(f"{self._topic} partition {record.partition}, offset {record.offset}: {verdict.reason}")
        return verdict

    def _send(self, writer: Writer, partition: int, raw: bytes) -> None:
        writer.send(self._topic, partition, raw)
        if not writer.flush(FLUSH_S):
            raise LogError(f"{self._topic} did not take the record: {writer.failure() or 'no acknowledgement'}")

    def _append(self, partition: int, raw: bytes) -> None:
        """Send and wait until it is acknowledged and can be read."""
        end = self._log.offsets(self._topic, partition)[1]
        with contextlib.closing(self._log.writer()) as writer:
            self._send(writer, partition, raw)
        waited = 0.0
        while self._log.offsets(self._topic, partition)[1] <= end:
            if waited > READ_BACK_S:
                raise LogError(f"{self._topic} partition {partition} does not show the acknowledged record")
            self._wait(_PAUSE_S)
            waited += _PAUSE_S

    # ---- revoking ---------------------------------------------------------------------------------------------------
    def revoke(self, slot: int, first: int, last: int | None = None, reason: str = "") -> Revoked:
        """Subtract updates ``first`` .. ``last`` (None: the newest) of a slot from every replica, exactly.

        Raises
        ------
        ConfigError : no such updates, or some are revoked already. LogError, StoreError : the record cannot be written.
        """
        if not 0 <= slot < self.manifest.slots:
            raise ConfigError(f"--slot: {slot} is not a slot of the run; it has 0 to {self.manifest.slots - 1}")
        if last is not None and last < first:
            raise ConfigError(f"--to: {last} is before the first update to revoke, {first}")
        count, rows, payloads = 0, 0, dict[int, Payload]()
        for _, _, m, payload in self._judged(slot):
            if isinstance(m, Update):
                count += 1
                if first <= m.seq and (last is None or m.seq <= last):
                    payloads[m.seq], rows = payload or (), rows + m.rows.count
        named = f"{first} to {'the newest' if last is None else last}"
        last = count - 1 if last is None else last
        if not 0 <= first <= last < count:
            has = f"updates 0 to {count - 1}" if count else "no updates yet"
            raise ConfigError(f"updates {named} cannot be revoked: slot {slot} has {has}")
        self._check_revoked(self._operators_chain(), slot, first, last)
        pieces = self._payloads(payloads, first, last)
        numbers = tuple(self._revoke_range(slot, a, b, payload, reason) for a, b, payload in pieces)
        return Revoked(self.manifest.run, slot, first, last, rows, numbers)

    def _payloads(self, payloads: dict[int, Payload], first: int, last: int) -> Iterator[tuple[int, int, Payload]]:
        """(first, last, payload) of revocations of ranges that together are ``first`` .. ``last``.

        One range nearly always. A sum beyond +-2^30 does not fit the codec: then the range is halved.
        """
        total = np.zeros(parameter_count(self.manifest.spec), np.int64)
        tensors = layout(self.manifest.spec)
        for seq in range(first, last + 1):
            for part in payloads[seq]:
                t = tensors[part.tensor]
                total[t.offset : t.offset + t.size] += codec.decode(part.codec, part.data, *t.blocks).ravel()
        if np.abs(total).max(initial=0) > codec.RESIDUAL_MAX:
            middle = (first + last) // 2
            yield from self._payloads(payloads, first, middle)
            yield from self._payloads(payloads, middle + 1, last)
            return
        yield first, last, minus(self.manifest, total.astype(np.int32))

    def _revoke_range(self, slot: int, first: int, last: int, payload: Payload, reason: str) -> int:
        partition = self.manifest.slots
        for _ in range(ATTEMPTS):
            chain = self._operators_chain()
            self._check_revoked(chain, slot, first, last)
            message = Revocation(
                self.manifest.run, chain.count, slot, first, last, chains.payload_digest(self.manifest, payload),
                payload, None, reason[:500],
            )  # fmt: skip
            if sum(len(p.data) for p in payload) > self.manifest.inline_bytes:
                ref, data = self._wire.pack_payload(payload)
                self._store.put(payload_name(ref), data)
                message = msgspec.structs.replace(message, payload=None, payload_ref=ref)
            raw = self._wire.encode(message)
            self._append(partition, raw)
            if any(r == raw and m is not None for _, r, m, _ in self._judged(partition)):
                return message.number
            self._wait(_PAUSE_S)  # another operator was quicker
        raise LogError(f"{self._topic} partition {partition}: {ATTEMPTS} attempts to revoke were overtaken")

    def _check_revoked(self, chain: chains.Chain, slot: int, first: int, last: int) -> None:
        for s, a, b in chain.revoked:
            if s == slot and a <= last and first <= b:
                raise ConfigError(f"updates {a} to {b} of slot {slot} are revoked already")

    def _operators_chain(self) -> chains.Chain:
        chain = chains.genesis(self.manifest.slots)
        for after, *_ in self._judged(self.manifest.slots):
            chain = after
        return chain

    # ---- giving up --------------------------------------------------------------------------------------------------
    def give_up(self, slot: int, reason: str = "") -> GivenUp:
        """Close a slot for good, so that the run can finish without it; its other rows stay outstanding.

        The operator claims the slot, which fences whoever has it, and closes it before the owner has claimed it again.
        What the slot has trained stays; what quantisation left behind in it is lost. The closing starts from the slot's
        own updates alone, so that no other partition needs to be read.

        Raises
        ------
        ConfigError : no such slot, or it is closed. LogError : the records cannot be written, or are overtaken again
            and again.
        """
        if not 0 <= slot < self.manifest.slots:
            raise ConfigError(f"--slot: {slot} is not a slot of the run; it has 0 to {self.manifest.slots - 1}")
        replica = Replica(self.manifest, self._wire.decode, rounds.initial_parameters(self.manifest, self._store.get))
        start, end = self._log.offsets(self._topic, slot)
        if start:
            raise LogError(f"{self._topic} partition {slot} starts at offset {start}: what came before was trimmed")
        for record in self._log.read(self._topic, slot, 0, end):
            self._take(replica, record)
        before = replica.chains[slot].worker
        with contextlib.closing(self._log.reader()) as reader, contextlib.closing(self._log.writer()) as writer:
            reader.add(self._topic, slot, end)
            for _ in range(ATTEMPTS):
                chain = replica.chains[slot]
                if chain.closed:
                    raise ConfigError(f"slot {slot} is closed already" + (f" ({chain.failed})" if chain.failed else ""))
                claimed = self._read_back(reader, writer, replica, slot, self._claim(chain, slot))
                if claimed and self._read_back(reader, writer, replica, slot, self._closing(replica, slot, reason)):
                    after = replica.chains[slot]
                    done = (after.count - 1, after.incarnation, after.phase, after.cursor)
                    return GivenUp(self.manifest.run, slot, *done, before)
        raise LogError(f"slot {slot}: {ATTEMPTS} attempts to claim it were overtaken by its owner; stop that worker")

    def _claim(self, chain: chains.Chain, slot: int) -> bytes:
        m, incarnation = self.manifest, chain.incarnation + 1
        return self._wire.encode(Claim(m.run, slot, incarnation, self._name, RESET, self._wire.key_id, m.numerics))

    def _closing(self, replica: Replica, slot: int, reason: str) -> bytes:
        """The closing that follows the operator's newest claim."""
        state = rounds.fresh_state(self.manifest, slot, replica.chains[slot])
        note = reason[:500] or "given up by the operator"
        update = rounds.closing(self.manifest, state, replica.digest(), replica.version, GIVEN_UP, note=note)
        return self._wire.encode(update)

    def _read_back(self, reader: Reader, writer: Writer, replica: Replica, slot: int, raw: bytes) -> bool:
        """Append a record to the slot's partition and read on up to it; whether it is accepted."""
        self._send(writer, slot, raw)
        silent = 0
        while silent * _PAUSE_S <= READ_BACK_S:
            records = reader.poll(_PAUSE_S)
            silent = 0 if records else silent + 1
            ours = None
            for record in records:
                if record.offset >= replica.chains[slot].offset:
                    verdict = self._take(replica, record)
                    ours = verdict if record.value == raw else ours
            if ours is not None:
                return isinstance(ours, Accepted)
        raise LogError(f"{self._topic} partition {slot} does not show the acknowledged record")
