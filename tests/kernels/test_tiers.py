"""The same bits on every tier: this process and child processes compiled for other CPUs against committed digests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np
import pytest

from gossipdbn.kernels import tiers
from gossipdbn.kernels.amx import CONFIGURATION
from gossipdbn.kernels.version import NUMERICS
from tests.kernels.emulated import BODIES
from tests.kernels.state_digest import PARTS

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "golden.json").read_text())
HOST = {f[1:] for f in llvm.get_host_cpu_features().flatten().split(",") if f.startswith("+")}


def test_goldens_belong_to_this_numerics_version():
    assert GOLDEN["numerics"] == NUMERICS
    assert set(GOLDEN["digests"]) == set(PARTS)


def test_the_form_of_the_rows_shows_in_no_golden_digest():
    for dense, other in [("binary cd", "packed cd"), ("gaussian", "sparse gaussian")]:
        assert GOLDEN["digests"][dense] == GOLDEN["digests"][other]


@pytest.mark.parametrize("part", sorted(PARTS))
def test_golden_digest_of_this_process(part):
    """A change here changes results: it needs a new NUMERICS and new digests, and old runs cannot be replayed."""
    assert PARTS[part]() == GOLDEN["digests"][part]


@pytest.mark.slow
@pytest.mark.parametrize("tier", sorted(tiers.FORCED))
def test_other_tiers_give_the_same_bits(tier):
    needed = {f[1:] for f in tiers.FORCED[tier]["NUMBA_CPU_FEATURES"].split(",") if f}
    if not needed <= HOST:
        pytest.skip(f"this CPU lacks {', '.join(sorted(needed - HOST))}")
    env = os.environ | tiers.FORCED[tier]
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.state_digest"], env=env, cwd=HERE.parent.parent, capture_output=True,
        text=True, timeout=590, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    got = json.loads(run.stdout)
    assert got == {"tier": tier, "digests": GOLDEN["digests"]}


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["amx", "vnni", "avx512", "avxvnni"])
def test_tiers_give_the_same_bits_where_their_instructions_are_emulated(tier):
    """So the tile unit's passes are proved on machines without one: here compiled for a CPU with AVX2 and no more."""
    if {"avx2", "fma"} - HOST:
        pytest.skip("this CPU lacks avx2 or fma")
    env = os.environ | tiers.FORCED["avx2"]
    parts = ["binary cd", "grey cd-3"] if tier == "amx" else ["binary cd", "codec"]
    run = subprocess.run(
        [sys.executable, "-m", "tests.kernels.emulated", tier, *parts], env=env, cwd=HERE.parent.parent,
        capture_output=True, text=True, timeout=590, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    assert json.loads(run.stdout) == {"tier": tier, "digests": {name: GOLDEN["digests"][name] for name in parts}}


def test_every_x86_instruction_of_the_kernels_has_an_emulation():
    folder = Path(tiers.__file__).parent
    named = {
        name for file in folder.glob("*.py") for name in re.findall(r"llvm\.x86\.[a-z0-9.]+[a-z0-9]", file.read_text())
    }
    stems = {name.rsplit(".", 1)[0] if name.endswith((".512", ".256")) else name for name in BODIES}
    assert named
    assert {n.rsplit(".", 1)[0] if n.endswith((".512", ".256")) else n for n in named} <= stems


def test_tiles_are_configured_as_the_emulation_takes_them():
    rows, bytes_a_row = CONFIGURATION[48:56], CONFIGURATION[16:32].view(np.uint16)
    assert CONFIGURATION[0] == 1 and (rows == 16).all() and (bytes_a_row == 64).all()


@pytest.mark.parametrize(
    ("features", "amx", "tier"),
    [
        ("", True, "generic"),
        ("avx2", True, "generic"),
        ("avx2,fma", True, "avx2"),
        ("avx2,fma,avxvnni", True, "avxvnni"),
        ("avx2,fma,avx512f,avx512bw,avx512vl", True, "avx2"),
        ("avx512f,avx512bw,avx512vl,avx512dq", True, "avx512"),
        ("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", True, "vnni"),
        ("avx2,fma,avxvnni,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", True, "vnni"),
        ("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8", True, "amx"),
        ("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,amx-tile,amx-int8", False, "vnni"),
        ("avx512f,avx512bw,avx512vl,avx512dq,amx-tile,amx-int8", True, "avx512"),
    ],
)
def test_choice_of_tier(features, amx, tier):
    assert tiers.choose(frozenset(features.split(",")), lambda: amx) == tier


def test_cache_folder_names_version_and_tier():
    assert f"kernels-{NUMERICS}-{tiers.TIER}-" in tiers.CACHE_FOLDER.name
