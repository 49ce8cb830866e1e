"""Whether learning suffers when tau follows ``worker.communication_share``: MNIST, the same seeds with and without."""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
from cluster_tools import Tools
from recovery import mnist

from gossipdbn.launch.result import model_of
from gossipdbn.models.reading import predict_proba
from gossipdbn.models.spec import PhaseSpec

SHARE = 0.05
SEEDS = (1, 2, 3)


def plan(layers: int, rest: int) -> list[PhaseSpec]:
    """The plan of ``examples/mnist.toml`` with fewer epochs."""
    return [
        PhaseSpec("cd", 0, layers, batch=100, tau=10, lr=0.05),
        PhaseSpec("cd", 1, layers, batch=100, tau=10, lr=0.05),
        PhaseSpec("backprop", 0, rest, batch=50, tau=5, optimizer="adam", lr=0.001, lr_final=0.0, dropout=0.1),
    ]


def one(tools: Tools, seed: int, share: float, rows: int) -> dict[str, Any]:
    """Train 784-500-500-10 with two workers of a slot each; test error, and the tau that was used."""
    values, labels = mnist("train", rows)
    mean = (values.mean(0) / 127).astype(np.float32)
    run = tools.run(
        visible=784, visible_units="grey", hidden=(500, 500), classes=10, phases=plan(3, 6), slots=2, seed=seed,
        settings={"communication_share": share}, visible_mean=mean,
    )  # fmt: skip
    run.feed_rows(values, labels, shard_rows=250)
    run.start_workers(2)
    run.wait_until_finished(1800)
    run.assert_exact_ledger()
    model = model_of(run.follower)
    test, truth = mnist("t10k")
    wrong = int((predict_proba(model.spec, model.parameters, test).argmax(1) != truth).sum())
    taus = {}
    for i, phase in enumerate(run.manifest.phases):
        used = [-(-p.rows // phase.batch) for p in run.follower.seen.curve if p.phase == i and p.rows]
        taus[f"phase_{i}"] = round(statistics.mean(used), 1)
    run.close()
    return {"test_error": wrong / len(truth), "updates": run.follower.ledger.updates, "tau": taus}


def learning(tools: Tools) -> dict[str, Any]:
    """Test errors of three seeds (one, on fewer rows, when quick) at the plan's tau and at an adaptive one."""
    seeds, rows = (SEEDS, 30_000) if tools.repeats > 1 else (SEEDS[:1], 12_000)
    runs: dict[str, list[dict[str, Any]]] = {"fixed": [], "adaptive": []}
    for seed in seeds:
        for name, share in (("fixed", 0.0), ("adaptive", SHARE)):
            runs[name].append(one(tools, seed, share, rows))
            print(seed, name, runs[name][-1], flush=True)
    errors = {name: [r["test_error"] for r in found] for name, found in runs.items()}
    return {
        "rows": rows, "seeds": list(seeds), "share": SHARE, "errors": errors,
        "mean": {name: round(statistics.mean(e), 5) for name, e in errors.items()},
        "spread_of_fixed": round(max(errors["fixed"]) - min(errors["fixed"]), 5),
        "tau": {name: [r["tau"] for r in found] for name, found in runs.items()},
    }  # fmt: skip
