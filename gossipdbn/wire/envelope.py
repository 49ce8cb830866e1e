"""The envelope around every record on every topic, fixed for ever.

::

    magic "gdbn" | format u8 | key id u32 LE | body length u32 LE | MAC 16 bytes | body

The MAC is BLAKE2b-128 (RFC 7693) over the header's first 13 bytes and the body, keyed by the key of that id. Key id
0 means "no key": the MAC is then a plain checksum, which finds accidents and not malice. A reader learns three things:
the record is whole (``open_`` returns it), it can never be valid (RemoteProtocolError: void for every reader), or
*this* reader cannot tell (``Unreadable``: an unknown format or key; the partition waits until software or keyring are
updated).
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from gossipdbn.errors import ConfigError, GossipDbnError, RemoteProtocolError

__all__ = [
    "FORMAT",
    "HEADER_BYTES",
    "MAX_BODY_BYTES",
    "NO_KEYS",
    "Keyring",
    "Opened",
    "Unreadable",
    "key_id_of",
    "open_",
    "seal",
]

Keyring = Mapping[int, bytes]
"""Key id (1 .. 2^32-1) -> secret of 16 to 64 bytes."""

NO_KEYS: Keyring = {}
MAGIC = b"gdbn"
FORMAT = 1
_HEAD = struct.Struct("<4sBII")
_MAC_BYTES = 16
HEADER_BYTES = _HEAD.size + _MAC_BYTES
MAX_BODY_BYTES = 64 << 20


class Unreadable(GossipDbnError):
    """This reader does not know the record's format or key: the partition must wait, the record is never skipped."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A whole, authentic record."""

    body: bytes
    key_id: int


def _mac(head: bytes, body: bytes, key: bytes) -> bytes:
    h = hashlib.blake2b(head, digest_size=_MAC_BYTES, key=key, person=b"gossipdbn")
    h.update(body)
    return h.digest()


def seal(body: bytes, key_id: int = 0, keys: Keyring = NO_KEYS) -> bytes:
    """Wrap ``body``; the same body and key always give the same bytes."""
    if len(body) > MAX_BODY_BYTES:
        raise RemoteProtocolError(f"a record of {len(body)} bytes is over the format's limit of {MAX_BODY_BYTES}")
    if key_id and key_id not in keys:
        raise ConfigError(f"security.key_id: key {key_id} is not in the key file (it has {sorted(keys) or 'no keys'})")
    head = _HEAD.pack(MAGIC, FORMAT, key_id, len(body))
    return head + _mac(head, body, keys[key_id] if key_id else b"") + body


def key_id_of(data: bytes) -> int:
    """The key id that a whole record states."""
    return int(_HEAD.unpack_from(data)[2])


def open_(data: bytes, keys: Keyring = NO_KEYS) -> Opened:
    """Unwrap a record.

    Raises
    ------
    RemoteProtocolError : too short, wrong magic, length or MAC (void, the same for every reader).
    Unreadable : format or key id that this reader does not know (undecided).
    """
    if len(data) < HEADER_BYTES:
        raise RemoteProtocolError(f"a record of {len(data)} bytes is shorter than its envelope ({HEADER_BYTES})")
    magic, fmt, key_id, length = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise RemoteProtocolError("not a gossipdbn record (wrong magic)")
    if fmt != FORMAT:
        raise Unreadable(f"record format {fmt} is unknown to this software (it knows {FORMAT}); update gossipdbn")
    if length != len(data) - HEADER_BYTES or length > MAX_BODY_BYTES:
        raise RemoteProtocolError(f"the envelope names {length} body bytes, the record has {len(data) - HEADER_BYTES}")
    if key_id and key_id not in keys:
        raise Unreadable(f"key {key_id} is not in this reader's key file; add it (security.key_file)")
    body = data[HEADER_BYTES:]
    mac = _mac(data[: _HEAD.size], body, keys[key_id] if key_id else b"")
    if not hmac.compare_digest(mac, data[_HEAD.size : HEADER_BYTES]):
        raise RemoteProtocolError("wrong MAC: the record was damaged or forged")
    return Opened(body, key_id)
