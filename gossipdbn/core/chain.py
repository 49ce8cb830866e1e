"""What one partition of the updates topic says: the fold of its records, and the verdict on the next one.

The verdict depends on the partition's own prefix, the manifest and bytes named by digest; never on other partitions,
clocks or a reader's settings. So all readers agree, for ever.

===================  ===============================================================================================
record               is accepted if
===================  ===============================================================================================
claim                incarnation = newest accepted + 1, the slot is not closed, sealed with the key it names
update               its key is the claim's, incarnation the newest, ``prev`` the tip, seq the count, phase and step
                     the chain's, rows continue the cursor, start_version never goes back and names itself exactly,
                     tensors, codecs and bounds are the manifest's, and the payload has the stated digest
closing update       the same, with no rows; the last one (done, failed, given up) closes the partition for ever
revocation           on the operator's partition, numbered without gaps, ranges never overlap
===================  ===============================================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache

from gossipdbn.core import plan
from gossipdbn.core.values import (
    CLOSES_PHASE,
    DONE,
    FAILED,
    GENESIS_TIP,
    GIVEN_UP,
    OPEN,
    RESET,
    Accepted,
    Claim,
    Decoded,
    Malformed,
    Manifest,
    Payload,
    Revocation,
    Sealed,
    Undecided,
    Unknown,
    Update,
    Verdict,
    Version,
    Void,
)
from gossipdbn.kernels import codec
from gossipdbn.kernels.codec import Deltas
from gossipdbn.models.spec import ModelSpec, layout, phase_tensors

__all__ = [
    "Chain",
    "FetchedPayload",
    "digest_of",
    "fold",
    "genesis",
    "judge",
    "payload_bytes_max",
    "payload_digest",
    "read_payload",
    "tip_after",
]

FetchedPayload = Payload | None
EXACT = 0
COUNT_MAX = (1 << 63) - 1
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Chain:
    """The state of one partition after its records so far. Frozen: ``fold`` returns the next one.

    Attributes
    ----------
    offset : the next offset to read. count : accepted updates. tip : name of the history so far.
    cursor : (epoch, next row). step : minibatches trained. voids : records that counted for nothing.
    start_version : of the last update; the floor of the next one (zero after a reset).
    revoked : on the operator's partition, ranges (slot, first, last) already subtracted.
    """

    slots: int
    offset: int = 0
    incarnation: int = 0
    worker: str = ""
    key_id: int = 0
    numerics: int = 0
    tip: bytes = GENESIS_TIP
    count: int = 0
    phase: int = 0
    cursor: tuple[int, int] = (0, 0)
    step: int = 0
    closed: bool = False
    failed: str = ""
    start_version: Version = ()
    voids: int = 0
    resets: int = 0
    revoked: tuple[tuple[int, int, int], ...] = field(default=())


def genesis(slots: int) -> Chain:
    """The chain of an empty partition."""
    return Chain(slots=slots, start_version=(0,) * (slots + 1))


def tip_after(tip: bytes, raw: bytes) -> bytes:
    """64 bits of SHA-256 over the tip before and the record's exact bytes."""
    return hashlib.sha256(tip + raw).digest()[:8]


_remembered = lru_cache(maxsize=32)(codec.read)
_REMEMBERED_BYTES = 1 << 16


def read_payload(manifest: Manifest, payload: Payload) -> tuple[Deltas, ...]:
    """The deltas; raises ValueError when any part is malformed or out of the manifest's bounds.

    The last ones are remembered: an owner meets each of its updates twice, a recovery beside the logged one.
    """
    tensors = layout(manifest.spec)
    return tuple(
        (_remembered if len(part.data) <= _REMEMBERED_BYTES else codec.read)(
            part.codec, part.data, *tensors[part.tensor].blocks, manifest.e_max, tensors[part.tensor].offset
        )
        for part in payload
    )


def digest_of(deltas: Iterable[Deltas]) -> int:
    """Digest of a whole payload."""
    return sum(d.digest for d in deltas) & _MASK


