"""One logical trainer: claims its slot, recovers its state, trains rounds, and yields to whoever claims after it.

::

    reading ──end reached──> claiming ──own claim accepted──> recovering ──state──> running ──last closing──> closed
       ^                        │ void                            │ reset             │ fenced, void, send failed
       └────────────────────────┴─────────────────────────────────┴───────────────────┘

The log decides everything: an update counts when it is read back, a claim is won when it is read back as accepted, and
a foreign accepted claim ends this owner at once. Nothing is ever remade under the same claim.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import plan, rounds
from gossipdbn.core.chain import digest_of, read_payload
from gossipdbn.core.events import (
    AskEnd,
    Dice,
    Effect,
    FollowRows,
    Publish,
    Recover,
    Recovered,
    Release,
    Report,
    RoundTrained,
    Snapshot,
    SnapshotDropped,
    SnapshotWhole,
    StoreSnapshot,
    Train,
    Wire,
)
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import (
    FAILED,
    RESET,
    RESUME,
    Accepted,
    Claim,
    Metrics,
    Pending,
    RowRange,
    Sealed,
    Undecided,
    Update,
    Verdict,
    Version,
    Void,
)
from gossipdbn.errors import LocalProtocolError
from gossipdbn.kernels import codec

__all__ = ["Settings", "Slot"]

_MASK = (1 << 64) - 1
READING, CLAIMING, RECOVERING, RUNNING, CLOSED = "reading", "claiming", "recovering", "running", "closed"


@dataclass(frozen=True, slots=True)
class Settings:
    """How a worker runs its slots; none of it changes what an update is.

    ``linger_s``: how long to wait for a full round of rows on a live stream. ``snapshot_every_s``: cadence per slot.
    ``claim_delay_s``: unit of the growing random delay between claims.
    """

    worker: str
    key_id: int = 0
    numerics: int = 1
    linger_s: float = 0.5
    snapshot_every_s: float = 5.0
    claim_delay_s: float = 0.05
    claim_delay_max_s: float = 5.0


def _digest(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


class Slot:
    """The state machine of one hosted slot. Methods return effects; time comes in as ``now_s``."""

    def __init__(
        self, slot: int, replica: Replica, wire: Wire, settings: Settings, dice: Dice, spare: rounds.Spare
    ) -> None:
        self.slot = slot
        self.stage = READING
        self.assigned = True
        self.state: rounds.SlotState | None = None
        self.pending: deque[Pending] = deque()
        self.rows, self.ended = 0, False
        self.waits_for = "the end of the partition"
        self.snapshot_every_s = settings.snapshot_every_s
        self.tau: tuple[int, int] | None = None
        self.busy = False
        self.staleness = 0
        self._replica, self._wire, self._settings, self._dice = replica, wire, settings, dice
        self._spare = spare
        self._manifest = replica.manifest
        self._end: int | None = None
        self._claim: bytes | None = None
        self._attempts = 0
        self._claim_after_s = 0.0
        self._mode = RESUME
        self._wanted_since_s: float | None = None
        self._echoed: deque[bytes] = deque(maxlen=64)  # digests: records may be large
        self.snapshot_seq = -1
        self._snapshot_s = 0.0
        self._copied: int | None = None
        self._now_s = 0.0
        self._dangling_asked: set[int] = set()
        self._failure = ""

    # ---- claiming ---------------------------------------------------------------------------------------------------
    def start(self) -> list[Effect]:
        """Begin to own the slot: read to the end, then claim."""
        self.stage, self._end, self._claim = READING, None, None
        self.waits_for = "the end of the partition"
        return [AskEnd(self.slot)]

    def end_offset(self, partition: int, offset: int) -> list[Effect]:
        """An AskEnd was answered."""
        if partition == self.slot and self.stage == READING:
            self._end = offset
        return self._dangling(partition, offset)

    def drop(self, why: str, mode: int = RESUME) -> list[Effect]:
        """Give up the state and, while the slot is ours to host, claim again with a growing random delay.

        The delay starts anew with the next accepted update: two workers that both believe to host the slot, each
        fencing the other while it recovers, must come to rest.
        """
        self.state, self.busy, self._failure = None, False, ""
        self.pending.clear()
        self._mode = mode
        self._dangling_asked.clear()
        self._attempts += 1
        delay = self._settings.claim_delay_s * 2 ** min(self._attempts, 10) * self._dice()
        self._claim_after_s = self._now_s + min(delay, self._settings.claim_delay_max_s)
        copied, self._copied = self._copied, None
        effects: list[Effect] = [Report("dropped", self.slot, why)]
        effects += [SnapshotDropped(self.slot)] if copied is not None else []
        if not self.assigned:
            self.stage = CLOSED
            return [*effects, Release(self.slot)]
        return [*effects, *self.start()]

    def _try_claim(self) -> list[Effect]:
        chain = self._replica.chains[self.slot]
        if chain.closed:
            return self._close()
        if self._end is None or chain.offset < self._end or self._now_s < self._claim_after_s:
            return []
        s = self._settings
        claim = Claim(self._manifest.run, self.slot, chain.incarnation + 1, s.worker, self._mode, s.key_id, s.numerics)
        self._claim = self._wire.encode(claim)
        self.stage, self.waits_for = CLAIMING, "its claim"
        return [Publish(self.slot, self._claim)]

    def _close(self) -> list[Effect]:
        self.stage, self.waits_for = CLOSED, ""
        self.pending.clear()
        return [Release(self.slot)]

    # ---- what the log says ------------------------------------------------------------------------------------------
    def read_back(self, raw: bytes, verdict: Verdict) -> list[Effect]:
        """A record of the slot's own partition was judged (and merged, if accepted) by the replica."""
        if isinstance(verdict, Undecided) or self.stage == CLOSED:
            return []
        message = verdict.message
        if isinstance(message, Claim):
            return self._claim_read(raw, verdict)
        if not isinstance(message, Update) or self.state is None or not self._under_this_claim(message):
            return []
        if isinstance(verdict, Accepted):
            if not self.pending or self.pending[0].sealed.raw != raw:
                return self.drop("an update under this claim that this owner did not send")
            self._echoed.append(_digest(self.pending.popleft().sealed.raw))
            self._attempts = 0
            self.staleness = self._missed(verdict)
            whole = self._snapshot_whole()
            return [*whole, *self._close()] if self.state.closed and not self.pending else whole
        return [] if _digest(raw) in self._echoed else self.drop(f"own update is void: {verdict.reason}")

    def _missed(self, verdict: Accepted) -> int:
        """Updates of others that the log holds by now and that the round of an own update did not contain."""
        pairs = enumerate(zip(verdict.start_version or (), self._replica.version, strict=True))
        return sum(have - contained for j, (contained, have) in pairs if j != self.slot)

    def _under_this_claim(self, message: Update) -> bool:
        assert self.state is not None
        mine = (self._manifest.run, self.slot, self.state.incarnation)
        return (message.run, message.slot, message.incarnation) == mine

    def _claim_read(self, raw: bytes, verdict: Accepted | Void) -> list[Effect]:
        mine = raw == self._claim and self.stage == CLAIMING
        if isinstance(verdict, Void):
            return self.drop(f"claim is void: {verdict.reason}") if mine else []
        if not mine:
            return self.drop("fenced by a newer claim") if self.stage in (RUNNING, RECOVERING) else []
        self._claim = None
        chain = self._replica.chains[self.slot]
        if self._mode == RESET or chain.count == 0:
            self._mode = RESUME
            return self._run(rounds.fresh_state(self._manifest, self.slot, chain))
        self.stage, self.waits_for = RECOVERING, "its state to be recomputed"
        return [Recover(self.slot, chain.incarnation, chain)]

    def recovered(self, event: Recovered) -> list[Effect]:
        """The state at the claim was recomputed, or could not be: then claim again with reset."""
        chain = self._replica.chains[self.slot]
        if self.stage != RECOVERING or event.incarnation != chain.incarnation:
            return []
        if event.state is None:
            return [Report("reset", self.slot, event.reason), *self.drop(event.reason, RESET)]
        if (event.state.tip, event.state.seq) != (chain.tip, chain.count):
            return [Report("reset", self.slot, "wrong history"), *self.drop("recovered another history", RESET)]
        return self._run(event.state, kept=event.rounds == 0)

    def _run(self, state: rounds.SlotState, kept: bool = True) -> list[Effect]:
        self.state, self.stage, self.waits_for = state, RUNNING, ""
        self.pending.clear()
        self._echoed.clear()
        early = 0.5 - 0.5 * (self.slot + 1) / self._manifest.slots  # slots that began together take turns
        self._snapshot_s, self.snapshot_seq = self._now_s - early * self.snapshot_every_s, state.seq
        if not kept:  # what was recomputed shall not have to be so again
            self._snapshot_s, self.snapshot_seq = self._now_s - self.snapshot_every_s, -1
        self.rows, self.ended = 0, False
        return [
            FollowRows(self.slot),
            Report("running", self.slot, f"incarnation {state.incarnation} at update {state.seq}"),
        ]

    def _dangling(self, partition: int, offset: int) -> list[Effect]:
        """A start_version that is still missing at an end asked for afterwards will never be complete."""
        if self.state is None or partition not in self._dangling_asked:
            return []
        chain = self._replica.chains[partition]
        if chain.count >= self.state.start_version[partition]:
            self._dangling_asked.discard(partition)
            return []
        if chain.offset < offset:
            self._dangling_asked.discard(partition)
            return []
        return [
            Report("reset", self.slot, f"its start_version names updates that partition {partition} does not hold"),
            *self.drop("dangling start_version", RESET),
        ]

    # ---- work -------------------------------------------------------------------------------------------------------
    def tick(self, now_s: float) -> list[Effect]:
        """Time passes."""
        self._now_s = now_s
        return self._try_claim() if self.stage == READING else []

    def version(self) -> Version:
        """The replica's version with the own entry raised over the own pending updates."""
        assert self.state is not None
        v = self._replica.version
        return (*v[: self.slot], self.state.seq, *v[self.slot + 1 :])

    def _sent(self) -> list[codec.Deltas]:
        return [d for p in self.pending for d in p.deltas]

    def _start(self) -> tuple[NDArray[np.int32], int]:
        """What the next round would start from, int32 [P], until somebody looks at the replica; its digest, checked."""
        start = self._replica.lend(self._sent())
        self._replica.give_back(start)
        digest, _ = codec.measured(start)
        self._check_memory(digest, self.pending)
        return start, digest

    def work(self, snapshot_free: bool) -> list[Effect]:
        """The next thing to do: a snapshot that is due, a closing update, or a round to train; [] while waiting."""
        state = self.state
        if self.stage != RUNNING or state is None or self.busy or state.closed:
            return []
        if not self.assigned:
            return self._hand_over(state, snapshot_free)
        if snapshot_free and self._snapshot_due(state):
            return self._snapshot(state)
        if len(self.pending) >= self._manifest.pending:
            self.waits_for = "its updates to be acknowledged"
            return []
        version = self.version()
        behind = [j for j, (a, b) in enumerate(zip(version, state.start_version, strict=True)) if a < b]
        if behind:
            self.waits_for = "updates that its last round contained"
            ask = [j for j in behind if j not in self._dangling_asked]
            self._dangling_asked.update(ask)
            return [AskEnd(j) for j in ask]
        if self._failure:
            return self._publish_closing(state, version, FAILED, self._failure)
        return self._round(state, version)

    def _round(self, state: rounds.SlotState, version: Version) -> list[Effect]:
        spec = self._manifest.phases[state.phase]
        patient = self._wanted_since_s is None or self._now_s - self._wanted_since_s < self._settings.linger_s
        todo = plan.next_rows(
            self._manifest, state.phase, state.cursor, self.rows, self.ended, self._tau(state) * spec.batch, patient
        )
        if isinstance(todo, plan.Wait):
            self.waits_for = todo.why
            if self._wanted_since_s is None:
                self._wanted_since_s = self._now_s
            return []
        self._wanted_since_s = None
        if isinstance(todo, plan.Close):
            return self._publish_closing(state, version, todo.closing)
        if not self._gate_open(state.phase):
            self.waits_for = f"other slots to close phase {state.phase - 1}"
            return []
        self.waits_for = ""
        return self._train(state, version, todo)

    def choose_tau(self, phase: int, tau: int) -> list[Effect]:
        """Minibatches of the next rounds in ``phase``, held to the plan's bounds; the rows of each update record it."""
        low, high = plan.tau_bounds(self._manifest, phase)
        self.tau = (phase, min(max(tau, low), high))
        return []

    def _tau(self, state: rounds.SlotState) -> int:
        chosen = self.tau
        return chosen[1] if chosen is not None and chosen[0] == state.phase else self._manifest.phases[state.phase].tau

    def _gate_open(self, phase: int) -> bool:
        if not (phase and self._manifest.gate):
            return True
        there = sum(c.closed or c.phase >= phase or j == self.slot for j, c in enumerate(self._replica.chains[:-1]))
        return there >= min(self._manifest.gate, self._manifest.slots)

    def _train(self, state: rounds.SlotState, version: Version, rows: RowRange) -> list[Effect]:
        job = rounds.begin(state, self._replica.lend(self._sent()), version, rows, self._spare)
        self._check_memory(job.start_digest, self.pending)
        if rounds.diverged(job):
            self._replica.give_back(job.start)
            return self._publish_closing(
                state,
                version,
                FAILED,
                "a parameter left the range of +-64: the run diverged; lower the learning rate or slots * batch",
            )
        self.busy = True
        return [Train(job)]

    def _check_memory(self, digest: int, pending: Iterable[Pending] = ()) -> None:
        """What is in memory must be what the log says: a damaged replica trains nothing and is never stored."""
        expected = self._replica.expected_digest(self._replica.version)
        if expected is None:
            return
        expected = (expected + sum(digest_of(p.deltas) for p in pending)) & _MASK
        if digest != expected:
            raise LocalProtocolError(
                f"slot {self.slot}: the replica's digest is {digest:016x}, by the log it is {expected:016x}: memory is "
                "damaged; restart this worker"
            )

    def trained(self, event: RoundTrained) -> list[Effect]:
        """A round is trained: publish its update."""
        if self.state is None or not self.busy or event.job.optimiser is not self.state.optimiser:
            return []
        self.busy = False
        update = rounds.finish(self._manifest, self.state, event.job, event.metrics)
        self._spare.give(event.job)
        self._replica.give_back(event.job.start)
        return self._publish(self.state, update, event.job.start_version)

    def failed(self, reason: str, job: rounds.RoundJob | None) -> list[Effect]:
        """Training cannot go on: ``work`` closes the slot as failed, so that nobody crashes on it in a loop."""
        if job is not None:
            self._replica.give_back(job.start)
        if self.state is not None and not self.state.closed:
            self.busy, self._failure = False, reason
        return []

    def _publish_closing(self, state: rounds.SlotState, version: Version, kind: int, note: str = "") -> list[Effect]:
        _, digest = self._start()
        self._spare.clear()  # a closing update has four bytes a parameter: the large arrays of rounds go first
        update = rounds.closing(self._manifest, state, digest, version, kind, Metrics(), note)
        return self._publish(state, update, version)

    def _publish(self, state: rounds.SlotState, update: Update, version: Version) -> list[Effect]:
        payload = update.payload or ()
        spill = None
        if sum(len(p.data) for p in payload) > self._manifest.inline_bytes:
            spill = self._wire.pack_payload(payload)
            update = rounds.by_reference(update, spill[0])
        raw = self._wire.encode(update)
        rounds.sent(self._manifest, state, update, raw, version)
        sealed = Sealed(update, self._settings.key_id, raw)
        self.pending.append(Pending(sealed, payload, read_payload(self._manifest, payload)))
        return [Publish(self.slot, raw, spill)]

    # ---- snapshots and leaving --------------------------------------------------------------------------------------
    def leave(self) -> list[Effect]:
        """The slot shall move: finish what is sent, snapshot, release. Nothing to keep: release at once."""
        self.assigned = False
        if self.stage == RUNNING:
            return []
        self.stage = CLOSED
        return [Release(self.slot)]

    def _snapshot_due(self, state: rounds.SlotState) -> bool:
        return state.seq != self.snapshot_seq and self._now_s >= self._snapshot_s + self.snapshot_every_s

    def _snapshot(self, state: rounds.SlotState) -> list[Effect]:
        """The state between two rounds, and the parameters that the next one starts from.

        So whatever the snapshot contains is contained in every later round; it is whole when the log has the last of
        the own updates in it. Nobody waits for that.
        """
        self._snapshot_s, self.snapshot_seq, self._copied = self._now_s, state.seq, state.seq
        parameters, digest = self._start()
        snapshot = Snapshot(self.slot, parameters, tuple(self._replica.chains), replace(state), digest)
        return [StoreSnapshot(snapshot), *self._snapshot_whole()]

    def _snapshot_whole(self) -> list[Effect]:
        chain = self._replica.chains[self.slot]
        if chain.count != self._copied:
            return []
        self._copied = None
        return [SnapshotWhole(self.slot, chain)]

    def _hand_over(self, state: rounds.SlotState, snapshot_free: bool) -> list[Effect]:
        """Everything sent is read back and kept, then the slot is free for its next owner."""
        if self.pending or not snapshot_free:
            self.waits_for = "its updates, to hand the slot over" if self.pending else "a snapshot, to hand it over"
            return []
        effects = self._snapshot(state) if state.seq != self.snapshot_seq else []
        self.stage, self.state = CLOSED, None
        return [*effects, Release(self.slot)]
