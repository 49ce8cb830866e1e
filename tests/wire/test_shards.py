from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gossipdbn.errors import DataError, RemoteProtocolError
from gossipdbn.wire import shards as sh
from gossipdbn.wire.shards import EndMark, Shard, ShardLimits, ShardSequence, decode_shard, encode_shard, make_shard

LIMITS = ShardLimits(width=5, dtype=sh.BYTES, classes=3)


def _shard(i: int, rows: int = 4, content: int = 0, labels: bool = True) -> Shard:
    rng = np.random.default_rng([i, content])
    values = rng.integers(0, 128, (rows, 5)).astype(np.uint8)
    names = rng.integers(-1, 3, rows).astype(np.int32) if labels else None
    return make_shard(sh.shard_id("rows.csv", i, 4 * i, rows), values, names, sh.BYTES)


@pytest.mark.parametrize("dtype", [sh.BITS, sh.BYTES, sh.FLOATS])
@pytest.mark.parametrize("width", [1, 7, 8, 13, 784])
@pytest.mark.parametrize("labelled", [True, False])
def test_rows_survive_packing(dtype, width, labelled):
    rng = np.random.default_rng(width)
    values = (
        rng.integers(0, 2, (11, width)).astype(np.uint8)
        if dtype == sh.BITS
        else rng.integers(0, 128, (11, width)).astype(np.uint8)
        if dtype == sh.BYTES
        else rng.normal(size=(11, width)).astype(np.float32)
    )
    labels = rng.integers(-1, 10, 11).astype(np.int32) if labelled else None
    limits = ShardLimits(width, dtype, classes=10)
    shard = decode_shard(encode_shard(make_shard("a#0:0+11", values, labels, dtype)), limits)
    assert isinstance(shard, Shard)
    got, names = sh.unpack(shard)
    np.testing.assert_array_equal(got, values)
    assert got.dtype == values.dtype
    if labels is None:
        assert names is None
    else:
        np.testing.assert_array_equal(names, labels)
    assert len(shard.values) == 11 * sh.row_bytes(dtype, width)


def test_the_same_rows_give_the_same_bytes():
    assert encode_shard(_shard(3)) == encode_shard(_shard(3))


def _refused(body: bytes, match: str = ".") -> None:
    with pytest.raises(RemoteProtocolError, match=match):
        decode_shard(body, LIMITS)


def test_other_shapes_than_the_manifests_are_void():
    good = _shard(1)
    body = encode_shard(good)
    assert decode_shard(body, LIMITS) == good
    change = msgspec.structs.replace
    for broken in (
        change(good, width=6),
        change(good, dtype=sh.FLOATS),
        change(good, rows=0),
        change(good, rows=-1),
        change(good, rows=5),
        change(good, rows=1 << 40),
        change(good, values=good.values[:-1]),
        change(good, labels=b"abc"),
        change(good, digest=b"x" * 16),
        change(good, id=""),
        change(good, id="x" * 500),
        EndMark(-1, 0, bytes(16)),
        EndMark(0, 0, b""),
    ):
        _refused(encode_shard(broken))
    _refused(encode_shard(make_shard("a", np.full((2, 5), 128, np.uint8), None, sh.BYTES)), "grey")
    _refused(encode_shard(make_shard("a", np.zeros((2, 5), np.uint8), np.array([0, 3], np.int32), sh.BYTES)), "label")
    _refused(encode_shard(make_shard("a", np.zeros((2, 5), np.uint8), np.array([0, -2], np.int32), sh.BYTES)), "label")
    unlabelled = ShardLimits(width=5, dtype=sh.BYTES, classes=0)
    assert decode_shard(body, unlabelled) == good  # a model without classes ignores labels
    _refused(body + b"\0")
    _refused(msgspec.msgpack.encode([0, *msgspec.structs.astuple(good), "more"]))
    with pytest.raises(RemoteProtocolError, match="limit"):
        decode_shard(body, ShardLimits(5, sh.BYTES, 3, body_bytes_max=20))
    with pytest.raises(RemoteProtocolError, match="finite"):
        decode_shard(
            encode_shard(make_shard("a", np.array([[np.nan]], np.float32), None, sh.FLOATS)), ShardLimits(1, sh.FLOATS)
        )


@given(st.binary(max_size=300))
def test_any_bytes_are_decoded_or_void(data):
    with contextlib.suppress(RemoteProtocolError):
        assert decode_shard(data, LIMITS) is not None