def payload_digest(manifest: Manifest, payload: Payload) -> int:
    """Digest of the deltas; raises ValueError as `read_payload` does."""
    return digest_of(read_payload(manifest, payload))


@lru_cache(maxsize=64)
def _payload_bytes_max(spec: ModelSpec) -> int:
    per_block = 64  # ternary: planes and escapes; exact: 4 bytes a value; each part has a small header
    return 1024 + sum(64 + t.blocks[0] * per_block + 4 * t.size for t in layout(spec))


def payload_bytes_max(manifest: Manifest) -> int:
    """No payload of the run is longer, by any codec: what a reader may fetch at most."""
    return _payload_bytes_max(manifest.spec)


def judge(
    manifest: Manifest,
    chain: Chain,
    partition: int,
    decoded: Decoded,
    fetched: FetchedPayload = None,
    deltas: tuple[Deltas, ...] | None = None,
) -> Verdict:
    """The verdict on the next record of a partition. Pure.

    ``fetched`` is the payload named by the record's reference, if the caller has it; ``deltas``, what the payload was
    read as before.
    """
    if isinstance(decoded, Unknown):
        return Undecided(decoded.reason)
    if isinstance(decoded, Malformed):
        return Void(decoded.reason)
    m = decoded.message
    if m.run != manifest.run:
        return Void(f"of another run, {m.run}", m)
    if manifest.keyed and decoded.key_id == 0:
        return Void("sealed without a key, in a run that has keys", m)
    if isinstance(m, Revocation):
        return _judge_revocation(manifest, chain, partition, m, fetched)
    if partition >= manifest.slots or m.slot != partition:
        return Void("of another partition", m)
    if chain.closed:
        return Void("the slot is closed", m)
    if isinstance(m, Claim):
        if m.incarnation != chain.incarnation + 1:
            return Void(f"claims incarnation {m.incarnation}, the newest is {chain.incarnation}", m)
        return Accepted(m) if m.key_id == decoded.key_id else Void("claim sealed with another key than it names", m)
    reason = _update_order(manifest, chain, m, decoded) or _update_rows(manifest, chain, m)
    if reason:
        return Void(reason, m)
    version = tuple(a + b for a, b in zip(chain.start_version, m.advance, strict=True))
    if version[m.slot] != m.seq:
        return Void("start_version does not contain exactly the slot's own history", m)
    allowed = set(phase_tensors(manifest.spec, manifest.phases[m.phase]))
    codec_id = manifest.codec if m.closing == OPEN else EXACT
    return _judge_payload(manifest, m, allowed, codec_id, fetched, version, deltas)


def _update_order(manifest: Manifest, chain: Chain, m: Update, sealed: Sealed) -> str:
    """Why an update does not continue its chain, or ''."""
    if chain.incarnation == 0 or m.incarnation != chain.incarnation:
        return f"of incarnation {m.incarnation}, the newest is {chain.incarnation}"
    if sealed.key_id != chain.key_id:
        return "sealed with another key than its claim"
    if m.seq != chain.count or m.prev != chain.tip:
        return f"seq {m.seq} does not continue the chain at {chain.count}"
    if m.phase != chain.phase or m.step != chain.step:
        return f"phase {m.phase} step {m.step}, the chain is at {chain.phase}, {chain.step}"
    if len(m.advance) != manifest.slots + 1:
        return "start_version has the wrong length"
    if any(a + b > COUNT_MAX for a, b in zip(chain.start_version, m.advance, strict=True)):
        return "start_version is beyond any log"
    return ""


def _update_rows(manifest: Manifest, chain: Chain, m: Update) -> str:
    """Why an update's rows or closing do not fit, or ''."""
    epoch, first, count = m.rows
    last = chain.phase == len(manifest.phases) - 1
    if m.closing != OPEN:
        if count or (epoch, first) != chain.cursor:
            return "a closing update has no rows"
        if (m.closing == DONE) != last and m.closing not in (FAILED, GIVEN_UP):
            return "closes a phase that is not its own"
        return ""
    if not 0 < count <= manifest.round_rows_max:
        return f"trains {count} rows"
    if (epoch, first) not in (chain.cursor, (chain.cursor[0] + 1, 0)):
        return f"rows ({epoch}, {first}) do not continue the cursor {chain.cursor}"
    bound = plan.epoch_bound(manifest, chain.phase)
    if epoch < plan.epoch_begin(manifest, chain.phase) or (bound is not None and epoch >= bound):
        return f"epoch {epoch} is not of phase {chain.phase}"
    return ""


