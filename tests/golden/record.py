"""Record the golden archive: a small run on handwritten digits in which everything happens that may happen.

    python -m tests.golden.record

Run it when the arithmetic changes (a new numerics version), look at what it prints, and commit the file. The run has
two real learners over two layers, a takeover from a worker that dies, a takeover that resets, a void record, a shard
that comes twice, a payload that travels by reference, and a revocation.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from gossipdbn.core import rounds
from gossipdbn.core.values import Manifest
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.launch.runs import software
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.replay import archive
from gossipdbn.replay.history import judge_all
from gossipdbn.replay.operator import Operator
from gossipdbn.replay.verify import verify
from gossipdbn.wire.messages import RunWire
from tests.replay.scene import Scene

FILE = Path(__file__).parent / "digits.zip"
ROWS = 900
PHASES = (
    PhaseSpec("cd", 0, 3, batch=25, tau=4, lr=0.05, lr_final=0.02, weight_decay=2e-4),
    PhaseSpec("pcd", 1, 2, batch=25, tau=4, lr=0.03, lr_final=0.01, sparsity_target=0.1, sparsity_cost=0.01),
    PhaseSpec("backprop", 0, 4, batch=25, tau=4, optimizer="adam", lr=0.005, lr_final=0.0, dropout=0.1),
)


def digits() -> tuple[np.ndarray, np.ndarray]:
    """8x8 handwritten digits as grey values 0..127 and labels (scikit-learn's copy of the UCI set)."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return np.rint(images[:ROWS] * (127 / 16)).astype(np.uint8), labels[:ROWS].astype(np.int32)


def record() -> Scene:
    values, labels = digits()
    mean = (values.mean(0) / 127).astype("<f4")
    manifest = Manifest(
        run="golden-digits", slots=3, spec=ModelSpec(64, (48, 24), "grey", 10), phases=PHASES, run_key=20250101,
        visible_mean=mean.tobytes(), numerics=NUMERICS, inline_bytes=4000, versions=software(),
        created_ms=1_735_689_600_000,
    )  # fmt: skip
    scene = Scene(train=rounds.run, manifest=manifest)
    scene.feed(values, labels, 50, again=4)
    scene.work("ada", until=14)
    scene.damage(1)
    scene.work("grace", until=30)
    Operator(scene.log, manifest, scene.store, RunWire(), "operator").revoke(2, 3, 4, "recorded to be revoked")
    scene.claim_reset(0)
    scene.work("edsger")
    return scene


def main() -> None:
    scene = record()
    with tempfile.TemporaryDirectory() as folder:
        run = scene.logged(Path(folder))
        facts = archive.describe(judge_all(run), software(), "recorded by tests/golden/record.py")
        sha = archive.write(run.spool, facts, FILE)
        v = verify(run, expected=facts)
    assert v.identical and v.state == "finished", (v.problems, v.divergences)
    assert v.resets >= 1 and v.revocations == 1 and v.voids >= 1 and v.claims >= 3 * 3, v
    print(f"{FILE.name}: {FILE.stat().st_size:,} bytes, sha256 {sha}\n{v}")


if __name__ == "__main__":
    main()
