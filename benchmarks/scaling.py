"""Scaling curves of gossip from costs measured here, beside two published ones.

    python benchmarks/scaling.py [--json FILE] [--figure FILE] [--quick]

``gossipdbn.sim.costs`` measures a round of centred CD-1 on 784x500, publishing its update, merging one, and merging a
relay's combination of 32, on one thread; ``gossipdbn.sim.scaling`` then runs 1 .. 1000 workers on virtual time.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict, replace
from pathlib import Path

from gossipdbn.sim.costs import measure
from gossipdbn.sim.scaling import Point, curve

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000)
PUBLISHED = {"an RBM, 64 nodes": (64, 25.0), "H2O, 8 nodes": (8, 6.9)}


def line(tau: int, p: Point) -> str:
    how = f"{p.relays} relay" if p.relays else "broadcast"
    return (
        f"tau {tau:2d} {p.slots:5d} workers, {how:10s} {p.rows_per_s:12,.0f} rows/s, x{p.speed_up:6.1f} "
        f"({100 * p.efficiency:5.1f} %), stale {p.stale_rounds:5.2f} rounds, "
        f"{p.bytes_per_worker_s / 1e6:6.1f} MB/s each; {p.limit}"
    )


def figure(path: Path, curves: dict[str, list[Point]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, (left, right) = plt.subplots(1, 2, figsize=(11, 4.4))
    for name, points in curves.items():
        for relays, style in ((False, "-o"), (True, "--s")):
            chosen = [p for p in points if bool(p.relays) == relays]
            label = f"gossipdbn, {name}" + (", relays" if relays else "")
            left.plot([p.slots for p in chosen], [p.speed_up for p in chosen], style, ms=3, label=label)
            right.plot([p.slots for p in chosen], [p.stale_rounds for p in chosen], style, ms=3, label=label)
    left.plot([1, 1000], [1, 1000], ":", color="grey", label="ideal")
    for name, (n, s) in PUBLISHED.items():
        left.plot([n], [s], "*", ms=11, label=f"{name} (published): {s:g}x")
    left.set(xscale="log", yscale="log", xlabel="workers", ylabel="speed-up (rows/s against one worker)")
    right.set(
        xscale="log", yscale="log", xlabel="workers", ylabel="staleness of a round's start (rounds of every slot)"
    )
    left.legend(fontsize=7)
    fig.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    fig.savefig(path)


def main() -> None:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--json", type=Path, default=Path("benchmarks/results/scaling.json"))
    ap.add_argument("--figure", type=Path, default=Path("docs/figures/scaling.svg"))
    ap.add_argument("--quick", action="store_true")
    a = ap.parse_args()
    sizes, times = (SIZES[:8], 5) if a.quick else (SIZES, 40)
    curves, results = {}, {}
    for tau in (10, 50):
        costs = measure(tau, times)
        curves[f"tau {tau}"] = points = curve(costs, sizes)
        free = curve(replace(costs, link_bytes_per_s=1.25e9, broker_bytes_per_s=1e12), sizes[-1:])
        results[f"tau {tau}"] = {
            "costs": asdict(costs),
            "points": [asdict(p) for p in points],
            "10 Gbit/s links, brokers without limit": [asdict(p) for p in free],
        }
        for p in points:
            print(line(tau, p))
    machine = {"processor": platform.processor() or platform.machine(), "python": platform.python_version()}
    a.json.parent.mkdir(parents=True, exist_ok=True)
    a.json.write_text(json.dumps({"machine": machine, **results}, indent=1) + "\n")
    figure(a.figure, curves)


if __name__ == "__main__":
    main()
