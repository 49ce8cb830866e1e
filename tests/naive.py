"""Slow, obvious twins of the kernels in numpy and plain Python; the tests ask for equal bits.

Nothing here is clever: loops where the kernels have tiles, Python integers where they have masks. The only subtlety is
`fma`: numpy has none, so it is built from an exact double product, an error-free sum and rounding to odd.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

f4 = np.float32
MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix64(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def child64(key: int, i: int) -> int:
    return mix64((key + (i + 1) * GOLDEN) & MASK)


def chain64(key: int, *words: int) -> int:
    for w in words:
        key = child64(key, w)
    return key


def hash32(counter: int, key: int) -> int:
    x = counter ^ (key & 0xFFFFFFFF)
    x = (x * 0x7FEB352D) & 0xFFFFFFFF
    x ^= x >> 15
    x ^= key >> 32
    x = (x * 0x846CA68B) & 0xFFFFFFFF
    return x ^ (x >> 16)


def draws(stream: int, rows: int, columns: int, *, pair_rows: bool) -> NDArray[np.int64]:
    """16-bit draws of a stream [rows, columns]."""
    out = np.empty((rows, columns), np.int64)
    for r in range(rows):
        key = child64(stream, r >> 1 if pair_rows else r)
        for c in range(columns):
            h = hash32(c if pair_rows else c >> 1, key)
            out[r, c] = h >> 16 if (r if pair_rows else c) & 1 else h & 0xFFFF
    return out


def permutation(key: int, n: int) -> list[int]:
    p = list(range(n))
    for i in range(n - 1, 0, -1):
        j = ((child64(key, i) >> 32) * (i + 1)) >> 32
        p[i], p[j] = p[j], p[i]
    return p


def normal_int32(key: int, n: int, sigma: float) -> list[int]:
    factor = round(sigma * 2.0**24 / ((16.0 + 1.0 / 12.0) ** 0.5 * 65536.0) * 2.0**24)
    out = []
    for i in range(n):
        x = (child64(key, 2 * i).bit_count() - 32) * 65536 + (child64(key, 2 * i + 1) >> 48) - 32768
        out.append((x * factor + (1 << 23)) >> 24)
    return out


def fma(x: object, y: object, z: object) -> NDArray[np.float32]:
    """x * y + z of float32 with one rounding."""
    p = np.asarray(x, np.float64) * np.asarray(y, np.float64)  # exact
    c = np.asarray(z, np.float64)
    p, c = np.broadcast_arrays(p, c)
    s = p + c
    t = s - p
    rest = (p - (s - t)) + (c - t)
    even = (s.view(np.int64) & 1) == 0
    odd = np.nextafter(s, np.where(rest > 0, np.inf, -np.inf))
    with np.errstate(over="ignore"):
        return np.where((rest != 0) & even, odd, s).astype(np.float32)


def exp2(t: NDArray[np.float32]) -> NDArray[np.float32]:
    t = np.minimum(np.maximum(t, f4(-126)), f4(126))
    n = np.rint(t)
    r = t - n
    p = np.full_like(t, f4(1.3398874e-3))
    for c in (9.6184374e-3, 5.5503325e-2, 2.4022648e-1, 6.9314720e-1, 1.0):
        p = fma(p, r, f4(c))
    return np.ldexp(p, n.astype(np.int32))


NEG_LOG2E = f4(-1.4426950408889634)


def sigmoid(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return reciprocal(exp2(x * NEG_LOG2E) + f4(1))


def reciprocal(x: NDArray[np.float32]) -> NDArray[np.float32]:
    y = (0x7EF311C3 - x.view(np.int32)).view(f4)
    for _ in range(3):
        y = fma(y, fma(-x, y, f4(1)), y)
    return y


def below(draw: NDArray[np.int64], p: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Bernoulli draws from probabilities."""
    return draw < np.rint(p.astype(np.float64) * 65536.0)


def below_of_exp(draw: NDArray[np.int64], e: NDArray[np.float32]) -> NDArray[np.bool_]:
    u = draw.astype(f4) + f4(0.5)
    return fma(u, e, u) < f4(65536)


