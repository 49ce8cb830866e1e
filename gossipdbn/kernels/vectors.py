"""Arithmetic of sixteen lanes as values inside numba: the vocabulary in which the kernels are written.

Every operation emits LLVM vector instructions that mean the same on every CPU; LLVM splits them into what the machine
has (one AVX-512 register, two AVX2, four SSE or NEON). Float operations are IEEE add, multiply, divide and fused
multiply-add only: no reassociation, no approximations, no libm. `memory` loads and stores, `masks` chooses among lanes.
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call"
from __future__ import annotations

from llvmlite import ir

from gossipdbn.kernels.lanes import (
    I1,
    I16,
    I32,
    I64,
    INT64,
    LANES,
    VF,
    VI,
    VL,
    const,
    floats,
    function,
    intrinsic,
    ints,
    longs,
    splat,
)
from gossipdbn.kernels.quick import types


@intrinsic
def vf(tc, x):
    """All lanes the float32 ``x``."""

    def code(context, b, sig, args):
        return splat(b, args[0], VF)

    return floats(types.float32), code


@intrinsic
def vi(tc, x):
    """All lanes the low 32 bits of the integer ``x``."""

    def code(context, b, sig, args):
        return splat(b, b.trunc(args[0], I32), VI)

    return ints(INT64), code


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
        halves = ir.VectorType(I16, 2 * LANES)
        return b.bitcast(b.add(b.bitcast(args[0], halves), b.bitcast(args[1], halves)), VI)

    return ints(ints, ints), code


def _shift(op):
    @intrinsic
    def f(tc, x, n):
        def code(context, b, sig, args):
            return getattr(b, op)(args[0], splat(b, b.trunc(args[1], I32), VI))

        return ints(ints, INT64), code

    return f


shl, shr, sar = _shift("shl"), _shift("lshr"), _shift("ashr")


@intrinsic
def fma(tc, x, y, z):
    """x * y + z with one rounding."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.fma.v16f32", ir.FunctionType(VF, [VF] * 3)), args)

    return floats(floats, floats, floats), code


@intrinsic
def fsqrt(tc, x):
    """Square root, correctly rounded."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.sqrt.v16f32", ir.FunctionType(VF, [VF])), args)

    return floats(floats), code


@intrinsic
def to_float(tc, x):
    """int32 -> float32, rounded to nearest even."""

    def code(context, b, sig, args):
        return b.sitofp(args[0], VF)

    return floats(ints), code


@intrinsic
def to_int(tc, x):
    """float32 -> int32, rounded to nearest even; |x| must be below 2**31."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.lrint.v16i32.v16f32", ir.FunctionType(VI, [VF])), args)

    return ints(floats), code


@intrinsic
def bits(tc, x):
    """The bits of floats as integers."""

    def code(context, b, sig, args):
        return b.bitcast(args[0], VI)

    return ints(floats), code


@intrinsic
def from_bits(tc, x):
    """Integers as the bits of floats."""

    def code(context, b, sig, args):
        return b.bitcast(args[0], VF)

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
        return b.select(b.fcmp_ordered("<", args[0], args[1]), args[2], const(0))

    return ints(floats, floats, ints), code


@intrinsic
def i_less(tc, x, y, t):
    """x < y ? t : 0, signed."""

    def code(context, b, sig, args):
        return b.select(b.icmp_signed("<", args[0], args[1]), args[2], const(0))

    return ints(ints, ints, ints), code


@intrinsic
def iota(tc):
    """0, 1, ..., 15."""

    def code(context, b, sig, args):
        return ir.Constant(VI, list(range(LANES)))

    return ints(), code


@intrinsic
def iabs(tc, x):
    """Absolute values of int32 lanes; the least value stays itself."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.abs.v16i32", ir.FunctionType(VI, [VI, I1])), [args[0], ir.Constant(I1, 0)])

    return ints(ints), code


@intrinsic
def popcount(tc, x):
    """Number of ones in each lane."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.ctpop.v16i32", ir.FunctionType(VI, [VI])), [args[0]])

    return ints(ints), code


