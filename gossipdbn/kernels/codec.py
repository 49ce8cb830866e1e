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
        u8 per group      k, the Rice parameter of up to 128 codes
        slices            of every 16 codes of a group (the last of a group may be fewer) k + 1 slices of one bit a
                          code, in 2 bytes (1 for up to 8 codes), the first code lowest: bits k - 1 .. 0 of the gaps,
                          then the signs (1 = minus)
        bits              per code gap >> k zeros, then a one; through all groups, the first bit lowest
        planes            per planes block: ceil(cols / 8) bytes of "plus", the same of "minus"

    A gap is the number of zeros since the last code; it runs on through gap-coded blocks as if they were one. k is
    floor(log2(15/16 of the mean distance of the group's codes)), at least 0. A block of m codes is in planes where
    that takes fewer bits than m * (k + 3), k from the block alone. Fixed widths and unary parts are apart so that both
    are read many codes at a time.
int8 (2)
    u8 shift per block, the least that holds its largest code, then int8 codes -127..127.

Every encoding is the only one of its value, and `read` accepts no other. It walks the bytes once, checks everything and
never reads or writes outside; what it returns is added by `merge`, as often and whenever wanted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels.codec_kernels import add_int8, add_runs, encode_int8, read_int8, survey
from gossipdbn.kernels.digests import digest_words, largest
from gossipdbn.kernels.ternary_read import HEADER, MALFORMED, OUTSIDE, SCALE, decode_ternary
from gossipdbn.kernels.ternary_write import encode_ternary, fold_residual, fold_tiles

EXACT, TERNARY, INT8 = 0, 1, 2
RESIDUAL_MAX = 1 << 30
TENSOR_MAX, BLOCK_MAX = 1 << 28, 1 << 20
"""Values of a tensor and of a block, at most: places in a tensor are kept in 32 bits."""
_MASK = (1 << 64) - 1
_INT8_STATUS = (0, SCALE, OUTSIDE, HEADER)
_NO_INTS = np.zeros(0, np.int32)
_NO_BYTES = np.zeros(0, np.uint8)
_NO_RUNS = np.zeros((0, 3), np.int64)

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Deltas:
    """A tensor's encoded deltas, checked and ready to be added.

    Attributes
    ----------
    digest : sum delta_i * r_i mod 2**64 over global parameter indices i, see `digest`.
    base : first global index of the tensor, of ``rows`` blocks of ``cols``.
    index, delta : ternary: int32 [n], global indices and what to add there. runs : int64 [2, 3], the same as addresses
        of ascending indices, of deltas, and lengths.
    values : exact: int32 [rows * cols]. codes : int8: uint8 [rows + rows * cols], scales and codes.
    """

    digest: int
    base: int
    rows: int
    cols: int
    index: Ints
    delta: Ints
    runs: NDArray[np.int64]
    values: Ints
    codes: NDArray[np.uint8]

    @property
    def nbytes(self) -> int:
        """Memory that these deltas hold."""
        return self.index.nbytes + self.delta.nbytes + self.values.nbytes + self.codes.nbytes

    def negated(self) -> Deltas:
        """The deltas that take these back."""
        delta, codes = -self.delta, self.codes
        runs = self.runs.copy()
        runs[:, 1] += delta.ctypes.data - self.delta.ctypes.data
        if codes.size:
            codes = codes.copy()
            signed = codes[self.rows :].view(np.int8)
            np.negative(signed, out=signed)
        digest = -self.digest & _MASK
        return replace(self, digest=digest, delta=delta, runs=runs, values=-self.values, codes=codes)

    def __reduce__(self) -> str:
        raise TypeError("decoded deltas hold addresses: they can be neither copied nor sent to another process")


def fold(residual: Ints, now: Ints, start: Ints, divisor: int) -> None:
    """Add a round's progress to the residual, in place.

    Parameters
    ----------
    residual, now, start : int32 [n], contiguous. ``now - start`` is taken modulo 2**32.
    divisor : S**a of protocol section 3; the quotient is ``rint(float64(d) * (1.0 / divisor))``: nearest, ties to
        even where the divisor is a power of two. The sum saturates at +-2**30.
    """
    _check_fold(residual, now, start, divisor)
    fold_residual(residual, now, start, 1.0 / divisor)


def quantise(codec: int, residual: Ints, e_max: int) -> bytes:
    """Encode ``residual`` (int32 [rows, cols], |r| <= 2**30) and leave in it what was not encoded.

    Parameters
    ----------
    codec : 0 exact, 1 ternary, 2 int8. e_max : largest scale exponent, real units: one code is at most 2**e_max.
    """
    return _quantise(codec, residual, e_max, None)


def fold_and_quantise(codec: int, residual: Ints, now: Ints, start: Ints, divisor: int, e_max: int) -> bytes:
    """`fold`, then `quantise`, of int32 [rows, cols], in one pass where possible.

    ``start`` is flat, and so is ``now``, or it has the tiles int32 [G, tall, 16] of `cd_layout`.
    """
    tall = now.shape[1] if now.ndim == 3 else 0
    if not tall:
        _check_fold(residual, now, start, divisor)
    else:
        _check_fold(residual, start, start, divisor)
        if now.shape[0] * 16 < residual.shape[1] or tall < residual.shape[0] or not now.flags.c_contiguous:
            raise ValueError(f"tiles of {now.shape[0] * 16} columns, {tall} rows for a residual of {residual.shape}")
    if codec == TERNARY:
        return _quantise(codec, residual, e_max, (now.reshape(-1), tall, start, 1.0 / divisor))
    if tall:
        fold_tiles(residual.reshape(-1), now.reshape(-1), tall, start, 1.0 / divisor, *residual.shape)
    else:
        fold_residual(residual.reshape(-1), now, start, 1.0 / divisor)
    return _quantise(codec, residual, e_max, None)


def read(codec: int, data: bytes, rows: int, cols: int, e_max: int = 6, base: int = 0) -> Deltas:
    """Check and decode an encoded tensor of [rows, cols] whose first global parameter index is ``base``.

    Raises
    ------
    ValueError : ``data`` is not the encoding of any deltas within the bounds.
    """
    _check_e_max(e_max)
    _check_shape(rows, cols)
    n = rows * cols
    if codec == EXACT:
        if len(data) != 4 * n:
            raise ValueError(f"exact update of {len(data)} bytes for {n} values; expected {4 * n}")
        values = np.frombuffer(data, "<i4").astype(np.int32, copy=False)
        if n and largest(values) > RESIDUAL_MAX:
            raise ValueError("exact update holds a value beyond +-2**30")
        return Deltas(digest(values, base), base, rows, cols, _NO_INTS, _NO_INTS, _NO_RUNS, values, _NO_BYTES)
    view = np.frombuffer(data, np.uint8)
    if codec == INT8:
        if len(data) != rows * (cols + 1):
            raise ValueError(f"int8 update of {len(data)} bytes for {rows} x {cols}; expected {rows * (cols + 1)}")
        status, total = read_int8(view, rows, cols, e_max + 17, base)
        if status != 0:
            raise ValueError(f"update of {rows} x {cols} is malformed: {MALFORMED[_INT8_STATUS[status]]}")
        return Deltas(int(total) & _MASK, base, rows, cols, _NO_INTS, _NO_INTS, _NO_RUNS, _NO_INTS, view)
    if codec != TERNARY:
        raise ValueError(f"unknown codec {codec}; known are 0 (exact), 1 (ternary), 2 (int8)")
    if len(data) > _ternary_bound(rows, cols):
        raise ValueError(f"ternary update of {len(data)} bytes for {rows} x {cols}: longer than any encoding")
    status, total, index, delta, runs = decode_ternary(view, rows, cols, e_max + 24, base)
    if status != 0:
        raise ValueError(f"update of {rows} x {cols} is malformed: {MALFORMED[status]}")
    return Deltas(int(total) & _MASK, base, rows, cols, index, delta, runs, _NO_INTS, _NO_BYTES)


def merge(acc: Ints, batch: Sequence[Deltas]) -> None:
    """Add decoded tensors to flat accumulators (int32 [P], contiguous), modulo 2**32; all of them in one pass.

    Addition commutes, so neither order nor batches make a difference.
    """
    _merge_dense(acc, batch)
    if batch:
        add_runs(acc, np.concatenate([d.runs for d in batch]))


def measured(acc: Ints) -> tuple[int, int]:
    """`digest` and `max_abs` of accumulators (int32 [P], contiguous), in one pass."""
    total, high = survey(acc)
    return int(total) & _MASK, int(high)


def _merge_dense(acc: Ints, batch: Sequence[Deltas]) -> None:
    """Add what is not runs, after checking that all of the batch fits."""
    if not acc.flags.c_contiguous or acc.ndim != 1:
        raise ValueError("accumulators must be one contiguous vector")
    for d in batch:
        end = d.base + d.rows * d.cols
        if end > acc.size or d.base < 0:
            raise ValueError(f"{acc.size} accumulators for a tensor of {d.rows} x {d.cols} at {d.base}")
    for d in batch:
        end = d.base + d.rows * d.cols
        if d.values.size:
            np.add(acc[d.base : end], d.values, out=acc[d.base : end])
        elif d.codes.size:
            add_int8(acc[d.base : end], d.codes, d.rows, d.cols)


def decode(codec: int, data: bytes, rows: int, cols: int) -> Ints:
    """The deltas as int32 [rows, cols]."""
    out = np.zeros(rows * cols, np.int32)
    merge(out, [read(codec, data, rows, cols)])
    return out.reshape(rows, cols)


def digest(acc: Ints, base: int = 0) -> int:
    """sum acc_i * r_(base + i) mod 2**64, r_i an odd hash of the global parameter index (int32 [n], contiguous).

    Linear while no accumulator wraps: digest(a + b) = digest(a) + digest(b). A wrap changes it by a multiple of
    2**32 r_i; the protocol's check |acc| < 2**30 (`max_abs`) at every start version excludes that.
    """
    return int(digest_words(np.ascontiguousarray(acc).reshape(-1), base)) & _MASK


def max_abs(acc: Ints) -> int:
    """Largest |acc| (0 for an empty array)."""
    return int(largest(np.ascontiguousarray(acc).reshape(-1)))


def warm() -> None:
    """Compile, or load from the cache, everything that sends, reads and merges updates."""
    acc, now = np.zeros(32, np.int32), np.full(32, 1 << 20, np.int32)
    for codec in (EXACT, TERNARY, INT8):
        data = fold_and_quantise(codec, np.zeros((2, 16), np.int32), now, acc, 1, 4)
        deltas = read(codec, data, 2, 16)
        merge(now, [deltas, deltas])
        fold_and_quantise(codec, np.zeros((2, 16), np.int32), now.reshape(1, 2, 16), acc, 1, 4)
        measured(now)
    digest(now)
    max_abs(now)


def _quantise(codec: int, residual: Ints, e_max: int, progress: tuple[Ints, int, Ints, float] | None) -> bytes:
    _check_e_max(e_max)
    rows, cols = residual.shape
    _check_shape(rows, cols)
    if codec == EXACT:
        data = residual.astype("<i4", copy=False).tobytes()
        residual[:] = 0
        return data
    if not residual.flags.c_contiguous:
        raise ValueError("a residual must be contiguous")
    flat = residual.reshape(-1)
    if codec == INT8:
        out = np.empty(rows * (cols + 1), np.uint8)
        encode_int8(flat, rows, cols, e_max + 17, out)
        return out.tobytes()
    if codec != TERNARY:
        raise ValueError(f"unknown codec {codec}; known are 0 (exact), 1 (ternary), 2 (int8)")
    now, tall, start, factor = progress or (flat, 0, flat, 1.0)
    values = flat if flat.size >= 16 else np.concatenate([flat, np.zeros(16, np.int32)])  # whole vectors can be read
    out = np.empty(_ternary_bound(rows, cols), np.uint8)
    n = encode_ternary(values, now, tall, start, factor, progress is not None, rows, cols, e_max + 24, out)
    if values is not flat:
        flat[:] = values[: flat.size]
    return out[:n].tobytes()


def _check_fold(residual: Ints, now: Ints, start: Ints, divisor: int) -> None:
    if divisor < 1:
        raise ValueError(f"divisor of a fold is {divisor}; it must be 1 or more")
    if not residual.size == now.size == start.size:
        raise ValueError(f"fold of {now.size} - {start.size} values into a residual of {residual.size}")
    if not (residual.flags.c_contiguous and now.flags.c_contiguous and start.flags.c_contiguous):
        raise ValueError("what is folded must be contiguous")


def _check_e_max(e_max: int) -> None:
    if not -17 <= e_max <= 6:
        raise ValueError(f"scale exponent bound {e_max}; it must lie in -17..6")


def _check_shape(rows: int, cols: int) -> None:
    if rows < 0 or cols < 0 or rows * cols > TENSOR_MAX or cols > BLOCK_MAX:
        raise ValueError(f"a tensor of {rows} x {cols}; at most {TENSOR_MAX} values in blocks of {BLOCK_MAX} are coded")


def _ternary_bound(rows: int, cols: int) -> int:
    """Bytes that no encoding exceeds: planes are taken before gaps get longer than 8 bits a code and 2 a column."""
    return 64 + rows * (8 + 2 * ((cols + 7) // 8) + 2 * cols)
