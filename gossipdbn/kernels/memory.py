"""Loads, stores and rearranging between memory and sixteen lanes.

Addresses are integers (`addr`); a load or store is never aligned by more than its element, and nothing is checked: the
callers know their buffers.
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call"
from __future__ import annotations

from llvmlite import ir

from gossipdbn.kernels.lanes import (
    F32,
    I1,
    I8,
    I16,
    I32,
    I64,
    INT64,
    LANES,
    VF,
    VI,
    const,
    floats,
    function,
    intrinsic,
    ints,
    pointer,
    splat,
)
from gossipdbn.kernels.quick import types

PAGE = 4096
"""How far ahead walks over whole vectors fetch: a CPU's own prefetcher follows them to the end of a page only."""
STRIPE = 16
"""Rows of a matrix that go into tiles or panels, or come out, together: its lines are read along, not across."""


@intrinsic
def addr(tc, array):
    """Address of an array's first element."""

    def code(context, b, sig, args):
        return b.ptrtoint(context.make_array(sig.args[0])(context, b, args[0]).data, I64)

    return INT64(array), code


def _loader(vtype, widen, result):
    @intrinsic
    def load(tc, address):
        def code(context, b, sig, args):
            r = b.load(pointer(b, args[0], vtype))
            r.align = vtype.element.width // 8 if isinstance(vtype.element, ir.IntType) else 4
            return widen(b, r)

        return result(INT64), code

    return load


loadf = _loader(VF, lambda b, r: r, floats)
loadi = _loader(VI, lambda b, r: r, ints)
load8u = _loader(ir.VectorType(I8, LANES), lambda b, r: b.zext(r, VI), ints)
load8s = _loader(ir.VectorType(I8, LANES), lambda b, r: b.sext(r, VI), ints)
load16u = _loader(ir.VectorType(I16, LANES), lambda b, r: b.zext(r, VI), ints)


def _storer(vtype, narrow, operand):
    @intrinsic
    def store(tc, address, value):
        def code(context, b, sig, args):
            s = b.store(narrow(b, args[1]), pointer(b, args[0], vtype))
            s.align = vtype.element.width // 8 if isinstance(vtype.element, ir.IntType) else 4
            return context.get_dummy_value()

        return types.void(INT64, operand), code

    return store


storef = _storer(VF, lambda b, x: x, floats)
storei = _storer(VI, lambda b, x: x, ints)
store8 = _storer(ir.VectorType(I8, LANES), lambda b, x: b.trunc(x, ir.VectorType(I8, LANES)), ints)
store16 = _storer(ir.VectorType(I16, LANES), lambda b, x: b.trunc(x, ir.VectorType(I16, LANES)), ints)


def _first(b, count):
    """The mask of the first ``count`` lanes."""
    index = ir.Constant(VI, list(range(LANES)))
    return b.icmp_signed("<", index, splat(b, b.trunc(count, I32), VI))


@intrinsic
def loadi_first(tc, address, count):
    """The first ``count`` lanes from an address, whose others are not touched; they are 0."""

    def code(context, b, sig, args):
        p = pointer(b, args[0], VI)
        ftype = ir.FunctionType(VI, [p.type, I32, ir.VectorType(I1, LANES), VI])
        f = function(b, "llvm.masked.load.v16i32.p0", ftype)
        return b.call(f, [p, ir.Constant(I32, 4), _first(b, args[1]), const(0)])

    return ints(INT64, INT64), code


