"""Messages of the shards topic: packed training rows, and the end mark of a bounded source.

A body is a msgpack array inside the envelope::

    shard     [0, id, rows, dtype, width, values, labels, digest]
    end mark  [1, shards, rows, digest]

``values`` holds the rows one after another: 1 bit per value (each row filled up to whole bytes, most significant bit
first), uint8, or float32 little-endian. ``labels`` are int32 little-endian or nil. A shard's id names its rows by where
they come from (``shard_id``), its digest by what they are; a feed that is restarted may write shards again, and every
reader drops the copies by the same rule (``ShardSequence``).
"""

from __future__ import annotations

import hashlib
import struct
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from gossipdbn.errors import DataError, RemoteProtocolError
from gossipdbn.wire import envelope

__all__ = [
    "BITS", "BYTES", "DTYPES", "FLOATS", "ID_BYTES_MAX", "SEEN_IDS_MAX", "EndMark", "Shard", "ShardLimits",
    "ShardSequence", "decode_shard", "dtype_code", "encode_shard", "make_shard", "open_shard", "row_bytes", "shard_id",
    "shard_rows_for", "slot_of", "unpack",
]  # fmt: skip

BITS, BYTES, FLOATS = 0, 1, 2
DTYPES = {"binary": BITS, "grey": BYTES, "gaussian": FLOATS, "mixed": FLOATS}
"""Code of the packing for each type of visible units."""

SEEN_IDS_MAX = 65_536
"""Copies of a shard are recognised among this many distinct ids before them; a constant of the format."""

ID_BYTES_MAX = 200
_DIGEST_BYTES = 16
_ENTRY = struct.Struct(f"<{_DIGEST_BYTES}s{_DIGEST_BYTES}s")
_STATE = struct.Struct(f"<?QQ{_DIGEST_BYTES}sI")


class Shard(msgspec.Struct, array_like=True, tag=0, frozen=True, forbid_unknown_fields=True):
    """Rows of one message, as they travel.

    Attributes
    ----------
    id : names the rows by source coordinates, see ``shard_id``.
    dtype : BITS, BYTES or FLOATS.
    width : values per row. values : packed rows. labels : int32 LE, or None.
    digest : first 16 bytes of the SHA-256 of everything but the id.
    """

    id: str
    rows: int
    dtype: int
    width: int
    values: bytes
    labels: bytes | None
    digest: bytes


class EndMark(msgspec.Struct, array_like=True, tag=1, frozen=True, forbid_unknown_fields=True):
    """Nothing counts after it in its partition: how many distinct shards and rows there are, and their digest."""

    shards: int
    rows: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class ShardLimits:
    """What the run's manifest allows: the shape of rows, bounds of a message, and whether it must be signed."""

    width: int
    dtype: int
    classes: int = 0
    keyed: bool = False
    rows_max: int = 65_536
    body_bytes_max: int = 16 << 20


_DECODER = msgspec.msgpack.Decoder(Shard | EndMark, strict=True)
_ENCODER = msgspec.msgpack.Encoder()


def dtype_code(visible_units: str) -> int:
    """BITS, BYTES or FLOATS for rows of these visible units."""
    return DTYPES[visible_units]


def row_bytes(dtype: int, width: int) -> int:
    """Bytes of one packed row."""
    return (width + 7) // 8 if dtype == BITS else width if dtype == BYTES else 4 * width


def shard_rows_for(dtype: int, width: int, bytes_max: int = 400 << 10) -> int:
    """Rows per message: as many of a round number as fit into ``bytes_max``, and at least one."""
    fitting = bytes_max // (row_bytes(dtype, width) + 4)
    return max((n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000) if n <= fitting), default=1)


def shard_id(source: str, ordinal: int, first: int, rows: int) -> str:
    """``source#ordinal:first+rows``: the ``ordinal``-th range of a file or topic partition; long names are cut."""
    name = source.encode()
    if len(name) > 120:
        name = hashlib.sha256(name).hexdigest()[:24].encode() + b"~" + name[-80:].decode(errors="ignore").encode()
    return f"{name.decode()}#{ordinal}:{first}+{rows}"


def slot_of(shard_id: str, slots: int) -> int:
    """The slot that trains a shard: ranges of one source go round the slots, starting anywhere; stable for ever."""
    source, _, place = shard_id.rpartition("#")
    ordinal = place.partition(":")[0]
    if source and ordinal.isdecimal() and ordinal.isascii() and len(ordinal) < 20:
        return (_hash64(source) + int(ordinal)) % slots
    return _hash64(shard_id) % slots


