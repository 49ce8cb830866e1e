"""The loops of the codec: fold, encode, the one decoder, digests.

Encoding a ternary tensor takes two passes. The first goes over the residual in vectors, block by block: the largest
magnitude gives the scale, two compares give a bit mask of plus and one of minus, and the residual is corrected; the
second turns the masks, 5 % full, into gaps. The second is bound by the number of codes, not by the number of weights.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.tiers import inline, kernel
from gossipdbn.kernels.vectors import (
    add_masked,
    addr,
    iabs,
    ihighest,
    imax,
    leading_zeros,
    loadi,
    mask_less,
    storei,
    trailing_zeros,
    vi,
)

CHECK, ADD, DIGEST = 0, 1, 2
MALFORMED = (
    "",
    "it ends too early",
    "bytes are left over",
    "a scale exponent is out of bounds",
    "padding is not zero",
    "a header is not canonical",
    "a block is named but empty",
    "a code lies outside its block",
    "a code is plus and minus at once",
)
_EARLY, _LEFT, _SCALE, _PADDING, _HEADER, _EMPTY, _OUTSIDE, _BOTH = range(1, 9)
_ESCAPE = 20
_ROUND = 6755399441055744.0  # 1.5 * 2**52: adding and subtracting it rounds a float64 to nearest even
_GOLDEN, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
_ONE, _S32 = np.uint64(1), np.uint64(32)


@kernel
def fold_residual(residual, now, start, factor):
    """Add ``rint((now - start) * factor)`` to the residual, saturating at +-2**30."""
    for i in range(residual.size):
        d = np.int32(np.int64(now[i]) - np.int64(start[i]))
        q = np.int64((np.float64(d) * factor + _ROUND) - _ROUND)
        residual[i] = np.int32(min(max(np.int64(residual[i]) + q, -(1 << 30)), 1 << 30))


@inline
def weight_of(i):
    """r_i: an odd 64-bit hash of the global parameter index (uint64)."""
    x = (i + _ONE) * _GOLDEN
    return ((x ^ (x >> _S32)) * _MIX) | _ONE


@kernel
def digest_words(acc, base):
    """Digest of int32 values whose first has global index ``base``."""
    total = np.uint64(0)
    for i in range(acc.size):
        total += np.uint64(np.int64(acc[i])) * weight_of(np.uint64(base + i))
    return total


@kernel
def largest(acc):
    """Largest absolute value."""
    high = np.int64(0)
    for i in range(acc.size):
        high = max(high, abs(np.int64(acc[i])))
    return high


@inline
def _log2(x):
    """floor(log2(x)) of a positive int64."""
    return 63 - leading_zeros(x)


@inline
def _rice(cols, average):
    """Golomb-Rice parameter for blocks of ``cols`` that hold ``average`` / 16 codes: about log2(0.96 * mean gap)."""
    return _log2(max((cols * 15) // max(average, 1), 1))


@inline
def _first_average(cols):
    return max((cols * 16) // 20, 1)


@inline
def _next_average(average, count):
    return max(average + ((count * 16 - average) >> 2), 1)


@inline
def _load_tail(values, start, stop, scratch):
    for i in range(16):
        scratch[i] = values[start + i] if start + i < stop else 0


@kernel
def encode_ternary(residual, rows, cols, shift_max, out, work):
    """Encode residual int32 [rows * cols] (left with the rest) into ``out``; returns the number of bytes.

    work int64: per block shift, count, then two words of 16 bits a group of 16 columns.
    """
    groups = (cols + 15) // 16
    base = addr(residual)
    scratch = np.zeros(16, np.int32)
    spot = addr(scratch)
    shifts, counts, masks = 0, rows, 2 * rows
    top = np.int64(-1)
    for r in range(rows):
        high = vi(0)
        whole = cols // 16
        for g in range(whole):
            high = imax(high, iabs(loadi(base + (r * cols + g * 16) * 4)))
        if whole < groups:
            _load_tail(residual, r * cols + whole * 16, (r + 1) * cols, scratch)
            high = imax(high, iabs(loadi(spot)))
        m = ihighest(high)
        count = np.int64(0)
        if m > 0:
            s = min(np.int64(64) - leading_zeros(m - 1), shift_max)
            top = max(top, s)
            work[shifts + r] = s
            half = (np.int64(1) << s) >> 1
            above, below = vi(half), vi(-half)
            step, back = vi(-(np.int64(1) << s)), vi(np.int64(1) << s)
            for g in range(groups):
                tail = g == whole
                at = spot if tail else base + (r * cols + g * 16) * 4
                if tail:
                    _load_tail(residual, r * cols + g * 16, (r + 1) * cols, scratch)
                x = loadi(at)
                plus, minus = mask_less(above, x), mask_less(x, below)
                if plus | minus:
                    storei(at, add_masked(add_masked(x, plus, step), minus, back))
                    count += _ones(plus | (minus << 16))
                    if tail:
                        for i in range(g * 16, cols):
                            residual[r * cols + i] = scratch[i - g * 16]
                work[masks + r * groups + g] = plus | (minus << 16)
        work[counts + r] = count
    return _write_ternary(rows, cols, groups, top, out, work)


@inline
def _ones(x):
    x = x - ((x >> 1) & 0x5555555555555555)
    x = (x & 0x3333333333333333) + ((x >> 2) & 0x3333333333333333)
    x = (x + (x >> 4)) & 0x0F0F0F0F0F0F0F0F
    x = x + (x >> 8)
    x = x + (x >> 16)
    return (x + (x >> 32)) & 127


@inline
def _use_planes(cols, count):
    return 16 * ((cols + 7) // 8) < count * (_rice(cols, count * 16) + 3)


@inline
def _write_ternary(rows, cols, groups, top, out, work):
    shifts, counts, masks = 0, rows, 2 * rows
    header = (rows + 1) // 2
    out[0] = np.uint8(max(top, 0))
    for i in range(1, 1 + header):
        out[i] = np.uint8(0)
    p = 1 + header
    total = np.int64(0)
    for r in range(rows):
        count = work[counts + r]
        v = np.int64(0)
        if count > 0:
            planes = _use_planes(cols, count)
            v = top - work[shifts + r] + 1
            if v > 7:
                out[p] = np.uint8(work[shifts + r] | (128 if planes else 0))
                p += 1
                v = 15
            elif planes:
                v += 7
            if not planes:
                total += count
        out[1 + (r >> 1)] |= np.uint8(v << (4 * (r & 1)))
    n = total
    while n >= 128:
        out[p] = np.uint8((n & 127) | 128)
        n >>= 7
        p += 1
    out[p] = np.uint8(n)
    p += 1
    p = _write_gaps(rows, cols, groups, p, out, work)
    width = (cols + 7) // 8
    for r in range(rows):
        if work[counts + r] > 0 and _use_planes(cols, work[counts + r]):
            for sign in range(2):
                for j in range(width):
                    word = work[masks + r * groups + j // 2] >> (16 * sign + 8 * (j & 1))
                    out[p] = np.uint8(word & 255)
                    p += 1
    return p


@inline
def _write_gaps(rows, cols, groups, p, out, work):
    counts, masks = rows, 2 * rows
    acc, filled = np.uint64(0), np.int64(0)
    average = _first_average(cols)
    last, start = np.int64(-1), np.int64(0)  # places in the concatenation of the gap-coded blocks
    k, pending = np.int64(0), np.int64(-1)
    for r in range(rows):
        count = work[counts + r]
        if count == 0 or _use_planes(cols, count):
            continue
        k = _rice(cols, average)
        if pending < 0:
            pending = k
        for g in range(groups):
            word = work[masks + r * groups + g]
            plus, both = word & 0xFFFF, (word | (word >> 16)) & 0xFFFF
            while both:
                bit = trailing_zeros(both)
                both &= both - 1
                place = start + g * 16 + bit
                gap = place - last - 1
                last = place
                minus = np.uint64(1) - np.uint64((plus >> bit) & 1)
                quotient = gap >> pending
                if quotient < _ESCAPE:
                    size = quotient + 1 + pending + 1
                    ones = (np.uint64(1) << np.uint64(quotient)) - np.uint64(1)
                    low = np.uint64(gap) & ((np.uint64(1) << np.uint64(pending)) - np.uint64(1))
                    code = ones | (low << np.uint64(quotient + 1)) | (minus << np.uint64(size - 1))
                else:
                    size = np.int64(_ESCAPE + 33)
                    ones = (np.uint64(1) << np.uint64(_ESCAPE)) - np.uint64(1)
                    code = ones | (np.uint64(gap) << np.uint64(_ESCAPE)) | (minus << np.uint64(_ESCAPE + 32))
                acc |= code << np.uint64(filled)
                filled += size
                while filled >= 8:
                    out[p] = np.uint8(acc & np.uint64(255))
                    acc >>= np.uint64(8)
                    filled -= 8
                    p += 1
                pending = k
        average = _next_average(average, count)
        start += cols
    if filled > 0:
        out[p] = np.uint8(acc)
        p += 1
    return p


@inline
def _deliver(use, acc, at, delta, base, total):
    """Use one decoded delta; returns the digest so far."""
    if use == ADD:
        acc[at] = np.int32(np.int64(acc[at]) + delta)
    elif use == DIGEST:
        total += np.uint64(delta) * weight_of(np.uint64(base + at))
    return total


@kernel
def walk_ternary(data, rows, cols, shift_max, use, acc, base):
    """Decode, checking everything; returns (status, digest). With ADD, call it only after CHECK succeeded."""
    kinds = np.empty(rows, np.uint8)  # 0 empty, else shift + 1, bit 7 planes
    status, p, n = _read_header(data, rows, shift_max, kinds)
    if status != 0:
        return status, np.uint64(0)
    status, p, total = _read_gaps(data, p, n, cols, kinds, use, acc, base)
    if status != 0:
        return status, np.uint64(0)
    width = (cols + 7) // 8
    for r in range(rows):
        if kinds[r] < 128:
            continue
        if p + 2 * width > data.size:
            return _EARLY, np.uint64(0)
        shift = np.int64(kinds[r] & 127) - 1
        seen = 0
        for j in range(width):
            plus, minus = np.int64(data[p + j]), np.int64(data[p + width + j])
            if plus & minus:
                return _BOTH, np.uint64(0)
            if (plus | minus) >> min(cols - 8 * j, 8):
                return _PADDING, np.uint64(0)
            seen |= plus | minus
            for bit in range(min(cols - 8 * j, 8)):
                sign = ((plus >> bit) & 1) - ((minus >> bit) & 1)
                if sign != 0:
                    total = _deliver(use, acc, r * cols + 8 * j + bit, sign << shift, base, total)
        if seen == 0:
            return _EMPTY, np.uint64(0)
        p += 2 * width
    if p != data.size:
        return _LEFT, np.uint64(0)
    return 0, total


@inline
def _read_header(data, rows, shift_max, kinds):
    header = (rows + 1) // 2
    size = data.size
    if size < 2 + header:
        return _EARLY, np.int64(0), np.int64(0)
    top = np.int64(data[0])
    if top > shift_max:
        return _SCALE, np.int64(0), np.int64(0)
    p = np.int64(1 + header)
    highest = np.int64(0)
    if rows & 1 and data[header] >> 4:
        return _PADDING, p, np.int64(0)
    for r in range(rows):
        v = (np.int64(data[1 + (r >> 1)]) >> (4 * (r & 1))) & 15
        kinds[r] = np.uint8(0)
        if v == 0:
            continue
        if v == 15:
            if p >= size:
                return _EARLY, p, np.int64(0)
            b = np.int64(data[p])
            p += 1
            shift = b & 31
            if b & 0x60 or shift >= top - 6:
                return _HEADER, p, np.int64(0)
            planes = b >> 7
        else:
            planes = np.int64(1 if v > 7 else 0)
            shift = top - (v - 8 if v > 7 else v - 1)
            if shift < 0:
                return _SCALE, p, np.int64(0)
        highest = max(highest, shift)
        kinds[r] = np.uint8(shift + 1 + 128 * planes)
    if highest != top:
        return _HEADER, p, np.int64(0)
    n, weight = np.int64(0), np.int64(0)
    while True:
        if p >= size:
            return _EARLY, p, n
        b = np.int64(data[p])
        p += 1
        n |= (b & 127) << weight
        weight += 7
        if b < 128:
            if b == 0 and weight > 7:
                return _HEADER, p, n
            return 0, p, n
        if weight > 35:
            return _HEADER, p, n


@inline
def _next_block(kinds, r):
    """The first gap-coded block at or after ``r``; the number of blocks when there is none."""
    while r < kinds.size and not 0 < kinds[r] < 128:
        r += 1
    return r


@inline
def _read_gaps(data, p, n, cols, kinds, use, acc, base):
    total = np.uint64(0)
    word, filled = np.uint64(0), np.int64(0)
    average = _first_average(cols)
    k = _rice(cols, average)
    r, place, count = _next_block(kinds, 0), np.int64(-1), np.int64(0)
    for _ in range(n):
        while filled <= 56 and p < data.size:
            word |= np.uint64(data[p]) << np.uint64(filled)
            filled += 8
            p += 1
        quotient = trailing_zeros(~np.int64(word))
        if quotient < _ESCAPE:
            size = quotient + 2 + k
            gap = (quotient << k) | (np.int64(word >> np.uint64(quotient + 1)) & ((1 << k) - 1))
        else:
            size = np.int64(_ESCAPE + 33)
            gap = np.int64(word >> np.uint64(_ESCAPE)) & 0xFFFFFFFF
            if gap >> k < _ESCAPE:
                return _HEADER, p, total
        if size > filled:
            return _EARLY, p, total
        minus = np.int64((word >> np.uint64(size - 1)) & _ONE)
        word >>= np.uint64(size)
        filled -= size
        place += gap + 1
        while place >= cols:
            if r >= kinds.size or count == 0:
                return _OUTSIDE, p, total
            average = _next_average(average, count)
            k = _rice(cols, average)
            count = np.int64(0)
            place -= cols
            r = _next_block(kinds, r + 1)
        if r >= kinds.size:
            return _OUTSIDE, p, total
        count += 1
        delta = np.int64(1) << (np.int64(kinds[r]) - 1)
        total = _deliver(use, acc, r * cols + place, -delta if minus else delta, base, total)
    if r < kinds.size and (count == 0 or _next_block(kinds, r + 1) < kinds.size):
        return _EMPTY, p, total
    p -= filled >> 3  # whole bytes read ahead go back
    if word & ((_ONE << np.uint64(filled & 7)) - _ONE):
        return _PADDING, p, total
    return 0, p, total


@kernel
def encode_int8(residual, rows, cols, shift_max, out):
    """Write scales, then codes, of int32 [rows, cols] to ``out``; what is not encoded stays in ``residual``."""
    for r in range(rows):
        m = np.int64(0)
        for i in range(r * cols, (r + 1) * cols):
            m = max(m, abs(np.int64(residual[i])))
        shift = np.int64(0)
        while shift < shift_max and (127 << shift) < m:
            shift += 1
        out[r] = np.uint8(shift)
        for i in range(r * cols, (r + 1) * cols):
            d = np.int64(residual[i])
            q = d >> shift
            rest = (d - (q << shift)) * 2
            if rest > (1 << shift) or (rest == (1 << shift) and q & 1):
                q += 1
            q = min(max(q, -127), 127)
            out[rows + i] = np.uint8(q & 255)
            residual[i] = np.int32(d - (q << shift))


@kernel
def walk_int8(data, rows, cols, shift_max, use, acc, base):
    """Check an int8 encoding, and add it to ``acc`` or sum its digest, as ``use`` says: (status, digest)."""
    total = np.uint64(0)
    for r in range(rows):
        shift = np.int64(data[r])
        if shift > shift_max:
            return _SCALE, np.uint64(0)
        for i in range(r * cols, (r + 1) * cols):
            q = np.int64(np.int8(data[rows + i]))
            if q == -128:
                return _OUTSIDE, np.uint64(0)
            total = _deliver(use, acc, i, q << shift, base, total)
    return 0, total
