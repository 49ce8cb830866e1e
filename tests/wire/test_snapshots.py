"""Snapshots: whole or refused; what contradicts itself is refused even when its hash is right."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tracemalloc
from dataclasses import replace

import msgspec
import numpy as np
import pytest
from safetensors.numpy import save

from gossipdbn.core import events as ev
from gossipdbn.core.rounds import ShardPosition
from gossipdbn.errors import SnapshotCorrupt, SnapshotIncompatible
from gossipdbn.models.spec import ModelSpec, PhaseSpec, trained_tensors
from gossipdbn.wire.snapshots import (
    announce,
    chain_room,
    decode_snapshot,
    encode_snapshot,
    max_bytes,
    write_chain,
    write_snapshot,
)
from tests.core.making import Author, a_manifest

M = a_manifest()
AUTHOR = Author(M)
AUTHOR.claim(0)
AUTHOR.claim(1)
AUTHOR.update(0)
AUTHOR.update(1, 1)


def a_snapshot(slot=0, **state):
    r = AUTHOR.replica
    kept = replace(AUTHOR.states[slot], **state)
    return ev.Snapshot(slot, r.acc.copy(), tuple(r.chains), kept, r.digest())


def refused(snapshot, says, kind=SnapshotCorrupt, manifest=M):
    data = encode_snapshot(M, snapshot)
    with pytest.raises(kind, match=says):
        decode_snapshot(manifest, data, hashlib.sha256(data).digest())


def test_a_snapshot_comes_back_whole():
    s = a_snapshot(shards=ShardPosition(3, 40, b"\0\xff state"))
    data = encode_snapshot(M, s)
    a = announce(M, s, data)
    assert (a.slot, a.seq, a.size, a.version, a.digest) == (0, 1, len(data), (1, 1, 0), AUTHOR.replica.digest())
    assert len(data) <= max_bytes(M) and a.sha256.hex()[:32] in a.name and ":" not in a.name
    back = decode_snapshot(M, data, a.sha256)
    assert back.chains == s.chains and back.digest == s.digest and back.state.shards == s.state.shards
    assert np.array_equal(back.parameters, s.parameters) and np.array_equal(back.state.residual, s.state.residual)
    assert back.state.tip == s.state.tip and set(back.state.optimiser) == set(s.state.optimiser)
    assert all(np.array_equal(v, s.state.optimiser[k]) for k, v in back.state.optimiser.items())
    assert encode_snapshot(M, back) == data
    back.state.residual[:] = 0  # its arrays are its own


def test_a_snapshot_is_copied_before_its_partition_is_read_and_says_afterwards_where_that_stood():
    s = a_snapshot()
    early = replace(s.chains[0], offset=0, count=0, tip=b"\0" * 8, start_version=(0, 0, 0))
    out = io.BytesIO()
    write_snapshot(M, replace(s, chains=(early, *s.chains[1:])), out, chain_room(M))
    data = out.getvalue()
    with pytest.raises(SnapshotCorrupt, match="not at the end of its chain"):
        decode_snapshot(M, data, hashlib.sha256(data).digest())
    later = replace(s.chains[0], offset=10**12, voids=10**12)
    write_chain(0, later, out)
    assert len(out.getvalue()) == len(data)
    back = decode_snapshot(M, out.getvalue(), announce(M, s, out).sha256)
    assert back.chains == (later, *s.chains[1:]) and np.array_equal(back.parameters, s.parameters)
    tight = io.BytesIO(encode_snapshot(M, s))
    with pytest.raises(SnapshotCorrupt, match="does not fit"):
        write_chain(0, later, tight)


def test_a_snapshot_of_format_1_is_read_still():
    """Its residual was one of all parameters, whatever the phase trained."""
    manifest = a_manifest(spec=ModelSpec(5, (4, 3)), phases=(PhaseSpec("cd", 0, 1, 2, 1), PhaseSpec("cd", 1, 1, 2, 1)))
    author = Author(manifest)
    author.claim(0)
    author.update(0)
    author.close(0)
    author.update(0, epoch=1)
    state, r = author.states[0], author.replica
    now = ev.Snapshot(0, r.acc, tuple(r.chains), state, r.digest())
    everywhere = np.zeros(r.acc.size, np.int32)
    for _, at, among in trained_tensors(manifest.spec, manifest.phases[1]):
        everywhere[at] = state.residual[among]
    whole = encode_snapshot(manifest, replace(now, state=replace(state, residual=everywhere)))
    data = whole.replace(b'\\"format\\":2', b'\\"format\\":1')
    assert data != whole
    back = decode_snapshot(manifest, data, hashlib.sha256(data).digest())
    assert state.residual.any() and np.array_equal(back.state.residual, state.residual)
    for wrong in (whole, encode_snapshot(manifest, now).replace(b'\\"format\\":2', b'\\"format\\":1')):
        with pytest.raises(SnapshotCorrupt, match="residual"):
            decode_snapshot(manifest, wrong, hashlib.sha256(wrong).digest())


def test_it_is_the_file_that_safetensors_writes():
    s = a_snapshot(optimiser={"w": np.arange(6, dtype=np.uint16).reshape(2, 3), "n": np.ones(1, np.int64),
                              "é": np.ones((3, 1), np.float32), "c": np.ones(5, np.uint8)})  # fmt: skip
    data = encode_snapshot(M, s)
    tensors = {"parameters": s.parameters, "residual": s.state.residual}
    tensors |= {f"optimiser.{name}": array for name, array in s.state.optimiser.items()}
    assert data == save(tensors, metadata=header_of(data)[0]["__metadata__"])
    assert announce(M, s, io.BytesIO(data)) == announce(M, s, data)


def test_writing_it_takes_no_memory_and_reading_it_one_copy_of_the_state(tmp_path):
    manifest = a_manifest(spec=ModelSpec(1000, (1000,), "binary"))
    author = Author(manifest)
    author.claim(0)
    s = ev.Snapshot(0, author.replica.acc, tuple(author.replica.chains), author.states[0], author.replica.digest())
    tracemalloc.start()
    with open(tmp_path / "spool", "wb+") as spool:
        write_snapshot(manifest, s, spool)
        sha = announce(manifest, s, spool).sha256
    written = tracemalloc.get_traced_memory()[1]
    data = (tmp_path / "spool").read_bytes()
    tracemalloc.reset_peak()
    decode_snapshot(manifest, data, sha)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert written < 3 << 20
    assert read < 1.7 * len(data)  # the bytes themselves, residual and optimiser; parameters are a view


def test_any_missing_or_flipped_byte_is_refused():
    data = encode_snapshot(M, a_snapshot())
    sha = hashlib.sha256(data).digest()
    for cut in range(0, len(data), 37):
        with pytest.raises(SnapshotCorrupt):
            decode_snapshot(M, data[:cut], sha)
    for at in range(0, len(data), 29):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        with pytest.raises(SnapshotCorrupt):
            decode_snapshot(M, bytes(flipped), sha)


def test_other_runs_numerics_and_formats_are_incompatible():
    for fields in ({"run": "other"}, {"numerics": 9}):
        other = type(M)(**{**{f: getattr(M, f) for f in M.__struct_fields__}, **fields})
        refused(a_snapshot(), "needed", SnapshotIncompatible, other)


@pytest.mark.parametrize(
    ("snapshot", "says"),
    [
        (lambda: replace(a_snapshot(), digest=1), "digest"),
        (lambda: replace(a_snapshot(), parameters=np.zeros(4, np.int32)), "parameters"),
        (lambda: replace(a_snapshot(), chains=a_snapshot().chains[:-1]), "number of chains"),
        (
            lambda: replace(a_snapshot(), chains=(*a_snapshot().chains[:-1], replace(a_snapshot().chains[0], slots=5))),
            "number",
        ),
        (lambda: a_snapshot(residual=np.zeros(11, np.int64)), "residual"),
        (lambda: a_snapshot(seq=7), "end of its chain"),
        (lambda: a_snapshot(tip=b"12345678"), "end of its chain"),
        (lambda: a_snapshot(phase=9), "phase 9"),
        (lambda: replace(a_snapshot(), state=replace(AUTHOR.states[0], slot=5)), "no slot 5"),
    ],
)
def test_a_snapshot_that_contradicts_itself_is_refused(snapshot, says):
    refused(snapshot(), says)


def test_negative_counters_are_refused():
    s = a_snapshot()
    chains = (s.chains[0], replace(s.chains[1], offset=-1), s.chains[2])
    refused(replace(s, chains=chains), "negative")


def header_of(data):
    (n,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + n]), data[8 + n :]


def with_header(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.parametrize(
    "change",
    [
        lambda h, b: b"",
        lambda h, b: b"\xff" * 8,
        lambda h, b: with_header(b"{", b),
        lambda h, b: with_header(b"[" * 100_000, b),
        lambda h, b: with_header([], b),
        lambda h, b: with_header({k: v for k, v in h.items() if k != "__metadata__"}, b),
        lambda h, b: with_header({**h, "__metadata__": {}}, b),
        lambda h, b: with_header({**h, "__metadata__": {"gossipdbn": "{"}}, b),
        lambda h, b: with_header({**h, "__metadata__": {"gossipdbn": '{"format": 1}'}}, b),
        lambda h, b: with_header({**h, "parameters": {"dtype": "I32", "shape": [1 << 60], "data_offsets": [0, 44]}}, b),
        lambda h, b: with_header({k: v for k, v in h.items() if k != "residual"}, b),
        lambda h, b: with_header(h, b[:-4]),
    ],
)
def test_a_forged_header_is_refused(change):
    data = change(*header_of(encode_snapshot(M, a_snapshot())))
    with pytest.raises((SnapshotCorrupt, SnapshotIncompatible)):
        decode_snapshot(M, data, hashlib.sha256(data).digest())


def test_metadata_of_wrong_types_is_refused():
    header, body = header_of(encode_snapshot(M, a_snapshot()))
    meta = msgspec.json.decode(header["__metadata__"]["gossipdbn"])
    for key, value in (("digest", "x"), ("chains", {}), ("state", []), ("chains", [{}] * 3)):
        broken = {**header, "__metadata__": {"gossipdbn": json.dumps({**meta, key: value})}}
        data = with_header(broken, body)
        with pytest.raises(SnapshotCorrupt):
            decode_snapshot(M, data, hashlib.sha256(data).digest())
