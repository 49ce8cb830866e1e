"""Sixteen lanes as values inside numba: the vocabulary in which the kernels are written.

Every operation emits LLVM vector instructions that mean the same on every CPU; LLVM splits them into what the machine
has (one AVX-512 register, two AVX2, four SSE or NEON). Only `compress` is an x86 instruction, which
`ternary_write.append` replaces where it is missing. Float operations are IEEE add, multiply, divide and fused
multiply-add only: no reassociation, no approximations, no libm. Addresses are integers (`addr`); a load or store is
never aligned by more than its element.
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call"
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, register_model

LANES = 16
_F, _I, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_I1, _I8, _I16 = ir.IntType(1), ir.IntType(8), ir.IntType(16)
_VF, _VI, _VL = ir.VectorType(_F, LANES), ir.VectorType(_I, LANES), ir.VectorType(_I64, LANES // 2)
_I64T = types.int64


class _Floats(types.Type):
    def __init__(self) -> None:
        super().__init__("floats16")


class _Ints(types.Type):
    def __init__(self) -> None:
        super().__init__("ints16")


class _Longs(types.Type):
    def __init__(self) -> None:
        super().__init__("longs8")


floats, ints, longs = _Floats(), _Ints(), _Longs()


@register_model(_Floats)
class _FloatsModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VF)


@register_model(_Ints)
class _IntsModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VI)


@register_model(_Longs)
class _LongsModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VL)


def function(builder, name, ftype):
    """The named LLVM function of this module, declared on first use."""
    return builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)


def _splat(builder, value, vtype):
    undef = ir.Constant(vtype, ir.Undefined)
    one = builder.insert_element(undef, value, ir.Constant(_I, 0))
    return builder.shuffle_vector(one, undef, ir.Constant(ir.VectorType(_I, vtype.count), [0] * vtype.count))


def _const(n):
    return ir.Constant(_VI, [n] * LANES)


def _at(builder, address, vtype):
    return builder.inttoptr(address, vtype.as_pointer())


@intrinsic
def addr(tc, array):
    """Address of an array's first element."""

    def code(context, b, sig, args):
        return b.ptrtoint(context.make_array(sig.args[0])(context, b, args[0]).data, _I64)

    return _I64T(array), code


def _loader(vtype, widen, result):
    @intrinsic
    def load(tc, address):
        def code(context, b, sig, args):
            r = b.load(_at(b, args[0], vtype))
            r.align = vtype.element.width // 8 if isinstance(vtype.element, ir.IntType) else 4
            return widen(b, r)

        return result(_I64T), code

    return load


loadf = _loader(_VF, lambda b, r: r, floats)
loadi = _loader(_VI, lambda b, r: r, ints)
load8u = _loader(ir.VectorType(_I8, LANES), lambda b, r: b.zext(r, _VI), ints)
load8s = _loader(ir.VectorType(_I8, LANES), lambda b, r: b.sext(r, _VI), ints)
load16u = _loader(ir.VectorType(_I16, LANES), lambda b, r: b.zext(r, _VI), ints)


def _storer(vtype, narrow, operand):
    @intrinsic
    def store(tc, address, value):
        def code(context, b, sig, args):
            s = b.store(narrow(b, args[1]), _at(b, args[0], vtype))
            s.align = vtype.element.width // 8 if isinstance(vtype.element, ir.IntType) else 4
            return context.get_dummy_value()

        return types.void(_I64T, operand), code

    return store


storef = _storer(_VF, lambda b, x: x, floats)
storei = _storer(_VI, lambda b, x: x, ints)
store8 = _storer(ir.VectorType(_I8, LANES), lambda b, x: b.trunc(x, ir.VectorType(_I8, LANES)), ints)
store16 = _storer(ir.VectorType(_I16, LANES), lambda b, x: b.trunc(x, ir.VectorType(_I16, LANES)), ints)


def _first(b, count):
    """The mask of the first ``count`` lanes."""
    index = ir.Constant(_VI, list(range(LANES)))
    return b.icmp_signed("<", index, _splat(b, b.trunc(count, _I), _VI))