@intrinsic
def isum(tc, x):
    """Sum of the lanes modulo 2**32, as a signed int64."""

    def code(context, b, sig, args):
        r = b.call(function(b, "llvm.vector.reduce.add.v16i32", ir.FunctionType(I32, [VI])), [args[0]])
        return b.sext(r, I64)

    return INT64(ints), code


@intrinsic
def ihighest(tc, x):
    """Largest lane (signed) as int64."""

    def code(context, b, sig, args):
        r = b.call(function(b, "llvm.vector.reduce.smax.v16i32", ir.FunctionType(I32, [VI])), [args[0]])
        return b.sext(r, I64)

    return INT64(ints), code


@intrinsic
def fsum(tc, x):
    """Sum of the lanes in one fixed order: halves are added, 8 then 4, 2, 1 apart."""

    def code(context, b, sig, args):
        v, n = args[0], LANES
        while n > 1:
            n //= 2
            index = ir.VectorType(I32, n)
            low = b.shuffle_vector(v, v, ir.Constant(index, list(range(n))))
            high = b.shuffle_vector(v, v, ir.Constant(index, list(range(n, 2 * n))))
            v = b.fadd(low, high)
        return b.extract_element(v, ir.Constant(I32, 0))

    return types.float32(floats), code


@intrinsic
def running_sum(tc, x):
    """Lane i of the result is x[0] + ... + x[i], modulo 2**32."""

    def code(context, b, sig, args):
        v, zero = args[0], const(0)
        for distance in (1, 2, 4, 8):
            index = ir.Constant(VI, [i - distance + LANES if i >= distance else 0 for i in range(LANES)])
            v = b.add(v, b.shuffle_vector(zero, v, index))
        return v

    return ints(ints), code


@intrinsic
def last_lane(tc, x):
    """All lanes the last one of ``x``."""

    def code(context, b, sig, args):
        return b.shuffle_vector(args[0], args[0], ir.Constant(VI, [LANES - 1] * LANES))

    return ints(ints), code


@intrinsic
def add_saturating(tc, x, y):
    """x + y, held within the range of int32."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.sadd.sat.v16i32", ir.FunctionType(VI, [VI, VI])), args)

    return ints(ints, ints), code


@intrinsic
def times_rounded(tc, x, factor):
    """rint(float64(x) * factor), nearest, ties to even; |factor| <= 1."""

    def code(context, b, sig, args):
        wide = ir.VectorType(ir.DoubleType(), LANES)
        big = ir.Constant(wide, [6755399441055744.0] * LANES)  # 1.5 * 2**52: the sum has no bits behind the point
        product = b.fmul(b.sitofp(args[0], wide), splat(b, args[1], wide))
        return b.fptosi(b.fsub(b.fadd(product, big), big), VI)

    return ints(ints, types.float64), code


@intrinsic
def multiply_even(tc, x, y):
    """The eight 64-bit products of lanes 0, 2, ..., 14."""

    def code(context, b, sig, args):
        wide = ir.Constant(VL, [32] * VL.count)
        x, y = (b.ashr(b.shl(b.bitcast(v, VL), wide), wide) for v in args)
        return b.mul(x, y)

    return longs(ints, ints), code


@intrinsic
def multiply_odd(tc, x, y):
    """The eight 64-bit products of lanes 1, 3, ..., 15."""

    def code(context, b, sig, args):
        wide = ir.Constant(VL, [32] * VL.count)
        x, y = (b.ashr(b.bitcast(v, VL), wide) for v in args)
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
        return ir.Constant(VL, [0] * VL.count)

    return longs(), code


@intrinsic
def lsum(tc, x):
    """Sum of the eight 64-bit lanes modulo 2**64, as int64."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.vector.reduce.add.v8i64", ir.FunctionType(I64, [VL])), [args[0]])

    return INT64(longs), code
