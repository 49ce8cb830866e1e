"""AMX: eight tile registers of 16 rows x 64 bytes, and products of 16 x 64 by 64 x 16 bytes into 16 x 16 int32.

Linux hands the registers out per process (`tiers`); a thread configures them with `begin` and gives them up with
`finish`, between which nothing may leave the kernel. Tile numbers are part of an instruction, hence one small function
for each use. Tiles 0..3 accumulate, 4 and 5 hold left operands, 6 and 7 right ones.

    quarter_ub   left u8 (rows of data), right s8 (weights)
    quarter_bu   left s8 (visibles or weights), right u8 (states or probabilities)
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call"
from __future__ import annotations

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gossipdbn.kernels.lanes import function
from gossipdbn.kernels.tiers import inline

_I8, _I64 = ir.IntType(8), ir.IntType(64)
_PTR = _I8.as_pointer()
_VOID = ir.VoidType()


def _configuration() -> np.ndarray:
    """Palette 1, every tile 16 rows of 64 bytes."""
    c = np.zeros(64, np.uint8)
    c[0] = 1
    c[16:32:2] = 64
    c[48:56] = 16
    return c


CONFIGURATION = _configuration()


@intrinsic
def _configure(tc, address):
    def code(context, b, sig, args):
        b.call(function(b, "llvm.x86.ldtilecfg", ir.FunctionType(_VOID, [_PTR])), [b.inttoptr(args[0], _PTR)])
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def finish(tc):
    """Give the tile registers up."""

    def code(context, b, sig, args):
        b.call(function(b, "llvm.x86.tilerelease", ir.FunctionType(_VOID, [])), [])
        return context.get_dummy_value()

    return types.void(), code


@inline
def begin(scratch):
    """Configure the tile registers; ``scratch`` is the address of 64 bytes."""
    _write_configuration(scratch)
    _configure(scratch)


@intrinsic
def _write_configuration(tc, address):
    def code(context, b, sig, args):
        for i, byte in enumerate(CONFIGURATION.tolist()):
            at = b.inttoptr(b.add(args[0], ir.Constant(_I64, i)), _PTR)
            b.store(ir.Constant(_I8, byte), at).align = 1
        return context.get_dummy_value()

    return types.void(types.int64), code


def _zero(tile):
    @intrinsic
    def f(tc):
        def code(context, b, sig, args):
            b.call(function(b, "llvm.x86.tilezero", ir.FunctionType(_VOID, [_I8])), [ir.Constant(_I8, tile)])
            return context.get_dummy_value()

        return types.void(), code

    return f


def _move(name, tile):
    @intrinsic
    def f(tc, address, stride):
        def code(context, b, sig, args):
            g = function(b, name, ir.FunctionType(_VOID, [_I8, _PTR, _I64]))
            b.call(g, [ir.Constant(_I8, tile), b.inttoptr(args[0], _PTR), args[1]])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), code

    return f


def _product(name, c, left, right):
    @intrinsic
    def f(tc):
        def code(context, b, sig, args):
            g = function(b, name, ir.FunctionType(_VOID, [_I8] * 3))
            b.call(g, [ir.Constant(_I8, t) for t in (c, left, right)])
            return context.get_dummy_value()

        return types.void(), code

    return f


_z0, _z1, _z2, _z3 = (_zero(t) for t in range(4))
_s0, _s1, _s2, _s3 = (_move("llvm.x86.tilestored64", t) for t in range(4))
_l4, _l5, _l6, _l7 = (_move("llvm.x86.tileloadd64", t) for t in range(4, 8))
_ub = {(c, a, b): _product("llvm.x86.tdpbusd", c, a, b) for c, a, b in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))}
_bu = {(c, a, b): _product("llvm.x86.tdpbsud", c, a, b) for c, a, b in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))}
_ub046, _ub147, _ub256, _ub357 = _ub.values()
_bu046, _bu147, _bu256, _bu357 = _bu.values()


@inline
def zero4():
    """Clear the accumulators."""
    _z0()
    _z1()
    _z2()
    _z3()


@inline
def quarter_ub(q, left0, left1, left_stride, right0, right1, two_left, two_right):
    """Product ``q`` of the four of a step of k: two blocks of 16 rows times two of 16 columns, or one of either.

    Between products there is time for vector arithmetic, see `cd_amx`. Right tiles are 1 kB each.
    """
    if q == 0:
        _l4(left0, left_stride)
        _l6(right0, 64)
        _ub046()
    elif q == 1:
        if two_right:
            _l7(right1, 64)
            _ub147()
    elif q == 2:
        if two_left:
            _l5(left1, left_stride)
            _ub256()
    elif two_left and two_right:
        _ub357()


@inline
def quarter_bu(q, left0, left1, left_stride, right0, right1, two_left, two_right):
    """As `quarter_ub` with the signs of the operands exchanged."""
    if q == 0:
        _l4(left0, left_stride)
        _l6(right0, 64)
        _bu046()
    elif q == 1:
        if two_right:
            _l7(right1, 64)
            _bu147()
    elif q == 2:
        if two_left:
            _l5(left1, left_stride)
            _bu256()
    elif two_left and two_right:
        _bu357()


@inline
def store4(c):
    """The accumulators to 4 kB at ``c``, 1 kB each."""
    _s0(c, 64)
    _s1(c + 1024, 64)
    _s2(c + 2048, 64)
    _s3(c + 3072, 64)
