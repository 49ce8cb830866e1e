"""Decoding a ternary tensor: everything is checked, and what comes out is a list of (global index, delta).

Group by group of 128 codes: the ends of the unary parts are found in words of bits (sixteen at once where the CPU can
compress), sixteen low parts are put together from slices, a running sum makes places of gaps, and the places below the
end of a block, up to 32 at once, get its scale. Nothing is read outside the bytes (they are copied in front of 64
zeros), nothing is written outside the lists, and a value has one encoding: Rice parameters and the choice of planes
must be those of the encoder.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,assignment"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.digests import digest_run
from gossipdbn.kernels.masks import add_masked, mask_less, ones, trailing_zeros
from gossipdbn.kernels.memory import addr, loadi, peek, peek8, peek16, peek64, poke, storei
from gossipdbn.kernels.ternary_write import GROUP, append, few_codes, log2, rice_of, use_planes
from gossipdbn.kernels.tiers import WIDE, inline, kernel
from gossipdbn.kernels.vectors import iadd, iand, iota, isub, ixor, last_lane, running_sum, sar, shl, vi

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
EARLY, LEFT, SCALE, PADDING, HEADER, EMPTY, OUTSIDE, BOTH = range(1, 9)
_BEHIND = (1 << 31) - 1  # in the list of a group: no code


@kernel
def decode_ternary(data, rows, cols, shift_max, base):
    """Check and decode; ``base`` is the tensor's first global index.

    Returns (status, digest, index int32 [n], delta int32 [n], runs int64 [2, 3]): gap-coded blocks, then planes, each
    an ascending run, as addresses of its indices and deltas and its length (`codec_kernels.add_runs`).
    """
    size = np.int64(data.size)
    kinds = np.empty(rows, np.uint8)  # 0 empty, else shift + 1, bit 7 planes
    nothing, no_runs = np.empty(0, np.int32), np.empty((0, 3), np.int64)
    status, p, n = _read_header(data, rows, shift_max, kinds)
    if status != 0:
        return status, np.int64(0), nothing, nothing, no_runs
    gapped, planar = np.int64(0), np.int64(0)
    for r in range(rows):
        planar += kinds[r] >> 7
        gapped += 0 < kinds[r] < 128
    width = (cols + 7) // 8
    planes_at = size - planar * 2 * width
    slices_at = p + (n + GROUP - 1) // GROUP
    if slices_at > planes_at:
        return EARLY, np.int64(0), nothing, nothing, no_runs
    if n > gapped * cols:
        return OUTSIDE, np.int64(0), nothing, nothing, no_runs
    status, unary_at = _sizes_of(data, p, n, slices_at, log2(2 * max(cols, 1)))
    if status == 0 and unary_at + (n + 7) // 8 > planes_at:
        status = EARLY
    if status == 0 and planes_at - unary_at > n:  # no Rice parameter that is allowed gives so many bits
        status = LEFT
    if status != 0:
        return status, np.int64(0), nothing, nothing, no_runs
    padded = np.empty(size + 64, np.uint8)
    padded[:size] = data
    padded[size:] = 0
    room = n
    for i in range(planes_at, size):
        room += ones(np.int64(data[i]))
    index, delta = np.empty(room + 64, np.int32), np.empty(room + 64, np.int32)
    at = addr(padded)
    status = _read_codes(
        at + p, n, at + slices_at, at + unary_at, at + planes_at, cols, base, kinds, addr(index), addr(delta)
    )
    if status == 0:
        status = _read_planes(padded, planes_at, cols, base, kinds, index, delta, n)
    if status != 0:
        return status, np.int64(0), nothing, nothing, no_runs
    runs = np.empty((2, 3), np.int64)
    total = np.int64(0)
    for i in range(2):
        runs[i, 0], runs[i, 1] = addr(index) + i * n * 4, addr(delta) + i * n * 4
        runs[i, 2] = room - n if i else n
        total += digest_run(runs[i, 0], runs[i, 1], runs[i, 2])
    return 0, total, index[:room], delta[:room], runs


@inline
def _read_header(data, rows, shift_max, kinds):
    header = (rows + 1) // 2
    size = data.size
    if size < 2 + header:
        return EARLY, np.int64(0), np.int64(0)
    top = np.int64(data[0])
    if top > shift_max:
        return SCALE, np.int64(0), np.int64(0)
    p = np.int64(1 + header)
    highest = np.int64(0)
    if rows & 1 and data[header] >> 4:
        return PADDING, p, np.int64(0)
    for r in range(rows):
        v = (np.int64(data[1 + (r >> 1)]) >> (4 * (r & 1))) & 15
        kinds[r] = np.uint8(0)
        if v == 0:
            continue
        if v == 15:
            if p >= size:
                return EARLY, p, np.int64(0)
            b = np.int64(data[p])
            p += 1
            shift = b & 31
            if b & 0x60 or shift >= top - 6:
                return HEADER, p, np.int64(0)
            planes = b >> 7
        else:
            planes = np.int64(1 if v > 7 else 0)
            shift = top - (v - 8 if v > 7 else v - 1)
            if shift < 0:
                return SCALE, p, np.int64(0)
        highest = max(highest, shift)
        kinds[r] = np.uint8(shift + 1 + 128 * planes)
    if highest != top:
        return HEADER, p, np.int64(0)
    n, weight = np.int64(0), np.int64(0)
    while True:
        if p >= size:
            return EARLY, p, n
        b = np.int64(data[p])
        p += 1
        n |= (b & 127) << weight
        weight += 7
        if b < 128:
            if b == 0 and weight > 7:
                return HEADER, p, n
            return 0, p, n
        if weight > 35:
            return HEADER, p, n


@inline
def _sizes_of(data, p, n, at, k_max):
    """Where the unary parts begin, from the groups' Rice parameters at ``p``: (status, place)."""
    left = n
    while left > 0:
        count = min(left, GROUP)
        k = np.int64(data[p])
        if k > k_max:
            return HEADER, at
        at += (count // 16 * 2 + (count % 16 + 7) // 8) * (k + 1)
        left -= count
        p += 1
    return 0, at


@inline
def _read_codes(p, n, slices, unary, unary_end, cols, base, kinds, index, delta):
    """The gap-coded blocks; ``p`` and what follows are addresses. Returns a status."""
    limit = np.int64(0)
    for r in range(kinds.size):
        limit += cols * (0 < kinds[r] < 128)
    scratch = np.empty(n + 96, np.int32)  # ends of unary parts, then places; one step finds up to 71 too many
    codes = addr(scratch)
    if not _unary_ends(unary, (unary_end - unary) * 8, n, codes):
        return EARLY
    bit, before = np.int64(0), np.int64(-1)  # first bit of a group's unary parts; the place before its first code
    for first in range(0, n, GROUP):
        count = min(n - first, GROUP)
        k = peek8(p)
        p += 1
        end = peek(codes + (first + count - 1) * 4) + 1
        if ((end - bit - count) << k) + count > limit:
            return OUTSIDE
        slices = _places_of(slices, codes + first * 4, bit, count, k, before)
        if slices == 0:
            return PADDING
        last = peek(codes + (first + count - 1) * 4) >> 1
        if last >= limit:
            return OUTSIDE
        if rice_of(last - before, count) != k:
            return HEADER
        bit, before = end, last
    if (bit + 7) >> 3 != unary_end - unary:
        return LEFT
    if bit & 7 and peek8(unary_end - 1) >> (bit & 7):
        return PADDING
    storei(codes + n * 4, vi(_BEHIND))
    storei(codes + n * 4 + 64, vi(_BEHIND))
    status = _give_blocks(codes, n, cols, base, kinds, index, delta)
    return status if scratch.size > n else EARLY  # a use: the compiler frees an array after its last one


@inline
def _give_blocks(codes, n, cols, base, kinds, index, delta):
    """Turn places in the row of gap-coded blocks into indices and deltas. Returns a status."""
    few = few_codes(cols)
    begin, done = np.int64(0), np.int64(0)
    for r in range(kinds.size):
        if kinds[r] == 0 or kinds[r] > 127:
            continue
        end, move = vi(2 * (begin + cols)), vi(base + r * cols - begin)
        step, taken = vi(np.int64(1) << (np.int64(kinds[r]) - 1)), np.int64(32)
        first = done
        while taken == 32:
            below = np.int64(0)
            for half in range(2):
                at = (done + 16 * half) * 4
                code = loadi(codes + at)
                below |= mask_less(code, end) << (16 * half)
                sign = isub(vi(0), iand(code, vi(1)))
                storei(index + at, iadd(sar(code, 1), move))
                storei(delta + at, isub(ixor(step, sign), sign))
            taken = trailing_zeros(~below)
            done += taken
        if done == first:
            return EMPTY
        if done - first > few and use_planes(cols, done - first):
            return HEADER
        begin += cols
    return 0


if WIDE:

    @inline
    def _unary_ends(unary, bits, count, ends):
        """Places of the first ``count`` ones in ``bits`` bits; whether there are so many."""
        n, bit = np.int64(0), np.int64(0)
        while n < count:
            if bit >= bits:
                return False
            word = peek64(unary + (bit >> 3))
            for i in range(4):
                part = (word >> (16 * i)) & 0xFFFF
                append(ends + n * 4, iadd(vi(bit + 16 * i), iota()), part)
                n += ones(part)
            bit += 64
        return True

else:

    @inline
    def _unary_ends(unary, bits, count, ends):
        """Places of the first ``count`` ones in ``bits`` bits; whether there are so many."""
        n, bit = np.int64(0), np.int64(0)
        while n < count:
            if bit >= bits:
                return False
            word = peek64(unary + (bit >> 3))
            while word:
                poke(ends + n * 4, bit + trailing_zeros(word))
                word &= word - 1
                n += 1
            bit += 64
        return True


@inline
def _places_of(slices, codes, bit, count, k, before):
    """``2 * place + minus`` of a group's codes instead of the ends of their unary parts.

    Returns the address behind the group's slices, 0 if they have padding.
    """
    carry = vi(before + 1)
    for i in range(0, count, 16):
        left = min(count - i, 16)
        low, over = vi(0), np.int64(0)
        step, fit = (2, 0xFFFF) if left > 8 else (1, 0xFF)
        for _ in range(k):
            mask = peek16(slices) & fit
            low = add_masked(shl(low, 1), mask, vi(1))
            over |= mask
            slices += step
        minus = peek16(slices) & fit
        slices += step
        if (over | minus) >> left:
            return np.int64(0)
        low = iadd(running_sum(low), carry)
        carry = last_lane(low)
        quotients = isub(loadi(codes + i * 4), iadd(vi(bit + i), iota()))
        place = iadd(iadd(shl(quotients, k), low), iadd(vi(i), iota()))
        storei(codes + i * 4, add_masked(shl(place, 1), minus, vi(1)))
    return slices


@inline
def _read_planes(data, p, cols, base, kinds, index, delta, n):
    """The blocks in planes, behind the ``n`` codes of the others. Returns a status."""
    width = (cols + 7) // 8
    for r in range(kinds.size):
        if kinds[r] < 128:
            continue
        shift = np.int64(kinds[r] & 127) - 1
        before = n
        for j in range(width):
            plus, minus = np.int64(data[p + j]), np.int64(data[p + width + j])
            if plus & minus:
                return BOTH
            both = plus | minus
            if both >> min(cols - 8 * j, 8):
                return PADDING
            while both:
                bit = trailing_zeros(both)
                both &= both - 1
                index[n] = base + r * cols + 8 * j + bit
                delta[n] = ((plus >> bit & 1) * 2 - 1) << shift
                n += 1
        if n == before:
            return EMPTY
        if not use_planes(cols, n - before):
            return HEADER
        p += 2 * width
    return 0
