"""A snapshot as one safetensors file, named by its content.

Header metadata (JSON under ``gossipdbn``): format, numerics, run, slot, the chains of every partition and the slot's
counters. Tensors: ``parameters`` int32 [P], ``residual`` int32 [P], and the learner's arrays under ``optimiser.``.
safetensors does not notice flipped bytes, so readers compare the announced sha256 before they parse.
"""

from __future__ import annotations

import hashlib
import json
import struct

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from gossipdbn.core.chain import Chain
from gossipdbn.core.events import Snapshot
from gossipdbn.core.rounds import ShardPosition, SlotState
from gossipdbn.core.values import Manifest, SnapshotAnnounced
from gossipdbn.errors import SnapshotCorrupt, SnapshotIncompatible
from gossipdbn.kernels import codec
from gossipdbn.models.spec import parameter_count

__all__ = ["SNAPSHOT_FORMAT", "announce", "decode_snapshot", "encode_snapshot", "max_bytes"]

SNAPSHOT_FORMAT = 1
_HEADER_MAX = 16 << 20


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
    s = snapshot.state
    meta = _Meta(
        SNAPSHOT_FORMAT,
        manifest.numerics,
        manifest.run,
        snapshot.digest,
        snapshot.chains,
        _Counters(s.slot, s.seq, s.step, s.cursor, s.phase, s.tip, s.start_version, s.incarnation, s.closed, s.shards),
    )
    tensors = {"parameters": snapshot.parameters, "residual": s.residual}
    tensors |= {f"optimiser.{name}": np.ascontiguousarray(a) for name, a in sorted(s.optimiser.items())}
    return save(tensors, metadata={"gossipdbn": msgspec.json.encode(meta).decode()})


def announce(manifest: Manifest, snapshot: Snapshot, data: bytes) -> SnapshotAnnounced:
    """The control record that makes the snapshot known; its name contains its content's hash."""
    sha = hashlib.sha256(data).digest()
    name = f"snapshots/{manifest.run}/slot{snapshot.slot:04d}-{snapshot.state.seq:010d}-{sha.hex()[:32]}.safetensors"
    return SnapshotAnnounced(
        manifest.run,
        snapshot.slot,
        snapshot.state.seq,
        name,
        len(data),
        sha,
        tuple(c.count for c in snapshot.chains),
        snapshot.digest,
    )


def max_bytes(manifest: Manifest) -> int:
    """A generous upper bound on a snapshot's size, for capped reads."""
    return 64 * parameter_count(manifest.spec) * 4 + (64 << 20)


def _header(data: bytes) -> dict[str, object]:
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
    metadata: dict[str, object] = header["__metadata__"]
    return metadata


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


def decode_snapshot(manifest: Manifest, data: bytes, sha256: bytes) -> Snapshot:
    """A snapshot from its bytes.

    Raises
    ------
    SnapshotCorrupt : the bytes are not the announced ones, or no snapshot. SnapshotIncompatible : of another format,
    numerics or run.
    """
    if hashlib.sha256(data).digest() != sha256:
        raise SnapshotCorrupt("snapshot bytes do not match the announced sha256")
    metadata = _header(data)
    try:
        raw = str(metadata["gossipdbn"]).encode()
        fmt = msgspec.json.decode(raw, type=dict[str, object])
        if (
            fmt.get("format") != SNAPSHOT_FORMAT
            or fmt.get("numerics") != manifest.numerics
            or fmt.get("run") != manifest.run
        ):
            raise SnapshotIncompatible(
                f"snapshot of run {fmt.get('run')}, format {fmt.get('format')}, numerics "
                f"{fmt.get('numerics')}; needed {manifest.run}, {SNAPSHOT_FORMAT}, {manifest.numerics}"
            )
        meta = msgspec.json.decode(raw, type=_Meta)
        tensors = load(data)
    except (KeyError, ValueError, TypeError, OverflowError, RecursionError, SafetensorError) as e:
        raise SnapshotCorrupt(f"snapshot cannot be parsed: {e}") from e
    n = parameter_count(manifest.spec)
    for name in ("parameters", "residual"):
        if name not in tensors or tensors[name].dtype != np.int32 or tensors[name].shape != (n,):
            raise SnapshotCorrupt(f"snapshot tensor {name} is missing or of the wrong shape")
    c = meta.state
    problem = _inconsistent(manifest, meta)
    if not problem and codec.digest(tensors["parameters"]) != meta.digest:
        problem = "its parameters do not have its digest"
    if problem:
        raise SnapshotCorrupt(f"snapshot of slot {c.slot}: {problem}")
    optimiser = {k.removeprefix("optimiser."): v.copy() for k, v in tensors.items() if k.startswith("optimiser.")}
    state = SlotState(
        c.slot,
        tensors["residual"].copy(),
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
    return Snapshot(c.slot, tensors["parameters"].copy(), meta.chains, state, meta.digest)
