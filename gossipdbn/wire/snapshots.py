"""A snapshot as one safetensors file, named by its content; written tensor by tensor, without a copy in memory.

Header metadata (JSON under ``gossipdbn``): format, numerics, run, slot, the chains of every partition and the slot's
counters. Tensors: ``parameters`` int32 [P], ``residual`` int32 [p] of those that the phase trains, and the learner's
arrays under ``optimiser.``.
safetensors does not notice flipped bytes, so readers compare the announced sha256 before they parse.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import struct
from typing import Any, BinaryIO

import msgspec
import numpy as np

from gossipdbn.core.chain import Chain
from gossipdbn.core.events import Snapshot
from gossipdbn.core.rounds import ShardPosition, SlotState
from gossipdbn.core.values import Manifest, SnapshotAnnounced
from gossipdbn.errors import SnapshotCorrupt, SnapshotIncompatible
from gossipdbn.kernels import codec
from gossipdbn.models.spec import parameter_count, trained_count, trained_tensors

__all__ = [
    "SNAPSHOT_FORMAT",
    "announce",
    "chain_room",
    "decode_snapshot",
    "encode_snapshot",
    "max_bytes",
    "write_chain",
    "write_snapshot",
]

SNAPSHOT_FORMAT = 2
"""Format 1 had a residual of all parameters; it is read still."""
_FORMATS = (1, SNAPSHOT_FORMAT)
_HEADER_MAX = 16 << 20
# safetensors' names, in the order in which its own writer sorts tensors.
_DTYPES: dict[str, np.dtype[Any]] = {
    "I64": np.dtype("<i8"), "F32": np.dtype("<f4"), "I32": np.dtype("<i4"), "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
}  # fmt: skip
_ORDER = {dtype: (i, name) for i, (name, dtype) in enumerate(_DTYPES.items())}


class _Counters(msgspec.Struct, frozen=True):
    slot: int
    seq: int
    step: int
    cursor: tuple[int, int]
    phase: int
    tip: bytes
    start_version: tuple[int, ...]
    incarnation: int
    closed: bool
    shards: ShardPosition | None = None


class _Meta(msgspec.Struct, frozen=True):
    format: int
    numerics: int
    run: str
    digest: int
    chains: tuple[Chain, ...]
    state: _Counters


def encode_snapshot(manifest: Manifest, snapshot: Snapshot) -> bytes:
    """The snapshot's bytes; equal snapshots give equal bytes."""
    out = io.BytesIO()
    write_snapshot(manifest, snapshot, out)
    return out.getvalue()