@intrinsic
def loadi_first(tc, address, count):
    """The first ``count`` lanes from an address, whose others are not touched; they are 0."""

    def code(context, b, sig, args):
        p = _at(b, args[0], _VI)
        ftype = ir.FunctionType(_VI, [p.type, _I, ir.VectorType(_I1, LANES), _VI])
        f = function(b, "llvm.masked.load.v16i32.p0", ftype)
        return b.call(f, [p, ir.Constant(_I, 4), _first(b, args[1]), _const(0)])

    return ints(_I64T, _I64T), code


def _part_storer(name, vtype, narrow, operand):
    @intrinsic
    def store(tc, address, value, count):
        def code(context, b, sig, args):
            p = _at(b, args[0], vtype)
            ftype = ir.FunctionType(ir.VoidType(), [vtype, p.type, _I, ir.VectorType(_I1, LANES)])
            align = ir.Constant(_I, vtype.element.width // 8 if isinstance(vtype.element, ir.IntType) else 4)
            b.call(function(b, name, ftype), [narrow(b, args[1]), p, align, _first(b, args[2])])
            return context.get_dummy_value()

        return types.void(_I64T, operand, _I64T), code

    return store


storef_first = _part_storer("llvm.masked.store.v16f32.p0", _VF, lambda b, x: x, floats)
storei_first = _part_storer("llvm.masked.store.v16i32.p0", _VI, lambda b, x: x, ints)
store8_first = _part_storer("llvm.masked.store.v16i8.p0", ir.VectorType(_I8, LANES),
                            lambda b, x: b.trunc(x, ir.VectorType(_I8, LANES)), ints)


@intrinsic
def peek(tc, address):
    """The 32-bit word at an address as int64."""

    def code(context, b, sig, args):
        return b.sext(b.load(_at(b, args[0], _I)), _I64)

    return _I64T(_I64T), code


@intrinsic
def poke(tc, address, value):
    """Store the low 32 bits of an int64."""

    def code(context, b, sig, args):
        b.store(b.trunc(args[1], _I), _at(b, args[0], _I))
        return context.get_dummy_value()

    return types.void(_I64T, _I64T), code


@intrinsic
def peekf(tc, address):
    """The float32 at an address."""

    def code(context, b, sig, args):
        return b.load(_at(b, args[0], _F))

    return types.float32(_I64T), code


@intrinsic
def pokef(tc, address, value):
    """Store a float32."""

    def code(context, b, sig, args):
        b.store(args[1], _at(b, args[0], _F))
        return context.get_dummy_value()

    return types.void(_I64T, types.float32), code


@intrinsic
def load128(tc, address):
    """Sixteen bytes as the low four lanes; the others repeat the last."""

    def code(context, b, sig, args):
        quad = ir.VectorType(_I, 4)
        x = b.load(_at(b, args[0], quad))
        x.align = 1
        index = ir.Constant(_VI, [0, 1, 2, 3] + [4] * 12)
        return b.shuffle_vector(x, ir.Constant(quad, [0] * 4), index)

    return ints(_I64T), code


@intrinsic
def vf(tc, x):
    """All lanes the float32 ``x``."""

    def code(context, b, sig, args):
        return _splat(b, args[0], _VF)

    return floats(types.float32), code


@intrinsic
def vi(tc, x):
    """All lanes the low 32 bits of the integer ``x``."""

    def code(context, b, sig, args):
        return _splat(b, b.trunc(args[0], _I), _VI)

    return ints(_I64T), code


@intrinsic
def broadcastf(tc, address):
    """All lanes the float32 at an address."""

    def code(context, b, sig, args):
        return _splat(b, b.load(_at(b, args[0], _F)), _VF)

    return floats(_I64T), code


@intrinsic
def broadcasti(tc, address):
    """All lanes the 32-bit word at an address."""

    def code(context, b, sig, args):
        return _splat(b, b.load(_at(b, args[0], _I)), _VI)

    return ints(_I64T), code


def _binary(op, kind):
    @intrinsic
    def f(tc, x, y):
        def code(context, b, sig, args):
            return getattr(b, op)(args[0], args[1])

        return kind(kind, kind), code

    return f


fadd, fsub, fmul, fdiv = (_binary(op, floats) for op in ("fadd", "fsub", "fmul", "fdiv"))
iadd, isub, imul, ixor, ior, iand = (_binary(op, ints) for op in ("add", "sub", "mul", "xor", "or_", "and_"))


@intrinsic
def add16(tc, x, y):
    """Sum of the sixteen-bit halves, each modulo 2**16."""

    def code(context, b, sig, args):
        halves = ir.VectorType(_I16, 2 * LANES)
        return b.bitcast(b.add(b.bitcast(args[0], halves), b.bitcast(args[1], halves)), _VI)

    return ints(ints, ints), code


def _shift(op):
    @intrinsic
    def f(tc, x, n):
        def code(context, b, sig, args):
            return getattr(b, op)(args[0], _splat(b, b.trunc(args[1], _I), _VI))

        return ints(ints, _I64T), code

    return f


shl, shr, sar = _shift("shl"), _shift("lshr"), _shift("ashr")


@intrinsic
def fma(tc, x, y, z):
    """x * y + z with one rounding."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.fma.v16f32", ir.FunctionType(_VF, [_VF] * 3)), args)

    return floats(floats, floats, floats), code


@intrinsic
def fsqrt(tc, x):
    """Square root, correctly rounded."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.sqrt.v16f32", ir.FunctionType(_VF, [_VF])), args)

    return floats(floats), code


