"""Prints, as JSON, this process's tier and the SHA-256 of everything that a fixed piece of training leaves behind.

Run by the tests in child processes that compile for other CPUs: ``python -m tests.kernels.state_digest [parts]``.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from gossipdbn.kernels import codec
from gossipdbn.kernels.tiers import TIER
from gossipdbn.models import learners, reading
from gossipdbn.models.rows import PackedRows, SparseRows
from gossipdbn.models.spec import ModelSpec, PhaseSpec

f4 = np.float32


def rows_of(spec: ModelSpec, n: int) -> np.ndarray:
    rng = np.random.default_rng(11)
    if spec.visible_units == "binary":
        return (rng.random((n, spec.visible)) < 0.2).astype(np.uint8)
    if spec.visible_units == "grey":
        return (rng.integers(0, 128, (n, spec.visible)) * (rng.random((n, spec.visible)) < 0.4)).astype(np.uint8)
    x = rng.integers(-300, 300, (n, spec.visible)).astype(f4) * f4(1 / 128)
    x[:, list(spec.binary_columns)] = x[:, list(spec.binary_columns)] > 0
    return x


def packed(x: np.ndarray) -> PackedRows:
    return PackedRows(np.packbits(x, axis=1), x.shape[1])


def sparse(x: np.ndarray) -> SparseRows:
    """What equals the first row is not stored."""
    at, rest = x != x[0], x[0].copy()
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(at.sum(1))))
    return SparseRows(x[at], np.nonzero(at)[1].astype(np.int32), starts, rest)


def trained(
    spec: ModelSpec, phase: PhaseSpec, rounds: int, per_round: int, form: Callable[[np.ndarray], Any] = np.asarray
) -> str:
    """SHA-256 of parameters and state after some rounds of rows in some form."""
    x = rows_of(spec, per_round)
    labels: np.ndarray = (np.arange(per_round) % max(spec.classes, 1)).astype(np.int32)
    if spec.targets:
        labels = np.random.default_rng(13).integers(-40, 40, (per_round, spec.targets)).astype(f4) / f4(16)
    mean = (x.astype(np.float64).mean(0) / (127 if spec.visible_units == "grey" else 1)).astype(f4)
    x = form(x)
    p = learners.initial_parameters(spec, 99, mean)
    state = learners.new_state(spec, phase)
    batches = -(-per_round // phase.batch)
    for r in range(rounds):
        ctx = learners.RoundContext(99, 1, r * batches, 2, mean, np.full(batches, phase.lr, f4))
        learners.train_round(spec, phase, p, state, x, labels if spec.outputs else None, ctx)
    h = hashlib.sha256(p.tobytes())
    for name in sorted(state):
        h.update(name.encode() + state[name].tobytes())
    h.update(reading.transform(spec, p, x).tobytes())
    if spec.hidden_units == "binary":
        h.update(reading.reconstruct(spec, p, x[:20]).tobytes() + reading.free_energy(spec, p, x[:20]).tobytes())
    if spec.outputs:
        h.update(reading.predict_outputs(spec, p, x).tobytes())
    return h.hexdigest()


def coded() -> str:
    rng = np.random.default_rng(12)
    h = hashlib.sha256()
    for rows, cols in ((60, 77), (1, 500), (200, 10), (300, 200)):
        d = (np.rint(rng.standard_normal((rows, cols)) ** 3 * 5000)).astype(np.int32)
        acc = rng.integers(-(1 << 31), 1 << 31, 3 + d.size).astype(np.int32)
        batch = []
        for kind in (codec.TERNARY, codec.INT8, codec.EXACT):
            x = d.copy()
            data = codec.fold_and_quantise(kind, x, acc[3:], acc[: d.size], 3, 4)
            batch.append(codec.read(kind, data, rows, cols, 4, 3))
            h.update(data + x.tobytes() + batch[-1].digest.to_bytes(8, "little"))
        codec.merge(acc, batch)
        h.update(acc.tobytes() + codec.digest(d, 3).to_bytes(8, "little"))
    return h.hexdigest()


PARTS = {
    "binary cd": lambda: trained(ModelSpec(131, (77,), "binary"), PhaseSpec("cd", batch=20, momentum=0.9), 25, 93),
    "grey cd-3": lambda: trained(
        ModelSpec(65, (33,), "grey"), PhaseSpec("cd", batch=50, k=3, weight_decay=1e-3, l1=1e-4, max_norm=3.0), 30, 200
    ),
    "cd of 8 bits": lambda: trained(
        ModelSpec(131, (77,), "grey"), PhaseSpec("cd", batch=40, k=2, momentum=0.9, weight_bits=8), 20, 200
    ),
    "pcd": lambda: trained(
        ModelSpec(784, (500,), "grey"),
        PhaseSpec("pcd", batch=100, lr=0.02, sparsity_cost=0.1, sparsity_target=0.1),
        10,
        1000,
    ),
    "gaussian": lambda: trained(ModelSpec(19, (41,), "gaussian"), PhaseSpec("cd", batch=16, lr=0.01), 15, 110),
    "mixed": lambda: trained(
        ModelSpec(19, (21,), "mixed", 0, (0, 3, 18)), PhaseSpec("pcd", batch=9, lr=0.01, k=2), 15, 80
    ),
    "adam": lambda: trained(
        ModelSpec(50, (37, 20), "grey", 5),
        PhaseSpec("backprop", batch=16, lr=0.01, optimizer="adam", dropout=0.2),
        15,
        110,
    ),
    "momentum": lambda: trained(
        ModelSpec(50, (37,), "gaussian", 3),
        PhaseSpec("backprop", batch=16, lr=0.1, momentum=0.9, weight_decay=1e-3),
        15,
        110,
    ),
    "relu": lambda: trained(
        ModelSpec(50, (37, 20), "grey", 5, hidden_units="relu"),
        PhaseSpec("backprop", batch=16, lr=0.01, optimizer="adam", dropout=0.2),
        15,
        110,
    ),
    "brier": lambda: trained(
        ModelSpec(50, (37,), "binary", 21, loss="squared"),
        PhaseSpec("backprop", batch=16, lr=0.5, momentum=0.9),
        15,
        110,
    ),
    "regression": lambda: trained(
        ModelSpec(50, (37, 20), "gaussian", hidden_units="relu", loss="squared", targets=3),
        PhaseSpec("backprop", batch=16, lr=0.01, momentum=0.9, weight_decay=1e-3),
        15,
        110,
    ),
    "joint": lambda: trained(ModelSpec(50, (37, 20), "binary", 5), PhaseSpec("joint", batch=16), 10, 110),
    "packed cd": lambda: trained(
        ModelSpec(131, (77,), "binary"), PhaseSpec("cd", batch=20, momentum=0.9), 25, 93, packed
    ),
    "sparse gaussian": lambda: trained(
        ModelSpec(19, (41,), "gaussian"), PhaseSpec("cd", batch=16, lr=0.01), 15, 110, sparse
    ),
    "codec": coded,
}

if __name__ == "__main__":
    chosen = sys.argv[1:] or list(PARTS)
    print(json.dumps({"tier": TIER, "digests": {name: PARTS[name]() for name in chosen}}))
