"""How well models learn: one thread, fixed seeds, against bars. ``python benchmarks/learning.py --help``.

Likelihoods are in nats per test row. Never compare those of thresholded, once-sampled and per-epoch-sampled data.
"""

from __future__ import annotations

import argparse
import gzip
import json
import platform
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gossipdbn.models import likelihood as lk
from gossipdbn.models.dbn import train, visible_mean
from gossipdbn.models.reading import predict_proba
from gossipdbn.models.scores import anomaly_scores
from gossipdbn.models.spec import ModelSpec, PhaseSpec

HERE = Path(__file__).resolve().parent
MNIST = HERE.parent / "examples" / "data" / "mnist"
U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Result:
    """One measured task; ``met`` compares value and bar in the direction of the measure."""

    task: str
    measure: str
    value: float
    bar: float
    met: bool
    seconds: float
    seed: int
    details: dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """What a task gets: seed, whether the short form is wanted, where data sets lie that are not kept here."""

    seed: int = 1
    quick: bool = False
    data: Path | None = None


class Missing(Exception):
    """A data set is not there; the task is skipped with this reason."""


# --- data -------------------------------------------------------------------------------------------------------


def idx(name: str) -> U8:
    """An idx file of bytes."""
    path = MNIST / name
    if not path.exists():
        raise Missing(f"{path} is absent")
    with gzip.open(path) as f:
        raw = f.read()
    dims = raw[3]
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * dims).reshape(shape[0], -1)


def binary_table(folder: Path | None, name: str) -> tuple[U8, U8]:
    """Train and test rows of a data set of comma-separated 0/1 with fixed splits."""
    parts = []
    for part in ("train", "test"):
        found = [f for base in (HERE / "data", folder, folder and folder / name) if base
                 for f in [base / f"{name}.{part}.data.gz"] if f.exists()]  # fmt: skip
        if not found:
            raise Missing(f"{name}.{part}.data.gz is not in benchmarks/data nor in --data")
        with gzip.open(found[0], "rt") as f:
            parts.append(np.loadtxt(f, delimiter=",", dtype=np.uint8))
    return parts[0], parts[1]


def bars_and_stripes(size: int) -> U8:
    """The 2^(size+1) - 2 different images of horizontal bars or vertical stripes (MacKay 2003): log 30 nats for 4x4."""
    lines = ((np.arange(2**size)[:, None] >> np.arange(size)) & 1).astype(np.uint8)
    bars = np.repeat(lines[:, :, None], size, axis=2)
    return np.unique(np.concatenate((bars, bars.transpose(0, 2, 1))).reshape(-1, size * size), axis=0)


def auc(score: NDArray[Any], anomaly: NDArray[Any]) -> float:
    """Area under the ROC curve, ties counted half."""
    order = np.argsort(score, kind="stable")
    sorted_scores = score[order]
    first = np.searchsorted(sorted_scores, sorted_scores, "left")
    last = np.searchsorted(sorted_scores, sorted_scores, "right")
    ranks = np.empty(len(score))
    ranks[order] = (first + last + 1) / 2
    positive = anomaly.astype(bool)
    n, m = positive.sum(), (~positive).sum()
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))


# --- tasks ------------------------------------------------------------------------------------------------------


def density(rows: U8, test: U8, hidden: int, phases: tuple[PhaseSpec, ...], seed: int) -> tuple[float, dict[str, Any]]:
    """Exact mean log-likelihood of binary test rows after training on rows."""
    spec = ModelSpec(rows.shape[1], (hidden,), "binary")
    theta = train(spec, phases, rows, run_key=seed)
    rbm = lk.rbm_of(spec, theta)
    log_z = lk.log_partition(rbm).value
    fit = {"train": lk.log_likelihood(rbm, rows.astype(np.float64), log_z), "log_z": log_z}
    return lk.log_likelihood(rbm, test.astype(np.float64), log_z), fit


def task_bars_and_stripes(s: Settings) -> tuple[float, dict[str, Any]]:
    rows = bars_and_stripes(4)
    epochs, lr = (1500, 0.2) if s.quick else (20_000, 0.05)
    phase = PhaseSpec("pcd", epochs=epochs, batch=30, k=5, lr=lr, lr_final=0.0, momentum=0.0)
    return density(rows, rows, 16, (phase,), s.seed)