@intrinsic
def to_float(tc, x):
    """int32 -> float32, rounded to nearest even."""

    def code(context, b, sig, args):
        return b.sitofp(args[0], _VF)

    return floats(ints), code


@intrinsic
def to_int(tc, x):
    """float32 -> int32, rounded to nearest even; |x| must be below 2**31."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.lrint.v16i32.v16f32", ir.FunctionType(_VI, [_VF])), args)

    return ints(floats), code


@intrinsic
def bits(tc, x):
    """The bits of floats as integers."""

    def code(context, b, sig, args):
        return b.bitcast(args[0], _VI)

    return ints(floats), code


@intrinsic
def from_bits(tc, x):
    """Integers as the bits of floats."""

    def code(context, b, sig, args):
        return b.bitcast(args[0], _VF)

    return floats(ints), code


def _extreme(compare, kind):
    @intrinsic
    def f(tc, x, y):
        def code(context, b, sig, args):
            cmp = b.fcmp_ordered if kind is floats else b.icmp_signed
            return b.select(cmp(compare, args[0], args[1]), args[0], args[1])

        return kind(kind, kind), code

    return f


fmin, fmax = _extreme("<", floats), _extreme(">", floats)
imin, imax = _extreme("<", ints), _extreme(">", ints)


@intrinsic
def f_less(tc, x, y, t):
    """x < y ? t : 0 (t integers)."""

    def code(context, b, sig, args):
        return b.select(b.fcmp_ordered("<", args[0], args[1]), args[2], _const(0))

    return ints(floats, floats, ints), code


@intrinsic
def i_less(tc, x, y, t):
    """x < y ? t : 0, signed."""

    def code(context, b, sig, args):
        return b.select(b.icmp_signed("<", args[0], args[1]), args[2], _const(0))

    return ints(ints, ints, ints), code


@intrinsic
def mask_less(tc, x, y):
    """Bit i of the int64 result: x[i] < y[i], signed."""

    def code(context, b, sig, args):
        return b.zext(b.bitcast(b.icmp_signed("<", args[0], args[1]), _I16), _I64)

    return _I64T(ints, ints), code


@intrinsic
def add_masked(tc, x, mask, t):
    """x + (bit of ``mask`` set ? t : 0)."""

    def code(context, b, sig, args):
        chosen = b.bitcast(b.trunc(args[1], _I16), ir.VectorType(_I1, LANES))
        return b.add(args[0], b.select(chosen, args[2], _const(0)))

    return ints(ints, _I64T, ints), code


@intrinsic
def iota(tc):
    """0, 1, ..., 15."""

    def code(context, b, sig, args):
        return ir.Constant(_VI, list(range(LANES)))

    return ints(), code


@intrinsic
def iabs(tc, x):
    """Absolute values of int32 lanes; the least value stays itself."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.abs.v16i32", ir.FunctionType(_VI, [_VI, _I1])), [args[0], ir.Constant(_I1, 0)])

    return ints(ints), code