def _part_storer(name, vtype, narrow, operand):
    @intrinsic
    def store(tc, address, value, count):
        def code(context, b, sig, args):
            p = pointer(b, args[0], vtype)
            ftype = ir.FunctionType(ir.VoidType(), [vtype, p.type, I32, ir.VectorType(I1, LANES)])
            align = ir.Constant(I32, vtype.element.width // 8 if isinstance(vtype.element, ir.IntType) else 4)
            b.call(function(b, name, ftype), [narrow(b, args[1]), p, align, _first(b, args[2])])
            return context.get_dummy_value()

        return types.void(INT64, operand, INT64), code

    return store


storef_first = _part_storer("llvm.masked.store.v16f32.p0", VF, lambda b, x: x, floats)
storei_first = _part_storer("llvm.masked.store.v16i32.p0", VI, lambda b, x: x, ints)
store8_first = _part_storer(
    "llvm.masked.store.v16i8.p0", ir.VectorType(I8, LANES), lambda b, x: b.trunc(x, ir.VectorType(I8, LANES)), ints
)


@intrinsic
def peek(tc, address):
    """The 32-bit word at an address as int64."""

    def code(context, b, sig, args):
        return b.sext(b.load(pointer(b, args[0], I32)), I64)

    return INT64(INT64), code


@intrinsic
def poke(tc, address, value):
    """Store the low 32 bits of an int64."""

    def code(context, b, sig, args):
        b.store(b.trunc(args[1], I32), pointer(b, args[0], I32))
        return context.get_dummy_value()

    return types.void(INT64, INT64), code


@intrinsic
def peekf(tc, address):
    """The float32 at an address."""

    def code(context, b, sig, args):
        return b.load(pointer(b, args[0], F32))

    return types.float32(INT64), code


@intrinsic
def pokef(tc, address, value):
    """Store a float32."""

    def code(context, b, sig, args):
        b.store(args[1], pointer(b, args[0], F32))
        return context.get_dummy_value()

    return types.void(INT64, types.float32), code


@intrinsic
def load128(tc, address):
    """Sixteen bytes as the low four lanes; the others repeat the last."""

    def code(context, b, sig, args):
        quad = ir.VectorType(I32, 4)
        x = b.load(pointer(b, args[0], quad))
        x.align = 1
        index = ir.Constant(VI, [0, 1, 2, 3] + [4] * 12)
        return b.shuffle_vector(x, ir.Constant(quad, [0] * 4), index)

    return ints(INT64), code


@intrinsic
def broadcastf(tc, address):
    """All lanes the float32 at an address."""

    def code(context, b, sig, args):
        return splat(b, b.load(pointer(b, args[0], F32)), VF)

    return floats(INT64), code


@intrinsic
def broadcasti(tc, address):
    """All lanes the 32-bit word at an address."""

    def code(context, b, sig, args):
        return splat(b, b.load(pointer(b, args[0], I32)), VI)

    return ints(INT64), code


@intrinsic
def prefetch(tc, address):
    """Bring the line at an address near for reading and writing; never faults."""

    def code(context, b, sig, args):
        p = I8.as_pointer()
        f = function(b, "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [p, I32, I32, I32]))
        b.call(f, [b.inttoptr(args[0], p), ir.Constant(I32, 0), ir.Constant(I32, 2), ir.Constant(I32, 1)])
        return context.get_dummy_value()

    return types.void(INT64), code


@intrinsic
def transpose16(tc, source, target):
    """target[c][r] = source[r][c]: 16 x 16 words of 32 bits, both with 64-byte rows; may be the same place."""

    def code(context, b, sig, args):
        def at(base, row):
            return pointer(b, b.add(base, ir.Constant(I64, 64 * row)), VI)

        rows = []
        for r in range(16):
            x = b.load(at(args[0], r))
            x.align = 4
            rows.append(x)
        for distance in (1, 2, 4, 8):  # swap blocks of growing size across the diagonal
            out = list(rows)
            for r in range(16):
                if r & distance:
                    continue
                low = [16 + c - distance if c & distance else c for c in range(16)]
                high = [16 + c if c & distance else c + distance for c in range(16)]
                out[r] = b.shuffle_vector(rows[r], rows[r + distance], ir.Constant(VI, low))
                out[r + distance] = b.shuffle_vector(rows[r], rows[r + distance], ir.Constant(VI, high))
            rows = out
        for r in range(16):
            s = b.store(rows[r], at(args[1], r))
            s.align = 4
        return context.get_dummy_value()

    return types.void(INT64, INT64), code


@intrinsic(prefer_literal=True)
def transpose_bytes4(tc, source, source_step, target, target_step, factor):
    """Four vectors of 16 quads, ``source_step`` apart, to four rows of 64 bytes, ``target_step`` apart.

    Byte j of quad i of vector g becomes byte 16 g + i of row j. With ``factor`` 0 bytes stay as they are; otherwise
    they must be 0 or 1 and become 0 or ``factor``.
    """

    def code(context, b, sig, args):
        wide = ir.VectorType(I8, 64)
        scaled = getattr(sig.args[4], "literal_value", None) != 0
        factors = splat(b, b.trunc(args[4], I8), wide) if scaled else None
        inner = ir.Constant(ir.VectorType(I32, 64), [4 * (i % 16) + i // 16 for i in range(64)])
        groups = []
        for g in range(4):
            x = b.load(pointer(b, b.add(args[0], b.mul(args[1], ir.Constant(I64, g))), wide))
            x.align = 4
            groups.append(b.bitcast(b.shuffle_vector(x, x, inner), VI))
        low = ir.Constant(VI, [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23])
        high = ir.Constant(VI, [8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31])
        first = ir.Constant(VI, [*range(8), *range(16, 24)])
        second = ir.Constant(VI, [*range(8, 16), *range(24, 32)])
        parts = [
            (b.shuffle_vector(groups[0], groups[1], index), b.shuffle_vector(groups[2], groups[3], index))
            for index in (low, high)
        ]
        # parts[0] holds rows 0 and 1 as [g0 r0, g1 r0, g0 r1, g1 r1]; parts[1] rows 2 and 3
        for r in range(4):
            x, y = parts[r // 2]
            row = b.shuffle_vector(x, y, second if r & 1 else first)
            if scaled:
                row = b.bitcast(b.and_(b.sub(ir.Constant(wide, [0] * 64), b.bitcast(row, wide)), factors), VI)
            s = b.store(row, pointer(b, b.add(args[2], b.mul(args[3], ir.Constant(I64, r))), VI))
            s.align = 4
        return context.get_dummy_value()

    kind = factor if getattr(factor, "literal_value", None) == 0 else INT64
    return types.void(INT64, INT64, INT64, INT64, kind), code


def _peeker(width):
    @intrinsic
    def peek_at(tc, address):
        def code(context, b, sig, args):
            word = ir.IntType(width)
            r = b.load(pointer(b, args[0], word))
            r.align = 1
            return r if width == 64 else b.zext(r, I64)

        return INT64(INT64), code

    return peek_at


def _poker(width):
    @intrinsic
    def poke_at(tc, address, value):
        def code(context, b, sig, args):
            word = ir.IntType(width)
            s = b.store(args[1] if width == 64 else b.trunc(args[1], word), pointer(b, args[0], word))
            s.align = 1
            return context.get_dummy_value()

        return types.void(INT64, INT64), code

    return poke_at


peek8, peek16, peek64 = (_peeker(width) for width in (8, 16, 64))
poke8, poke16, poke64 = (_poker(width) for width in (8, 16, 64))
