"""Messages <-> bytes: an envelope around a tagged msgpack array.

Decoding is strict about types, ranges and lengths and knows no extension types; an array that is longer than expected
is read (a later version appended fields), anything else that does not fit is malformed: void for every reader. A whole
and authentic record of an unknown kind is another matter: newer software wrote it, so this reader cannot judge it.
"""

from __future__ import annotations

import hashlib
from typing import Any, get_args

import msgspec

from gossipdbn.core.values import (
    Claim,
    ControlMessage,
    Decoded,
    Malformed,
    Message,
    Payload,
    PayloadRef,
    Revocation,
    Sealed,
    TensorDelta,
    Unknown,
    Update,
)
from gossipdbn.errors import ConfigError, RemoteProtocolError
from gossipdbn.wire import envelope

__all__ = ["RunWire", "decode_control", "decode_payload", "encode_control"]

_encoder = msgspec.msgpack.Encoder()
_messages: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Claim | Update | Revocation)
_controls: msgspec.msgpack.Decoder[ControlMessage] = msgspec.msgpack.Decoder(ControlMessage)
_arrays: msgspec.msgpack.Decoder[list[Any]] = msgspec.msgpack.Decoder(list[Any])
_payloads: msgspec.msgpack.Decoder[Payload] = msgspec.msgpack.Decoder(Payload)


KINDS = frozenset(t.__struct_config__.tag for t in (Claim, Update, Revocation, *get_args(ControlMessage)))


def _kind(body: bytes) -> int | None:
    """The tag of a whole, well-formed msgpack array, or None when the body is none."""
    try:
        first = _arrays.decode(body)[:1]
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return None
    return first[0] if first and type(first[0]) is int else None


class RunWire:
    """The core's ``Wire``: encodes with one key, decodes with every key of the ring."""

    def __init__(self, key_id: int = 0, keys: envelope.Keyring = envelope.NO_KEYS) -> None:
        if key_id and key_id not in keys:
            raise ConfigError(f"security.key_id: key {key_id} is not in the key file")
        self.key_id, self.keys = key_id, keys

    def encode(self, message: Message) -> bytes:
        """The exact bytes of a record; equal messages give equal bytes."""
        return envelope.seal(_encoder.encode(message), self.key_id, self.keys)

    def decode(self, raw: bytes) -> Decoded:
        """Open a record of the updates topic. Never raises for bad bytes."""
        try:
            opened = envelope.open_(raw, self.keys)
        except envelope.Unreadable as e:
            return Unknown(str(e))
        except RemoteProtocolError as e:
            return Malformed(str(e))
        try:
            return Sealed(_messages.decode(opened.body), opened.key_id, raw)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
            kind = _kind(opened.body)
            if kind is None or kind in KINDS:
                return Malformed(str(e))
            return Unknown(f"record kind {kind} is unknown to this software; update gossipdbn")

    def reopen(self, raw: bytes) -> Message:
        """The message of a record that was decoded before: its MAC is not computed again."""
        return _messages.decode(memoryview(raw)[envelope.HEADER_BYTES :])

    def pack_payload(self, payload: Payload) -> tuple[PayloadRef, bytes]:
        """A payload as an object for the store, named by the sha256 of its bytes."""
        data = _encoder.encode(payload)
        return PayloadRef(hashlib.sha256(data).digest(), len(data)), data

    def control(self, message: ControlMessage) -> bytes:
        """The bytes of a control record."""
        return encode_control(message, self.key_id, self.keys)


_NO_PAYLOAD: Payload = (TensorDelta((1 << 16) - 1, 255, b""),)


def payload_name(ref: PayloadRef) -> str:
    """Name of a spilled payload in the snapshot store."""
    return f"payloads/{ref.sha256.hex()}"


def decode_payload(ref: PayloadRef, data: bytes) -> Payload | None:
    """A spilled payload; None when the bytes are not the ones named (missing or damaged: ask again later).

    Bytes that match their name but are no payload give one that no manifest allows: the update is void, for all.
    """
    if hashlib.sha256(data).digest() != ref.sha256:
        return None
    try:
        return _payloads.decode(data) if len(data) == ref.size else _NO_PAYLOAD
    except (msgspec.MsgspecError, RecursionError):
        return _NO_PAYLOAD


def encode_control(message: ControlMessage, key_id: int = 0, keys: envelope.Keyring = envelope.NO_KEYS) -> bytes:
    """The bytes of a control record."""
    return envelope.seal(_encoder.encode(message), key_id, keys)


def decode_control(raw: bytes, keys: envelope.Keyring = envelope.NO_KEYS) -> ControlMessage:
    """Open a control record.

    Raises
    ------
    RemoteProtocolError : the bytes are no control record; readers count it and go on.
    envelope.Unreadable : unknown format or key; readers wait or say so.
    """
    opened = envelope.open_(raw, keys)
    try:
        return _controls.decode(opened.body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as e:
        raise RemoteProtocolError(f"control record: {e}") from e
