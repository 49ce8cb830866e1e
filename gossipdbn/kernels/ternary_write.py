"""Encoding a ternary tensor: two passes over each block while it is in L1, then one over the codes.

The first pass over a block adds the round's progress and takes the largest magnitude, which is the scale. The second
compares with half the scale, corrects the residual and appends ``2 * place + minus`` of every code to a list: sixteen
lanes are moved together at once where the CPU can, so nothing depends on where codes lie. The list, 5 % as long as the
tensor, then becomes gaps; sixteen gaps at a time give one 16-bit slice for every low bit, and the rest is written in
unary through one register.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.masks import (
    add_masked,
    choose,
    compress,
    keep_masked,
    leading_zeros,
    mask_less,
    mask_negative,
    ones,
    or_bits,
    trailing_zeros,
)
from gossipdbn.kernels.memory import (
    PAGE,
    STRIPE,
    addr,
    loadi,
    loadi_first,
    peek,
    poke,
    poke8,
    poke16,
    poke64,
    prefetch,
    storei,
    storei_first,
)
from gossipdbn.kernels.tiers import WIDE, inline, kernel
from gossipdbn.kernels.vectors import (
    add_saturating,
    iabs,
    iadd,
    iand,
    ihighest,
    imax,
    imin,
    ior,
    iota,
    isub,
    running_sum,
    sar,
    shl,
    shr,
    times_rounded,
    vi,
)

GROUP = 128
"""Codes that share one Rice parameter."""
_LIMIT = 1 << 30
_POWERS = 12
_HIGHEST_OUT = (1 << 63) - 1


@inline
def power_of(factor):
    """p where ``factor`` is 2**-p and p is small, else -1."""
    power = np.int64(-1)
    for p in range(_POWERS):
        if factor * np.float64(1 << p) == 1.0:
            power = p
    return power


@inline
def _folded(rest, progress, factor, power):
    """``rest`` and sixteen values of ``rint(progress * factor)``, held within +-2**30."""
    if power > 0:
        below, half = vi((np.int64(1) << power) - 1), vi((np.int64(1) << power) >> 1)
        quotient = sar(progress, power)
        up = mask_less(half, iadd(iand(progress, below), iand(quotient, vi(1))))  # beyond half, or half and odd
        progress = add_masked(quotient, up, vi(1))
    elif power < 0:
        progress = times_rounded(progress, factor)
    return imax(imin(add_saturating(rest, progress), vi(_LIMIT)), vi(-_LIMIT))


@inline
def fold_words(residual, now, start, factor, power, first, last):
    """Add ``rint((now - start) * factor)`` to residual[first:last], saturating at +-2**30."""
    r, a, b = addr(residual), addr(now), addr(start)
    i = first
    while i + 16 <= last:
        prefetch(a + i * 4 + PAGE)
        prefetch(b + i * 4 + PAGE)
        prefetch(r + i * 4 + PAGE)
        progress = isub(loadi(a + i * 4), loadi(b + i * 4))
        storei(r + i * 4, _folded(loadi(r + i * 4), progress, factor, power))
        i += 16
    while i < last:
        d = np.int32(np.int64(now[i]) - np.int64(start[i]))
        q = np.int64((np.float64(d) * factor + 6755399441055744.0) - 6755399441055744.0)
        residual[i] = np.int32(min(max(np.int64(residual[i]) + q, -_LIMIT), _LIMIT))
        i += 1


@kernel
def fold_residual(residual, now, start, factor):
    """Add ``rint((now - start) * factor)`` to the residual, saturating at +-2**30."""
    fold_words(residual, now, start, factor, power_of(factor), np.int64(0), np.int64(residual.size))


@inline
def fold_stripe(residual, tiles, tall, start, factor, power, first, last, cols):
    """As `fold_words`, of rows first..last-1, where what was trained lies in tiles of ``tall`` rows x 16 columns."""
    r, a, b = addr(residual), addr(tiles), addr(start)
    for g in range((cols + 15) >> 4):
        width = min(cols - g * 16, 16)
        for row in range(first, last):
            at, tile = (row * cols + g * 16) * 4, a + (g * tall + row) * 64
            prefetch(tile + STRIPE * 64)
            prefetch(b + at + STRIPE * cols * 4)
            prefetch(r + at + STRIPE * cols * 4)
            if width == 16:
                progress = isub(loadi(tile), loadi(b + at))
                storei(r + at, _folded(loadi(r + at), progress, factor, power))
            else:
                progress = isub(loadi(tile), loadi_first(b + at, width))
                storei_first(r + at, _folded(loadi_first(r + at, width), progress, factor, power), width)


@kernel
def fold_tiles(residual, tiles, tall, start, factor, rows, cols):
    """`fold_residual` from tiles."""
    power = power_of(factor)
    for first in range(0, rows, STRIPE):
        fold_stripe(residual, tiles, tall, start, factor, power, first, min(first + STRIPE, rows), cols)


@inline
def log2(x):
    """floor(log2(x)) of a positive int64."""
    return 63 - leading_zeros(x)


@inline
def rice_of(span, count):
    """Golomb-Rice parameter for ``count`` codes over ``span`` places: about log2(0.96 * mean distance)."""
    return log2(max((span * 15) // (count * 16), 1))


@inline
def use_planes(cols, count):
    """Whether a block of ``count`` codes is shorter as two bit planes than as gaps."""
    return 16 * ((cols + 7) // 8) < count * (rice_of(cols, count) + 3)


@inline
def few_codes(cols):
    """A number of codes that never makes planes of a block: `use_planes` need not be asked."""
    return 16 * ((cols + 7) // 8) // (log2(max(cols, 1)) + 3)


if WIDE:

    @inline
    def append(at, x, mask):
        """Store at ``at`` the lanes of ``x`` that ``mask`` names, together; what lies behind them is undefined."""
        storei(at, compress(x, mask))

else:

    @inline
    def append(at, x, mask):
        """Store at ``at`` the lanes of ``x`` that ``mask`` names, together; what lies behind them is undefined."""
        if mask:
            storei(at, x)
            to = at
            while mask:
                poke(to, peek(at + trailing_zeros(mask) * 4))  # a lane only ever moves down
                to += 4
                mask &= mask - 1


@kernel
def encode_ternary(residual, now, tall, start, factor, folds, rows, cols, shift_max, out):
    """Fold (if ``folds``) and encode int32 [rows * cols], at least 16 long, into ``out``; returns the bytes written.

    What is not encoded stays in ``residual``. ``tall``: rows of the tiles that ``now`` is, 0 when it is in order.
    """
    kinds = np.zeros(rows, np.uint8)  # 0 empty, else shift + 1, bit 7 planes
    codes = np.empty(rows * cols + 64, np.int32)
    codes[15] = -2  # the place before the first
    planes = np.empty(rows * 2 * ((cols + 7) // 8), np.uint8)
    listed = addr(codes) + 64
    room = max(rows * cols, 16) - 16
    few = few_codes(cols)
    n, begin, top, held, following = np.int64(0), np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    ahead, power = np.int64(0), power_of(factor)
    for r in range(-1, rows):  # a block ahead, so that the CPU need not wait for a maximum
        first, m = r * cols, following
        if r + 1 < rows:
            if folds and tall > 0:
                if (r + 1) % STRIPE == 0:
                    last = min(r + 1 + STRIPE, rows)
                    fold_stripe(residual, now, tall, start, factor, power, r + 1, last, cols)
            elif folds:
                last = min((first + 2 * cols + 15) // 16 * 16, rows * cols)
                fold_words(residual, now, start, factor, power, ahead, last)
                ahead = last
            following = _largest_of(residual, first + cols, cols, room)
        if r < 0 or m == 0:
            continue
        shift = min(np.int64(64) - leading_zeros(m - 1), shift_max)
        top = max(top, shift)
        kinds[r] = np.uint8(shift + 1)
        count = _codes_of(residual, first, cols, room, shift, begin, listed + n * 4)
        if count > few and use_planes(cols, count):
            kinds[r] |= np.uint8(128)
            held = _as_planes(codes, n + 16, count, begin, cols, planes, held)
        else:
            n += count
            begin += cols
    return _write(rows, kinds, top, n, codes, planes, held, out)


@inline
def _largest_of(values, first, cols, room):
    """Largest magnitude of a block. ``room``: the last index at which sixteen values may be read."""
    at, high = addr(values), vi(0)
    whole = cols // 16 * 16
    for i in range(first, first + whole, 16):
        high = imax(high, iabs(loadi(at + i * 4)))
    if whole < cols:
        i = min(first + whole, room)
        valid = ((1 << (cols - whole)) - 1) << (first + whole - i)
        high = imax(high, keep_masked(iabs(loadi(at + i * 4)), valid))
    return ihighest(high)


@inline
def _codes_of(values, first, cols, room, shift, begin, listed):
    """Append the codes of a block to the list, take them out of ``values``; returns how many."""
    at = addr(values)
    step, back, half = vi(np.int64(1) << shift), vi(-(np.int64(1) << shift)), vi((np.int64(1) << shift) >> 1)
    n = np.int64(0)
    whole = cols // 16 * 16
    place = iadd(vi(2 * begin), shl(iota(), 1))
    for i in range(first, first + whole, 16):
        n += _sixteen(at + i * 4, step, back, half, place, np.int64(0xFFFF), listed + n * 4)
        place = iadd(place, vi(32))
    if whole < cols:
        i = min(first + whole, room)
        valid = ((1 << (cols - whole)) - 1) << (first + whole - i)
        place = iadd(vi(2 * (begin + i - first)), shl(iota(), 1))
        n += _sixteen(at + i * 4, step, back, half, place, valid, listed + n * 4)
    return n


@inline
def _sixteen(at, step, back, half, place, valid, listed):
    x = loadi(at)
    minus = mask_negative(x)
    chosen = mask_less(half, iabs(x)) & valid
    storei(at, isub(x, keep_masked(choose(minus, back, step), chosen)))
    append(listed, add_masked(place, minus, vi(1)), chosen)
    return ones(chosen)


@inline
def _as_planes(codes, first, count, begin, cols, planes, held):
    """Write a block's codes as two bit planes behind those held so far; returns how many bytes are held now."""
    width = (cols + 7) // 8
    for j in range(held, held + 2 * width):
        planes[j] = np.uint8(0)
    for i in range(first, first + count):
        code = np.int64(codes[i]) - 2 * begin
        c = code >> 1
        planes[held + width * (code & 1) + (c >> 3)] |= np.uint8(1 << (c & 7))
    return held + 2 * width