def flush(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.where(np.abs(x) < f4(2.0**-60), f4(0), x)


def chain(
    a: NDArray[np.float32], b: NDArray[np.float32], start: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """a @ b with one fma chain per output in the order of k."""
    out = np.zeros((a.shape[0], b.shape[1]), f4) if start is None else start
    for k in range(a.shape[1]):
        out = fma(a[:, k, None], b[None, k, :], out)
    return out


# codec


def fold(residual: NDArray[np.int32], now: NDArray[np.int32], start: NDArray[np.int32], divisor: int) -> None:
    d = (now.astype(np.int64) - start + 2**31) % 2**32 - 2**31
    q = np.rint(d * (1.0 / divisor)).astype(np.int64)
    residual[:] = np.clip(residual + q, -(2**30), 2**30)


def odd_hash(i: int) -> int:
    x = ((i + 1) * GOLDEN) & MASK
    return (((x ^ (x >> 32)) * 0xD6E8FEB86659FD93) & MASK) | 1


def weight(i: int) -> int:
    return odd_hash(i % 1024) * odd_hash(2**40 + i // 1024)


def digest(acc: NDArray[np.int32], base: int = 0) -> int:
    return sum(int(a) * weight(base + i) for i, a in enumerate(acc.reshape(-1))) & MASK


def ternary_codes(d: NDArray[np.int32], e_max: int) -> tuple[list[int], NDArray[np.int64]]:
    """Shift of each block (-1 for an empty one) and codes -1, 0, 1, by protocol section 5 in real numbers."""
    shifts, codes = [], np.zeros(d.shape, np.int64)
    for r, block in enumerate(d):
        m = int(np.abs(block.astype(np.int64)).max(initial=0))
        if m == 0:
            shifts.append(-1)
            continue
        e = min(max(int(np.ceil(np.log2(m * 2.0**-24))), -24), e_max)
        codes[r] = np.clip(np.rint(block * 2.0**-24 / 2.0**e), -1, 1)
        shifts.append(e + 24)
    return shifts, codes


def encode_ternary(d: NDArray[np.int32], e_max: int) -> bytes:
    """The bytes of the ternary codec; ``d`` int32 [rows, cols] is left alone."""
    rows, cols = d.shape
    shifts, codes = ternary_codes(d, e_max)
    top = max([*shifts, 0])
    counts = [int(np.abs(c).sum()) for c in codes]
    rice = lambda span, count: max((span * 15) // (count * 16), 1).bit_length() - 1  # noqa: E731
    planes = [n > 0 and 16 * -(-cols // 8) < n * (rice(cols, n) + 3) for n in counts]
    nibbles, escapes = [], b""
    for r in range(rows):
        v = 0
        if counts[r]:
            v = top - shifts[r] + 1
            if v > 7:
                v = 15
                escapes += bytes([shifts[r] | (128 if planes[r] else 0)])
            elif planes[r]:
                v += 7
        nibbles.append(v)
    head = bytes(a | b << 4 for a, b in zip(nibbles[::2], [*nibbles[1::2], 0], strict=False))
    gapped = [r for r in range(rows) if counts[r] and not planes[r]]
    n, varint = sum(counts[r] for r in gapped), b""
    while n >= 128:
        varint += bytes([n & 127 | 128])
        n >>= 7
    varint += bytes([n])
    at = [(place * cols + int(c), codes[r, c]) for place, r in enumerate(gapped) for c in np.flatnonzero(codes[r])]
    parameters, slices, unary, last = b"", b"", "", -1
    for group in (at[i : i + 128] for i in range(0, len(at), 128)):
        k = rice(group[-1][0] - last, len(group))
        parameters += bytes([k])
        gaps = []
        for place, _ in group:
            gaps.append(place - last - 1)
            last = place
        unary += "".join("0" * (gap >> k) + "1" for gap in gaps)
        for i in range(0, len(group), 16):
            part = [[gap >> b & 1 for gap in gaps[i : i + 16]] for b in reversed(range(k))]
            part.append([int(code < 0) for _, code in group[i : i + 16]])
            slices += b"".join(np.packbits(bits, bitorder="little").tobytes() for bits in part)
    stream = slices + np.packbits(np.array([int(bit) for bit in unary], np.uint8), bitorder="little").tobytes()
    tail = b""
    for r in range(rows):
        if planes[r]:
            for sign in (1, -1):
                tail += np.packbits(codes[r] == sign, bitorder="little").tobytes()
    return bytes([top]) + head + escapes + varint + parameters + stream + tail


def encode_int8(d: NDArray[np.int32], e_max: int) -> tuple[bytes, NDArray[np.int64]]:
    """Bytes and deltas of the int8 codec."""
    shifts = []
    for block in d:
        m, s = int(np.abs(block.astype(np.int64)).max(initial=0)), 0
        while s < e_max + 17 and 127 << s < m:
            s += 1
        shifts.append(s)
    s = np.array(shifts, np.int64)[:, None]
    q = np.clip(np.rint(d / 2.0**s), -127, 127).astype(np.int64)
    return bytes(shifts) + q.astype(np.int8).tobytes(), q << s
