"""Loads numba without what it would load only to look whether it is there: half of a process's way to its first batch.

Numba imports ``scipy.linalg`` (a third of a second of a cold start) to learn that a BLAS exists, scipy to learn that it
is not older than 1.0, and the coverage package to learn whether it runs. These questions have cheap answers: scipy
brings a BLAS, its 1.0 is of 2017, and coverage that was not imported by now does not run. Numba ends up in the same
state; whoever compiles a matrix product loads the BLAS then.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Importing ``name`` fails at once, unless it has been imported before."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _no_collection() -> Iterator[None]:
    """No search for garbage among the many objects of a large import, none of which is any."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _ensure_blas_later() -> None:
    """Stands in for numba's own ``ensure_blas`` while it only asks."""
    if importlib.util.find_spec("scipy") is None:
        raise ImportError("scipy is not installed")


def _load_array_functions(linalg: ModuleType) -> None:
    real = linalg.ensure_blas
    linalg.ensure_blas = _ensure_blas_later  # type: ignore[attr-defined]
    try:
        import numba.np.arraymath as functions
    finally:
        linalg.ensure_blas = real  # type: ignore[attr-defined]
    functions.ensure_blas = real  # whoever asks from now on gets the real answer


def _load_numba() -> ModuleType:
    """Import numba; what an earlier import has done already stays as it is."""
    with _no_collection():
        with _absent("coverage"), _absent("scipy"):
            import numba
        from numba.np import linalg

        if "numba.np.arraymath" not in sys.modules and hasattr(linalg, "ensure_blas"):
            _load_array_functions(linalg)
    return numba


numba = _load_numba()
types, extending = numba.types, importlib.import_module("numba.extending")
