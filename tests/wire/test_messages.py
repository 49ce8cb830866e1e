"""Records on the wire: what is sealed opens, what is damaged, forged or unknown never passes, nothing crashes."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipdbn.core.values import (
    Claim,
    Malformed,
    Resumed,
    Sealed,
    SnapshotAnnounced,
    StopRequested,
    Unknown,
)
from gossipdbn.errors import ConfigError, RemoteProtocolError
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire, decode_control, decode_payload, encode_control, payload_name
from gossipdbn.wire.shards import EndMark, ShardLimits, encode_shard, open_shard
from tests.core.making import Author, a_manifest

KEYS = {1: b"k" * 16, 2: b"q" * 32}
PLAIN, KEYED = RunWire(), RunWire(1, KEYS)
AUTHOR = Author(a_manifest())
AUTHOR.claim(0)
AUTHOR.update(0)
AUTHOR.update(0, spill=True)
RECORDS = AUTHOR.log[0]


def test_messages_come_back_equal_and_their_bytes_too():
    for raw in RECORDS:
        for wire in (PLAIN, KEYED):
            m = PLAIN.decode(raw).message
            again = wire.encode(m)
            opened = wire.decode(again)
            assert opened == Sealed(m, wire.key_id, again)
            assert wire.encode(opened.message) == again


def test_a_wire_without_its_own_key_is_a_setting_error():
    with pytest.raises(ConfigError, match="key 3"):
        RunWire(3, KEYS)
    with pytest.raises(ConfigError, match="key 3"):
        envelope.seal(b"", 3, KEYS)


def test_an_unknown_key_format_or_kind_is_undecided():
    m = PLAIN.decode(RECORDS[0]).message
    assert isinstance(PLAIN.decode(KEYED.encode(m)), Unknown)
    newer = bytearray(RECORDS[0])
    newer[4] = 2
    assert "format 2" in PLAIN.decode(bytes(newer)).reason
    kind = envelope.seal(msgspec.msgpack.encode([9, "of the future"]))
    assert "kind 9" in PLAIN.decode(kind).reason


def test_whole_records_that_are_no_update_are_malformed():
    bodies = [[], [1], [2, "r"], [16, "r", b""], [1.5], ["x"], [True, "r"], {"a": 1}, 7, None, [[[]]]]
    for body in bodies:
        assert isinstance(PLAIN.decode(envelope.seal(msgspec.msgpack.encode(body))), Malformed), body
    for body in (b"", b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\xc7\x05\x01hello", b"\x92\x01\xa1\xff"):
        assert isinstance(PLAIN.decode(envelope.seal(body)), Malformed), body


def test_appended_fields_are_read_past_and_missing_ones_are_not_there():
    fields = [1, *(getattr(PLAIN.decode(RECORDS[0]).message, f) for f in Claim.__struct_fields__)]
    longer = PLAIN.decode(envelope.seal(msgspec.msgpack.encode([*fields, "new"])))
    assert longer.message == PLAIN.decode(RECORDS[0]).message
    assert isinstance(PLAIN.decode(envelope.seal(msgspec.msgpack.encode(fields[:-1]))), Malformed)


@pytest.mark.parametrize("field", [-1, 1 << 32, 1.0, "1", None, b"1"])
def test_numbers_are_integers_in_their_range(field):
    body = msgspec.msgpack.encode([1, "r", field, 1, "w", 0, 0, 1])
    assert isinstance(PLAIN.decode(envelope.seal(body)), Malformed)


def test_a_record_over_the_limit_is_neither_sealed_nor_opened(monkeypatch):
    monkeypatch.setattr(envelope, "MAX_BODY_BYTES", 10)
    with pytest.raises(RemoteProtocolError, match="limit"):
        envelope.seal(b"x" * 11)
    with pytest.raises(RemoteProtocolError, match="names"):
        envelope.open_(RECORDS[0])


@given(st.sampled_from(RECORDS), st.data())
def test_truncated_and_flipped_records_never_pass(raw, data):
    cut = data.draw(st.integers(0, len(raw) - 1))
    assert not isinstance(PLAIN.decode(raw[:cut]), Sealed)
    bit = data.draw(st.integers(0, 8 * len(raw) - 1))
    flipped = bytearray(raw)
    flipped[bit // 8] ^= 1 << (bit % 8)
    assert not isinstance(PLAIN.decode(bytes(flipped)), Sealed)
    assert not isinstance(PLAIN.decode(raw + data.draw(st.binary(min_size=1, max_size=9))), Sealed)


@given(st.sampled_from(RECORDS))
def test_a_forged_mac_never_passes(raw):
    sealed = KEYED.encode(PLAIN.decode(raw).message)
    other = RunWire(1, {1: b"j" * 16}).encode(PLAIN.decode(raw).message)
    assert isinstance(KEYED.decode(other), Malformed) and isinstance(KEYED.decode(sealed), Sealed)


def test_shards_of_a_run_with_keys_must_be_signed():
    body = encode_shard(EndMark(0, 0, bytes(16)))
    limits = ShardLimits(3, 0, keyed=True)
    signed, plain = envelope.seal(body, 1, KEYS), envelope.seal(body)
    assert open_shard(signed, limits, KEYS) == open_shard(plain, ShardLimits(3, 0)) == EndMark(0, 0, bytes(16))
    assert (envelope.key_id_of(signed), envelope.key_id_of(plain)) == (1, 0)
    with pytest.raises(RemoteProtocolError, match="without a key"):
        open_shard(plain, limits, KEYS)


def test_spilled_payloads_are_named_by_their_content():
    payload = PLAIN.decode(RECORDS[1]).message.payload
    ref, data = PLAIN.pack_payload(payload)
    assert payload_name(ref) == f"payloads/{ref.sha256.hex()}"
    assert decode_payload(ref, data) == payload
    assert decode_payload(ref, data + b"x") is None and decode_payload(ref, b"") is None
    short = ref._replace(size=ref.size - 1)
    assert decode_payload(short, data)[0].codec == 255  # its bytes are there and are not what it says: void for all
    noise = PLAIN.pack_payload(())[0].__class__(__import__("hashlib").sha256(b"noise").digest(), 5)
    assert decode_payload(noise, b"noise")[0].tensor == 65535


def test_control_records():
    for m in (StopRequested("r", 1, "me"), Resumed("r", 1), SnapshotAnnounced("r", 0, 1, "n", 2, b"x" * 32, (1, 0), 5)):
        assert decode_control(encode_control(m)) == m
        assert decode_control(KEYED.control(m), KEYS) == m
    with pytest.raises(RemoteProtocolError, match="control record"):
        decode_control(RECORDS[0])
    with pytest.raises(envelope.Unreadable, match="key 1"):
        decode_control(KEYED.control(Resumed("r", 1)))
