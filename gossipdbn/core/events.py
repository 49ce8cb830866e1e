"""What goes into the core and what comes out. The driver performs effects and reports back by events."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core.chain import Chain
from gossipdbn.core.rounds import RoundJob, SlotState
from gossipdbn.core.values import (
    ControlMessage,
    Decoded,
    Manifest,
    Message,
    Metrics,
    Payload,
    PayloadRef,
    Update,
    Version,
)


class Wire(Protocol):
    """Bytes <-> messages, handed to the core so that it needs no sockets, keys or formats of its own."""

    def encode(self, message: Message) -> bytes: ...

    def decode(self, raw: bytes) -> Decoded: ...

    def pack_payload(self, payload: Payload) -> tuple[PayloadRef, bytes]: ...


Dice = Callable[[], float]
"""Uniform in [0, 1)."""


# ---- events -------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Logged:
    """The next record of an updates partition."""

    partition: int
    offset: int
    raw: bytes
    payload: Payload | None = None


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """The log took a record that this worker sent to an updates partition; -1: without a word where it stands."""

    partition: int
    offset: int
    raw: bytes


@dataclass(frozen=True, slots=True)
class Assigned:
    """This worker shall host the slot."""

    slot: int


@dataclass(frozen=True, slots=True)
class Unassigned:
    """The slot was taken away."""

    slot: int


@dataclass(frozen=True, slots=True)
class EndOffset:
    """Answer to AskEnd: the partition's end at some moment after the question."""

    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class RowsArrived:
    """The slot's partition holds ``rows`` distinct rows so far; ``ended``: its end mark was read."""

    slot: int
    rows: int
    ended: bool


@dataclass(frozen=True, slots=True)
class TauChosen:
    """The driver wants the slot's next rounds in ``phase`` to have ``tau`` minibatches; the bounds are the plan's."""

    slot: int
    phase: int
    tau: int


@dataclass(frozen=True, slots=True)
class CadenceChosen:
    """The driver wants ``every_s`` seconds between two snapshots of each hosted slot, those to come included."""

    every_s: float


@dataclass(frozen=True, slots=True)
class RoundTrained:
    """The job of the last Train effect is trained."""

    job: RoundJob
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class RoundFailed:
    """Training or its rows failed in a way that would repeat: the slot closes as failed. ``job``: which round."""

    slot: int
    reason: str
    job: RoundJob | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """The slot's state at its claim was recomputed. ``state`` None: it cannot be (``reason``); claim with reset.

    ``rounds``: how many were recomputed, that is, how far the state is from the snapshot it was recovered from.
    """

    slot: int
    incarnation: int
    state: SlotState | None
    reason: str = ""
    rounds: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotStored:
    """A snapshot is in the store (``announce``), or could not be written (None)."""

    slot: int
    announce: ControlMessage | None


@dataclass(frozen=True, slots=True)
class SendFailed:
    """The writer gave a record up: every slot of this worker claims again, with a new writer."""

    reason: str


@dataclass(frozen=True, slots=True)
class StopAsked:
    """Flush, snapshot, leave."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes; seconds of a monotonic clock."""

    now_s: float


Event = (
    Logged
    | Acknowledged
    | Assigned
    | Unassigned
    | EndOffset
    | RowsArrived
    | RoundTrained
    | RoundFailed
    | Recovered
    | SnapshotStored
    | SendFailed
    | StopAsked
    | TauChosen
    | CadenceChosen
    | Tick
)


# ---- effects ------------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Train:
    """Train a round on its rows, then report RoundTrained or RoundFailed."""

    job: RoundJob


@dataclass(frozen=True, slots=True)
class Publish:
    """Append ``raw`` to updates partition ``slot``; first store ``spill`` (name, bytes) if there is one."""

    slot: int
    raw: bytes
    spill: tuple[PayloadRef, bytes] | None = None


@dataclass(frozen=True, slots=True)
class AskEnd:
    """Ask the log for the partition's end offset, now."""

    partition: int


@dataclass(frozen=True, slots=True)
class Follow:
    """Read an updates partition from ``offset`` on; None: no longer, its records come as acknowledgements."""

    partition: int
    offset: int | None


@dataclass(frozen=True, slots=True)
class Hold:
    """Stop reading the partition at this record: undecided. Retry when ``wants`` is there, or after an update."""

    partition: int
    offset: int
    raw: bytes
    reason: str
    wants: PayloadRef | None = None


@dataclass(frozen=True, slots=True)
class Recover:
    """Recompute the slot's state at its accepted claim, from a snapshot or from the start of the log."""

    slot: int
    incarnation: int
    chain: Chain


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A slot's whole state after a round, replica included."""

    slot: int
    parameters: NDArray[np.int32]
    chains: tuple[Chain, ...]
    state: SlotState
    digest: int


@dataclass(frozen=True, slots=True)
class StoreSnapshot:
    """Copy a snapshot, to store it when SnapshotWhole says so: the log may not hold yet all that it contains.

    Its arrays are the replica's and the slot's own: write or copy them before the next step.
    """

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class SnapshotWhole:
    """The log holds all that the slot's copied snapshot contains; its partition stood at ``chain`` then.

    Store the snapshot with that chain in the background, then report SnapshotStored.
    """

    slot: int
    chain: Chain


@dataclass(frozen=True, slots=True)
class SnapshotDropped:
    """Forget the slot's copied snapshot: the log will not hold what it contains."""

    slot: int


@dataclass(frozen=True, slots=True)
class Announce:
    """Append to the control topic."""

    message: ControlMessage


@dataclass(frozen=True, slots=True)
class RenewWriter:
    """Close the writer, dropping what it still holds, and use a new one."""


@dataclass(frozen=True, slots=True)
class FollowRows:
    """The slot runs: read its partition of the shards topic and report RowsArrived as rows come."""

    slot: int


@dataclass(frozen=True, slots=True)
class Release:
    """The slot is no longer hosted here: forget its rows."""

    slot: int


@dataclass(frozen=True, slots=True)
class Report:
    """A fact for people: fenced, void, mismatch, reset, divergence, ..."""

    kind: str
    slot: int
    text: str = ""
    update: Update | None = field(default=None, compare=False)


Effect = (
    Train
    | Publish
    | AskEnd
    | Follow
    | Hold
    | Recover
    | FollowRows
    | StoreSnapshot
    | SnapshotWhole
    | SnapshotDropped
    | Announce
    | RenewWriter
    | Release
    | Report
)


__all__ = [
    "Acknowledged",
    "Announce",
    "AskEnd",
    "Assigned",
    "CadenceChosen",
    "Dice",
    "Effect",
    "EndOffset",
    "Event",
    "Follow",
    "FollowRows",
    "Hold",
    "Logged",
    "Manifest",
    "Publish",
    "Recover",
    "Recovered",
    "Release",
    "RenewWriter",
    "Report",
    "RoundFailed",
    "RoundTrained",
    "RowsArrived",
    "SendFailed",
    "Snapshot",
    "SnapshotDropped",
    "SnapshotStored",
    "SnapshotWhole",
    "StopAsked",
    "StoreSnapshot",
    "TauChosen",
    "Tick",
    "Train",
    "Unassigned",
    "Version",
    "Wire",
]
