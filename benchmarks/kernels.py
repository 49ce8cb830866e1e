"""Rates of the kernels beside what people use otherwise, on one pinned core.

    python benchmarks/kernels.py [--quick] [--json FILE] [--tiers amx,vnni,avx2]

Every tier runs in a child process of its own, with the variables that force a BLAS to other code taken out (for the
avx2 tier all libraries are held to AVX2, so that the limit is that instruction set's). Within a child all candidates of
a row are measured in interleaved rounds; what is reported is the median. "Limit" = the five float32 matrix products of
one CD-1 step in the installed BLAS. Candidates that are not installed are left out and named.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from kernel_codec import codec

from gossipdbn.kernels.tiers import FORCED

ROOT = Path(__file__).resolve().parent.parent
AVX2_ONLY = {  # everybody else as on such a CPU, too
    "OPENBLAS_CORETYPE": "Haswell",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "ATEN_CPU_CAPABILITY": "avx2",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
}
SHAPES = [(100, 784, 500), (128, 784, 512), (256, 784, 1024), (512, 2000, 2000)]
BLAS_VARIABLES = ("OPENBLAS_CORETYPE", "MKL_DEBUG_CPU_TYPE", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR")
f4 = np.float32
Candidate = Callable[[], object]


def medians(candidates: dict[str, Candidate], rounds: int) -> dict[str, float]:
    """Median seconds of each candidate over interleaved rounds, by the CPU time of this thread."""
    for run in candidates.values():
        run()
    seen: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.thread_time()
            run()
            seen[name].append(time.thread_time() - start)
    return {name: float(np.median(times)) for name, times in seen.items()}


def five_products(b: int, v: int, h: int) -> Candidate:
    rng = np.random.default_rng(0)
    x, y, w = (rng.random(s, f4) for s in ((b, v), (b, h), (v, h)))
    xh, xv, g = np.empty((b, h), f4), np.empty((b, v), f4), np.empty((v, h), f4)

    def run() -> None:
        np.dot(x, w, out=xh)
        np.dot(y, w.T, out=xv)
        np.dot(x, w, out=xh)
        np.dot(x.T, y, out=g)
        np.dot(x.T, y, out=g)

    return run


def numpy_cd1(x: np.ndarray, h: int, *, gaussian: bool = False) -> Candidate:
    """Centred CD-1 with momentum as one would write it in numpy."""
    rng = np.random.default_rng(0)
    n, v = x.shape
    x = x.astype(f4)
    w, dw = rng.normal(0, 0.01, (v, h)).astype(f4), np.zeros((v, h), f4)
    a, b, lam, mu = np.zeros(v, f4), np.zeros(h, f4), np.full(h, 0.5, f4), x.mean(0)

    def run() -> None:
        nonlocal a, b, lam
        h0 = 1 / (1 + np.exp(-(x @ w + b)))
        s = (rng.random(h0.shape, f4) < h0).astype(f4)
        mean = s @ w.T + a
        v1 = (
            mean + rng.standard_normal(mean.shape, f4)
            if gaussian
            else (rng.random(mean.shape, f4) < 1 / (1 + np.exp(-mean))).astype(f4)
        )
        h1 = 1 / (1 + np.exp(-(v1 @ w + b)))
        dh, dv = h0.mean(0) - h1.mean(0), x.mean(0) - v1.mean(0)
        g = (x.T @ h0 - v1.T @ h1) / f4(n) - np.outer(mu, dh) - np.outer(dv, lam)
        np.multiply(dw, f4(0.5), out=dw)
        np.add(dw, f4(0.01) * g, out=dw)
        np.add(w, dw, out=w)
        a, b = a + f4(0.01) * (dv - g @ lam), b + f4(0.01) * (dh - mu @ g)
        lam = lam + f4(0.01) * (h0.mean(0) - lam)

    return run


def sklearn_cd1(x: np.ndarray, h: int) -> Candidate | None:
    if importlib.util.find_spec("sklearn") is None:
        return None
    from sklearn.neural_network import BernoulliRBM

    rbm = BernoulliRBM(h, batch_size=len(x), random_state=0)
    rows = x.astype(f4)
    return lambda: rbm.partial_fit(rows)


def torch_module():
    if importlib.util.find_spec("torch") is None:
        return None
    import torch

    torch.set_num_threads(1)
    return torch


def torch_cd1(x: np.ndarray, h: int) -> Candidate | None:
    torch = torch_module()
    if torch is None:
        return None
    rows = torch.from_numpy(x.astype(f4))
    n, v = x.shape
    w, dw, a, b = torch.randn(v, h) * 0.01, torch.zeros(v, h), torch.zeros(v), torch.zeros(h)

    @torch.no_grad()
    def run() -> None:
        h0 = torch.sigmoid(torch.addmm(b, rows, w))
        v1 = torch.bernoulli(torch.sigmoid(torch.addmm(a, torch.bernoulli(h0), w.T)))
        h1 = torch.sigmoid(torch.addmm(b, v1, w))
        dw.mul_(0.5).add_(rows.T @ h0 - v1.T @ h1, alpha=0.01 / n)
        w.add_(dw)
        a.add_((rows - v1).mean(0), alpha=0.01)
        b.add_((h0 - h1).mean(0), alpha=0.01)

    return run


def ours(
    b: int, v: int, h: int, units: str = "binary", learner: str = "cd", k: int = 1, count: int = 10,
    weight_bits: int = 16,
) -> Candidate:  # fmt: skip
    """A round of the learner, ``count`` minibatches, as the worker runs it."""
    from gossipdbn.models import learners
    from gossipdbn.models.spec import ModelSpec, PhaseSpec

    spec = ModelSpec(v, (h,), units)  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    x = (
        rng.normal(size=(b * count, v)).astype(f4)
        if units == "gaussian"
        else (rng.random((b * count, v)) < 0.2).astype(np.uint8)
    )
    mean = x.mean(0).astype(f4)
    p = learners.initial_parameters(spec, 1, mean)
    phase = PhaseSpec(learner, batch=b, momentum=0.5, lr=0.01, k=k, weight_bits=weight_bits)  # type: ignore[arg-type]
    state = learners.new_state(spec, phase)
    ctx = learners.RoundContext(1, 0, 0, 1, mean, np.full(count, 0.01, f4))
    return lambda: learners.train_round(spec, phase, p, state, x, None, ctx)


def cd1(shape: tuple[int, int, int], rounds: int) -> dict[str, float]:
    b, v, h = shape
    count = 10
    x = (np.random.default_rng(0).random((b, v)) < 0.2).astype(np.uint8)
    candidates = {
        "ours": ours(b, v, h, count=count), "eight_bits": ours(b, v, h, count=count, weight_bits=8),
        "limit": five_products(b, v, h), "numpy": numpy_cd1(x, h),
    }  # fmt: skip
    peers = (("sklearn", sklearn_cd1(x, h)), ("torch", torch_cd1(x, h)))
    candidates |= {name: peer for name, peer in peers if peer is not None}
    t = medians(candidates, rounds)
    t["ours"] /= count
    eight = t.pop("eight_bits") / count
    return {
        "rows_per_s": round(b / t["ours"]),
        "limit_rows_per_s": round(b / t["limit"]),
        "eight_bit_rows_per_s": round(b / eight),
        "eight_bit_of_limit": round(t["limit"] / eight, 2),
    } | {
        ("of_limit" if name == "limit" else f"vs_{name}"): round(s / t["ours"], 2)
        for name, s in t.items()
        if name != "ours"
    }


def variants(rounds: int) -> dict[str, dict[str, float]]:
    """PCD-1 and CD-5 per Gibbs step beside CD-1, and CD-1 of Gaussian rows beside its limit."""
    b, v, h = SHAPES[0]
    t = medians(
        {
            "cd1": ours(b, v, h), "pcd1": ours(b, v, h, learner="pcd"), "cd5": ours(b, v, h, k=5),
            "gaussian": ours(b, v, h, "gaussian", count=4), "limit": five_products(b, v, h),
            "numpy": numpy_cd1(np.random.default_rng(0).random((b, v)), h, gaussian=True),
        },
        rounds,
    )  # fmt: skip
    return {
        "pcd1": {"rows_per_s": round(b * 10 / t["pcd1"]), "of_cd1": round(t["cd1"] / t["pcd1"], 3)},
        "cd5": {"rows_per_s": round(b * 10 / t["cd5"]), "of_cd1_per_gibbs_step": round(5 * t["cd1"] / t["cd5"], 3)},
        "gaussian_cd1": {
            "rows_per_s": round(b * 4 / t["gaussian"]), "of_limit": round(4 * t["limit"] / t["gaussian"], 2),
            "vs_numpy": round(4 * t["numpy"] / t["gaussian"], 2),
        },
    }  # fmt: skip


def backprop(rounds: int) -> dict[str, float]:
    """784-500-500-10, 100 rows a minibatch, gradient descent with momentum."""
    from gossipdbn.models import learners
    from gossipdbn.models.spec import ModelSpec, PhaseSpec

    sizes, b, count = (784, 500, 500, 10), 100, 5
    spec = ModelSpec(784, (500, 500), "grey", 10)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 128, (b * count, 784)).astype(np.uint8), rng.integers(0, 10, b * count).astype(np.int32)
    mean = (x.mean(0) / 127).astype(f4)
    p = learners.initial_parameters(spec, 1, mean)
    phase = PhaseSpec("backprop", batch=b, momentum=0.9, lr=0.1)
    state = learners.new_state(spec, phase)
    ctx = learners.RoundContext(1, 0, 0, 1, mean, np.full(count, 0.1, f4))
    candidates: dict[str, Candidate] = {"ours": lambda: learners.train_round(spec, phase, p, state, x, y, ctx)}
    weights = [rng.normal(0, 0.05, s).astype(f4) for s in pairwise(sizes)]
    speeds = [np.zeros_like(w) for w in weights]
    rows, hot = (x[:b] / 127).astype(f4), np.eye(10, dtype=f4)[y[:b]]

    def plain() -> None:
        acts = [rows]
        for w in weights[:-1]:
            acts.append(1 / (1 + np.exp(-(acts[-1] @ w))))
        z = acts[-1] @ weights[-1]
        e = np.exp(z - z.max(1, keepdims=True))
        d = (e / e.sum(1, keepdims=True) - hot) / f4(b)
        for n in range(2, -1, -1):
            g, below = acts[n].T @ d, d @ weights[n].T
            speeds[n] *= f4(0.9)
            speeds[n] += g
            weights[n] -= f4(0.1) * speeds[n]
            d = below * acts[n] * (1 - acts[n])

    candidates["numpy"] = plain
    torch = torch_module()
    if torch is not None:
        net = torch.nn.Sequential(torch.nn.Linear(784, 500), torch.nn.Sigmoid(), torch.nn.Linear(500, 500),
                                  torch.nn.Sigmoid(), torch.nn.Linear(500, 10))  # fmt: skip
        sgd = torch.optim.SGD(net.parameters(), 0.1, 0.9)
        tx, ty = torch.from_numpy(rows), torch.from_numpy(y[:b].astype(np.int64))

        def step() -> None:
            sgd.zero_grad()
            torch.nn.functional.cross_entropy(net(tx), ty).backward()
            sgd.step()

        candidates["torch"] = step
    t = medians(candidates, rounds)
    t["ours"] /= count
    return {"rows_per_s": round(b / t["ours"])} | {
        f"vs_{n}": round(s / t["ours"], 2) for n, s in t.items() if n != "ours"
    }


def transform(rounds: int) -> dict[str, float]:
    from gossipdbn.models import learners, reading
    from gossipdbn.models.spec import ModelSpec

    b, v, h = 1000, 784, 500
    spec = ModelSpec(v, (h,), "binary")
    x = (np.random.default_rng(0).random((b, v)) < 0.2).astype(np.uint8)
    p = learners.initial_parameters(spec, 1, x.mean(0).astype(f4))
    rows, w, c = x.astype(f4), np.random.default_rng(0).random((v, h), f4), np.zeros(h, f4)
    candidates: dict[str, Candidate] = {
        "ours": lambda: reading.transform(spec, p, x),
        "numpy": lambda: 1 / (1 + np.exp(-(rows @ w + c))),
    }
    if importlib.util.find_spec("sklearn") is not None:
        from sklearn.neural_network import BernoulliRBM

        rbm = BernoulliRBM(h, n_iter=1, batch_size=100).fit(rows)
        candidates["sklearn"] = lambda: rbm.transform(rows)
    t = medians(candidates, rounds)
    return {"rows_per_s": round(b / t["ours"])} | {
        f"vs_{n}": round(s / t["ours"], 2) for n, s in t.items() if n != "ours"
    }


def machine() -> dict[str, object]:
    from gossipdbn.kernels import tiers

    report: dict[str, object] = {"tier": tiers.TIER, "cpu": platform.processor() or platform.machine()}
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        report["cpu"], report["cpus"] = names[0], len(names)
    report["features"] = sorted(f for f in tiers.FEATURES if f.startswith(("avx", "amx", "fma")))
    report["numpy"], report["load_average"] = np.__version__, list(os.getloadavg())
    if importlib.util.find_spec("threadpoolctl") is not None:
        import threadpoolctl

        report["blas"] = [
            {k: i.get(k) for k in ("internal_api", "version", "architecture")} for i in threadpoolctl.threadpool_info()
        ]
    report["not_installed"] = [n for n in ("sklearn", "torch") if importlib.util.find_spec(n) is None]
    return report


def measure(quick: bool) -> dict[str, object]:
    """All rows of one tier, in this process."""
    rounds = 9 if quick else 41
    shapes = SHAPES[:2] if quick else SHAPES
    return {
        "machine": machine(),
        "cd1": {"x".join(map(str, s)): cd1(s, rounds if s[1] < 1000 else max(rounds // 6, 3)) for s in shapes},
        **variants(max(rounds // 2, 5)),
        "backprop": backprop(max(rounds // 2, 5)),
        "transform": transform(max(rounds // 2, 5)),
        "codec": codec(lambda candidates: medians(candidates, rounds), ours(100, 784, 500, count=10), 10),
    }


def clean_environment() -> dict[str, str]:
    """This one without the variables that force a BLAS to other code; one thread for everybody."""
    env = {k: v for k, v in os.environ.items() if k not in BLAS_VARIABLES}
    return env | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def child(tier: str, quick: bool, cpu: int | None, extra: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    env = clean_environment()
    if tier in FORCED:
        env |= FORCED[tier]
        if tier in ("avx2", "avxvnni"):
            env |= AVX2_ONLY
    args = [sys.executable, __file__, "--child", *(["--quick"] if quick else []), *extra]
    if cpu is not None:
        args += ["--cpu", str(cpu)]
    return subprocess.Popen(args, env=env, stdout=subprocess.PIPE, text=True)


def two_processes(cpus: list[int]) -> dict[str, float]:
    """Rows per second of one and of two one-thread processes, by wall time."""
    rates = []
    for group in (cpus[:1], cpus[:2]):
        started = [child("own", True, cpu, ("--steady",)) for cpu in group]
        rates.append(sum(float(p.communicate()[0]) for p in started))
    return {
        "one_rows_per_s": round(rates[0]),
        "two_rows_per_s": round(rates[1]),
        "ratio": round(rates[1] / rates[0], 2),
    }


def steady(seconds: float = 4.0) -> float:
    run = ours(*SHAPES[0])
    run()
    start, rows = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        run()
        rows += 1000
    return rows / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and shapes")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--tiers", default="own", help="comma-separated: own, " + ", ".join(FORCED))
    parser.add_argument("--cpu", type=int)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steady", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    if args.child:
        os.sched_setaffinity(0, {args.cpu if args.cpu is not None else cpus[-1]})
        print(steady() if args.steady else json.dumps(measure(args.quick)))
        return
    results = []
    for tier in args.tiers.split(","):
        text = child(tier, args.quick, args.cpu).communicate()[0]
        results.append(json.loads(text))
        print(json.dumps(results[-1], indent=1), flush=True)
    report: dict[str, object] = {"tiers": results}
    if len(cpus) > 1 and not args.quick:
        report["two_processes"] = two_processes(cpus)
        print(json.dumps(report["two_processes"]))
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
