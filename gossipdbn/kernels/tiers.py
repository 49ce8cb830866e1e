"""Which instructions this process may use, and where its compiled kernels are kept.

Decision and compilation must agree: an x86 intrinsic compiled for a CPU without it aborts the process. Both therefore
read the same source, the feature list that numba compiles for (the host's, or ``NUMBA_CPU_NAME`` and
``NUMBA_CPU_FEATURES``, which is how tests force a tier in a child process). All tiers give the same bits.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import llvmlite.binding as llvm

from gossipdbn.kernels.quick import numba
from gossipdbn.kernels.version import NUMERICS

config = numba.core.config

Tier = Literal["amx", "vnni", "avx512", "avxvnni", "avx2", "generic"]

_ARCH_PRCTL = 158
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


def cpu_features() -> frozenset[str]:
    """Names of the features that numba compiles for, as LLVM spells them."""
    if config.CPU_NAME == "generic":
        return frozenset()
    text = config.CPU_FEATURES if config.CPU_FEATURES is not None else llvm.get_host_cpu_features().flatten()
    return frozenset(f[1:] for f in text.split(",") if f.startswith("+"))


def _request_amx() -> bool:
    """Ask Linux for the tile registers; once per process, before the first tile instruction."""
    if not sys.platform.startswith("linux"):
        return False
    return int(ctypes.CDLL(None, use_errno=True).syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA)) == 0


def choose(features: frozenset[str], request_amx: Callable[[], bool]) -> Tier:
    """The fastest tier that ``features`` allow; ``request_amx`` is asked only where it would be AMX."""
    if {"avx512f", "avx512bw", "avx512vl", "avx512dq"} <= features:
        if "avx512vnni" not in features:
            return "avx512"
        return "amx" if {"amx-tile", "amx-int8"} <= features and request_amx() else "vnni"
    if not {"avx2", "fma"} <= features:
        return "generic"
    return "avxvnni" if "avxvnni" in features else "avx2"


_AVX2 = "+avx,+avx2,+fma,+sse4.2,+sse4.1,+ssse3,+sse3,+sse2,+popcnt,+bmi,+bmi2"
_AVX512 = _AVX2 + ",+avx512f,+avx512bw,+avx512vl,+avx512dq,+avx512cd"
FORCED: dict[str, dict[str, str]] = {
    tier: {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    for tier, cpu, features in (
        ("generic", "generic", ""),
        ("avx2", "haswell", _AVX2),
        ("avxvnni", "haswell", _AVX2 + ",+avxvnni"),
        ("avx512", "skylake-avx512", _AVX512),
        ("vnni", "cascadelake", _AVX512 + ",+avx512vnni"),
    )
}
"""Environment in which a process takes a tier, on a CPU that has its features."""

# What a CPU of a tier can also do.
_BELOW: dict[Tier, Tier] = {"amx": "vnni", "vnni": "avx512", "avx512": "avx2", "avxvnni": "avx2", "avx2": "generic"}


def cache_root() -> Path:
    """``NUMBA_CACHE_DIR``, or gossipdbn's folder in the user's cache."""
    from numba.misc.appdirs import AppDirs

    return Path(config.CACHE_DIR) if config.CACHE_DIR else Path(AppDirs("gossipdbn", appauthor=False).user_cache_dir)


def ban_marker(tier: str) -> Path:
    """The file that bans a tier on this machine, written when it fails its self-test."""
    return cache_root() / f"banned-{NUMERICS}-{tier}"


def first_allowed(tier: Tier, banned: Callable[[Tier], bool]) -> Tier:
    """``tier``, or the next one below that is not banned; generic always is allowed."""
    while tier in _BELOW and banned(tier):
        tier = _BELOW[tier]
    return tier


FEATURES = cpu_features()
TIER: Tier = first_allowed(choose(FEATURES, _request_amx), lambda t: ban_marker(t).exists())
"""The tier of this process; fixed when gossipdbn.kernels is imported."""

WIDE = TIER in ("amx", "vnni", "avx512")
"""Whether vectors have sixteen 32-bit lanes in one register; otherwise a group of 16 lanes is two registers."""


def _source_digest() -> str:
    """Numba looks only at a cached function's own file; an edit of an imported kernel file must count too."""
    h = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        h.update(path.read_bytes())
    h.update("|".join((numba.__version__, str(config.CPU_NAME), *sorted(FEATURES))).encode())
    return h.hexdigest()[:16]


def cache_folder() -> Path:
    """Folder of this version's and tier's machine code."""
    return cache_root() / f"kernels-{NUMERICS}-{TIER}-{_source_digest()}"


CACHE_FOLDER = cache_folder()

F = TypeVar("F", bound=Callable[..., Any])


def _compiled(fn: F, **options: Any) -> F:
    saved = config.CACHE_DIR
    config.CACHE_DIR = str(CACHE_FOLDER)  # numba fixes a function's cache folder while it is being decorated
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", **options)(fn)  # type: ignore[no-any-return]
    finally:
        config.CACHE_DIR = saved


def kernel(fn: F) -> F:
    """Compile a function that Python calls: cached on disk, without the GIL, no fastmath."""
    return _compiled(fn)


def device(fn: F) -> F:
    """Compile a function that only kernels call (a call, not inlined by numba; LLVM may inline it)."""
    return numba.njit(nogil=True, error_model="numpy")(fn)  # type: ignore[no-any-return]


def inline(fn: F) -> F:
    """Compile a small function that is always inlined into its callers' machine code."""
    return numba.njit(nogil=True, error_model="numpy", forceinline=True)(fn)  # type: ignore[no-any-return]