@given(st.data())
def test_damaged_bodies_are_void_or_equal(data):
    body = bytearray(encode_shard(_shard(2)))
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] ^= data.draw(st.integers(1, 255))
    try:
        message = decode_shard(bytes(body), LIMITS)
    except RemoteProtocolError:
        return
    assert isinstance(message, Shard)
    assert message.digest == _shard(2).digest  # only the id is not under the digest: the envelope's MAC covers it


@given(st.lists(st.integers(0, 12), max_size=60))
def test_only_first_occurrences_count(order):
    sequence = ShardSequence()
    got = [s.id for i in order if (s := sequence.add(_shard(i))) is not None]
    expected = [_shard(i).id for i in dict.fromkeys(order)]
    assert got == expected
    assert (sequence.shards, sequence.rows) == (len(expected), 4 * len(expected))
    again = ShardSequence()
    for i in dict.fromkeys(order):
        again.add(_shard(i))
    assert again.digest == sequence.digest


@given(st.lists(st.integers(0, 8), max_size=30), st.integers(0, 30))
def test_a_sequence_goes_on_from_its_state(order, cut):
    whole, first = ShardSequence(), ShardSequence()
    for i in order:
        whole.add(_shard(i))
    for i in order[:cut]:
        first.add(_shard(i))
    second = ShardSequence.from_state(first.state())
    for i in order[cut:]:
        second.add(_shard(i))
    assert second.state() == whole.state()
    assert second.end_mark() == whole.end_mark()


def test_other_content_under_a_known_id_is_refused():
    sequence = ShardSequence()
    sequence.add(_shard(1))
    with pytest.raises(DataError, match=r"rows\.csv#1:4\+4 came a second time"):
        sequence.add(_shard(1, content=1))
    assert sequence.shards == 1


def test_the_end_mark_is_checked_and_final():
    sequence = ShardSequence()
    for i in (0, 1, 1, 2):
        sequence.add(_shard(i))
    mark = sequence.end_mark()
    for wrong in (EndMark(2, 12, mark.digest), EndMark(3, 11, mark.digest), EndMark(3, 12, bytes(16))):
        with pytest.raises(DataError, match="end mark"):
            sequence.add(wrong)
        assert not sequence.ended
    assert sequence.add(mark) is None
    assert sequence.ended
    assert sequence.add(_shard(9)) is None
    assert sequence.add(EndMark(0, 0, bytes(16))) is None
    assert sequence.end_mark() == mark
    assert ShardSequence.from_state(sequence.state()).ended


def test_copies_are_remembered_over_the_window_of_the_format(monkeypatch):
    monkeypatch.setattr(sh, "SEEN_IDS_MAX", 3)
    sequence = ShardSequence()
    for i in (0, 1, 2):
        assert sequence.add(_shard(i)) is not None
    assert sequence.add(_shard(0)) is None
    assert sequence.add(_shard(3)) is not None
    assert sequence.add(_shard(1)) is None
    assert sequence.add(_shard(0)) is not None  # four distinct ids ago: counted again


def test_damaged_states_are_refused():
    sequence = ShardSequence()
    sequence.add(_shard(0))
    state = sequence.state()
    for broken in (b"", state[:-1], state + b"x", b"\0" * 40):
        with pytest.raises(RemoteProtocolError, match="state"):
            ShardSequence.from_state(broken)


def test_ranges_of_one_source_go_round_the_slots():
    for slots in (1, 3, 4, 7):
        got = [sh.slot_of(sh.shard_id("train-images", i, 500 * i, 500), slots) for i in range(2 * slots)]
        assert sorted(got) == sorted(list(range(slots)) * 2)
    assert sh.slot_of("train-images-idx3-ubyte#0:0+500", 4) == 2
    for odd in ("x", "x#", "x#a:0+1", "#1:0+1", "x#²:0+1", "x#" + "9" * 50 + ":0+1"):
        assert 0 <= sh.slot_of(odd, 4) < 4


def test_long_and_foreign_names_make_short_distinct_ids():
    ids = {sh.shard_id("ä" * n, 10**18, 10**18, 65536) for n in (50, 100, 101, 300)}
    assert len(ids) == 4
    assert max(len(i.encode()) for i in ids) <= sh.ID_BYTES_MAX


def test_messages_stay_below_the_brokers_limit():
    for dtype, width in ((sh.BYTES, 784), (sh.BITS, 784), (sh.FLOATS, 784), (sh.FLOATS, 1), (sh.BITS, 16)):
        rows = sh.shard_rows_for(dtype, width)
        assert rows * (sh.row_bytes(dtype, width) + 4) <= 400 << 10
    assert sh.shard_rows_for(sh.BYTES, 784) == 500
    assert sh.shard_rows_for(sh.FLOATS, 65536) == 1
