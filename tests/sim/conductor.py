"""Plays a logged run in the simulated world: who claimed what, who trained which round from which version.

Nothing is recomputed here as replay does it. Workers of the simulator, with the production's host and slots inside,
claim, are fenced, recover from their own snapshots, train, publish and read back through the simulated log, network and
time. The conductor says only what each may have read when, and whose turn it is; what they publish must be the logged
records, byte for byte (a round's metrics are told, since they are measurements).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gossipdbn.core import events as ev
from gossipdbn.core import rounds
from gossipdbn.core.chain import fold, genesis, judge
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import Accepted, Manifest, Metrics, Payload, PayloadRef, RowRange, Update, Version
from gossipdbn.ports import Record
from gossipdbn.sim.brokers import UPDATES
from gossipdbn.sim.options import draw
from gossipdbn.sim.worker import Worker
from gossipdbn.sim.world import Job, World
from gossipdbn.wire.messages import RunWire
from tests.core.making import replace

STEPS_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Played:
    """One accepted record of the run: who wrote it, from which version (updates) or after how many (claims), when."""

    partition: int
    raw: bytes
    worker: str
    version: Version | None
    count: int
    metrics: Metrics
    rows: RowRange | None
    at_ms: int


def accepted(manifest: Manifest, partition: int, records: Iterable[Record], fetch) -> list[Played]:
    """The accepted records of a slot's partition, in order; ``fetch``: PayloadRef -> Payload."""
    chain, out = genesis(manifest.slots), []
    wire = RunWire()
    for record in records:
        raw, decoded = record.value, wire.decode(record.value)
        ref = getattr(getattr(decoded, "message", None), "payload_ref", None)
        payload: Payload | None = fetch(ref) if isinstance(ref, PayloadRef) else None
        verdict = judge(manifest, chain, partition, decoded, payload)
        assert not hasattr(verdict, "wants"), verdict
        before, chain = chain, fold(manifest, chain, raw, verdict)
        if isinstance(verdict, Accepted):
            m = verdict.message
            what = (m.metrics, m.rows) if isinstance(m, Update) else (Metrics(), None)
            which = (chain.worker, verdict.start_version, before.count)
            out.append(Played(partition, raw, *which, *what, record.timestamp_ms))
    return out


class Scripted(Worker):
    """Reads as far as it is allowed to, and works for the slot whose turn it is."""

    def __init__(self, world: World, name: str) -> None:
        self.limits: dict[int, float] = defaultdict(int)
        self.turn_of: Played | None = None
        self.metrics = Metrics()
        super().__init__(world, name, RunWire())

    def _newest_replica(self) -> Replica:
        """From the start: a snapshot may hold more than the logged worker had read."""
        return Replica(self.world.manifest, self.wire.decode, self.world.initial)

    def _poll_updates(self, p: int) -> None:
        end, self.fetched[UPDATES, p] = self.fetched[UPDATES, p], int(min(self.fetched[UPDATES, p], self.limits[p]))
        super()._poll_updates(p)
        self.fetched[UPDATES, p] = end

    def acknowledged(self, *_: object) -> None:
        """What it sends comes back to it when the script says so."""

    def next_work(self) -> list[ev.Effect]:
        if self.turn_of is None or self.turn_of.rows is None:
            return []
        (epoch, first, count), slot = self.turn_of.rows, self.turn_of.partition
        view = self.rows[slot]
        if epoch or not count:
            self.perform(self.host.step(ev.RowsArrived(slot, view.rows, view.ended)))
        else:  # in the first pass rows may have been on their way still
            self.perform(self.host.step(ev.RowsArrived(slot, first + count, False)))
        effects = self.host.work(only=slot)
        if any(isinstance(e, ev.Train | ev.Publish) for e in effects):
            self.turn_of = None
        return effects

    def metrics_of(self, _: rounds.RoundJob) -> Metrics:
        return self.metrics


class Stage(World):
    """A world without launcher and group: slots are given by hand."""

    def _spread(self) -> None:
        """Nobody moves slots but the conductor."""


