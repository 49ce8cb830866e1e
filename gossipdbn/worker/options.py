"""What a worker is told, and what it says when it ends."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WorkerOptions", "WorkerResult"]


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker behaves; nothing here changes what an update is.

    ``name``: unique among live workers. ``failure_every_s``: how often a worker is expected to be lost, to which the
    cadence of snapshots is fitted; ``snapshot_every_s``: a fixed one instead, per slot. ``keep``: how many are kept.
    ``communication_share``: of a worker's time, to which tau is fitted; 0 = the plan's tau.
    ``mend_after_s``: how long a payload may be missing before it is recomputed.
    ``memory_bytes``: packed rows in memory, per slot. ``idle_exit_s``: leave when nothing is hosted for so long; 0
    never.
    """

    name: str
    prefix: str = ""
    key_id: int = 0
    failure_every_s: float = 1800.0
    snapshot_every_s: float = 0.0
    keep: int = 2
    linger_s: float = 0.5
    memory_bytes: int = 1 << 30
    idle_exit_s: float = 0.0
    communication_share: float = 0.0
    mend_after_s: float = 2.0


@dataclass(frozen=True, slots=True)
class WorkerResult:
    """How a worker ended: ``finished`` (all slots closed) or stopped, what it holds, what it did."""

    name: str
    finished: bool
    version: tuple[int, ...]
    digest: int
    rounds: int
    rows: int
    train_s: float
    failed: str
