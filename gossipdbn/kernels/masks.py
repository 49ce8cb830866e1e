"""Choosing among sixteen lanes, and counting in words of bits: a mask is an int64 whose bit i stands for lane i.

Only `compress` is an x86 instruction, which `ternary_write.append` replaces where it is missing.
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call"
from __future__ import annotations

from llvmlite import ir

from gossipdbn.kernels.lanes import I1, I16, I64, INT64, LANES, VI, const, function, intrinsic, ints

_CHOSEN = ir.VectorType(I1, LANES)


def _lanes_of(b, mask):
    """One bit a lane of the low sixteen of an int64."""
    return b.bitcast(b.trunc(mask, I16), _CHOSEN)


def _mask_of(b, chosen):
    """The int64 of one bit a lane."""
    return b.zext(b.bitcast(chosen, I16), I64)


@intrinsic
def mask_less(tc, x, y):
    """Bit i of the int64 result: x[i] < y[i], signed."""

    def code(context, b, sig, args):
        return _mask_of(b, b.icmp_signed("<", args[0], args[1]))

    return INT64(ints, ints), code


@intrinsic
def add_masked(tc, x, mask, t):
    """x + (bit of ``mask`` set ? t : 0)."""

    def code(context, b, sig, args):
        return b.add(args[0], b.select(_lanes_of(b, args[1]), args[2], const(0)))

    return ints(ints, INT64, ints), code


def _zeros(name):
    @intrinsic
    def f(tc, x):
        def code(context, b, sig, args):
            count = function(b, f"llvm.{name}.i64", ir.FunctionType(I64, [I64, I1]))
            return b.call(count, [args[0], ir.Constant(I1, 0)])

        return INT64(INT64), code

    return f


trailing_zeros, leading_zeros = _zeros("cttz"), _zeros("ctlz")
"""Zeros below the lowest one of an int64, and above the highest one (64 for 0)."""


@intrinsic
def mask_negative(tc, x):
    """Bit i of the int64 result: the sign bit of x[i]."""

    def code(context, b, sig, args):
        return _mask_of(b, b.icmp_signed("<", args[0], const(0)))

    return INT64(ints), code


@intrinsic
def keep_masked(tc, x, mask):
    """Lanes whose bit of ``mask`` is set; the others are 0."""

    def code(context, b, sig, args):
        return b.select(_lanes_of(b, args[1]), args[0], const(0))

    return ints(ints, INT64), code


@intrinsic
def choose(tc, mask, x, y):
    """Bit of ``mask`` set ? x : y."""

    def code(context, b, sig, args):
        return b.select(_lanes_of(b, args[0]), args[1], args[2])

    return ints(INT64, ints, ints), code


@intrinsic
def compress(tc, x, mask):
    """The lanes whose bit of ``mask`` is set, moved together to the low end (AVX-512 only)."""

    def code(context, b, sig, args):
        f = function(b, "llvm.x86.avx512.mask.compress.v16i32", ir.FunctionType(VI, [VI, VI, _CHOSEN]))
        return b.call(f, [args[0], const(0), _lanes_of(b, args[1])])

    return ints(ints, INT64), code


@intrinsic
def ones(tc, x):
    """Number of ones of an int64."""

    def code(context, b, sig, args):
        return b.call(function(b, "llvm.ctpop.i64", ir.FunctionType(I64, [I64])), [args[0]])

    return INT64(INT64), code


@intrinsic
def or_bits(tc, places):
    """The int64 that has bit ``places[i]`` set for every lane; lanes outside 0..63 count for nothing."""

    def code(context, b, sig, args):
        wide = ir.VectorType(I64, LANES)
        places = b.zext(args[0], wide)
        inside = b.icmp_unsigned("<", places, ir.Constant(wide, [64] * LANES))
        one, zero = (ir.Constant(wide, [n] * LANES) for n in (1, 0))
        bits_ = b.select(inside, b.shl(one, places), zero)
        f = function(b, "llvm.vector.reduce.or.v16i64", ir.FunctionType(I64, [wide]))
        return b.call(f, [bits_])

    return INT64(ints), code