class Conductor:
    """``play`` lets the simulated workers make the run again; raises AssertionError at the first other byte."""

    def __init__(self, job: Job, partitions: Sequence[Sequence[Played]], seed: int = 0) -> None:
        m = job.manifest
        rows = tuple(sum(1 for _ in feed) for feed in job.feed)
        options = replace(
            draw(seed), slots=m.slots, rows=rows, snapshot_every_s=0.05, keep=2, latency_s=0.002, jitter=1.0,
            train_s=0.004, store_s=0.004, claim_delay_s=0.001, linger_s=0.0, poll_max=50, rotate_at_s=None, faults=(),
        )  # fmt: skip
        self.stage = Stage(options, job=job)
        self.scripts = [list(p) for p in partitions]
        self.done = [0] * len(self.scripts)
        self.offsets: list[list[int]] = [[0] for _ in self.scripts]  # after so many updates, the next offset
        self.workers: dict[str, Scripted] = {}
        self.recovered = 0
        for slot in range(m.slots):
            for raw in job.feed[slot]:
                self.stage.log.append("shards", slot, raw, "feed")

    # ---- whose turn it is -------------------------------------------------------------------------------------------
    def play(self) -> None:
        """Make every record of the run, in an order in which each worker may have made them."""
        while any(n < len(script) for n, script in zip(self.done, self.scripts, strict=True)):
            following = [s[n] for n, s in zip(self.done, self.scripts, strict=True) if n < len(s)]
            ready = [r for r in following if self._ready(r)]
            assert ready, "no order of the logged records agrees with their start versions"
            earliest = min(ready, key=lambda r: r.at_ms)  # of those that could be first, the one that was
            self._make(earliest)
            self.done[earliest.partition] += 1

    def _ready(self, r: Played) -> bool:
        """What it was made from is there, and making it now spoils no other round of the same worker."""
        needs = self._needs(r)
        if any(n > len(self.offsets[j]) - 1 for j, n in needs.items()):
            return False
        for q, script in enumerate(self.scripts):
            following = next((x for x in script[self.done[q] :] if x.version is not None), None)
            if q == r.partition or following is None or following.worker != r.worker:
                continue
            if any(n > following.version[j] for j, n in needs.items() if j != q):
                return False
            p, window = r.partition, self.stage.manifest.pending
            if r.version is not None and r.version[p] - following.version[p] >= window:
                return False  # its own updates have not come back so far
        return True

    def _needs(self, r: Played) -> dict[int, int]:
        """How many updates of which partition its worker has read: of others for an update, of its own for a claim."""
        if r.version is None:
            return {r.partition: r.count}
        return {j: n for j, n in enumerate(r.version[:-1]) if j != r.partition}

    # ---- making a record --------------------------------------------------------------------------------------------
    def _make(self, r: Played) -> None:
        worker = self.workers.get(r.worker)
        if worker is None:
            worker = self.workers[r.worker] = Scripted(self.stage, r.worker)
            self.stage.workers.append(worker)
        end = self.stage.log.end(UPDATES, r.partition)
        for j, n in self._needs(r).items():
            worker.limits[j] = max(worker.limits[j], self.offsets[j][n])
        if r.version is None:
            self._take_over(worker, r, end)
        else:
            self._echoes(worker)
            chains, needs = worker.host.replica.chains, self._needs(r)
            self._until(lambda: all(chains[j].count == n for j, n in needs.items()), worker, r)
            worker.metrics, worker.turn_of = r.metrics, r
        worker.wake(0.0)
        self._until(lambda: self.stage.log.end(UPDATES, r.partition) > end, worker, r)
        worker.turn_of = None
        made = self.stage.log.records[UPDATES, r.partition][end].raw
        assert made == r.raw, f"slot {r.partition} record {self.done[r.partition]}: {r.worker} made another one"
        if r.version is not None:
            self.offsets[r.partition].append(end + 1)
            self._echoes(worker)
            return
        worker.limits[r.partition] = end + 1
        self._until(lambda: worker.host.slots[r.partition].stage == "running", worker, r)
        self.recovered += r.count > 0

    def _take_over(self, worker: Scripted, r: Played, end: int) -> None:
        """The former owner dies if it says nothing more in this run, else it is told to let the slot go."""
        for former in self.workers.values():
            if former is worker or not former.alive or r.partition not in former.host.slots:
                continue
            if any(x.worker == former.name for p, script in enumerate(self.scripts) for x in script[self.done[p] :]):
                former.mail.append(ev.Unassigned(r.partition))
                former.wake(0.0)
            else:
                self.stage.crashed(former, "killed")
        worker.limits[r.partition] = end
        worker.mail.append(ev.Assigned(r.partition))

    def _echoes(self, worker: Scripted) -> None:
        """Own updates come back as far as the next rounds of the worker's other slots had them."""
        for p in list(worker.host.slots):
            others = [
                following.version[p]
                for q, script in enumerate(self.scripts)
                if q != p
                and (following := next((x for x in script[self.done[q] :] if x.version is not None), None)) is not None
                and following.worker == worker.name
            ]
            have = len(self.offsets[p]) - 1
            worker.limits[p] = max(worker.limits[p], self.offsets[p][min([have, *others])])

    def _until(self, condition, worker: Scripted, r: Played) -> None:
        for _ in range(STEPS_MAX):
            if condition():
                return
            worker.wake(0.001)
            self.stage.step()
        slot = worker.host.slots.get(r.partition)
        where = f"{slot.stage}, waits for {slot.waits_for!r}" if slot is not None else "not hosted"
        raise AssertionError(f"slot {r.partition} record {self.done[r.partition]} of {r.worker} is not made: {where}")
