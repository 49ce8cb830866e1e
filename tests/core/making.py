"""What the core's tests are made of: a tiny manifest, an author that writes valid records, a bench with one Host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gossipdbn.core import events as ev
from gossipdbn.core import rounds
from gossipdbn.core.chain import genesis
from gossipdbn.core.host import Host
from gossipdbn.core.replica import Replica
from gossipdbn.core.slot import Settings
from gossipdbn.core.values import (
    CLOSES_PHASE,
    DONE,
    RESET,
    RESUME,
    Accepted,
    Claim,
    Manifest,
    Metrics,
    PayloadRef,
    RowRange,
    Update,
)
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.sim import abstract
from gossipdbn.wire.messages import RunWire

WIRE = RunWire()
TWO_PHASES = (PhaseSpec("cd", 0, 2, 2, 1), PhaseSpec("pcd", 0, 1, 2, 1))


def a_manifest(slots: int = 2, phases: tuple[PhaseSpec, ...] = TWO_PHASES, **more) -> Manifest:
    spec = more.pop("spec", ModelSpec(3, (2,)))
    mean = np.full(spec.visible, 0.5, "<f4").tobytes()
    return Manifest(run="r", slots=slots, spec=spec, phases=phases, run_key=7, visible_mean=mean, **more)


def a_replica(manifest: Manifest, wire: RunWire = WIRE) -> Replica:
    return Replica(manifest, wire.decode, rounds.initial_parameters(manifest))


def rows_of(slot: int, rows: RowRange) -> np.ndarray:
    """Rows that depend on where they are, nothing else."""
    return np.array(
        [[(slot + rows.epoch + i) & 1, i & 1, 1] for i in range(rows.first, rows.first + rows.count)], np.uint8
    )


class Author:
    """An honest owner of every slot: writes claims and updates in order, each from all that was written before."""

    def __init__(self, manifest: Manifest, wire: RunWire = WIRE) -> None:
        self.manifest, self.wire = manifest, wire
        self.replica = a_replica(manifest, wire)
        self.states: dict[int, rounds.SlotState] = {}
        self.log: list[list[bytes]] = [[] for _ in range(manifest.slots + 1)]
        self.objects: dict[PayloadRef, bytes] = {}

    def append(self, partition: int, raw: bytes, payload=None):
        self.log[partition].append(raw)
        return self.replica.read(partition, len(self.log[partition]) - 1, raw, payload)

    def claim(self, slot: int, worker: str = "a", mode: int = RESUME) -> bytes:
        chain = self.replica.chains[slot]
        m = Claim("r", slot, chain.incarnation + 1, worker, mode, self.wire.key_id, self.manifest.numerics)
        raw = self.wire.encode(m)
        assert isinstance(self.append(slot, raw), Accepted)
        chain = self.replica.chains[slot]
        if mode == RESET or slot not in self.states:
            self.states[slot] = rounds.fresh_state(self.manifest, slot, chain)
        state = self.states[slot]
        state.tip, state.incarnation, state.start_version = chain.tip, chain.incarnation, chain.start_version
        return raw

    def next_update(self, slot: int, count: int = 2, epoch: int | None = None) -> Update:
        """The next update of the slot, not yet written; moves the residual."""
        state = self.states[slot]
        at = state.cursor if epoch is None else (epoch, 0)
        rows = RowRange(*at, count)
        job = rounds.begin(state, self.replica.acc, self.replica.version, rows)
        abstract.train(self.manifest, job, rows_of(slot, rows), None, 0)
        return rounds.finish(self.manifest, state, job)

    def write(self, update: Update, spill: bool = False):
        payload = update.payload
        if spill:
            ref, data = self.wire.pack_payload(payload)
            self.objects[ref] = data
            update = rounds.by_reference(update, ref)
        raw, version = self.wire.encode(update), self.replica.version
        rounds.sent(self.manifest, self.states[update.slot], update, raw, version)
        verdict = self.append(update.slot, raw, payload if spill else None)
        assert isinstance(verdict, Accepted), verdict
        return raw

    def update(self, slot: int, count: int = 2, epoch: int | None = None, spill: bool = False) -> bytes:
        return self.write(self.next_update(slot, count, epoch), spill)

    def next_closing(self, slot: int, kind: int | None = None, note: str = "") -> Update:
        state = self.states[slot]
        last = state.phase == len(self.manifest.phases) - 1
        kind = (DONE if last else CLOSES_PHASE) if kind is None else kind
        return rounds.closing(self.manifest, state, self.replica.digest(), self.replica.version, kind, note=note)

    def close(self, slot: int) -> bytes:
        return self.write(self.next_closing(slot))

    def whole_slot(self, slot: int) -> None:
        """Claim, two passes of four rows, close; one pass, done."""
        self.claim(slot)
        for epoch in (0, 0, 1, 1):
            state = self.states[slot]
            self.update(slot, 2, epoch if state.cursor[0] < epoch else None)
        self.close(slot)
        self.update(slot, 2, 2)
        self.update(slot, 2)
        self.close(slot)


def changed(update: Update, **fields) -> Update:
    """The update with other fields."""
    return Update(**{**{f: getattr(update, f) for f in update.__struct_fields__}, **fields})


class Bench:
    """One Host over a log in memory. Effects pile up in ``effects``; sends go to ``sent`` until ``deliver``."""

    def __init__(self, manifest: Manifest, wire: RunWire = WIRE, rows: int = 4, log=None, **settings) -> None:
        self.manifest, self.wire, self.total = manifest, wire, rows
        self.log: list[list[bytes]] = log if log is not None else [[] for _ in range(manifest.slots + 1)]
        options = {"worker": "w", "linger_s": 0.0, "snapshot_every_s": 1e9, "claim_delay_s": 0.01, **settings}
        self.host = Host(a_replica(manifest, wire), wire, Settings(**options), lambda: 0.5)
        self.effects: list[ev.Effect] = []
        self.sent: list[ev.Publish] = []
        self.now_s = 0.0

    def step(self, event: ev.Event) -> list[ev.Effect]:
        return self.take(self.host.step(event))

    def take(self, effects: list[ev.Effect]) -> list[ev.Effect]:
        self.effects += effects
        for e in effects:
            if isinstance(e, ev.Publish):
                self.sent.append(e)
            elif isinstance(e, ev.AskEnd):
                self.step(ev.EndOffset(e.partition, len(self.log[e.partition])))
            elif isinstance(e, ev.FollowRows):
                self.step(ev.RowsArrived(e.slot, self.total, True))
        return effects

    def read(self) -> None:
        """Let the host read all that is in the log."""
        for p, records in enumerate(self.log):
            while self.host.replica.chains[p].offset < len(records) and p not in self.host.held:
                offset = self.host.replica.chains[p].offset
                self.step(ev.Logged(p, offset, records[offset]))

    def deliver(self) -> None:
        """What was sent is in the log and read back."""
        sent, self.sent = self.sent, []
        for e in sent:
            self.log[e.slot].append(e.raw)
        self.read()

    def tick(self, seconds: float = 1.0) -> list[ev.Effect]:
        self.now_s += seconds
        return self.step(ev.Tick(self.now_s))

    def own(self, slot: int) -> None:
        """Assigned, claimed, running."""
        self.step(ev.Assigned(slot))
        self.read()
        self.tick()
        self.deliver()

    def work(self) -> list[ev.Effect]:
        return self.take(self.host.work())

    def train(self) -> list[ev.Effect]:
        """One piece of work, trained at once."""
        effects = self.work()
        for e in list(effects):
            if isinstance(e, ev.Train):
                rows = rows_of(e.job.slot, e.job.rows)
                abstract.train(self.manifest, e.job, rows, None, 0)
                effects = effects + self.step(ev.RoundTrained(e.job, Metrics()))
        return effects

    def of(self, kind: type) -> list:
        """Effects of a kind so far."""
        return [e for e in self.effects if isinstance(e, kind)]

    def reports(self, kind: str) -> list[str]:
        return [e.text for e in self.of(ev.Report) if e.kind == kind]


def fresh(manifest: Manifest, slot: int = 0) -> rounds.SlotState:
    return rounds.fresh_state(manifest, slot, genesis(manifest.slots))


__all__ = ["TWO_PHASES", "WIRE", "Author", "Bench", "a_manifest", "a_replica", "changed", "fresh", "replace", "rows_of"]