def task_digits(s: Settings) -> tuple[float, dict[str, Any]]:
    from sklearn.datasets import load_digits

    rows = (load_digits().data >= 8).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, test = rows[order[:1437]], rows[order[1437:]]
    phase = PhaseSpec("pcd", epochs=60 if s.quick else 300, batch=20, lr=0.1, lr_final=0.0, momentum=0.0)
    return density(rows, test, 16, (phase,), s.seed)


def task_nltcs(s: Settings) -> tuple[float, dict[str, Any]]:
    rows, test = binary_table(s.data, "nltcs")
    phase = PhaseSpec("pcd", epochs=10 if s.quick else 200, k=5, lr=0.2, lr_final=0.0, momentum=0.0)
    return density(rows, test, 64, (phase,), s.seed)


def task_mushrooms(s: Settings) -> tuple[float, dict[str, Any]]:
    rows, test = binary_table(s.data, "mushrooms")
    phase = PhaseSpec("pcd", epochs=50 if s.quick else 1200, batch=20, k=5, lr=0.05, lr_final=0.0, momentum=0.0)
    return density(rows, test, 12 if s.quick else 23, (phase,), s.seed)


def task_mnist_16(s: Settings) -> tuple[float, dict[str, Any]]:
    rows, test = ((idx(f"{p}-images-idx3-ubyte.gz") > 127).astype(np.uint8) for p in ("train", "t10k"))
    phase = PhaseSpec("pcd", epochs=3 if s.quick else 50, lr=0.01, lr_final=0.01, momentum=0.0)
    return density(rows, test, 16, (phase,), s.seed)


def task_mnist_500(s: Settings) -> tuple[float, dict[str, Any]]:
    """PCD-1 on stochastically binarised images, a fresh draw per epoch; annealed from both sides."""
    spec = ModelSpec(784, (500,), "binary")
    rng = np.random.default_rng(s.seed)
    grey, test_grey = idx("train-images-idx3-ubyte.gz"), idx("t10k-images-idx3-ubyte.gz")
    test = (rng.random(test_grey.shape) * 255 < test_grey).astype(np.float64)
    epochs = 3 if s.quick else 100
    theta = None
    mean = (grey.mean(0) / 255).astype(np.float32)
    for epoch in range(epochs):
        rows = (rng.random(grey.shape, np.float32) * 255 < grey).astype(np.uint8)
        lr = 0.05 * (1 - epoch / epochs), 0.05 * (1 - (epoch + 1) / epochs)
        phase = PhaseSpec("pcd", epochs=1, lr=lr[0], lr_final=lr[1], momentum=0.0)
        theta = train(spec, (phase,), rows, run_key=s.seed + epoch, mean=mean, parameters=theta)
    assert theta is not None
    rbm = lk.rbm_of(spec, theta)
    betas = lk.temperatures(50, 400, 1000) if s.quick else lk.temperatures()
    forward = lk.annealed(rbm, mean.astype(np.float64), betas=betas, dtype=np.float32)
    reverse = lk.annealed_reverse(rbm, mean.astype(np.float64), test[:100], betas=betas, dtype=np.float32)
    free = lk.log_likelihood(rbm, test, 0.0)
    details = {
        "log_z_forward": asdict(forward),
        "log_z_reverse": asdict(reverse),
        "test_by_reverse": free - reverse.value,
    }
    return free - forward.value, details


def task_mnist_dbn(s: Settings) -> tuple[float, dict[str, Any]]:
    rows, test = ((idx(f"{p}-images-idx3-ubyte.gz") >> 1) for p in ("train", "t10k"))
    labels, truth = (idx(f"{p}-labels-idx1-ubyte.gz").ravel().astype(np.int32) for p in ("train", "t10k"))
    spec = ModelSpec(784, (500, 500), "grey", 10)
    epochs, tuning = (1, 3) if s.quick else (10, 40)
    phases = (
        PhaseSpec("cd", 0, epochs),
        PhaseSpec("cd", 1, epochs),
        PhaseSpec("backprop", epochs=tuning, batch=50, lr=0.1, lr_final=0.0, momentum=0.9),
    )
    theta = train(spec, phases, rows, labels, run_key=s.seed)
    wrong = np.argmax(predict_proba(spec, theta, test), axis=1) != truth
    return 100 * float(wrong.mean()), {"wrong": int(wrong.sum())}


