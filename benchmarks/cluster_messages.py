"""From an update's publication to its merge at a peer in another process: inline, and by reference through a store."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from cluster_tools import SHAPE, Tools, quantiles

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.adapters.stores import open_store
from gossipdbn.core import rounds
from gossipdbn.core.replica import Replica
from gossipdbn.core.topics import run_names
from gossipdbn.core.values import (
    RESUME,
    Accepted,
    Claim,
    Manifest,
    RowRange,
    Undecided,
    manifest_from_json,
    manifest_json,
)
from gossipdbn.embedded.hdfs import Hdfs
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models.spec import PhaseSpec
from gossipdbn.testing import RunHarness
from gossipdbn.wire.messages import RunWire, payload_name
from gossipdbn.worker.recover import fetch_payload

Sent = tuple[bytes, "tuple[str, bytes] | None"]
"""A record, and the object (name, bytes) to store before it is sent."""
ENDLESS = [PhaseSpec("cd", epochs=10**5, batch=100, tau=1)]
EXACT = 0


def updates(manifest: Manifest, count: int) -> list[Sent]:
    """A claim and ``count`` updates of slot 0 that continue each other."""
    wire, rng = RunWire(), np.random.default_rng(1)
    replica = Replica(manifest, wire.decode, rounds.initial_parameters(manifest))
    found: list[Sent] = [(wire.encode(Claim(manifest.run, 0, 1, "bench#0", RESUME, 0, NUMERICS)), None)]
    replica.read(0, 0, found[0][0])
    state = rounds.fresh_state(manifest, 0, replica.chains[0])
    for i in range(count):
        job = rounds.begin(state, replica.acc, replica.version, RowRange(0, 100 * i, 100))
        job.parameters[:] += (rng.standard_normal(len(job.parameters)) * 2000).astype(np.int32)
        update, spill = rounds.finish(manifest, state, job), None
        payload = update.payload or ()
        if sum(len(part.data) for part in payload) > manifest.inline_bytes:
            ref, data = wire.pack_payload(payload)
            update, spill = rounds.by_reference(update, ref), (payload_name(ref), data)
        raw = wire.encode(update)
        rounds.sent(manifest, state, update, raw, job.start_version)
        assert isinstance(replica.read(0, i + 1, raw, payload), Accepted)
        found.append((raw, spill))
    return found


def peer(bootstrap: str, path: str, store_url: str, count: int) -> None:
    """Merge updates as they come, fetching what they refer to; prints the monotonic time of each merge."""
    manifest = manifest_from_json(Path(path).read_bytes())
    replica = Replica(manifest, RunWire().decode, rounds.initial_parameters(manifest))
    store = open_store(store_url)
    log = KafkaLog(bootstrap)
    reader = log.reader()
    reader.add(run_names(manifest.run).updates, 0, 0)
    print("ready", flush=True)
    seen: list[int] = []
    while len(seen) <= count:
        for record in reader.poll(0.005):
            verdict = replica.read(0, record.offset, record.value)
            if isinstance(verdict, Undecided) and verdict.wants is not None:
                verdict = replica.read(0, record.offset, record.value, fetch_payload(store, verdict.wants))
            assert isinstance(verdict, Accepted)
            seen.append(time.monotonic_ns())
    reader.close()
    log.close()
    print(json.dumps(seen))


@contextmanager
def _peer_process(tools: Tools, run: RunHarness, count: int) -> Iterator[subprocess.Popen[str]]:
    path = tools.folder / f"{run.run}.json"
    path.write_bytes(manifest_json(run.manifest))
    command = [sys.executable, __file__, run.bootstrap, str(path), run.store.url(), str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process


def _measured(tools: Tools, run: RunHarness, count: int, left_out: int, pause_s: float) -> tuple[list[float], float]:
    """Seconds from publication to merge, the first ``left_out`` aside, and the mean size of what was published.

    A new producer asks the brokers for its id for half a second, so its first record, the claim, is waited for.
    """
    records = updates(run.manifest, count)
    with _peer_process(tools, run, count) as process:
        writer = run.log.writer()
        began = []
        for raw, spill in records:
            began.append(time.monotonic_ns())
            if spill is not None:
                run.store.put(*spill)
            writer.send(run.topics.updates, 0, raw)
            assert len(began) > 1 or writer.flush(30.0), writer.failure()
            time.sleep(pause_s)
        assert process.stdout is not None
        merged = json.loads(process.stdout.readline())
        writer.close()
    size = statistics.mean(len(raw) + (len(spill[1]) if spill else 0) for raw, spill in records[1:])
    return [(b - a) / 1e9 for a, b in zip(began, merged, strict=True)][left_out:], size


def latency(tools: Tools) -> dict[str, Any]:
    """20 kB updates, 50 a second, to a peer in another process."""
    run = tools.run(hidden=(500,), phases=ENDLESS, slots=1, **SHAPE)
    waited, size = _measured(tools, run, 300, 20, 0.02)
    return {"bytes": round(size), "updates": len(waited), **quantiles(waited)}


def payload(tools: Tools) -> dict[str, Any]:
    """Payloads of growing size, inline and by reference through a folder and through HDFS: p50 and p90, ms."""
    table: list[dict[str, Any]] = []
    with Hdfs(tools.folder / "payload-hdfs", die_with_parent=True) as hdfs:
        ways = (("inline", 1 << 20, ""), ("folder", 0, ""), ("hdfs", 0, f"{hdfs.url}/payloads"))
        for kilobytes in (20, 250, 500, 900, 4000) if tools.repeats > 1 else (20, 500):
            pause_s = 0.02 + kilobytes / 20_000  # far below what the peer can take: latency, not a queue
            row: dict[str, Any] = {"kB": kilobytes}
            for name, inline_bytes, store in ways:
                if name == "inline" and kilobytes > 1000:  # larger than a message may be
                    continue
                hidden = kilobytes * 1000 // (4 * 251)
                run = tools.run(visible=250, hidden=(hidden,), phases=ENDLESS, slots=1, store=store,
                                inline_bytes=inline_bytes, codec=EXACT)  # fmt: skip
                found = quantiles(_measured(tools, run, 18 if name == "hdfs" else 50, 10, pause_s)[0])
                row |= {f"{name}_p50_ms": found["p50_ms"], f"{name}_p90_ms": found["p90_ms"]}
                run.close()
            table.append(row)
            print(row, file=sys.stderr, flush=True)
    return {"table": table}


if __name__ == "__main__":
    peer(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
