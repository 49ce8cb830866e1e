"""Many seeds: run, count, shrink what fails."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from gossipdbn.sim.checkers import Violation
from gossipdbn.sim.options import Options, draw, without
from gossipdbn.sim.world import World

__all__ = ["Failure", "Result", "describe", "run_one", "run_seeds", "shrink", "trace"]


@dataclass(frozen=True, slots=True)
class Failure:
    """A seed that broke an invariant: which, and how few faults still break it."""

    seed: int
    violation: str
    faults: tuple[str, ...]


@dataclass(slots=True)
class Result:
    """What a set of seeds did. ``facts`` is the JSON form."""

    seeds: int = 0
    events: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    updates: int = 0
    snapshots: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    failures: list[Failure] = field(default_factory=list)

    def facts(self) -> dict[str, object]:
        """JSON-ready: seeds, violations, events, seconds, faults by kind, failing_seeds and more."""
        return {
            "seeds": self.seeds,
            "violations": len(self.failures),
            "events": self.events,
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "schedules_per_cpu_minute": round(60 * self.seeds / self.cpu_seconds) if self.cpu_seconds else 0,
            "updates": self.updates,
            "snapshots": self.snapshots,
            "faults": dict(sorted(self.faults.items())),
            "failing_seeds": [f.seed for f in self.failures],
            "failures": [{"seed": f.seed, "violation": f.violation, "faults": list(f.faults)} for f in self.failures],
        }


def run_one(options: Options, trace: bool = False) -> tuple[World, str]:
    """Run a world; returns it and the violated invariant, or ''. Any error that escapes the core is one as well."""
    world = World(options, trace)
    try:
        world.run()
    except Violation as e:
        return world, str(e)
    except Exception as e:  # noqa: BLE001 - whatever it is, the seed must be reported, with where it came from
        where = traceback.extract_tb(e.__traceback__)[-1]
        return world, f"{type(e).__name__} in {Path(where.filename).name}:{where.lineno}: {e}"
    return world, ""


def shrink(options: Options, tries: int = 200) -> Options:
    """Leave out faults, one after another, while some invariant still breaks."""
    index = len(options.faults) - 1
    while index >= 0 and tries > 0:
        tries -= 1
        fewer = without(options, index)
        if run_one(fewer)[1]:
            options = fewer
        index -= 1
    return options


def run_seeds(seeds: Iterable[int], stop_at: int = 10, shrink_failures: bool = True) -> Result:
    """Run the schedules of these seeds until ``stop_at`` of them fail."""
    result, began, cpu = Result(), time.perf_counter(), time.process_time()
    for seed in seeds:
        options = draw(seed)
        world, violation = run_one(options)
        result.seeds += 1
        result.events += world.events
        result.updates += world.checker.accepted
        result.snapshots += world.checker.snapshots
        result.faults += world.counted
        if violation:
            least = shrink(options) if shrink_failures else options
            faults = tuple(f"{f.at_s:.3f} {f.kind}" for f in least.faults)
            result.failures.append(Failure(seed, violation, faults))
            if len(result.failures) >= stop_at:
                break
    result.seconds, result.cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return result


def trace(seed: int, least: bool = False) -> list[str]:
    """The transcript of a seed's schedule (with the fewest faults that still break an invariant, if ``least``)."""
    options = draw(seed)
    return describe(shrink(options) if least else options)


def describe(options: Options) -> list[str]:
    """Run a schedule and tell what happened, line by line."""
    world, violation = run_one(options, trace=True)
    head = (
        f"seed {options.seed}: {options.slots} slots, {options.workers} workers, rows {list(options.rows)}, "
        f"phases {[(p.learner, p.epochs, p.batch * p.tau) for p in options.phases]}, codec {options.codec}, "
        f"window {options.pending}, gate {options.gate}, snapshots every {options.snapshot_every_s} s"
    )
    tail = [f"VIOLATION: {violation}" if violation else f"ends well after {world.events} events"]
    return [head, *world.transcript, *tail]