@inline
def _write(rows, kinds, top, n, codes, planes, held, out):
    out[0] = np.uint8(top)
    p = np.int64(1 + (rows + 1) // 2)
    for i in range(1, p):
        out[i] = np.uint8(0)
    for r in range(rows):
        if kinds[r] == 0:
            continue
        shift, in_planes = np.int64(kinds[r] & 127) - 1, np.int64(kinds[r] >> 7)
        v = top - shift + 1
        if v > 7:
            out[p] = np.uint8(shift | (in_planes << 7))
            p += 1
            v = np.int64(15)
        else:
            v += 7 * in_planes
        out[1 + (r >> 1)] |= np.uint8(v << (4 * (r & 1)))
    rest = n
    while rest >= 128:
        out[p] = np.uint8((rest & 127) | 128)
        rest >>= 7
        p += 1
    out[p] = np.uint8(rest)
    p = _write_codes(addr(codes) + 64, n, addr(out) + p + 1) - addr(out)
    for i in range(held):
        out[p + i] = planes[i]
    return p + held


@inline
def _write_codes(listed, n, p):
    """Write the codes at ``listed`` to address ``p``; returns the address behind them."""
    slices, bits = p + (n + GROUP - 1) // GROUP, np.int64(0)
    before = np.int64(-1)
    for first in range(0, n, GROUP):
        count = min(n - first, GROUP)
        last = peek(listed + (first + count - 1) * 4) >> 1
        k = rice_of(last - before, count)
        poke8(p, k)
        p += 1
        bits += (count // 16 * 2 + (count % 16 + 7) // 8) * (k + 1)
        before = last
    unary = slices + bits
    p -= (n + GROUP - 1) // GROUP
    scratch = np.empty(GROUP, np.int32)
    acc, filled = np.int64(0), np.int64(0)
    for first in range(0, n, GROUP):
        count = min(n - first, GROUP)
        k = np.int64(peek(p) & 255)
        p += 1
        slices = _write_slices(listed + first * 4, count, k, slices, addr(scratch))
        for i in range(0, count, 16):
            ends, last = addr(scratch) + i * 4, min(count - i, 16) - 1
            length = peek(ends + last * 4) + 1
            base = np.int64(0)
            while True:  # one turn, mostly: sixteen codes seldom fill 64 bits
                word = or_bits(isub(loadi(ends), vi(base)))
                acc |= word << filled
                part = min(length - base, 64)
                if filled + part >= 64:
                    poke64(unary, acc)
                    unary += 8
                    acc = (word >> 1 & _HIGHEST_OUT) >> (63 - filled)
                    filled -= 64
                filled += part
                base += part
                if base >= length:
                    break
    while filled > 0:
        poke8(unary, acc)
        unary += 1
        acc = (acc >> 8) & 0x00FFFFFFFFFFFFFF
        filled -= 8
    return unary


@inline
def _write_slices(listed, count, k, out, ends_at):
    """Write a group's low bits and signs at ``out``, and at ``ends_at`` (int32) where unary parts end.

    Ends are counted from the first bit of each sixteen.
    """
    for i in range(0, count, 16):
        left = min(count - i, 16)
        valid = (np.int64(1) << left) - 1
        code, before = loadi(listed + i * 4), loadi(listed + (i - 1) * 4)
        gap = keep_masked(isub(isub(sar(code, 1), sar(before, 1)), vi(1)), valid)
        ends = isub(running_sum(iadd(shr(gap, k), vi(1))), vi(1))
        storei(ends_at + i * 4, ior(ends, keep_masked(vi(-1), ~valid)))
        step = 2 if left > 8 else 1
        for b in range(k - 1, -1, -1):
            _poke_slice(out, mask_negative(shl(gap, 31 - b)), left)
            out += step
        _poke_slice(out, mask_negative(shl(code, 31)) & valid, left)
        out += step
    return out


@inline
def _poke_slice(at, mask, left):
    if left > 8:
        poke16(at, mask)
    else:
        poke8(at, mask)