@intrinsic
def popcount(tc, x):
    """Number of ones in each lane."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.ctpop.v16i32", ir.FunctionType(_VI, [_VI])), [args[0]])

    return ints(ints), code


@intrinsic
def isum(tc, x):
    """Sum of the lanes modulo 2**32, as a signed int64."""

    def code(context, b, sig, args):
        r = b.call(function(b, "llvm.vector.reduce.add.v16i32", ir.FunctionType(_I, [_VI])), [args[0]])
        return b.sext(r, _I64)

    return _I64T(ints), code


@intrinsic
def ihighest(tc, x):
    """Largest lane (signed) as int64."""

    def code(context, b, sig, args):
        r = b.call(function(b, "llvm.vector.reduce.smax.v16i32", ir.FunctionType(_I, [_VI])), [args[0]])
        return b.sext(r, _I64)

    return _I64T(ints), code


@intrinsic
def fsum(tc, x):
    """Sum of the lanes in one fixed order: halves are added, 8 then 4, 2, 1 apart."""

    def code(context, b, sig, args):
        v, n = args[0], LANES
        while n > 1:
            n //= 2
            index = ir.VectorType(_I, n)
            low = b.shuffle_vector(v, v, ir.Constant(index, list(range(n))))
            high = b.shuffle_vector(v, v, ir.Constant(index, list(range(n, 2 * n))))
            v = b.fadd(low, high)
        return b.extract_element(v, ir.Constant(_I, 0))

    return types.float32(floats), code


@intrinsic
def trailing_zeros(tc, x):
    """Number of zeros below the lowest one of an int64 (64 for 0)."""

    def code(context, b, sig, args):
        f = function(b, "llvm.cttz.i64", ir.FunctionType(_I64, [_I64, _I1]))
        return b.call(f, [args[0], ir.Constant(_I1, 0)])

    return _I64T(_I64T), code


@intrinsic
def leading_zeros(tc, x):
    """Number of zeros above the highest one of an int64 (64 for 0)."""

    def code(context, b, sig, args):
        f = function(b, "llvm.ctlz.i64", ir.FunctionType(_I64, [_I64, _I1]))
        return b.call(f, [args[0], ir.Constant(_I1, 0)])

    return _I64T(_I64T), code


@intrinsic
def prefetch(tc, address):
    """Bring the line at an address near for reading and writing; never faults."""

    def code(context, b, sig, args):
        p = _I8.as_pointer()
        f = function(b, "llvm.prefetch.p0", ir.FunctionType(ir.VoidType(), [p, _I, _I, _I]))
        b.call(f, [b.inttoptr(args[0], p), ir.Constant(_I, 0), ir.Constant(_I, 2), ir.Constant(_I, 1)])
        return context.get_dummy_value()

    return types.void(_I64T), code


@intrinsic
def transpose16(tc, source, target):
    """target[c][r] = source[r][c]: 16 x 16 words of 32 bits, both with 64-byte rows; may be the same place."""

    def code(context, b, sig, args):
        def at(base, row):
            return _at(b, b.add(base, ir.Constant(_I64, 64 * row)), _VI)

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
                out[r] = b.shuffle_vector(rows[r], rows[r + distance], ir.Constant(_VI, low))
                out[r + distance] = b.shuffle_vector(rows[r], rows[r + distance], ir.Constant(_VI, high))
            rows = out
        for r in range(16):
            s = b.store(rows[r], at(args[1], r))
            s.align = 4
        return context.get_dummy_value()

    return types.void(_I64T, _I64T), code


@intrinsic(prefer_literal=True)
def transpose_bytes4(tc, source, source_step, target, target_step, factor):
    """Four vectors of 16 quads, ``source_step`` apart, to four rows of 64 bytes, ``target_step`` apart.

    Byte j of quad i of vector g becomes byte 16 g + i of row j. With ``factor`` 0 bytes stay as they are; otherwise
    they must be 0 or 1 and become 0 or ``factor``.
    """

    def code(context, b, sig, args):
        wide = ir.VectorType(_I8, 64)
        scaled = getattr(sig.args[4], "literal_value", None) != 0
        splat = _splat(b, b.trunc(args[4], _I8), wide) if scaled else None
        inner = ir.Constant(ir.VectorType(_I, 64), [4 * (i % 16) + i // 16 for i in range(64)])
        groups = []
        for g in range(4):
            x = b.load(_at(b, b.add(args[0], b.mul(args[1], ir.Constant(_I64, g))), wide))
            x.align = 4
            groups.append(b.bitcast(b.shuffle_vector(x, x, inner), _VI))
        low = ir.Constant(_VI, [0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23])
        high = ir.Constant(_VI, [8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31])
        first = ir.Constant(_VI, [*range(8), *range(16, 24)])
        second = ir.Constant(_VI, [*range(8, 16), *range(24, 32)])
        parts = [
            (b.shuffle_vector(groups[0], groups[1], index), b.shuffle_vector(groups[2], groups[3], index))
            for index in (low, high)
        ]
        # parts[0] holds rows 0 and 1 as [g0 r0, g1 r0, g0 r1, g1 r1]; parts[1] rows 2 and 3
        for r in range(4):
            x, y = parts[r // 2]
            row = b.shuffle_vector(x, y, second if r & 1 else first)
            if scaled:
                row = b.bitcast(b.and_(b.sub(ir.Constant(wide, [0] * 64), b.bitcast(row, wide)), splat), _VI)
            s = b.store(row, _at(b, b.add(args[2], b.mul(args[3], ir.Constant(_I64, r))), _VI))
            s.align = 4
        return context.get_dummy_value()

    kind = factor if getattr(factor, "literal_value", None) == 0 else _I64T
    return types.void(_I64T, _I64T, _I64T, _I64T, kind), code


@intrinsic
def mask_negative(tc, x):
    """Bit i of the int64 result: the sign bit of x[i]."""

    def code(context, b, sig, args):
        return b.zext(b.bitcast(b.icmp_signed("<", args[0], _const(0)), _I16), _I64)

    return _I64T(ints), code


@intrinsic
def keep_masked(tc, x, mask):
    """Lanes whose bit of ``mask`` is set; the others are 0."""

    def code(context, b, sig, args):
        chosen = b.bitcast(b.trunc(args[1], _I16), ir.VectorType(_I1, LANES))
        return b.select(chosen, args[0], _const(0))

    return ints(ints, _I64T), code


@intrinsic
def choose(tc, mask, x, y):
    """Bit of ``mask`` set ? x : y."""

    def code(context, b, sig, args):
        return b.select(b.bitcast(b.trunc(args[0], _I16), ir.VectorType(_I1, LANES)), args[1], args[2])

    return ints(_I64T, ints, ints), code


@intrinsic
def compress(tc, x, mask):
    """The lanes whose bit of ``mask`` is set, moved together to the low end (AVX-512 only; see `pack`)."""

    def code(context, b, sig, args):
        chosen = ir.VectorType(_I1, LANES)
        f = function(b, "llvm.x86.avx512.mask.compress.v16i32", ir.FunctionType(_VI, [_VI, _VI, chosen]))
        return b.call(f, [args[0], _const(0), b.bitcast(b.trunc(args[1], _I16), chosen)])

    return ints(ints, _I64T), code


@intrinsic
def running_sum(tc, x):
    """Lane i of the result is x[0] + ... + x[i], modulo 2**32."""

    def code(context, b, sig, args):
        v, zero = args[0], _const(0)
        for distance in (1, 2, 4, 8):
            index = ir.Constant(_VI, [i - distance + LANES if i >= distance else 0 for i in range(LANES)])
            v = b.add(v, b.shuffle_vector(zero, v, index))
        return v

    return ints(ints), code


@intrinsic
def last_lane(tc, x):
    """All lanes the last one of ``x``."""

    def code(context, b, sig, args):
        return b.shuffle_vector(args[0], args[0], ir.Constant(_VI, [LANES - 1] * LANES))

    return ints(ints), code


@intrinsic
def add_saturating(tc, x, y):
    """x + y, held within the range of int32."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.sadd.sat.v16i32", ir.FunctionType(_VI, [_VI, _VI])), args)

    return ints(ints, ints), code