def anomaly_task(name: str) -> Callable[[Settings], tuple[float, dict[str, Any]]]:
    """A Gaussian RBM fitted to all rows without their labels; area under the ROC curve of the free energy."""

    def task(s: Settings) -> tuple[float, dict[str, Any]]:
        with np.load(HERE / "data" / f"{name}.npz", allow_pickle=False) as z:
            x, anomaly = z["X"].astype(np.float64), z["y"].ravel()
        scale = x.std(0)
        rows = ((x - x.mean(0)) / np.where(scale > 0, scale, 1)).astype(np.float32)
        # One setting for all sets: about a thousand minibatches, then anomalies are not yet learned as well.
        spec = ModelSpec(rows.shape[1], (32,), "gaussian")
        epochs = max(1, (50_000 if s.quick else 100_000) // len(rows))
        phase = PhaseSpec("cd", epochs=epochs, lr=0.003, lr_final=0.0, momentum=0.5)
        theta = train(spec, (phase,), rows, run_key=s.seed, mean=visible_mean(spec, rows))
        scores = anomaly_scores(spec, theta, rows)
        details = {"auc_reconstruction": auc(scores.reconstruction, anomaly), "rows": len(rows), "epochs": epochs}
        return auc(scores.free_energy, anomaly), details

    return task


LIKELIHOOD, ERROR, AUC = "log-likelihood", "error %", "AUC"

TASKS: dict[str, tuple[str, float, Callable[[Settings], tuple[float, dict[str, Any]]]]] = {
    "bars-and-stripes": (LIKELIHOOD, -3.70, task_bars_and_stripes),
    "digits": (LIKELIHOOD, -18.6, task_digits),
    "nltcs": (LIKELIHOOD, -6.02, task_nltcs),
    "mushrooms": (LIKELIHOOD, -14.9, task_mushrooms),
    "mnist-16": (LIKELIHOOD, -142.3, task_mnist_16),
    "mnist-500": (LIKELIHOOD, -87.9, task_mnist_500),
    "mnist-dbn": (ERROR, 1.41, task_mnist_dbn),
    "cardio": (AUC, 0.937, anomaly_task("cardio")),
    "thyroid": (AUC, 0.949, anomaly_task("thyroid")),
    "satimage-2": (AUC, 0.998, anomaly_task("satimage-2")),
    "shuttle": (AUC, 0.991, anomaly_task("shuttle")),
    "mammography": (AUC, 0.871, anomaly_task("mammography")),
    "celeba": (AUC, 0.771, anomaly_task("celeba")),
}


def measure(task: str, settings: Settings) -> Result:
    """Run one task; raises Missing when its data set is not there."""
    kind, bar, run = TASKS[task]
    begin = time.perf_counter()
    value, details = run(settings)
    seconds = time.perf_counter() - begin
    # Bars are given to the last digit shown, so a value that rounds to its bar meets it.
    digits = len(str(bar).rpartition(".")[2])
    shown = round(value, digits)
    met = shown <= bar if kind == ERROR else shown >= bar
    return Result(task, kind, value, bar, met, round(seconds, 2), settings.seed, details)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"which of {', '.join(TASKS)} (default: all)")
    parser.add_argument(
        "--quick", action="store_true", help="short training: shows that tasks run, not what they reach"
    )
    parser.add_argument("--seeds", type=int, default=1, help="how many seeds, from 1 on")
    parser.add_argument("--data", type=Path, help="folder with data sets that are not kept in benchmarks/data")
    parser.add_argument("--json", type=Path, help="where to write the results")
    args = parser.parse_args()
    unknown = set(args.tasks.split(",")) - set(TASKS)
    if unknown:
        parser.error(f"unknown tasks: {', '.join(sorted(unknown))}")
    results: list[Result] = []
    skipped: dict[str, str] = {}
    for task in args.tasks.split(","):
        for seed in range(1, args.seeds + 1):
            try:
                r = measure(task, Settings(seed, args.quick, args.data))
            except Missing as e:
                skipped[task] = str(e)
                print(f"{task:18} skipped: {e}")
                break
            results.append(r)
            verdict = "" if args.quick else "met" if r.met else "NOT MET"
            print(
                f"{task:18} {r.measure:15} {r.value:9.4f}   bar {r.bar:8.3f}  {verdict:8} {r.seconds:7.1f} s",
                flush=True,
            )
    if args.json:
        from gossipdbn.kernels.version import NUMERICS

        machine = {"machine": platform.machine(), "system": platform.system(), "python": platform.python_version()}
        facts = {"machine": machine, "numerics": NUMERICS, "quick": args.quick, "skipped": skipped}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**facts, "results": [asdict(r) for r in results]}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
