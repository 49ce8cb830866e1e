"""How fast a run is recomputed beside how fast it was trained, on the same core: ``benchmarks/replay.py --help``.

One worker hosts all slots on the in-memory log, so the training time holds no network; then the run is verified by one
process. Times are wall clock and, for machines that are not quiet, CPU seconds of this process; ``kernel`` is the part
inside the learners. The exit status says whether replay, copying the log included, was at least as fast.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import platform
import tempfile
import time
from pathlib import Path

import numpy as np

from gossipdbn.adapters.clock import SystemClock
from gossipdbn.adapters.memory import MemoryLog, MemoryStore
from gossipdbn.core.topics import run_names, run_topics
from gossipdbn.core.values import Manifest, ManifestRecord, manifest_json
from gossipdbn.kernels.tiers import TIER
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models import learners
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.replay import archive
from gossipdbn.replay.history import judge_all, open_run
from gossipdbn.replay.spool import collect
from gossipdbn.replay.verify import verify
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import encode_control
from gossipdbn.wire.shards import BYTES, ShardSequence, encode_shard, make_shard, shard_id, slot_of
from gossipdbn.worker.control import load_control
from gossipdbn.worker.loop import Worker, WorkerOptions

MNIST = Path(__file__).resolve().parent.parent / "examples" / "data" / "mnist"


def mnist(rows: int) -> tuple[np.ndarray, np.ndarray]:
    with gzip.open(MNIST / "train-images-idx3-ubyte.gz") as f:
        values = np.frombuffer(f.read()[16:], np.uint8).reshape(-1, 784)[:rows]
    with gzip.open(MNIST / "train-labels-idx1-ubyte.gz") as f:
        labels = np.frombuffer(f.read()[8:], np.uint8)[:rows].astype(np.int32)
    return np.rint(values * (127 / 255)).astype(np.uint8), labels


def plan(epochs: int, fine_tune: int) -> tuple[PhaseSpec, ...]:
    return (
        PhaseSpec("cd", 0, epochs, batch=100, tau=10, lr=0.05),
        PhaseSpec("cd", 1, epochs, batch=100, tau=10, lr=0.05),
        PhaseSpec("backprop", 0, fine_tune, batch=50, tau=5, optimizer="adam", lr=0.001, lr_final=0.0),
    )


def trained(
    values: np.ndarray, labels: np.ndarray, manifest: Manifest
) -> tuple[MemoryLog, MemoryStore, float, float, float]:
    """Train on the in-memory log; (log, store, wall, CPU and kernel seconds)."""
    log, store, names = MemoryLog(), MemoryStore(), run_names(manifest.run)
    log.create_topics(run_topics(manifest.run, manifest.slots))
    log.append(names.control, 0, encode_control(ManifestRecord(manifest.run, manifest_json(manifest))))
    sequences = [ShardSequence() for _ in range(manifest.slots)]
    for i, first in enumerate(range(0, len(values), 500)):
        part = values[first : first + 500]
        shard = make_shard(shard_id("mnist", i, first, len(part)), part, labels[first : first + 500], BYTES)
        slot = slot_of(shard.id, manifest.slots)
        sequences[slot].add(shard)
        log.append(names.shards, slot, envelope.seal(encode_shard(shard)))
    for slot, sequence in enumerate(sequences):
        log.append(names.shards, slot, envelope.seal(encode_shard(sequence.end_mark())))
    learners.warm(manifest.spec, manifest.phases)
    worker = Worker(log, store, load_control(log, manifest.run, {}), WorkerOptions("one"), SystemClock())
    began, cpu = time.perf_counter(), time.process_time()
    worker.run()
    return log, store, time.perf_counter() - began, time.process_time() - cpu, worker.train_s


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=2, help="of each layer")
    parser.add_argument("--fine-tune", type=int, default=4, help="epochs of backprop")
    parser.add_argument("--slots", type=int, default=4)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    o = parser.parse_args()
    before = os.getloadavg()
    values, labels = mnist(o.rows)
    manifest = Manifest(
        run="bench-replay", slots=o.slots, spec=ModelSpec(784, (500, 500), "grey", 10),
        phases=plan(o.epochs, o.fine_tune), run_key=1, numerics=NUMERICS,
        visible_mean=(values.mean(0) / 127).astype("<f4").tobytes(),
    )  # fmt: skip
    log, store, wall, cpu, kernels = trained(values, labels, manifest)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        spool = collect(log, manifest, store, {}, Path(folder) / "spool")
        run = open_run(Path(folder) / "spool", {})
        copied = time.perf_counter() - began
        at = time.process_time()
        v = verify(run, o.jobs)
        replay_cpu = time.process_time() - at
        assert v.identical, v
        began = time.perf_counter()
        archive.write(spool, archive.describe(judge_all(run), {}, ""), Path(folder) / "a.zip")
        packing, size = time.perf_counter() - began, (Path(folder) / "a.zip").stat().st_size
    result = {
        "rows": o.rows, "slots": o.slots, "updates": v.updates, "rows_trained": v.rows, "jobs": o.jobs,
        "training_seconds": round(wall, 2), "training_cpu_seconds": round(cpu, 2),
        "training_kernel_seconds": round(kernels, 2),
        "replay_seconds": round(v.seconds, 2), "replay_cpu_seconds": round(replay_cpu, 2),
        "replay_kernel_seconds": v.kernel_seconds,
        "copy_seconds": round(copied, 2), "archive_seconds": round(packing, 2), "archive_bytes": size,
        "replay_over_training": round(wall / (v.seconds + copied), 3), "tier": str(TIER), "machine": platform.machine(),
        "cores": os.cpu_count(),
        "load_averages": [round(x, 1) for x in (*before, *os.getloadavg())],
        "digest": v.digest,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if o.json:
        o.json.write_text(json.dumps(result, indent=1) + "\n")
    raise SystemExit(0 if result["replay_over_training"] >= 1 else 1)


if __name__ == "__main__":
    main()
