"""What a round sends: a block of integer deltas as few bytes, and how they come back into the accumulators.

A tensor is ``rows`` blocks of ``cols`` integers in units 2**-24. Three codecs, all with error feedback (what is not
sent stays in the residual):

exact (0)
    little-endian int32, |d| <= 2**30.
ternary (1)
    per block a shift s (scale 2**s units, s = e + 24 of the protocol's section 5) and codes -1, 0, 1::

        u8 top            largest shift of any block (0 when all are empty)
        nibble per block  0 empty; 1..7 gap-coded, s = top - (v - 1); 8..14 planes, s = top - (v - 8);
                          15: see the block's escape byte
        u8 per escape     bits 0..4 s, bit 7 planes (only for s < top - 6)
        varint n          number of non-zero codes in gap-coded blocks
        bits              n times: Golomb-Rice coded number of zeros since the last one, sign (1 = minus);
                          the count runs on through gap-coded blocks as if they were one
        planes            per planes block: ceil(cols / 8) bytes of "plus", the same of "minus"

    The Rice parameter of a block follows from how many codes the gap-coded blocks before it held (`_rice`), so it
    costs nothing. A quotient of 20 or more is escaped: 20 ones, then the gap in 32 bits.
int8 (2)
    u8 shift per block, then int8 codes -127..127.

One decoder, `_walk`, checks everything and never reads or writes outside; `check`, `apply`, `decode` and
`delta_digest` are its four uses.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels.codec_kernels import (
    ADD,
    CHECK,
    DIGEST,
    MALFORMED,
    digest_words,
    encode_int8,
    encode_ternary,
    fold_residual,
    largest,
    walk_int8,
    walk_ternary,
)

EXACT, TERNARY, INT8 = 0, 1, 2
RESIDUAL_MAX = 1 << 30
_MASK = (1 << 64) - 1
_NOWHERE = np.zeros(1, np.int32)

Ints = NDArray[np.int32]


def fold(residual: Ints, now: Ints, start: Ints, divisor: int) -> None:
    """Add a round's progress to the residual, in place.

    Parameters
    ----------
    residual, now, start : int32 [n], contiguous. ``now - start`` is taken modulo 2**32.
    divisor : S**a of protocol section 3; the quotient is ``rint(float64(d) * (1.0 / divisor))``: nearest, ties to
        even where the divisor is a power of two. The sum saturates at +-2**30.
    """
    if divisor < 1:
        raise ValueError(f"divisor of a fold is {divisor}; it must be 1 or more")
    if not residual.size == now.size == start.size:
        raise ValueError(f"fold of {now.size} - {start.size} values into a residual of {residual.size}")
    fold_residual(residual, now, start, 1.0 / divisor)


def quantise(codec: int, residual: Ints, e_max: int) -> bytes:
    """Encode ``residual`` (int32 [rows, cols], |r| <= 2**30) and leave in it what was not encoded.

    Parameters
    ----------
    codec : 0 exact, 1 ternary, 2 int8. e_max : largest scale exponent, real units: one code is at most 2**e_max.
    """
    _check_e_max(e_max)
    rows, cols = residual.shape
    if codec == EXACT:
        data = residual.astype("<i4").tobytes()
        residual[:] = 0
        return data
    flat = residual.reshape(-1)
    if not residual.flags.c_contiguous:
        raise ValueError("a residual must be contiguous")
    if codec == INT8:
        out = np.empty(rows * (cols + 1), np.uint8)
        encode_int8(flat, rows, cols, e_max + 17, out)
        return out.tobytes()
    if codec != TERNARY:
        raise ValueError(f"unknown codec {codec}; known are 0 (exact), 1 (ternary), 2 (int8)")
    out = np.empty(_ternary_bound(rows, cols), np.uint8)
    work = np.empty((rows + 1) * 3 + rows * (2 * ((cols + 15) // 16)), np.int64)
    n = encode_ternary(flat, rows, cols, e_max + 24, out, work)
    return out[:n].tobytes()


def check(codec: int, data: bytes, rows: int, cols: int, e_max: int) -> None:
    """Raise ValueError unless ``data`` is a well-formed, fully consumed, bounded encoding of [rows, cols]."""
    _check_e_max(e_max)
    _walk(codec, data, rows, cols, e_max, CHECK, _NOWHERE, 0)


def delta_digest(codec: int, data: bytes, rows: int, cols: int, base: int, e_max: int = 6) -> int:
    """sum delta_i * r_(base + i) mod 2**64 of an encoded tensor; ``base`` is its first global parameter index.

    Checks everything that `check` does, in the same walk; raises ValueError likewise.
    """
    _check_e_max(e_max)
    return _walk(codec, data, rows, cols, e_max, DIGEST, _NOWHERE, base)


def apply(codec: int, data: bytes, acc: Ints, rows: int, cols: int) -> None:
    """Add an encoded tensor to its slice of the accumulators (int32 [rows * cols], contiguous, modulo 2**32)."""
    if acc.size != rows * cols or not acc.flags.c_contiguous:
        raise ValueError(f"accumulator slice of {acc.size} values for a tensor of {rows} x {cols}")
    _walk(codec, data, rows, cols, 7, ADD, acc.reshape(-1), 0)


def decode(codec: int, data: bytes, rows: int, cols: int) -> Ints:
    """The deltas as int32 [rows, cols]."""
    out = np.zeros(rows * cols, np.int32)
    _walk(codec, data, rows, cols, 7, ADD, out, 0)
    return out.reshape(rows, cols)


def digest(acc: Ints, base: int = 0) -> int:
    """sum acc_i * r_(base + i) mod 2**64, r_i an odd hash of the global parameter index (int32 [n], contiguous).

    Linear while no accumulator wraps: digest(a + b) = digest(a) + digest(b). A wrap changes it by a multiple of
    2**32 r_i; the protocol's check |acc| < 2**30 (`max_abs`) at every start version excludes that.
    """
    return int(digest_words(np.ascontiguousarray(acc).reshape(-1), base))


def max_abs(acc: Ints) -> int:
    """Largest |acc| (0 for an empty array)."""
    return int(largest(np.ascontiguousarray(acc).reshape(-1)))


def _check_e_max(e_max: int) -> None:
    if not -17 <= e_max <= 6:
        raise ValueError(f"scale exponent bound {e_max}; it must lie in -17..6")


def _ternary_bound(rows: int, cols: int) -> int:
    """Bytes that no encoding exceeds: planes are taken before gaps get longer than 8 bits a code and 2 a column."""
    return 64 + rows * (8 + 2 * ((cols + 7) // 8) + 2 * cols)


def _walk(codec: int, data: bytes, rows: int, cols: int, e_max: int, use: int, acc: Ints, base: int) -> int:
    if rows < 0 or cols < 0:
        raise ValueError(f"a tensor of {rows} x {cols}")
    n = rows * cols
    if codec == EXACT:
        return _walk_exact(data, n, use, acc, base)
    view = np.frombuffer(data, np.uint8)
    if codec == INT8:
        if len(data) != rows * (cols + 1):
            raise ValueError(f"int8 update of {len(data)} bytes for {rows} x {cols}; expected {rows * (cols + 1)}")
        status, result = walk_int8(view, rows, cols, e_max + 17, use, acc, base)
    elif codec == TERNARY:
        if not len(data) <= _ternary_bound(rows, cols):
            raise ValueError(f"ternary update of {len(data)} bytes for {rows} x {cols}: longer than any encoding")
        status, result = walk_ternary(view, rows, cols, min(e_max, 6) + 24, use, acc, base)
    else:
        raise ValueError(f"unknown codec {codec}; known are 0 (exact), 1 (ternary), 2 (int8)")
    if status != 0:
        raise ValueError(f"update of {rows} x {cols} is malformed: {MALFORMED[status]}")
    return int(result) & _MASK


def _walk_exact(data: bytes, n: int, use: int, acc: Ints, base: int) -> int:
    if len(data) != 4 * n:
        raise ValueError(f"exact update of {len(data)} bytes for {n} values; expected {4 * n}")
    values = np.frombuffer(data, "<i4")
    if n and not (int(values.min()) >= -RESIDUAL_MAX and int(values.max()) <= RESIDUAL_MAX):
        raise ValueError("exact update holds a value beyond +-2**30")
    if use == ADD:
        np.add(acc, values, out=acc)
    return digest(values.astype(np.int32, copy=False), base) if use == DIGEST else 0
