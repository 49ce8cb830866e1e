"""Where everything lies while a layer trains in integers, and the way in and out.

All arrays are padded with zeros (a padded unit has bias -64, so its probability and its draws are 0), and named by a
place in one table of addresses that the kernels take::

    Vp, Hp, Bp = visibles, hiddens, rows, each rounded up to 64;  G = Hp / 16

    MASTER   int32  [G, Vp, 16]        weights in units 2^-24
    HI, LO   int8   [G, Vp / 4, 16, 4] their two planes: (w + 2048) >> 12 = 256 hi + lo, |w| <= 7.97; or, with 8-bit
                                       weights, one: w >> shift, rounded and saturated, in HI
    SPEED    uint16 [G, Vp / 2, 16, 2] momentum of two rows a lane, upper halves of float32 (bfloat16)
    X        uint8  [2, Bp, Vp]        visible data, this minibatch's and the next one's
    XT       uint8  [2, Vp, Bp]        the same, transposed
    P0, P1   uint8  [G, Bp / 4, 16, 4] hidden probabilities in 1/255, data and model
    ST, CH   uint8  [Bp/16, Hp/4, 16, 4] sampled hiddens 0/1: of the data, and of the chains that go on
    V1       uint8  [Bp, Vp]           sampled visibles 0/1
    V1T      int8   [Vp, Bp]           0 / -xs, transposed (xs = 127 for grey data, where 127 stands for 1)

A quad of four bytes is what one VNNI lane or one AMX column multiplies; 16 quads are one register or tile row.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels.memory import STRIPE, addr, loadi, loadi_first, prefetch, storei, storei_first
from gossipdbn.kernels.tiers import inline, kernel
from gossipdbn.kernels.vectors import add16, iadd, iand, imax, imin, ior, sar, shl, shr, vi

PAD_BIAS = -(1 << 30)
LIMIT = 1 << 30
WEIGHT_LIMIT = 32639 << 12
"""Largest |weight| of a layer that trains in integers, 7.97: what two int8 planes can express."""
ROWS_MAX = 4080
"""Rows of a minibatch; byte counters of the visible sums hold no more."""

(MASTER, HI, LO, SPEED, X, XT, P0, P1, ST, CH, V1, V1T, SAMPLES, PLANES, C, WORDS, COUNTS, SUM_X, SUM_V, SUM_H0, SUM_H1,
 BIAS_H, BIAS_V, SPEED_H, SPEED_V, NB_H, NB_V, LAM, MU_NEG, DV_NEG, DH, DA, DB, PAIR_KEYS, ROW_KEYS, ERROR,
 ADDRESSES) = range(37)

AnyArray = NDArray[np.generic]
_COLOURS = itertools.cycle(range(64))


def padded(n: int) -> int:
    """``n`` rounded up to 64."""
    return -(-n // 64) * 64


def aligned(shape: tuple[int, ...], dtype: type[np.generic]) -> AnyArray:
    """Zeros that start on a 64-byte line, with a line of slack behind.

    Successive arrays start at different places within a page: equal ones would make loads wait for unrelated stores.
    """
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    raw = np.zeros(size + 4096 + 128, np.uint8)
    start = (next(_COLOURS) * 832 - raw.ctypes.data) % 4096
    return raw[start : start + size].view(dtype).reshape(shape)


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """The part of a workspace that depends on the layer only."""

    visible: int
    hidden: int
    arrays: dict[int, AnyArray]

    @classmethod
    def new(cls, visible: int, hidden: int) -> Weights:
        vp, hp = padded(visible), padded(hidden)
        g = hp // 16
        f4, i4 = np.float32, np.int32
        a = {
            MASTER: aligned((g, vp, 16), i4),
            HI: aligned((g, vp // 4, 16, 4), np.int8),
            LO: aligned((g, vp // 4, 16, 4), np.int8),
            BIAS_H: aligned((hp,), i4),
            BIAS_V: aligned((vp,), i4),
            NB_H: aligned((hp,), f4),
            NB_V: aligned((vp,), f4),
            MU_NEG: aligned((vp,), f4),
            DV_NEG: aligned((vp,), f4),
            DH: aligned((hp,), f4),
            DA: aligned((vp, 16), f4),
            DB: aligned((hp,), f4),
            SUM_H0: aligned((hp,), i4),
            SUM_H1: aligned((hp,), i4),
            SUM_X: aligned((2, vp), i4),
            SUM_V: aligned((vp,), i4),
            PLANES: aligned((2, 2, 32, hp), np.int8),
            COUNTS: aligned((vp // 4, 16), i4),
            ERROR: aligned((8,), np.int64),
        }
        return cls(visible, hidden, a)


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """The part of a workspace that depends on the number of rows too."""

    rows: int
    arrays: dict[int, AnyArray]

    @classmethod
    def new(cls, visible: int, hidden: int, rows: int) -> Batch:
        vp, hp, bp = padded(visible), padded(hidden), padded(rows)
        g = hp // 16
        u1 = np.uint8
        a = {
            X: aligned((2, bp, vp), u1),
            XT: aligned((2, vp, bp), u1),
            P0: aligned((g, bp // 4, 16, 4), u1),
            P1: aligned((g, bp // 4, 16, 4), u1),
            ST: aligned((bp // 16, hp // 4, 16, 4), u1),
            CH: aligned((bp // 16, hp // 4, 16, 4), u1),
            V1: aligned((bp, vp), u1),
            V1T: aligned((vp, bp), np.int8),
            SAMPLES: aligned((2, bp, 64), u1),
            C: aligned((16, 16, 64), np.int32),
            WORDS: aligned((bp // 16, 16, 16), np.int32),
            PAIR_KEYS: aligned((2, bp), np.uint32),
            ROW_KEYS: aligned((2, bp), np.uint32),
        }
        return cls(rows, a)


def addresses(*parts: dict[int, AnyArray]) -> NDArray[np.int64]:
    """The table of addresses that the kernels take; the arrays must be kept alive."""
    table = np.zeros(ADDRESSES, np.int64)
    for part in parts:
        for name, array in part.items():
            table[name] = array.ctypes.data
    return table


@inline
def operand(w):  # type: ignore[no-untyped-def]
    """The 16-bit operand of a master: units 2^-12, rounded half up; |w| must not exceed WEIGHT_LIMIT."""
    return sar(iadd(w, vi(2048)), 12)


@inline
def pack_quads(t0, t1, t2, t3, hi, lo):  # type: ignore[no-untyped-def]
    """Store the two planes of four rows of operands: bytes t0, t1, t2, t3 of each lane."""
    even = ior(iand(t0, vi(0xFFFF)), shl(t2, 16))
    odd = ior(iand(t1, vi(0xFFFF)), shl(t3, 16))
    storei(lo, ior(iand(even, vi(0x00FF00FF)), iand(shl(odd, 8), vi(-0xFF0100))))
    even = add16(even, vi(0x00800080))
    odd = add16(odd, vi(0x00800080))
    storei(hi, ior(iand(shr(even, 8), vi(0x00FF00FF)), iand(odd, vi(-0xFF0100))))


@inline
def clipped(w):  # type: ignore[no-untyped-def]
    """Masters held within what the planes can express."""
    return imin(imax(w, vi(-WEIGHT_LIMIT)), vi(WEIGHT_LIMIT))


@inline
def operand8(w, shift):  # type: ignore[no-untyped-def]
    """The 8-bit operand of a master: units 2^(shift - 24), rounded half up, saturated at +-127."""
    t = sar(iadd(w, vi(1 << (shift - 1))), shift)
    return imin(imax(t, vi(-127)), vi(127))


@inline
def store_planes(w0, w1, w2, w3, hi, lo, shift):  # type: ignore[no-untyped-def]
    """Store the operands of four rows of masters: both planes, or with ``shift`` the one of 8-bit weights."""
    if shift:
        low = ior(iand(operand8(w0, shift), vi(255)), shl(iand(operand8(w1, shift), vi(255)), 8))
        storei(hi, ior(low, ior(shl(iand(operand8(w2, shift), vi(255)), 16), shl(operand8(w3, shift), 24))))
    else:
        pack_quads(operand(w0), operand(w1), operand(w2), operand(w3), hi, lo)


@inline
def refresh_quads(master, hi, lo, shift):  # type: ignore[no-untyped-def]
    """The operands of four rows of one group, from 4 x 16 masters."""
    w0, w1 = clipped(loadi(master)), clipped(loadi(master + 64))
    w2, w3 = clipped(loadi(master + 128)), clipped(loadi(master + 192))
    store_planes(w0, w1, w2, w3, hi, lo, shift)


def one_plane_shift(largest: int) -> int:
    """The step of 8-bit weights, 2^(shift - 24): the finest that leaves a quarter of head room above ``largest``."""
    shift = 1
    while 127 << shift < largest + (largest >> 2):
        shift += 1
    return shift


@inline
def _row(f, v, visible, hidden, g, width):  # type: ignore[no-untyped-def]
    """Sixteen weights of row ``v``, from the parameters; zeros behind the last row and the last unit."""
    if v >= visible:
        return vi(0)
    if width == 16:
        return loadi(f + (v * hidden + g * 16) * 4)
    return loadi_first(f + (v * hidden + g * 16) * 4, width)


@kernel
def load_weights(flat, visible, hidden, master, hi, lo, shift):  # type: ignore[no-untyped-def]
    """Weights int32 [visible * hidden], row-major -> master and planes (one plane with ``shift``).

    A master without groups is not written: whoever only reads the layer needs no more than the planes.
    """
    f, m, h, w = addr(flat), addr(master), addr(hi), addr(lo)
    vp = hi.shape[1] * 4
    for first in range(0, visible, STRIPE):
        for g in range((hidden + 15) >> 4):
            width = min(hidden - g * 16, 16)
            for v in range(first, min(first + STRIPE, visible), 4):
                at = g * vp + v
                for i in range(4):
                    prefetch(f + ((v + i + STRIPE) * hidden + g * 16) * 4)
                    prefetch(m + (at + i + STRIPE) * 64)
                prefetch(h + (at + STRIPE) * 16)
                prefetch(w + (at + STRIPE) * 16)
                w0, w1 = _row(f, v, visible, hidden, g, width), _row(f, v + 1, visible, hidden, g, width)
                w2, w3 = _row(f, v + 2, visible, hidden, g, width), _row(f, v + 3, visible, hidden, g, width)
                if master.shape[0]:
                    storei(m + at * 64, w0)
                    storei(m + at * 64 + 64, w1)
                    storei(m + at * 64 + 128, w2)
                    storei(m + at * 64 + 192, w3)
                store_planes(clipped(w0), clipped(w1), clipped(w2), clipped(w3), h + at * 16, w + at * 16, shift)


@kernel
def store_weights(flat, visible, hidden, master):  # type: ignore[no-untyped-def]
    """Master -> weights int32 [visible * hidden], row-major."""
    f, m = addr(flat), addr(master)
    vp = master.shape[1]
    for first in range(0, visible, STRIPE):
        for g in range((hidden + 15) >> 4):
            width = min(hidden - g * 16, 16)
            for v in range(first, min(first + STRIPE, visible)):
                prefetch(m + (g * vp + v + STRIPE) * 64)
                prefetch(f + ((v + STRIPE) * hidden + g * 16) * 4)
                w = loadi(m + (g * vp + v) * 64)
                if width == 16:
                    storei(f + (v * hidden + g * 16) * 4, w)
                else:
                    storei_first(f + (v * hidden + g * 16) * 4, w, width)
