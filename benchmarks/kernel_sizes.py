"""Rows per second of CD-1 over layer size, for every peer: the plot of this folder's README.

    cd benchmarks/results && python ../kernel_sizes.py --json kernel_sizes.json --figure kernel_sizes.png

One pinned core, minibatches of 100 rows of 784 visibles, centring and momentum on (ours and numpy), interleaved
rounds, medians. ``limit`` is what five float32 matrix products of the installed BLAS alone would allow. The measuring
happens in a child process without the variables that force a BLAS to other code. Peers not installed are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))
import kernels as bench

BATCH, VISIBLE = 100, 784
HIDDEN = (64, 128, 256, 500, 1000, 2000)
LOOKS = {
    "gossipdbn": ("#1b6ca8", "-", "o"),
    "gossipdbn, 8-bit weights": ("#1b6ca8", "--", "o"),
    "numpy": ("#c8553d", "-", "s"),
    "torch": ("#e2a72e", "-", "^"),
    "scikit-learn": ("#588157", "-", "v"),
    "limit of float32 BLAS": ("#888888", ":", ""),
}


def one_size(hidden: int, rounds: int) -> dict[str, int]:
    """Rows per second of every candidate."""
    x = (np.random.default_rng(0).random((BATCH, VISIBLE)) < 0.2).astype(np.uint8)
    count = 10 if hidden <= 1000 else 5
    candidates: dict[str, bench.Candidate | None] = {
        "gossipdbn": bench.ours(BATCH, VISIBLE, hidden, count=count),
        "gossipdbn, 8-bit weights": bench.ours(BATCH, VISIBLE, hidden, count=count, weight_bits=8),
        "numpy": bench.numpy_cd1(x, hidden),
        "torch": bench.torch_cd1(x, hidden),
        "scikit-learn": bench.sklearn_cd1(x, hidden),
        "limit of float32 BLAS": bench.five_products(BATCH, VISIBLE, hidden),
    }
    t = bench.medians({name: c for name, c in candidates.items() if c is not None}, rounds)
    return {n: round(BATCH * (count if n.startswith("gossipdbn") else 1) / s) for n, s in t.items()}


def draw(sizes: dict[str, dict[str, int]], machine: dict[str, object], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(7.5, 4.6), layout="constrained")
    hidden = [int(h) for h in sizes]
    for name, (colour, line, mark) in LOOKS.items():
        rates = [sizes[str(h)].get(name) for h in hidden]
        if all(rates):
            ax.plot(hidden, rates, line, color=colour, marker=mark, label=name)
    ax.set(xscale="log", yscale="log", xlabel="hidden units", ylabel="rows per second, one core",
           title=f"CD-1, {BATCH} rows of {VISIBLE} visibles: {machine['cpu']}, tier {machine['tier']}")  # fmt: skip
    ax.set_xticks(hidden, [str(h) for h in hidden])
    ax.minorticks_off()
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    fig.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figure", type=Path, help="PNG to draw (needs matplotlib)")
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--from-json", type=Path, help="draw this earlier measurement instead of taking one")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        sizes = {str(h): one_size(h, args.rounds) for h in HIDDEN}
        print(json.dumps({"machine": bench.machine(), "rows_per_s": sizes}))
        return
    if args.from_json:
        report = json.loads(args.from_json.read_text())
    else:
        command = [sys.executable, __file__, "--child", "--rounds", str(args.rounds)]
        report = json.loads(
            subprocess.run(command, env=bench.clean_environment(), stdout=subprocess.PIPE, check=True).stdout
        )
    for h, rates in report["rows_per_s"].items():
        print(f"{h:>5} hidden  " + "  ".join(f"{name} {rate:,}" for name, rate in rates.items()))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.figure:
        draw(report["rows_per_s"], report["machine"], args.figure)


if __name__ == "__main__":
    main()
