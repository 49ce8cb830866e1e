"""The values of the protocol: what a run is, what its records say, what a reader answers.

Records are frozen and positional: on the wire each is a msgpack array that starts with its tag, and new fields are only
ever appended. All numbers are integers; the wire cannot express NaN or infinity.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, NamedTuple

import msgspec
from msgspec import Meta, Struct

from gossipdbn.models.spec import ModelSpec, PhaseSpec, spec_problem

if TYPE_CHECKING:
    from gossipdbn.kernels.codec import Deltas

U32 = Annotated[int, Meta(ge=0, lt=1 << 32)]
U63 = Annotated[int, Meta(ge=0, le=(1 << 63) - 1)]
U64 = Annotated[int, Meta(ge=0)]
Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(max_length=500)]
Tip = Annotated[bytes, Meta(min_length=8, max_length=8)]
Sha256 = Annotated[bytes, Meta(min_length=32, max_length=32)]

Version = tuple[int, ...]
"""Per updates partition (S slots and the operator's), how many of its updates are contained."""

GENESIS_TIP = b"\0" * 8
RESUME, RESET = 0, 1
OPEN, CLOSES_PHASE, DONE, FAILED, GIVEN_UP = 0, 1, 2, 3, 4
CODECS = (0, 1, 2)
E_MAX_RANGE = (-17, 6)


class Manifest(Struct, frozen=True, kw_only=True, omit_defaults=False):
    """What never changes in a run. The first valid manifest on the control topic counts.

    Attributes
    ----------
    slots : S, the number of logical trainers; the updates topic has S + 1 partitions.
    run_key : 64-bit key of every random draw of the run.
    visible_mean : float32[V] little endian, data means of the visible units in model units.
    codec : codec id of ordinary updates (kernels.codec). e_max : largest scale exponent of a code block.
    pending : W, how many own updates a slot may have unacknowledged.
    gate : a phase starts when this many slots have closed the one before; 0 = nobody waits.
    round_rows_max : rows of the largest acceptable round.
    inline_bytes : payloads above this travel by reference through the snapshot store.
    keyed : records sealed without a key (key id 0) are void; true when the run was made with a signing key.
    schema : how columns became units (opaque here). versions : software that published the run.
    parent : of a run that goes on from another: ``run``, ``version``, ``digest`` (hexadecimal) and ``parameters``, the
        sha256 (hexadecimal) that names the initial parameters in the snapshot store; None for a run of its own.
    """

    run: Name
    slots: Annotated[int, Meta(ge=1, le=100_000)]
    spec: ModelSpec
    phases: tuple[PhaseSpec, ...]
    run_key: U64
    visible_mean: bytes
    format: int = 1
    numerics: int = 1
    codec: int = 1
    e_max: int = 1
    pending: Annotated[int, Meta(ge=1, le=1000)] = 8
    gate: int = 0
    round_rows_max: int = 1 << 20
    inline_bytes: int = 512 << 10
    keyed: bool = False
    schema: dict[str, object] = {}
    versions: dict[str, str] = {}
    parent: dict[str, object] | None = None
    config: dict[str, object] = {}
    created_ms: int = 0


class RowRange(NamedTuple):
    """Rows of a slot's partition: ``count`` rows of pass ``epoch`` from ``first`` on, in that pass's order."""

    epoch: U63
    first: U63
    count: U32  # type: ignore[assignment] # the number of rows, not tuple.count


class TensorDelta(NamedTuple):
    """Part of a payload: integer deltas of one tensor, encoded by ``codec``."""

    tensor: Annotated[int, Meta(ge=0, lt=1 << 16)]
    codec: Annotated[int, Meta(ge=0, lt=256)]
    data: bytes


class PayloadRef(NamedTuple):
    """A payload in the snapshot store, named by the sha256 of its bytes."""

    sha256: Sha256
    size: U32


Payload = Annotated[tuple[TensorDelta, ...], Meta(max_length=4096)]


class Metrics(NamedTuple):
    """What a round cost and reached; changes no state. Errors in millionths, times in microseconds.

    ``staleness``: of the slot's newest update that was read back, how many updates of other slots the log held by then
    that its round had not contained.
    """

    reconstruction_ppm: U63 = 0
    loss_ppm: U63 = 0
    correct: U63 = 0
    train_us: U63 = 0
    wait_us: U63 = 0
    merge_us: U63 = 0
    staleness: U63 = 0


class Claim(Struct, frozen=True, array_like=True, tag=1):
    """A worker takes a slot. Where the claim stands in the partition says where the slot goes on."""

    run: Name
    slot: U32
    incarnation: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    worker: Name
    mode: Annotated[int, Meta(ge=0, le=1)]
    key_id: U32
    numerics: U32


class Update(Struct, frozen=True, array_like=True, tag=2):
    """What one round publishes: a quantised delta and everything it was computed from.

    ``advance`` is the start version less the slot's previous one (the zero version at first and after a reset).
    ``closing`` is OPEN, CLOSES_PHASE, DONE, FAILED or GIVEN_UP (the operator's, in any phase: the rows that the slot
    still owes stay outstanding, the run can finish); a closing update has no rows and carries the whole residual.
    """

    run: Name
    slot: U32
    incarnation: Annotated[int, Meta(ge=1, le=(1 << 63) - 1)]
    seq: U63
    prev: Tip
    phase: Annotated[int, Meta(ge=0, lt=1 << 16)]
    closing: Annotated[int, Meta(ge=0, le=4)]
    advance: Annotated[tuple[U63, ...], Meta(max_length=100_001)]
    start_digest: U64
    rows: RowRange
    step: U63
    digest: U64
    payload: Payload | None = None
    payload_ref: PayloadRef | None = None
    metrics: Metrics = Metrics()
    note: Text = ""


class Revocation(Struct, frozen=True, array_like=True, tag=3):
    """The operator subtracts a closed range of a slot's updates: minus the sum of their deltas, as one payload."""

    run: Name
    number: U63
    slot: U32
    first_seq: U63
    last_seq: U63
    digest: U64
    payload: Payload | None = None
    payload_ref: PayloadRef | None = None
    reason: Text = ""


class ManifestRecord(Struct, frozen=True, array_like=True, tag=16):
    """On control: the manifest, as JSON."""

    run: Name
    manifest: Annotated[bytes, Meta(max_length=16 << 20)]


class SnapshotAnnounced(Struct, frozen=True, array_like=True, tag=17):
    """On control: a snapshot is in the store, whole, and everything it contains is in the log.

    ``every_ms``: the cadence that its writer aims at, for people; 0 = not told.
    """

    run: Name
    slot: U32
    seq: U63
    name: Name
    size: U63
    sha256: Sha256
    version: tuple[U63, ...]
    digest: U64
    every_ms: U63 = 0


class StopRequested(Struct, frozen=True, array_like=True, tag=18):
    """On control: workers shall flush, snapshot and leave. Numbered, so that a resumed run can tell old requests."""

    run: Name
    number: U63
    by: Text


class Resumed(Struct, frozen=True, array_like=True, tag=19):
    """On control: stop requests up to ``number`` are answered; the run goes on."""

    run: Name
    number: U63


class WorkerState(Struct, frozen=True, array_like=True, tag=20):
    """On control: a worker states what it holds (at the end, or on leaving). A fact for people, no state."""

    run: Name
    worker: Name
    version: tuple[U63, ...]
    digest: U64
    what: Text


NO_METRICS = Metrics()

Message = Claim | Update | Revocation
ControlMessage = ManifestRecord | SnapshotAnnounced | StopRequested | Resumed | WorkerState


@dataclass(frozen=True, slots=True)
class Sealed:
    """A record opened by the wire: the message, the key it was sealed with, and its exact bytes."""

    message: Message
    key_id: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Malformed:
    """Bytes that can never be valid, for any reader."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """Bytes that this reader cannot judge: format or key unknown."""

    reason: str


Decoded = Sealed | Malformed | Unknown


@dataclass(frozen=True, slots=True)
class Accepted:
    """The record continues its partition.

    ``start_version`` is filled for updates; ``deltas``, the payload as it was decoded to be judged, if there is one.
    """

    message: Message
    start_version: Version | None = None
    deltas: tuple[Deltas, ...] = field(default=(), compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Pending:
    """An update that its owner has sent and not yet read back, as it was before it became bytes.

    ``payload``: inline in the record or not.
    """

    sealed: Sealed
    payload: Payload
    deltas: tuple[Deltas, ...]


@dataclass(frozen=True, slots=True)
class Void:
    """The record counts for nothing, the same for every reader and for ever."""

    reason: str
    message: Message | None = None


@dataclass(frozen=True, slots=True)
class Undecided:
    """This reader cannot tell (yet): it stops this partition, never skips. ``wants`` is a payload it lacks."""

    reason: str
    wants: PayloadRef | None = None


Verdict = Accepted | Void | Undecided


def manifest_json(manifest: Manifest) -> bytes:
    """Canonical bytes of a manifest: JSON with sorted keys."""
    return msgspec.json.encode(manifest, order="sorted")


def manifest_from_json(data: bytes) -> Manifest:
    """Inverse of manifest_json.

    A manifest of another format is returned as far as it parses: naming that is the caller's business.

    Raises
    ------
    ValueError : it does not parse, or a value makes no sense (msgspec's ValidationError is a ValueError).
    """
    manifest = msgspec.json.decode(data, type=Manifest)
    problem = _manifest_problem(manifest) if manifest.format == 1 else ""
    if problem:
        raise ValueError(f"manifest of run {manifest.run}: {problem}")
    return manifest


def _manifest_problem(m: Manifest) -> str:
    """The first thing in a manifest that no run can have, or ''. Readers index and allocate by these values."""
    spec = m.spec
    if problem := spec_problem(spec):
        return problem
    if spec.targets:
        return f"{spec.targets} real-valued targets: the rows of a log carry class labels alone"
    if len(m.visible_mean) != 4 * spec.visible:
        return f"{len(m.visible_mean)} bytes of means for {spec.visible} visible units"
    if m.codec not in CODECS or not E_MAX_RANGE[0] <= m.e_max <= E_MAX_RANGE[1] or m.run_key >= 1 << 64:
        return f"codec {m.codec} with e_max {m.e_max}"
    if not m.phases or m.gate < 0 or m.inline_bytes < 0:
        return "no phases, or a negative gate or inline limit"
    problems = (_phase_problem(m, i) for i in range(len(m.phases)))
    return next((p for p in problems if p), "")


def _phase_problem(m: Manifest, index: int) -> str:
    p = m.phases[index]
    if p.batch < 1 or p.tau < 1 or p.batch * p.tau > m.round_rows_max:
        return f"phase {index}: rounds of {p.tau} minibatches of {p.batch} rows, at most {m.round_rows_max} are allowed"
    if p.epochs is None and index < len(m.phases) - 1:
        return f"phase {index} is endless and not the last"
    if (p.epochs is not None and p.epochs < 1) or not 0 <= p.layer < len(m.spec.hidden):
        return f"phase {index}: {p.epochs} epochs of layer {p.layer}"
    if p.learner == "backprop" and not m.spec.classes:
        return f"phase {index}: backprop needs classes"
    if p.learner != "backprop" and m.spec.hidden_units == "relu":
        return f"phase {index}: {p.learner} cannot train ReLU units"
    return ""
