"""What is compiled before a worker joins is all that it runs: nobody waits for a compiler while rows wait."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import importlib, json, pkgutil, threading
import numpy as np
from numba.core.dispatcher import Dispatcher
import gossipdbn.kernels
from gossipdbn.core import rounds
from gossipdbn.core.values import Manifest
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.models import learners
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from tests.replay.scene import Scene

names = [m.name for m in pkgutil.iter_modules(gossipdbn.kernels.__path__) if m.name != "cd_amx"]
modules = [importlib.import_module("gossipdbn.kernels." + name) for name in names]
kernels = {f"{m.__name__}.{name}": f for m in modules for name, f in vars(m).items()
           if isinstance(f, Dispatcher) and "kernels-" in (f.stats.cache_path or "")}
assert len(kernels) > 10, sorted(kernels)
compiled = lambda: {name: len(f.signatures) for name, f in kernels.items()}

spec = ModelSpec(19, (13, 7), "grey", 3)
phases = (PhaseSpec("cd", batch=10), PhaseSpec("pcd", 1, batch=10), PhaseSpec("backprop", batch=10, optimizer="adam"))
learners.warm(spec, phases)
before = compiled()
manifest = Manifest(run="one", slots=2, spec=spec, phases=phases, run_key=7, numerics=NUMERICS,
                    visible_mean=np.full(19, 0.4, "<f4").tobytes())
rng = np.random.default_rng(1)
scene = Scene(rounds.run, manifest)
scene.feed(rng.integers(0, 128, (300, 19)).astype(np.uint8), rng.integers(0, 3, 300).astype(np.int32))
assert scene.worker("w1", threading.Event()).run().finished
after = compiled()
print(json.dumps({name: after[name] - n for name, n in before.items() if after[name] != n}))
"""


def test_a_run_compiles_nothing_that_was_not_compiled_before_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=500, check=False,
        cwd=Path(__file__).parent.parent.parent,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {}