@intrinsic
def times_rounded(tc, x, factor):
    """rint(float64(x) * factor), nearest, ties to even; |factor| <= 1."""

    def code(context, b, sig, args):
        wide = ir.VectorType(ir.DoubleType(), LANES)
        big = ir.Constant(wide, [6755399441055744.0] * LANES)  # 1.5 * 2**52: the sum has no bits behind the point
        product = b.fmul(b.sitofp(args[0], wide), _splat(b, args[1], wide))
        return b.fptosi(b.fsub(b.fadd(product, big), big), _VI)

    return ints(ints, types.float64), code


@intrinsic
def multiply_even(tc, x, y):
    """The eight 64-bit products of lanes 0, 2, ..., 14."""

    def code(context, b, sig, args):
        wide = ir.Constant(_VL, [32] * _VL.count)
        x, y = (b.ashr(b.shl(b.bitcast(v, _VL), wide), wide) for v in args)
        return b.mul(x, y)

    return longs(ints, ints), code


@intrinsic
def multiply_odd(tc, x, y):
    """The eight 64-bit products of lanes 1, 3, ..., 15."""

    def code(context, b, sig, args):
        wide = ir.Constant(_VL, [32] * _VL.count)
        x, y = (b.ashr(b.bitcast(v, _VL), wide) for v in args)
        return b.mul(x, y)

    return longs(ints, ints), code


