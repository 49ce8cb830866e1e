"""A small run on the in-memory log: threads as workers, a takeover, a void record, a reset, a revocation if wanted."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gossipdbn.adapters.clock import SystemClock
from gossipdbn.adapters.memory import MemoryLog, MemoryStore
from gossipdbn.core import chain as chains
from gossipdbn.core import rounds
from gossipdbn.core.topics import run_names, run_topics
from gossipdbn.core.values import RESET, Claim, Manifest, ManifestRecord, Undecided, manifest_json
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.rows import dense
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.ports import SnapshotStore, TopicSpec
from gossipdbn.replay.history import LoggedRun, open_run
from gossipdbn.replay.spool import collect
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire, encode_control
from gossipdbn.wire.shards import ShardSequence, dtype_code, encode_shard, make_shard, shard_id, slot_of
from gossipdbn.worker.control import load_control
from gossipdbn.worker.loop import Worker, WorkerOptions
from gossipdbn.worker.recover import fetch_payload


@dataclass(frozen=True)
class Stats:
    """What a stand-in for a learner reports."""

    rows: int
    reconstruction_error: float = 0.1
    loss: float = 0.2
    correct: int = 0
    minibatches: int = 1


def walk(manifest: Manifest, job: rounds.RoundJob, values: Any, labels: Any, total: int) -> Any:
    """A quick stand-in: moves every parameter, depending on everything a round may depend on."""
    seed = [job.step, int(dense(values).sum()), job.slot, int(job.parameters.sum()) & 0xFFFF, len(values)]
    move = np.random.default_rng(seed).integers(-(2**20), 2**20, job.parameters.shape)
    job.parameters[:] += move.astype(np.int32)
    for name in sorted(job.optimiser):
        state = job.optimiser[name]
        state += np.ones(1, state.dtype)
        job.parameters[:] += np.int32(state.ravel()[0])
    return Stats(len(values))


PHASES = (
    PhaseSpec("cd", 0, 2, batch=10, tau=3),
    PhaseSpec("cd", 1, 1, batch=10, tau=3),
    PhaseSpec("backprop", 0, 2, batch=10, tau=3, optimizer="adam", lr=0.01, lr_final=0.0),
)


class SteadyClock(SystemClock):
    """A millisecond passes whenever somebody looks: what is due does not depend on how fast this machine is."""

    def __init__(self) -> None:
        self._now_s = 0.0

    def monotonic_s(self) -> float:
        self._now_s += 0.001
        return self._now_s


class AtOnce(ThreadPoolExecutor):
    """Does what is submitted before it returns."""

    def submit(self, fn: Any, /, *args: Any, **more: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **more))
        except Exception as e:  # noqa: BLE001 - whoever asks for the result meets it
            future.set_exception(e)
        return future


@dataclass
class Scene:
    """A run in memory. ``train``: who trains; the stand-in, or ``rounds.run`` for the real learners.

    ``keys``: workers sign with key 1 of them, if there are any. ``steady``: workers take their snapshots after the same
    rounds every time, not when the machine's clock says so.
    """

    train: rounds.Trainer = walk
    manifest: Manifest = field(default_factory=lambda: manifest(3))
    log: MemoryLog = field(default_factory=MemoryLog)
    store: SnapshotStore = field(default_factory=MemoryStore)
    keys: dict[int, bytes] = field(default_factory=dict)
    steady: bool = False

    def __post_init__(self) -> None:
        self.run = self.manifest.run
        self.names = run_names(self.run)
        topics = run_topics(self.run, self.manifest.slots)
        self.log.create_topics([TopicSpec(t.name, t.partitions, t.config) for t in topics])
        self.log.append(self.names.control, 0, encode_control(ManifestRecord(self.run, manifest_json(self.manifest))))

    def feed(self, values: Any, labels: Any, shard_rows: int = 25, *, again: int = -1) -> None:
        """Put rows on the shards topic; shard number ``again`` comes twice."""
        sequences = [ShardSequence() for _ in range(self.manifest.slots)]
        dtype = dtype_code(self.manifest.spec.visible_units)
        for i, first in enumerate(range(0, len(values), shard_rows)):
            part = values[first : first + shard_rows]
            names = None if labels is None else labels[first : first + shard_rows]
            shard = make_shard(shard_id("rows", i, first, len(part)), part, names, dtype)
            slot = slot_of(shard.id, self.manifest.slots)
            sequences[slot].add(shard)
            for _ in range(1 + (i == again)):
                self.log.append(self.names.shards, slot, envelope.seal(encode_shard(shard)))
        for slot, sequence in enumerate(sequences):
            self.log.append(self.names.shards, slot, envelope.seal(encode_shard(sequence.end_mark())))

    def worker(self, name: str, stop: threading.Event, snapshot_every_s: float = 0.005) -> Worker:
        control = load_control(self.log, self.run, self.keys)
        key = min(self.keys, default=0)
        options = WorkerOptions(name, snapshot_every_s=snapshot_every_s, key_id=key, mend_after_s=0.05)
        clock = SteadyClock() if self.steady else SystemClock()
        worker = Worker(
            self.log, self.store, control, options, clock, self.keys, train=self.train, should_stop=stop.is_set
        )
        if self.steady:
            worker._snapshots._pool = AtOnce(1)
        return worker

    def count(self) -> int:
        """Records on the updates topic."""
        return sum(self.log.offsets(self.names.updates, p)[1] for p in range(self.manifest.slots + 1))

    def work(self, name: str, until: int | None = None) -> None:
        """Work to the end, or until so many records are there; then die without a word (threads: leave uncleanly)."""
        stop = threading.Event()
        worker = self.worker(name, stop)
        if until is None:
            worker.run()
            return
        turn = worker._turn

        def watched() -> None:
            if self.count() >= until:
                raise Killed
            turn()

        worker._turn = watched  # type: ignore[method-assign]
        try:
            worker.run()
        except Killed:
            return

    def damage(self, slot: int) -> None:
        """A record that can never be valid."""
        self.log.append(self.names.updates, slot, b"gdbn, but no record")

    def claim_reset(self, slot: int) -> None:
        """Somebody claims with reset and is never heard of again."""
        found = self.logged_chain(slot)
        claim = Claim(self.run, slot, found.incarnation + 1, "passer-by#0", RESET, 0, NUMERICS)
        self.log.append(self.names.updates, slot, RunWire().encode(claim))

    def logged_chain(self, slot: int) -> chains.Chain:
        """Where a slot's partition stands."""
        chain = chains.genesis(self.manifest.slots)
        for record in self.log.read(self.names.updates, slot, 0, self.log.offsets(self.names.updates, slot)[1]):
            decoded = RunWire().decode(record.value)
            verdict = chains.judge(self.manifest, chain, slot, decoded)
            if isinstance(verdict, Undecided) and verdict.wants is not None:
                verdict = chains.judge(self.manifest, chain, slot, decoded, fetch_payload(self.store, verdict.wants))
            assert not isinstance(verdict, Undecided)
            chain = chains.fold(self.manifest, chain, record.value, verdict)
        return chain

    def logged(self, folder: Path) -> LoggedRun:
        """The run as replay sees it."""
        collect(self.log, self.manifest, self.store, self.keys, folder)
        return open_run(folder, self.keys)


class Killed(Exception):
    """A worker of the scene dies."""


def manifest(slots: int, run: str = "scene", **more: Any) -> Manifest:
    """A small model and plan."""
    spec = ModelSpec(20, (12, 8), "binary", 3)
    return Manifest(
        run=run, slots=slots, spec=spec, phases=PHASES, run_key=5, numerics=NUMERICS,
        visible_mean=np.full(20, 0.3, "<f4").tobytes(), created_ms=time.time_ns() // 1_000_000, **more,
    )  # fmt: skip


def rows(count: int = 300) -> tuple[Any, Any]:
    """Binary rows and labels."""
    rng = np.random.default_rng(0)
    return (rng.random((count, 20)) < 0.3).astype(np.uint8), rng.integers(0, 3, count).astype(np.int32)


def eventful(**options: Any) -> Scene:
    """A run with a takeover, a void record, a claim with reset and a shard that came twice."""
    scene = Scene(**options)
    scene.feed(*rows(), again=3)
    scene.work("first", until=20)
    scene.damage(1)
    scene.work("second", until=40)
    scene.claim_reset(0)
    scene.work("third")
    return scene
