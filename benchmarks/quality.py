"""Does training in integers cost quality? The same learning in float64 beside it, over several seeds.

``python benchmarks/quality.py --json benchmarks/results/quality.json`` (minutes). Both sides train centred CD-1 with
momentum on the same binary MNIST rows, then fine-tune by backprop; each seed draws its own weights, order and samples.
The float64 side is plain numpy and numpy's generator; both are judged by the same float64 code. A measure is met when
the means lie within one standard deviation over seeds (the pooled one).
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))
from learning import idx

from gossipdbn.kernels.tiers import TIER
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models import likelihood as lk
from gossipdbn.models.dbn import train
from gossipdbn.models.reading import predict_proba
from gossipdbn.models.spec import ModelSpec, PhaseSpec

F64 = NDArray[np.float64]
BATCH, RATE, MOMENTUM = 100, 0.05, 0.5
TUNE_BATCH, TUNE_RATE, TUNE_MOMENTUM = 50, 0.1, 0.9
MEASURES = ("reconstruction_error", "pseudo_log_likelihood", "annealed_log_likelihood", "fine_tuned_error_percent")


class Data:
    """Binary MNIST: the first rows of the training set, all test rows; likelihoods are taken on 2,000 of these."""

    def __init__(self, rows: int) -> None:
        self.x = (idx("train-images-idx3-ubyte.gz")[:rows] > 127).astype(np.uint8)
        self.y = idx("train-labels-idx1-ubyte.gz").ravel()[:rows].astype(np.int32)
        self.test = (idx("t10k-images-idx3-ubyte.gz") > 127).astype(np.uint8)
        self.truth = idx("t10k-labels-idx1-ubyte.gz").ravel()
        self.mean = self.x.mean(0)


def sigmoid(x: F64) -> F64:
    return np.asarray(1 / (1 + np.exp(-x)))


def reference_rbm(d: Data, hidden: int, epochs: int, rng: np.random.Generator) -> lk.Rbm:
    """Centred CD-1 (Melchior, Fischer and Wiskott, JMLR 17:99, 2016) in float64."""
    visible = d.x.shape[1]
    w, speed = rng.normal(0, 0.01, (visible, hidden)), np.zeros((visible, hidden))
    p = np.clip(d.mean, 0.001, 0.999)
    a, b = np.log(p / (1 - p)), np.zeros(hidden)
    speed_a, speed_b, lam = np.zeros(visible), np.zeros(hidden), np.full(hidden, 0.5)
    for epoch in range(epochs):
        order = rng.permutation(len(d.x)) if epoch else np.arange(len(d.x))  # as a run: the first pass in given order
        for first in range(0, len(order), BATCH):
            v0 = d.x[order[first : first + BATCH]].astype(np.float64)
            h0 = sigmoid(v0 @ w + b)
            s = (rng.random(h0.shape) < h0).astype(np.float64)
            v1 = (rng.random(v0.shape) < sigmoid(s @ w.T + a)).astype(np.float64)
            h1 = sigmoid(v1 @ w + b)
            dh, dv = (h0 - h1).mean(0), (v0 - v1).mean(0)
            g = (v0.T @ h0 - v1.T @ h1) / len(v0) - np.outer(d.mean, dh) - np.outer(dv, lam)
            speed = MOMENTUM * speed + RATE * g
            speed_a = MOMENTUM * speed_a + RATE * (dv - g @ lam)
            speed_b = MOMENTUM * speed_b + RATE * (dh - d.mean @ g)
            w, a, b = w + speed, a + speed_a, b + speed_b
            lam += 0.01 * (h0.mean(0) - lam)
    return lk.Rbm(w, a, b, np.zeros(visible, bool))


def reference_error(d: Data, rbm: lk.Rbm, epochs: int, rng: np.random.Generator) -> float:
    """Test error in percent after backprop of sigmoid units with a softmax head, in float64."""
    classes = int(d.y.max()) + 1
    weights = [rbm.weights.copy(), rng.normal(0, 0.01, (rbm.weights.shape[1], classes))]
    biases = [rbm.hidden_bias.copy(), np.zeros(classes)]
    speeds = [np.zeros_like(x) for x in (*weights, *biases)]
    steps = epochs * -(-len(d.x) // TUNE_BATCH)
    step = 0
    for _ in range(epochs):
        order = rng.permutation(len(d.x))
        for first in range(0, len(order), TUNE_BATCH):
            pick = order[first : first + TUNE_BATCH]
            x = d.x[pick].astype(np.float64)
            h = sigmoid(x @ weights[0] + biases[0])
            z = h @ weights[1] + biases[1]
            e = np.exp(z - z.max(1, keepdims=True))
            delta = (e / e.sum(1, keepdims=True) - np.eye(classes)[d.y[pick]]) / len(x)
            below = delta @ weights[1].T * h * (1 - h)
            gradients = [x.T @ below, h.T @ delta, below.sum(0), delta.sum(0)]
            rate = TUNE_RATE * (1 - step / steps)
            for value, speed, g in zip((*weights, *biases), speeds, gradients, strict=True):
                speed *= TUNE_MOMENTUM
                speed -= rate * g
                value += speed
            step += 1
    z = sigmoid(d.test @ weights[0] + biases[0]) @ weights[1] + biases[1]
    return 100 * float((z.argmax(1) != d.truth).mean())


def judged(d: Data, rbm: lk.Rbm, quick: bool) -> dict[str, float]:
    """Reconstruction and likelihoods of test rows, in float64, the same for both sides."""
    rows = d.test[:2000].astype(np.float64)
    p = sigmoid(rows @ rbm.weights + rbm.hidden_bias)
    back = sigmoid(p @ rbm.weights.T + rbm.visible_bias)
    betas = lk.temperatures(20, 80, 200) if quick else lk.temperatures(100, 800, 2000)
    log_z = lk.annealed(rbm, d.mean, betas=betas, seed=1, dtype=np.float32)
    return {
        "reconstruction_error": float(np.square(rows - back).sum(1).mean()),
        "pseudo_log_likelihood": lk.pseudo_log_likelihood(rbm, rows, bits=60, seed=1),
        "annealed_log_likelihood": lk.log_likelihood(rbm, rows, log_z.value),
    }


def ours(d: Data, hidden: int, epochs: int, tuning: int, seed: int, quick: bool) -> dict[str, float]:
    spec = ModelSpec(d.x.shape[1], (hidden,), "binary", 10)
    cd = PhaseSpec("cd", 0, epochs, batch=BATCH, lr=RATE, lr_final=RATE, momentum=MOMENTUM)
    theta = train(spec, (cd,), d.x, d.y, run_key=seed)
    found = judged(d, lk.rbm_of(spec, theta), quick)
    tune = PhaseSpec("backprop", epochs=tuning, batch=TUNE_BATCH, lr=TUNE_RATE, lr_final=0.0, momentum=TUNE_MOMENTUM)
    tuned = train(spec, (tune,), d.x, d.y, run_key=seed + 1000, parameters=theta)
    wrong = predict_proba(spec, tuned, d.test).argmax(1) != d.truth
    return found | {"fine_tuned_error_percent": 100 * float(wrong.mean())}


def reference(d: Data, hidden: int, epochs: int, tuning: int, seed: int, quick: bool) -> dict[str, float]:
    rng = np.random.default_rng(seed)
    rbm = reference_rbm(d, hidden, epochs, rng)
    return judged(d, rbm, quick) | {"fine_tuned_error_percent": reference_error(d, rbm, tuning, rng)}


def compared(mine: list[dict[str, float]], theirs: list[dict[str, float]]) -> dict[str, dict[str, Any]]:
    """Means and standard deviations over seeds of every measure, and whether the means are one deviation apart."""
    out: dict[str, dict[str, Any]] = {}
    for name in MEASURES:
        x, y = (np.array([r[name] for r in side]) for side in (mine, theirs))
        spread = float(np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 2))
        apart = float(abs(x.mean() - y.mean()))
        out[name] = {
            "integers": [round(float(x.mean()), 4), round(float(x.std(ddof=1)), 4)],
            "float64": [round(float(y.mean()), 4), round(float(y.std(ddof=1)), 4)],
            "apart": round(apart, 4), "seed_deviation": round(spread, 4), "met": apart <= spread,
        }  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--hidden", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tuning", type=int, default=10, help="epochs of backprop")
    parser.add_argument("--quick", action="store_true", help="rough likelihoods, 2,000 rows, 3 seeds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.quick:
        args.rows, args.seeds, args.epochs, args.tuning = 2000, 3, 3, 3
    d = Data(args.rows)
    sides: dict[str, list[dict[str, float]]] = {"integers": [], "float64": []}
    for seed in range(1, args.seeds + 1):
        for name, side in (("integers", ours), ("float64", reference)):
            start = time.perf_counter()
            sides[name].append(side(d, args.hidden, args.epochs, args.tuning, seed, args.quick))
            shown = "  ".join(f"{k} {v:.3f}" for k, v in sides[name][-1].items())
            print(f"seed {seed} {name:9} {shown}  ({time.perf_counter() - start:.0f} s)", flush=True)
    verdicts = compared(sides["integers"], sides["float64"])
    for name, v in verdicts.items():
        print(f"{name:26} integers {v['integers'][0]:.3f} +- {v['integers'][1]:.3f}   float64 {v['float64'][0]:.3f} "
              f"+- {v['float64'][1]:.3f}   {'met' if v['met'] else 'NOT MET'}")  # fmt: skip
    if args.json:
        facts = {"tier": TIER, "numerics": NUMERICS, "machine": platform.machine(), "protocol": {
            k: getattr(args, k) for k in ("seeds", "rows", "hidden", "epochs", "tuning")
        } | {"batch": BATCH, "rate": RATE, "momentum": MOMENTUM, "data": "MNIST > 127, k = 1"}}  # fmt: skip
        args.json.write_text(json.dumps(facts | {"measures": verdicts, "runs": sides}, indent=1) + "\n")


if __name__ == "__main__":
    main()