@intrinsic
def ladd(tc, x, y):
    """Sum of 64-bit lanes, modulo 2**64."""

    def code(context, b, sig, args):
        return b.add(args[0], args[1])

    return longs(longs, longs), code


@intrinsic
def lzero(tc):
    """Eight 64-bit zeros."""

    def code(context, b, sig, args):
        return ir.Constant(_VL, [0] * _VL.count)

    return longs(), code


@intrinsic
def lsum(tc, x):
    """Sum of the eight 64-bit lanes modulo 2**64, as int64."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.vector.reduce.add.v8i64", ir.FunctionType(_I64, [_VL])), [args[0]])

    return _I64T(longs), code


@intrinsic
def ones(tc, x):
    """Number of ones of an int64."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.ctpop.i64", ir.FunctionType(_I64, [_I64])), [args[0]])

    return _I64T(_I64T), code


@intrinsic
def or_bits(tc, places):
    """The int64 that has bit ``places[i]`` set for every lane; lanes outside 0..63 count for nothing."""

    def code(context, b, sig, args):
        wide = ir.VectorType(_I64, LANES)
        places = b.zext(args[0], wide)
        inside = b.icmp_unsigned("<", places, ir.Constant(wide, [64] * LANES))
        one, zero = (ir.Constant(wide, [n] * LANES) for n in (1, 0))
        bits_ = b.select(inside, b.shl(one, places), zero)
        f = function(b, "llvm.vector.reduce.or.v16i64", ir.FunctionType(_I64, [wide]))
        return b.call(f, [bits_])

    return _I64T(ints), code


def _peeker(width):
    @intrinsic
    def peek_at(tc, address):
        def code(context, b, sig, args):
            word = ir.IntType(width)
            r = b.load(_at(b, args[0], word))
            r.align = 1
            return r if width == 64 else b.zext(r, _I64)

        return _I64T(_I64T), code

    return peek_at


def _poker(width):
    @intrinsic
    def poke_at(tc, address, value):
        def code(context, b, sig, args):
            word = ir.IntType(width)
            s = b.store(args[1] if width == 64 else b.trunc(args[1], word), _at(b, args[0], word))
            s.align = 1
            return context.get_dummy_value()

        return types.void(_I64T, _I64T), code

    return poke_at


peek8, peek16, peek64 = (_peeker(width) for width in (8, 16, 64))
poke8, poke16, poke64 = (_poker(width) for width in (8, 16, 64))