def _judge_payload(
    manifest: Manifest,
    m: Update | Revocation,
    allowed: set[int],
    codec_id: int,
    fetched: FetchedPayload,
    version: Version | None,
    deltas: tuple[Deltas, ...] | None = None,
) -> Verdict:
    payload = m.payload if m.payload is not None else fetched
    if m.payload is not None and m.payload_ref is not None:
        return Void("both an inline payload and a reference", m)
    if m.payload_ref is not None and m.payload_ref.size > payload_bytes_max(manifest):
        return Void(f"payload of {m.payload_ref.size} bytes, more than any of this run", m)
    if payload is None:
        if m.payload_ref is None:
            return Void("no payload", m)
        return Undecided(f"payload {m.payload_ref.sha256.hex()[:12]} is not in the store yet", m.payload_ref)
    ids = [part.tensor for part in payload]
    if ids != sorted(set(ids)) or not set(ids) <= allowed or any(part.codec != codec_id for part in payload):
        return Void("payload has other tensors or codecs than the phase", m)
    try:
        deltas = read_payload(manifest, payload) if deltas is None else deltas
    except ValueError as e:
        return Void(f"payload: {e}", m)
    if digest_of(deltas) != m.digest:
        return Void("payload does not have the stated digest", m)
    return Accepted(m, version, deltas)


def _judge_revocation(
    manifest: Manifest, chain: Chain, partition: int, m: Revocation, fetched: FetchedPayload
) -> Verdict:
    if partition != manifest.slots:
        return Void("operator's record in a slot's partition", m)
    if m.number != chain.count:
        return Void(f"number {m.number}, expected {chain.count}", m)
    if m.slot >= manifest.slots or m.first_seq > m.last_seq:
        return Void("revokes an impossible range", m)
    if any(s == m.slot and m.first_seq <= b and a <= m.last_seq for s, a, b in chain.revoked):
        return Void("revokes updates that are revoked already", m)
    return _judge_payload(manifest, m, set(range(len(layout(manifest.spec)))), EXACT, fetched, None)


def fold(manifest: Manifest, chain: Chain, raw: bytes, verdict: Accepted | Void) -> Chain:
    """The chain after a record with that verdict."""
    nxt = chain.offset + 1
    if isinstance(verdict, Void):
        return replace(chain, offset=nxt, voids=chain.voids + 1)
    m, tip = verdict.message, tip_after(chain.tip, raw)
    if isinstance(m, Claim):
        reset = m.mode == RESET
        floor = (0,) * (manifest.slots + 1) if reset else chain.start_version
        return replace(
            chain,
            offset=nxt,
            tip=tip,
            incarnation=m.incarnation,
            worker=m.worker,
            key_id=m.key_id,
            numerics=m.numerics,
            start_version=floor,
            resets=chain.resets + reset,
        )
    if isinstance(m, Revocation):
        return replace(
            chain,
            offset=nxt,
            tip=tip,
            count=chain.count + 1,
            revoked=(*chain.revoked, (m.slot, m.first_seq, m.last_seq)),
        )
    assert verdict.start_version is not None
    return replace(
        chain,
        offset=nxt,
        tip=tip,
        count=chain.count + 1,
        start_version=verdict.start_version,
        cursor=(m.rows.epoch, m.rows.first + m.rows.count),
        step=chain.step + plan.minibatches(manifest, m.phase, m.rows.count),
        phase=chain.phase + (m.closing == CLOSES_PHASE),
        closed=m.closing in (DONE, FAILED, GIVEN_UP),
        failed=(m.note or "failed") if m.closing == FAILED else "",
    )