def write_snapshot(manifest: Manifest, snapshot: Snapshot, out: BinaryIO, room: int = 0) -> None:
    """Write the snapshot's bytes to a binary file, straight from its arrays.

    ``room``: bytes to leave in the header, for ``write_chain``.
    """
    s = snapshot.state
    meta = _Meta(
        SNAPSHOT_FORMAT,
        manifest.numerics,
        manifest.run,
        snapshot.digest,
        snapshot.chains,
        _Counters(s.slot, s.seq, s.step, s.cursor, s.phase, s.tip, s.start_version, s.incarnation, s.closed, s.shards),
    )
    tensors: dict[str, np.ndarray] = {"parameters": snapshot.parameters, "residual": s.residual}
    tensors |= {f"optimiser.{name}": np.ascontiguousarray(a) for name, a in s.optimiser.items()}
    header: dict[str, object] = {"__metadata__": {"gossipdbn": msgspec.json.encode(meta).decode()}}
    ordered = sorted(tensors.items(), key=lambda item: (_ORDER[item[1].dtype], item[0]))
    end = 0
    for name, array in ordered:
        start, end = end, end + array.nbytes
        header[name] = {"dtype": _ORDER[array.dtype][1], "shape": list(array.shape), "data_offsets": [start, end]}
    text = _text(header)
    text += b" " * (room + -(len(text) + room) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for _, array in ordered:
        out.write(array.data)


def write_chain(slot: int, chain: Chain, out: BinaryIO) -> None:
    """Say where the slot's partition stood, in a snapshot that was written to a file with ``chain_room``.

    A snapshot is copied before the last of its own updates are read back, and stored after.
    """
    out.seek(0)
    (n,) = struct.unpack("<Q", out.read(8))
    header = json.loads(out.read(n))
    meta = msgspec.json.decode(header["__metadata__"]["gossipdbn"], type=_Meta)
    chains = (*meta.chains[:slot], chain, *meta.chains[slot + 1 :])
    header["__metadata__"]["gossipdbn"] = msgspec.json.encode(msgspec.structs.replace(meta, chains=chains)).decode()
    text = _text(header)
    if len(text) > n:
        raise SnapshotCorrupt(f"a snapshot's header of {len(text)} bytes does not fit into the {n} it was given")
    out.seek(8)
    out.write(text + b" " * (n - len(text)))


def chain_room(manifest: Manifest) -> int:
    """How many bytes longer a chain's JSON may become while updates are read back."""
    return 256 + 20 * (manifest.slots + 1)


def _text(header: dict[str, object]) -> bytes:
    return json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()


def announce(manifest: Manifest, snapshot: Snapshot, data: bytes | BinaryIO, every_ms: int = 0) -> SnapshotAnnounced:
    """The control record that makes the snapshot known; its name contains its content's hash.

    ``data``: the snapshot's bytes, or the binary file that they were written to. ``every_ms``: the writer's cadence.
    """
    if isinstance(data, bytes):
        size, sha = len(data), hashlib.sha256(data).digest()
    else:
        hasher = hashlib.sha256()
        data.seek(0)
        while piece := data.read(1 << 20):
            hasher.update(piece)
        size, sha = data.tell(), hasher.digest()
    name = f"snapshots/{manifest.run}/slot{snapshot.slot:04d}-{snapshot.state.seq:010d}-{sha.hex()[:32]}.safetensors"
    return SnapshotAnnounced(
        manifest.run,
        snapshot.slot,
        snapshot.state.seq,
        name,
        size,
        sha,
        tuple(c.count for c in snapshot.chains),
        snapshot.digest,
        every_ms,
    )


def max_bytes(manifest: Manifest) -> int:
    """A generous upper bound on a snapshot's size, for capped reads."""
    return 64 * parameter_count(manifest.spec) * 4 + (64 << 20)


def _header(data: bytes) -> tuple[dict[str, object], dict[str, object], memoryview]:
    """Metadata, description of the tensors, and their bytes."""
    if len(data) < 8:
        raise SnapshotCorrupt("snapshot is shorter than its header")
    (n,) = struct.unpack_from("<Q", data)
    if n > min(_HEADER_MAX, len(data) - 8):
        raise SnapshotCorrupt(f"snapshot header of {n} bytes is longer than allowed or than the file")
    try:
        header = json.loads(data[8 : 8 + n])
    except (ValueError, RecursionError) as e:
        raise SnapshotCorrupt(f"snapshot header: {e}") from e
    if not isinstance(header, dict) or not isinstance(header.get("__metadata__"), dict):
        raise SnapshotCorrupt("snapshot header has no metadata")
    metadata: dict[str, object] = header.pop("__metadata__")
    return metadata, header, memoryview(data)[8 + n :]


class _Tensor(msgspec.Struct, frozen=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def _tensors(described: dict[str, object], body: memoryview) -> dict[str, np.ndarray]:
    """Views of the tensors in the file's bytes."""
    found: dict[str, np.ndarray] = {}
    for name, text in described.items():
        t = msgspec.convert(text, _Tensor)
        start, end = t.data_offsets
        size = math.prod(t.shape) * _DTYPES[t.dtype].itemsize
        if min(t.shape, default=0) < 0 or not 0 <= start <= end <= len(body) or end - start != size:
            raise ValueError(f"tensor {name} of shape {t.shape} does not lie at {start}..{end}")
        found[name] = np.frombuffer(body[start:end], _DTYPES[t.dtype]).reshape(t.shape)
    return found


def _inconsistent(manifest: Manifest, meta: _Meta) -> str:
    """What in the metadata contradicts itself, or ''. A snapshot is made when nothing is pending."""
    n, c = manifest.slots + 1, meta.state
    if len(meta.chains) != n or any(k.slots != manifest.slots or len(k.start_version) != n for k in meta.chains):
        return "wrong number of chains"
    if not 0 <= c.slot < manifest.slots or not 0 <= c.phase < len(manifest.phases):
        return f"no slot {c.slot} or phase {c.phase}"
    k = meta.chains[c.slot]
    stated = (c.seq, c.step, tuple(c.cursor), c.phase, c.tip, c.start_version, c.incarnation)
    if stated != (k.count, k.step, tuple(k.cursor), k.phase, k.tip, k.start_version, k.incarnation):
        return "its state is not at the end of its chain"
    if min(k.count, k.offset, k.step, *k.cursor, *k.start_version, *(j.offset for j in meta.chains)) < 0:
        return "negative counters"
    return ""


def _misshapen(manifest: Manifest, meta: _Meta, tensors: dict[str, np.ndarray]) -> str:
    """Which of the tensors that every snapshot has is not as it should be, or ''."""
    n = parameter_count(manifest.spec)
    p = n if meta.format == 1 else trained_count(manifest.spec, manifest.phases[meta.state.phase])
    for name, size in (("parameters", n), ("residual", p)):
        if name not in tensors or tensors[name].dtype != np.int32 or tensors[name].shape != (size,):
            return f"tensor {name} is missing or of the wrong shape"
    return ""


def decode_snapshot(manifest: Manifest, data: bytes, sha256: bytes) -> Snapshot:
    """A snapshot from its bytes. Its parameters are a view of them, read-only; a `Replica` takes a copy.

    Raises
    ------
    SnapshotCorrupt : the bytes are not the announced ones, or no snapshot. SnapshotIncompatible : of another format,
    numerics or run.
    """
    if hashlib.sha256(data).digest() != sha256:
        raise SnapshotCorrupt("snapshot bytes do not match the announced sha256")
    metadata, described, body = _header(data)
    try:
        raw = str(metadata["gossipdbn"]).encode()
        fmt = msgspec.json.decode(raw, type=dict[str, object])
        if (
            fmt.get("format") not in _FORMATS
            or fmt.get("numerics") != manifest.numerics
            or fmt.get("run") != manifest.run
        ):
            raise SnapshotIncompatible(
                f"snapshot of run {fmt.get('run')}, format {fmt.get('format')}, numerics "
                f"{fmt.get('numerics')}; needed {manifest.run}, {SNAPSHOT_FORMAT}, {manifest.numerics}"
            )
        meta = msgspec.json.decode(raw, type=_Meta)
        tensors = _tensors(described, body)
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError) as e:
        raise SnapshotCorrupt(f"snapshot cannot be parsed: {e}") from e
    c = meta.state
    problem = _inconsistent(manifest, meta) or _misshapen(manifest, meta, tensors)
    if not problem and codec.digest(tensors["parameters"]) != meta.digest:
        problem = "its parameters do not have its digest"
    if problem:
        raise SnapshotCorrupt(f"snapshot of slot {c.slot}: {problem}")
    if meta.format == 1:
        trained = trained_tensors(manifest.spec, manifest.phases[c.phase])
        residual = np.concatenate([tensors["residual"][t.at] for t in trained])
    else:
        residual = tensors["residual"].copy()
    optimiser = {k.removeprefix("optimiser."): v.copy() for k, v in tensors.items() if k.startswith("optimiser.")}
    state = SlotState(
        c.slot,
        residual,
        optimiser,
        c.seq,
        c.step,
        c.cursor,
        c.phase,
        c.tip,
        c.start_version,
        c.incarnation,
        c.closed,
        c.shards,
    )
    return Snapshot(c.slot, tensors["parameters"], meta.chains, state, meta.digest)
