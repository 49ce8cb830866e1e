"""Resident memory of a real worker on a real broker: idle, per parameter of one slot, and over time."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import psutil
from cluster_tools import SHAPE, Tools, grey

from gossipdbn.models.spec import PhaseSpec
from gossipdbn.testing import RunHarness

ENDLESS = 10**5
WARM_UP_SHARE = 0.1  # of the time watched: rows, buffers and compiled code come in the first minute
LARGE_S = 30.0
STACK = (2000, 2000, 2000)


def _resident(run: RunHarness, name: str) -> int:
    pid = run.workers[name].pid
    assert pid is not None
    return int(psutil.Process(pid).memory_info().rss)


def _sampled(run: RunHarness, name: str, seconds: float) -> list[int]:
    """Resident bytes, about once a second."""
    samples, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        run.follow(1.0)
        samples.append(_resident(run, name))
    assert not run.follower.finished, run.follower.failed or "too few rows for the time"
    return samples


def idle(tools: Tools) -> int:
    """Bytes of a worker that hosts a slot and has no rows; one before it has compiled what was not compiled yet."""
    run = tools.run(hidden=(16,), phases=[PhaseSpec("cd", epochs=ENDLESS)], slots=1, **SHAPE)
    run.start_worker("first")
    run.wait_for(lambda f: bool(f.replica.chains[0].worker), 300)
    run.stop_worker("first", 60.0)
    run.start_worker("idle")
    run.wait_for(lambda f: f.replica.chains[0].worker.startswith("idle"), 120)
    run.follow(5.0)
    found = _resident(run, "idle")
    run.close()
    return found


def large(tools: Tools, *hidden: int) -> tuple[int, int]:
    """Bytes of a worker with one slot that trains the last of these layers, and the parameters of all."""
    first = [PhaseSpec("cd", i, epochs=1, batch=20, tau=2) for i in range(len(hidden) - 1)]
    phases = [*first, PhaseSpec("cd", len(first), epochs=ENDLESS, batch=20, tau=2)]
    run = tools.run(hidden=hidden, phases=phases, slots=1, **SHAPE)
    run.feed_rows(grey(1000))
    run.start_worker("large")
    run.wait_for(lambda f: f.replica.chains[0].phase == len(first), 300)
    done = run.follower.ledger.updates
    run.wait_for(lambda f: f.ledger.updates > done + 10, 300)
    found = statistics.median(_sampled(run, "large", LARGE_S))
    parameters = len(run.follower.replica.acc)
    run.close()
    return round(found), parameters


def steady(tools: Tools) -> dict[str, Any]:
    """A worker with four slots that trains and merges as fast as it can, for ``minutes`` after a warm-up."""
    phases = [PhaseSpec("cd", epochs=ENDLESS, batch=100, tau=10, lr=0.005)]
    run = tools.run(hidden=(500,), phases=phases, slots=4, **SHAPE)
    run.feed_rows(grey(8000), shard_rows=250)
    run.start_worker("steady")
    run.wait_for(lambda f: f.ledger.updates > 60, 300)
    seconds = 60 * tools.minutes
    _sampled(run, "steady", WARM_UP_SHARE * seconds)
    before, began = run.follower.ledger.updates, time.monotonic()
    samples = np.array(_sampled(run, "steady", seconds), np.float64)
    minutes = (time.monotonic() - began) / 60
    updates = run.follower.ledger.updates - before
    run.close()
    slope = float(np.polyfit(np.linspace(0, minutes, len(samples)), samples, 1)[0])
    return {
        "minutes": round(minutes, 2),
        "samples": len(samples),
        "updates": updates,
        "smallest_MB": round(samples.min() / 1e6, 1),
        "largest_MB": round(samples.max() / 1e6, 1),
        "max_to_min": round(float(samples.max() / samples.min()), 4),
        "growth": round(slope * minutes / float(samples.min()), 4),
        "bytes_per_minute": round(slope),
        "bytes_per_update": round(slope * minutes / max(1, updates), 1),
    }


def memory(tools: Tools) -> dict[str, Any]:
    """All three. What a worker needs once it trains at all is told from what it needs for each parameter.

    The stack trains its last layer, one of its two largest; a network of one layer is the dearest there is.
    """
    idle_bytes = idle(tools)
    stack_bytes, stacked = large(tools, *STACK)
    large_bytes, parameters = large(tools, 4000)
    larger_bytes, more = large(tools, 8000)
    return {
        "idle_MB": round(idle_bytes / 1e6, 1),
        "stack": [SHAPE["visible"], *STACK],
        "parameters": stacked,
        "bytes_per_parameter": round((stack_bytes - idle_bytes) / stacked, 1),
        "one_layer": {
            "parameters": parameters,
            "bytes_per_parameter": round((large_bytes - idle_bytes) / parameters, 1),
            "bytes_per_further_parameter": round((larger_bytes - large_bytes) / (more - parameters), 1),
        },
        **steady(tools),
    }