def _hash64(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _digest(rows: int, dtype: int, width: int, values: bytes, labels: bytes | None) -> bytes:
    h = hashlib.sha256(struct.pack("<QBQ?", rows, dtype, width, labels is not None))
    h.update(values)
    h.update(labels or b"")
    return h.digest()[:_DIGEST_BYTES]


def make_shard(shard_id: str, values: npt.NDArray[Any], labels: npt.NDArray[np.int32] | None, dtype: int) -> Shard:
    """Pack rows: [n, width] uint8 0/1 (BITS), uint8 0..127 (BYTES) or float32 (FLOATS); labels int32 [n] or None."""
    rows, width = values.shape
    if len(shard_id.encode()) > ID_BYTES_MAX:
        raise DataError(f"shard id {shard_id[:60]!r}... is over {ID_BYTES_MAX} bytes")
    if dtype == BITS:
        packed = np.packbits(values, axis=1).tobytes()
    else:
        packed = np.ascontiguousarray(values, np.uint8 if dtype == BYTES else "<f4").tobytes()
    names = None if labels is None else np.ascontiguousarray(labels, "<i4").tobytes()
    return Shard(shard_id, rows, dtype, width, packed, names, _digest(rows, dtype, width, packed, names))


def encode_shard(message: Shard | EndMark) -> bytes:
    """Body of the record; the same message always gives the same bytes."""
    return _ENCODER.encode(message)


def open_shard(record: bytes, limits: ShardLimits, keys: envelope.Keyring = envelope.NO_KEYS) -> Shard | EndMark:
    """Open, parse and check a record of the shards topic.

    Raises
    ------
    RemoteProtocolError : it is void. envelope.Unreadable : unknown format or key.
    """
    opened = envelope.open_(record, keys)
    if limits.keyed and opened.key_id == 0:
        raise RemoteProtocolError("a shard sealed without a key, in a run that has keys")
    return decode_shard(opened.body, limits)


def decode_shard(body: bytes, limits: ShardLimits) -> Shard | EndMark:
    """Parse and check a body.

    Raises
    ------
    RemoteProtocolError : too long, not this format, other shape than the manifest's, wrong length or digest.
    """
    if len(body) > limits.body_bytes_max:
        raise RemoteProtocolError(f"a shard message of {len(body)} bytes is over the limit of {limits.body_bytes_max}")
    try:
        message: Shard | EndMark = _DECODER.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteProtocolError(f"not a message of the shards topic: {error}") from error
    if isinstance(message, EndMark):
        if message.shards < 0 or message.rows < 0 or len(message.digest) != _DIGEST_BYTES:
            raise RemoteProtocolError("an end mark with impossible counts")
        return message
    _check(message, limits)
    return message


def _check(shard: Shard, limits: ShardLimits) -> None:
    if not 0 < len(shard.id.encode()) <= ID_BYTES_MAX:
        raise RemoteProtocolError(f"a shard with an id of {len(shard.id)} characters")
    if shard.dtype != limits.dtype or shard.width != limits.width:
        raise RemoteProtocolError(
            f"shard {shard.id}: rows of width {shard.width} and type {shard.dtype}, the manifest has "
            f"{limits.width} and {limits.dtype}"
        )
    if not 0 < shard.rows <= limits.rows_max:
        raise RemoteProtocolError(f"shard {shard.id}: {shard.rows} rows, 1 to {limits.rows_max} are allowed")
    if len(shard.values) != shard.rows * row_bytes(shard.dtype, shard.width):
        raise RemoteProtocolError(f"shard {shard.id}: {len(shard.values)} bytes for {shard.rows} rows")
    if shard.labels is not None and len(shard.labels) != 4 * shard.rows:
        raise RemoteProtocolError(f"shard {shard.id}: {len(shard.labels)} label bytes for {shard.rows} rows")
    if shard.digest != _digest(shard.rows, shard.dtype, shard.width, shard.values, shard.labels):
        raise RemoteProtocolError(f"shard {shard.id}: the content is not what its digest says")
    if shard.labels is not None and limits.classes:  # a model without classes ignores its source's labels
        labels = np.frombuffer(shard.labels, "<i4")
        if labels.min() < -1 or labels.max() >= limits.classes:
            raise RemoteProtocolError(f"shard {shard.id}: a label outside the {limits.classes} classes")
    if shard.dtype == BYTES and np.frombuffer(shard.values, np.uint8).max(initial=0) > 127:
        raise RemoteProtocolError(f"shard {shard.id}: a grey value above 127")
    if shard.dtype == FLOATS and not np.isfinite(np.frombuffer(shard.values, "<f4")).all():
        raise RemoteProtocolError(f"shard {shard.id}: a value that is not finite")


def unpack(shard: Shard) -> tuple[npt.NDArray[Any], npt.NDArray[np.int32] | None]:
    """(values [rows, width] uint8 or float32, labels int32 [rows] or None) of a checked shard; read-only arrays."""
    values: npt.NDArray[Any]
    if shard.dtype == BITS:
        packed = np.frombuffer(shard.values, np.uint8).reshape(shard.rows, -1)
        values = np.unpackbits(packed, axis=1, count=shard.width)
    else:
        kind = np.uint8 if shard.dtype == BYTES else "<f4"
        values = np.frombuffer(shard.values, kind).reshape(shard.rows, shard.width)
    labels = None if shard.labels is None else np.frombuffer(shard.labels, "<i4")
    return values, labels


class ShardSequence:
    """The rows of one partition: its messages in offset order, first occurrences only, up to the end mark.

    The feed, the workers and replay all read a partition through this, so they agree on every row's number. The state
    is a function of the messages alone and goes into snapshots (``state``, ``from_state``).

    Attributes
    ----------
    shards, rows : distinct shards so far and their rows.
    digest : 16 bytes, ``sha256(digest | sha256(id)[:16] | shard digest)[:16]`` over the distinct shards in order.
    ended : whether the end mark was seen; everything after it is void.
    """

    def __init__(self) -> None:
        self.shards = 0
        self.rows = 0
        self.digest = bytes(_DIGEST_BYTES)
        self.ended = False
        self._seen: OrderedDict[bytes, bytes] = OrderedDict()

    def add(self, message: Shard | EndMark) -> Shard | None:
        """The shard if its rows count, None for a copy, an end mark, or anything after the end mark.

        Raises
        ------
        DataError : a shard of a known id with other content, or an end mark whose counts or digest are not those of
            the shards before it. The sequence is then as before.
        """
        if self.ended:
            return None
        if isinstance(message, EndMark):
            self._end(message)
            return None
        key = hashlib.sha256(message.id.encode()).digest()[:_DIGEST_BYTES]
        known = self._seen.get(key)
        if known is not None:
            if known != message.digest:
                raise DataError(
                    f"shard {message.id} came a second time with other content: its source was changed after it was "
                    "fed. Feed changed data into a new run"
                )
            return None
        self._seen[key] = message.digest
        if len(self._seen) > SEEN_IDS_MAX:
            self._seen.popitem(last=False)
        self.shards += 1
        self.rows += message.rows
        self.digest = hashlib.sha256(self.digest + key + message.digest).digest()[:_DIGEST_BYTES]
        return message

    def end_mark(self) -> EndMark:
        """The mark that ends the partition here."""
        return EndMark(self.shards, self.rows, self.digest)

    def _end(self, mark: EndMark) -> None:
        if mark != self.end_mark():
            raise DataError(
                f"the end mark counts {mark.shards} shards and {mark.rows} rows, the partition holds {self.shards} and "
                f"{self.rows}{'' if mark.shards != self.shards else ' (or others)'}: shards were lost or changed"
            )
        self.ended = True

    def state(self) -> bytes:
        """The sequence as bytes, at most 2 MiB: 32 for each id that is remembered."""
        head = _STATE.pack(self.ended, self.shards, self.rows, self.digest, len(self._seen))
        return head + b"".join(_ENTRY.pack(k, d) for k, d in self._seen.items())

    @classmethod
    def from_state(cls, state: bytes) -> ShardSequence:
        """Inverse of ``state``; RemoteProtocolError when the bytes are no state."""
        if len(state) < _STATE.size:
            raise RemoteProtocolError("the state of a shard sequence is cut off")
        ended, shards, rows, digest, count = _STATE.unpack_from(state)
        if count > SEEN_IDS_MAX or len(state) != _STATE.size + count * _ENTRY.size:
            raise RemoteProtocolError(f"the state of a shard sequence names {count} ids in {len(state)} bytes")
        sequence = cls()
        sequence.ended, sequence.shards, sequence.rows, sequence.digest = ended, shards, rows, digest
        for i in range(count):
            key, value = _ENTRY.unpack_from(state, _STATE.size + i * _ENTRY.size)
            sequence._seen[key] = value
        return sequence
