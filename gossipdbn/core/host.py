"""A worker's core: one replica and the slots it hosts. Events in, effects out; no clock, dice or sockets of its own."""

from __future__ import annotations

from collections.abc import Iterable

from gossipdbn.core import plan, rounds
from gossipdbn.core.acks import Acks
from gossipdbn.core.events import (
    Acknowledged,
    Announce,
    Assigned,
    CadenceChosen,
    Dice,
    Effect,
    EndOffset,
    Event,
    Hold,
    Logged,
    Recovered,
    RenewWriter,
    Report,
    RoundFailed,
    RoundTrained,
    RowsArrived,
    SendFailed,
    SnapshotDropped,
    SnapshotStored,
    StopAsked,
    StoreSnapshot,
    TauChosen,
    Tick,
    Unassigned,
    Wire,
)
from gossipdbn.core.replica import Replica
from gossipdbn.core.slot import CLAIMING, CLOSED, RECOVERING, RUNNING, Settings, Slot
from gossipdbn.core.values import RESET, Payload, Pending, Undecided, Void
from gossipdbn.errors import LocalProtocolError

__all__ = ["Host"]


class Host:
    """``step`` takes an event and returns effects; ``work`` says what to do when the worker is free.

    ``held`` names, per stopped partition, why it waits; ``stopped`` is true when a stop has been carried out.
    """

    def __init__(self, replica: Replica, wire: Wire, settings: Settings, dice: Dice) -> None:
        self.replica = replica
        self.slots: dict[int, Slot] = {}
        self.held: dict[int, str] = {}
        self.stopping = False
        self.snapshot_every_s = settings.snapshot_every_s
        self._wire, self._settings, self._dice = wire, settings, dice
        self._spare = rounds.Spare()
        self._acks = Acks()
        self._snapshots_under_way = 0
        self._now_s = 0.0

    @property
    def finished(self) -> bool:
        """All slots of the run are closed."""
        return self.replica.finished

    @property
    def stopped(self) -> bool:
        """A stop was asked for, and every slot is snapshotted and released."""
        return self.stopping and not self.slots and not self._snapshots_under_way

    def step(self, event: Event) -> list[Effect]:
        """The only door: what follows from an event."""
        match event:
            case Logged():
                return self._logged(event)
            case Acknowledged():
                return self._acknowledged(event)
            case Tick(now_s):
                self._now_s = now_s
                quiet = self._acks.quiet(self.replica.chains, now_s)
                return [*quiet, *self._each(s.tick(now_s) for s in list(self.slots.values()))]
            case RoundTrained(job=job):
                return self.slots[job.slot].trained(event) if job.slot in self.slots else []
            case RoundFailed(slot=slot, reason=reason, job=job):
                return self._of(slot, lambda s: s.failed(reason, job))
            case TauChosen(slot=slot, phase=phase, tau=tau):
                return self._of(slot, lambda s: s.choose_tau(phase, tau))
            case CadenceChosen(every_s=every_s):
                self.snapshot_every_s = every_s
                for hosted in self.slots.values():
                    hosted.snapshot_every_s = every_s
                return []
            case RowsArrived():
                return self._rows(event)
            case Assigned(slot=slot):
                return self._assigned(slot)
            case Unassigned(slot=slot):
                return self._of(slot, lambda s: s.leave())
            case EndOffset(partition=partition, offset=offset):
                read = self._acks.read_on(partition, self.replica.chains[partition])  # somebody waits for what is there
                return [*read, *self._each(s.end_offset(partition, offset) for s in list(self.slots.values()))]
            case Recovered(slot=slot):
                return self._of(slot, lambda s: s.recovered(event))
            case SnapshotStored(slot=slot, announce=announce):
                self._snapshots_under_way -= 1
                if announce is not None:
                    return [Announce(announce)]
                if slot in self.slots and self.slots[slot].assigned:  # another is due, with or without a new round
                    self.slots[slot].snapshot_seq = -1
                return []
            case SendFailed(reason=reason):
                return [RenewWriter(), *self._send_failed(reason)]
            case StopAsked():
                self.stopping = True
                return self._each(s.leave() for s in list(self.slots.values()))
        raise LocalProtocolError(f"unknown event {event!r}")

    def work(self, only: int | None = None) -> list[Effect]:
        """Effects of the hosted slot that is furthest behind in the plan and can do something; at most one Train.

        ``only``: of this slot, for a driver that has an order of its own.
        """
        running = [
            s for s in self.slots.values() if s.stage == RUNNING and s.state is not None and only in (None, s.slot)
        ]
        running.sort(
            key=lambda s: (plan.progress(s.state.phase, s.state.cursor), s.slot)  # type: ignore[union-attr]
        )
        for slot in running:
            effects = self._swept(slot.work(self._snapshots_under_way == 0))
            if effects:
                return effects
        return []

    def under_way(self, partition: int, raw: bytes) -> Payload | None:
        """The payload of an own update that was sent and is not read back yet."""
        own = self._own(partition, raw)
        return own.payload if own else None

    def _own(self, partition: int, raw: bytes) -> Pending | None:
        slot = self.slots.get(partition)
        return next((p for p in slot.pending if p.sealed.raw == raw), None) if slot is not None else None

    def reset(self, slot: int, why: str) -> list[Effect]:
        """Give a hosted slot up and claim it again with reset: residual, optimiser and chains begin empty."""
        return self._of(slot, lambda s: s.drop(why, RESET))

    # ---- events -----------------------------------------------------------------------------------------------------
    def _logged(self, event: Logged) -> list[Effect]:
        partition = event.partition
        own = self._own(partition, event.raw)
        verdict = self.replica.read(partition, event.offset, event.raw, event.payload, own)
        if isinstance(verdict, Undecided):
            self.held[partition] = verdict.reason
            self._acks.forget(partition)  # it is read on when it is no longer held
            return [Hold(partition, event.offset, event.raw, verdict.reason, verdict.wants)]
        self.held.pop(partition, None)
        effects: list[Effect] = []
        if isinstance(verdict, Void):
            effects.append(Report("void", partition, verdict.reason))
        if partition in self.slots:
            effects += self._of(partition, lambda s: s.read_back(event.raw, verdict))
        return effects + self._mismatches()

    def _acknowledged(self, event: Acknowledged) -> list[Effect]:
        partition = event.partition
        if partition in self.held or partition not in self.slots:
            return []
        known, effects = self._acks.is_next(partition, self.replica.chains[partition], event.offset, self._now_s)
        return [*effects, *(self._logged(Logged(partition, event.offset, event.raw)) if known else [])]

    def _mismatches(self) -> list[Effect]:
        effects: list[Effect] = []
        for m in self.replica.mismatches:
            effects.append(
                Report(
                    "mismatch",
                    m.slot,
                    f"update {m.seq} was trained from digest {m.stated:016x}, the log gives {m.expected:016x}",
                )
            )
            owner = self.slots.get(m.slot)
            if owner is not None and owner.state is not None and owner.state.incarnation == m.incarnation:
                effects += self._of(m.slot, lambda s: s.drop("its replica differs from the log"))
        self.replica.mismatches.clear()
        return effects

    def _rows(self, event: RowsArrived) -> list[Effect]:
        if event.slot in self.slots:
            self.slots[event.slot].rows, self.slots[event.slot].ended = event.rows, event.ended
        return []

    def _assigned(self, slot: int) -> list[Effect]:
        if self.stopping:
            return []
        if slot in self.slots:
            self.slots[slot].assigned = True
            return []
        if self.replica.chains[slot].closed:
            return []
        self.slots[slot] = Slot(slot, self.replica, self._wire, self._settings, self._dice, self._spare)
        self.slots[slot].snapshot_every_s = self.snapshot_every_s
        self.slots[slot].tick(self._now_s)
        return self.slots[slot].start()

    def _send_failed(self, reason: str) -> list[Effect]:
        busy = [s for s in list(self.slots.values()) if s.stage in (CLAIMING, RECOVERING, RUNNING)]
        effects: list[Effect] = [Report("send-failed", -1, reason)]
        for slot in busy:
            effects += self._swept(slot.drop(f"a send failed: {reason}"))
        return effects

    # ---- helpers ----------------------------------------------------------------------------------------------------
    def _of(self, slot: int, act) -> list[Effect]:  # type: ignore[no-untyped-def]
        return self._swept(act(self.slots[slot])) if slot in self.slots else []

    def _each(self, parts: Iterable[list[Effect]]) -> list[Effect]:
        return self._swept([e for part in parts for e in part])

    def _swept(self, effects: list[Effect]) -> list[Effect]:
        """Forget slots that ended, and read what their next owners write; count snapshots under way."""
        self._snapshots_under_way += sum(isinstance(e, StoreSnapshot) for e in effects)
        self._snapshots_under_way -= sum(isinstance(e, SnapshotDropped) for e in effects)
        for s in [s for s in self.slots.values() if s.stage == CLOSED]:
            del self.slots[s.slot]
            effects = [*effects, *self._acks.read_on(s.slot, self.replica.chains[s.slot])]
        return effects
