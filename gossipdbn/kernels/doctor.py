"""What this machine can do: features, the chosen tier, a self-test against known results, measured rates.

The self-test trains a tiny layer of each kind and compares the SHA-256 of the result with the committed one. An
instruction that the machine refuses ends the process, so it runs in a child (``python -m gossipdbn.kernels.doctor``)
that the caller starts: the kernels themselves know neither processes nor clocks. `ensure_trusted` does that once for
each machine and version, and bans a tier that fails, so that the next start takes the one below.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gossipdbn.kernels import codec, tiers
from gossipdbn.kernels.rows import dense_view
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.kernels.workspaces import IntegerSpace, RealSpace

SELF_TEST_DIGEST = "e795dc3e185e5f9cc11c3e00b10abe5fc532f9140b0289bbb646861b28d55ba1"
"""SHA-256 that `self_test_digest` gives on every machine, for this NUMERICS."""


@dataclass(frozen=True, slots=True)
class Report:
    """What `examine` found.

    Parameters
    ----------
    numerics : version of the arithmetic. tier : amx, vnni, avx512, avxvnni, avx2, generic. features : of the CPU, that
        decide it. passed : whether the self-test gave the known result. cache : folder of the compiled kernels.
    cd1_rows_per_s : contrastive divergence of 784 x 500, 100 rows a minibatch, one thread. encode_us, apply_us : a
        ternary update of 784 x 500 written, checked and applied.
    """

    numerics: int
    tier: str
    features: tuple[str, ...]
    passed: bool
    digest: str
    cache: str
    cd1_rows_per_s: float
    encode_us: float
    apply_us: float


def self_test_digest() -> str:
    """SHA-256 of a small integer layer, a small real-valued one and an encoded update, computed here."""
    h = hashlib.sha256()
    rng_rows = np.arange(40 * 70, dtype=np.int64).reshape(40, 70)
    byte_rows = ((rng_rows * 2654435761 >> 7) % 128).astype(np.uint8)
    float_rows = ((rng_rows * 40503 >> 3) % 257 - 128).astype(np.float32) / np.float32(64)
    for space, rows in ((IntegerSpace.new(70, 90), byte_rows), (RealSpace.new(70, 90), float_rows)):
        h.update(_trained(space, rows))
    d = ((rng_rows * 97) % 4001 - 2000).astype(np.int32)
    h.update(codec.quantise(codec.TERNARY, d, 4) + d.tobytes())
    return h.hexdigest()


def _trained(space: IntegerSpace | RealSpace, rows: np.ndarray) -> bytes:
    v, h = space.visible, space.hidden
    f4 = np.float32
    w = ((np.arange(v * h, dtype=np.int64) * 7919) % 65537 - 32768).astype(np.int32) * 64
    a, b = np.zeros(v, np.int32), np.zeros(h, np.int32)
    space.load(w, a, b, np.zeros(v, np.int32))
    space.center(np.full(v, 0.25, f4))
    if isinstance(space, IntegerSpace):
        g, vp, hp = space.weights.arrays[0].shape[0], space.weights.arrays[0].shape[1], -(-h // 64) * 64
        arrays = [np.zeros((g, vp // 2, 16, 2), np.uint16), np.zeros(hp, f4), np.zeros(vp, f4), np.zeros(hp, f4)]
    else:
        g, vp, _ = space.arrays[0].shape
        hp = g * 16
        arrays = [np.zeros((g, vp, 16), f4), np.zeros(hp, f4), np.zeros(vp, f4), np.zeros(hp, f4)]
    arrays[3][:h] = 0.5
    options = np.array([0.5, 1e-3, 1e-4, 0.1, 0.1, 4.0], f4)
    rates, keys = np.full(2, 0.01, f4), np.array([1, 2, 0], np.uint64)
    space.train(dense_view(rows), 0, 2, 20, arrays, None, rates, options, keys, 0, True, gibbs=2, one=127)
    space.store(w, a, b)
    return b"".join(x.tobytes() for x in (w, a, b, *arrays))


def passed_marker() -> Path:
    """The file whose presence says that the self-test has passed with these kernels on this kind of CPU."""
    return tiers.CACHE_FOLDER / "self-test-passed"


def ensure_trusted(run: Callable[[list[str]], int]) -> str | None:
    """Run the self-test in a child process where it has not passed before with these kernels.

    Parameters
    ----------
    run : starts a command, waits for it and returns its exit status.

    Returns
    -------
    None when the tier is trusted, else one line for the log: the tier gave wrong results or crashed, is banned on this
    machine from now on, and this process should be started again.
    """
    if passed_marker().exists() or tiers.TIER == "generic":
        return None
    tiers.CACHE_FOLDER.mkdir(parents=True, exist_ok=True)
    status = run([sys.executable, "-m", "gossipdbn.kernels.doctor"])
    if status == 0:
        passed_marker().touch()
        return None
    ban = tiers.ban_marker(tiers.TIER)
    ban.touch()
    return f"tier {tiers.TIER} failed its self-test here (status {status}) and is banned by {ban}; start again"


def examine(clock: Callable[[], float], seconds: float = 0.3) -> Report:
    """Run the self-test and measure rates for about ``seconds`` each, by ``clock`` (seconds, monotonic)."""
    digest = self_test_digest()
    encode_us, apply_us = _codec_rates(clock, seconds)
    return Report(
        NUMERICS,
        tiers.TIER,
        tuple(sorted(f for f in tiers.FEATURES if f.startswith(("avx", "amx", "fma", "sse4", "neon")))),
        digest == SELF_TEST_DIGEST,
        digest,
        str(tiers.CACHE_FOLDER),
        _cd1_rate(clock, seconds),
        encode_us,
        apply_us,
    )


def _cd1_rate(clock: Callable[[], float], seconds: float) -> float:
    v, h, rows, count = 784, 500, 100, 10
    f4 = np.float32
    space = IntegerSpace.new(v, h)
    w = ((np.arange(v * h, dtype=np.int64) * 7919) % 65537 - 32768).astype(np.int32) * 8
    space.load(w, np.zeros(v, np.int32), np.zeros(h, np.int32), None)
    space.center(np.full(v, 0.2, f4))
    g, vp = space.weights.arrays[0].shape[:2]
    arrays = [np.zeros((g, vp // 2, 16, 2), np.uint16), np.zeros(512, f4), np.zeros(vp, f4), np.zeros(512, f4)]
    view = dense_view((np.arange(rows * count * v).reshape(-1, v) % 5 == 0).astype(np.uint8))
    options, keys = np.array([0.5, 0, 0, 0, 0, 0], f4), np.array([1, 2, 0], np.uint64)
    rates = np.full(count, 0.01, f4)

    def run() -> None:
        space.train(view, 0, count, rows, arrays, None, rates, options, keys, 0, False, gibbs=1, one=1)

    return rows * count / _fastest(run, clock, seconds)


def _codec_rates(clock: Callable[[], float], seconds: float) -> tuple[float, float]:
    d = ((np.arange(784 * 500, dtype=np.int64) * 40503) % 20011 - 10005).astype(np.int32).reshape(784, 500)
    d[:, 0] = 20_000
    residual = d.copy()
    acc = np.zeros(d.size, np.int32)
    data = codec.quantise(codec.TERNARY, residual, 4)

    def encode() -> None:
        residual[:] = d
        codec.quantise(codec.TERNARY, residual, 4)

    def read() -> None:
        codec.merge(acc, [codec.read(codec.TERNARY, data, 784, 500, 4)])

    return _fastest(encode, clock, seconds) * 1e6, _fastest(read, clock, seconds) * 1e6


def _fastest(run: Callable[[], None], clock: Callable[[], float], seconds: float) -> float:
    """Shortest time of repeated calls within ``seconds``."""
    run()
    best, start = float("inf"), clock()
    while clock() - start < seconds:
        before = clock()
        run()
        best = min(best, clock() - before)
    return best


if __name__ == "__main__":
    raise SystemExit(0 if self_test_digest() == SELF_TEST_DIGEST else 1)
