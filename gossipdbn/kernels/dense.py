"""Float32 products with a fixed order: every output is one chain of fused multiply-adds in the order of k.

Weights are kept in panels, float32 [G, K, 16] with G = columns / 16 (an even number), so that one group of 16 outputs
reads its weights in one stream; activations are row-major with rows padded to 16 and columns to 32. The same panel
matrix is used along its rows too, without a transposed copy, by letting the broadcast operand hop from panel to panel.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.memory import (
    STRIPE,
    addr,
    loadf,
    loadi,
    loadi_first,
    prefetch,
    storef,
    storef_first,
    storei,
    storei_first,
    transpose16,
)
from gossipdbn.kernels.tiers import WIDE, device, inline, kernel
from gossipdbn.kernels.tiles import F32, tile
from gossipdbn.kernels.vectors import fmax, fmin, fmul, fsub, iadd, imax, imin, to_float, to_int, vf, vi

f4 = np.float32
UNIT = f4(2.0**-24)
PER_UNIT = f4(2.0**24)
_STEP = f4(2.0**29)
LIMIT = 1 << 30


def pad16(n: int) -> int:
    """``n`` rounded up to 16."""
    return -(-n // 16) * 16


def pad32(n: int) -> int:
    """``n`` rounded up to 32."""
    return -(-n // 32) * 32


@inline
def block(add, a, a_row, a_k, b, b_k, b_group, steps, c, c_row):
    """8 rows x 32 columns. Sixteen AVX2 registers hold 6 x 16 sums, more chains than four of latency ask for."""
    if WIDE:
        tile(F32, 8, 2, add, 0, a, a_row, a_k, b, b_k, b_group, steps, c, c_row, 0, 0)
    else:
        for g in range(2):
            tile(F32, 6, 1, add, 0, a, a_row, a_k, b + g * b_group, b_k, 64, steps, c + g * 64, c_row, 0, 0)
        tile(F32, 2, 2, add, 0, a + 6 * a_row, a_row, a_k, b, b_k, b_group, steps, c + 6 * c_row, c_row, 0, 0)


@device
def times_panels(a, a_row, a_k, panels, k_rows, steps, c, c_row, rows, groups):
    """c [rows, 16 groups] = a times a panel matrix; rows are computed in eights, c must have room for that."""
    for g in range(0, groups, 2):
        w = panels + g * k_rows * 64
        for m in range(0, rows, 8):
            block(0, a + m * a_row, a_row, a_k, w, 64, k_rows * 64, steps, c + m * c_row + g * 64, c_row)


@device
def panels_times(panels, k_rows, columns, b, b_row, c, c_row, lane_groups):
    """c [k_rows, lanes] = panel matrix [k_rows, columns] times b [columns, lanes]: k_rows in eights."""
    jump = k_rows * 64 - 64
    for g in range(0, lane_groups, 2):
        pair = min(lane_groups - g, 2)
        for m in range(0, k_rows, 8):
            o = c + m * c_row + g * 64
            if WIDE and pair == 2:
                tile(F32, 8, 2, 0, 1, panels + m * 64, 64, 4, b + g * 64, b_row, 64, columns, o, c_row, 16, jump)
            elif WIDE:
                tile(F32, 8, 1, 0, 1, panels + m * 64, 64, 4, b + g * 64, b_row, 64, columns, o, c_row, 16, jump)
            else:
                for n in range(pair):
                    for i in range(0, 8, 4):
                        tile(F32, 4, 1, 0, 1, panels + (m + i) * 64, 64, 4, b + (g + n) * 64, b_row, 64, columns,
                             o + i * c_row + n * 64, c_row, 16, jump)


@device
def transpose(source, s_row, target, t_row, rows, columns, scratch):
    """target [columns, rows] = source [rows, columns], 16 x 16 words at a time (both padded to 16)."""
    for r in range(0, rows, 16):
        for c in range(0, columns, 16):
            for i in range(16):
                storei(scratch + i * 64, loadi(source + (r + i) * s_row + c * 4))
            transpose16(scratch, scratch)
            for i in range(16):
                storei(target + (c + i) * t_row + r * 4, loadi(scratch + i * 64))


@kernel
def panels_from_master(flat, rows, columns, panels):
    """Weights int32 [rows * columns], units 2^-24 -> float32 panels (padding is left alone)."""
    f, p = addr(flat), addr(panels)
    k_rows = panels.shape[1]
    for first in range(0, rows, STRIPE):
        for g in range((columns + 15) >> 4):
            width = min(columns - g * 16, 16)
            for r in range(first, min(first + STRIPE, rows)):
                at, to = r * columns + g * 16, p + (g * k_rows + r) * 64
                prefetch(f + (at + STRIPE * columns) * 4)
                prefetch(to + STRIPE * 64)
                if width == 16:
                    storef(to, fmul(to_float(loadi(f + at * 4)), vf(UNIT)))
                else:
                    storef_first(to, fmul(to_float(loadi_first(f + at * 4, width)), vf(UNIT)), width)


@kernel
def master_from_panels(flat, rows, columns, panels):
    """Add to the master what the panels have gained since they were made from it, rounded, saturated at +-2^30."""
    f, p = addr(flat), addr(panels)
    k_rows = panels.shape[1]
    for first in range(0, rows, STRIPE):
        for g in range((columns + 15) >> 4):
            width = min(columns - g * 16, 16)
            for r in range(first, min(first + STRIPE, rows)):
                at, now = f + (r * columns + g * 16) * 4, p + (g * k_rows + r) * 64
                prefetch(at + STRIPE * columns * 4)
                prefetch(now + STRIPE * 64)
                if width == 16:
                    storei(at, moved(loadi(at), loadf(now)))
                else:
                    storei_first(at, moved(loadi_first(at, width), loadf(now)), width)


@inline
def moved(old, now):
    """Masters moved by what their float32 values gained; |old| <= 2^30 or it is brought there."""
    old = imin(imax(old, vi(-LIMIT)), vi(LIMIT))
    step = gained(fmul(to_float(old), vf(UNIT)), now)
    return imin(imax(iadd(old, step), vi(-LIMIT)), vi(LIMIT))


@inline
def gained(old, new):
    """rint((new - old) * 2^24), at most +-2^29."""
    step = fmul(fsub(new, old), vf(PER_UNIT))
    return to_int(fmin(fmax(step, vf(f4(-_STEP))), vf(_STEP)))
