"""Sixteen lanes as types inside numba, and the few builders of LLVM code that `memory`, `vectors` and `masks` share.

These modules come first of all kernels, so they get numba from `quick`.
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call,valid-type"
from __future__ import annotations

from llvmlite import ir

from gossipdbn.kernels.quick import extending, types

intrinsic, register_model = extending.intrinsic, extending.register_model
PrimitiveModel = extending.models.PrimitiveModel
LANES = 16
F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
I1, I8, I16 = ir.IntType(1), ir.IntType(8), ir.IntType(16)
VF, VI, VL = ir.VectorType(F32, LANES), ir.VectorType(I32, LANES), ir.VectorType(I64, LANES // 2)
INT64 = types.int64


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
class _FloatsModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VF)


@register_model(_Ints)
class _IntsModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VI)


@register_model(_Longs)
class _LongsModel(PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, VL)


def function(builder, name, ftype):
    """The named LLVM function of this module, declared on first use."""
    return builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)


def splat(builder, value, vtype):
    """A vector whose lanes are all ``value``."""
    undef = ir.Constant(vtype, ir.Undefined)
    one = builder.insert_element(undef, value, ir.Constant(I32, 0))
    return builder.shuffle_vector(one, undef, ir.Constant(ir.VectorType(I32, vtype.count), [0] * vtype.count))


def const(n):
    """The integer ``n`` in every lane."""
    return ir.Constant(VI, [n] * LANES)


def pointer(builder, address, vtype):
    """An integer address as a pointer to ``vtype``."""
    return builder.inttoptr(address, vtype.as_pointer())
