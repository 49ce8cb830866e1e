"""A tier whose instructions this CPU may lack, run all the same: each x86 instruction is emulated, bit for bit.

``python -m tests.kernels.emulated TIER [parts]`` prints what ``state_digest`` prints. Only the instructions are
replaced, by functions that follow their description in Intel's manual; loop orders, layouts and epilogues are those of
the tier. Compiled code goes to a folder of its own, because it must never be taken for the real thing.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from llvmlite import ir
from numba.core import cgutils

_I8, _I16, _I32, _I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
TILE_BYTES = 1024
_TILES = np.zeros(8 * TILE_BYTES + 64, np.uint8)
_FIRST = (_TILES.ctypes.data + 63) & ~63


def _same(vector, n):
    return ir.Constant(vector, [n] * vector.count)


def _quads(b, acc, unsigned, signed):
    """acc + the four products of each lane's bytes, wrapping: VPDPBUSD and one row of TDPBUSD."""
    v = acc.type
    for q in range(4):
        u = b.and_(b.lshr(unsigned, _same(v, 8 * q)), _same(v, 255))
        s = b.ashr(b.shl(signed, _same(v, 24 - 8 * q)), _same(v, 24))
        acc = b.add(acc, b.mul(u, s))
    return acc


def _vpdpbusd(b, acc, unsigned, signed):
    b.ret(_quads(b, acc, b.bitcast(unsigned, acc.type), b.bitcast(signed, acc.type)))


def _pair_sums(b, products):
    n = products.type.count
    index = ir.VectorType(_I32, n // 2)
    even = ir.Constant(index, list(range(0, n, 2)))
    odd = ir.Constant(index, list(range(1, n, 2)))
    return b.add(b.shuffle_vector(products, products, even), b.shuffle_vector(products, products, odd))


def _pmaddubsw(b, unsigned, signed):
    """Sums of pairs of u8 x s8, saturated to 16 bits."""
    wide = ir.VectorType(_I32, unsigned.type.count)
    s = _pair_sums(b, b.mul(b.zext(unsigned, wide), b.sext(signed, wide)))
    for limit, compare in ((32767, "<"), (-32768, ">")):
        bound = _same(s.type, limit)
        s = b.select(b.icmp_signed(compare, s, bound), s, bound)
    b.ret(b.trunc(s, ir.VectorType(_I16, s.type.count)))


def _pmaddwd(b, x, y):
    wide = ir.VectorType(_I32, x.type.count)
    b.ret(_pair_sums(b, b.mul(b.sext(x, wide), b.sext(y, wide))))


def _compress(b, x, rest, mask):
    """Chosen lanes moved to the front, the lanes behind them taken from ``rest``."""
    spot = cgutils.alloca_once(b, x.type)
    b.store(rest, spot)
    lanes = b.bitcast(spot, _I32.as_pointer())
    place = ir.Constant(_I32, 0)
    for i in range(x.type.count):
        at = b.gep(lanes, [place])
        chosen = b.extract_element(mask, ir.Constant(_I32, i))
        b.store(b.select(chosen, b.extract_element(x, ir.Constant(_I32, i)), b.load(at)), at)
        if i + 1 < x.type.count:
            place = b.add(place, b.zext(chosen, _I32))
    b.ret(b.load(spot))


def _row(b, tile, row):
    line = ir.VectorType(_I32, 16)
    offset = b.add(b.mul(b.zext(tile, _I64), ir.Constant(_I64, TILE_BYTES)), b.mul(row, ir.Constant(_I64, 64)))
    return b.inttoptr(b.add(offset, ir.Constant(_I64, _FIRST)), line.as_pointer())


def _line_at(b, pointer, stride, row):
    return b.inttoptr(b.add(b.ptrtoint(pointer, _I64), b.mul(stride, row)), ir.VectorType(_I32, 16).as_pointer())


def _sixteen(b):
    return cgutils.for_range(b, ir.Constant(_I64, 16))


def _tilezero(b, tile):
    with _sixteen(b) as loop:
        b.store(_same(ir.VectorType(_I32, 16), 0), _row(b, tile, loop.index))
    b.ret_void()


def _tileload(b, tile, pointer, stride):
    with _sixteen(b) as loop:
        line = b.load(_line_at(b, pointer, stride, loop.index))
        line.align = 1
        b.store(line, _row(b, tile, loop.index))
    b.ret_void()


def _tilestore(b, tile, pointer, stride):
    with _sixteen(b) as loop:
        b.store(b.load(_row(b, tile, loop.index)), _line_at(b, pointer, stride, loop.index)).align = 1
    b.ret_void()


def _product(left_is_unsigned: bool) -> Callable[..., None]:
    """C[m, n] += the quads of A[m, k] and B[k, n] over 16 k."""

    def body(b, c, left, right):
        line = ir.VectorType(_I32, 16)
        none = ir.Constant(line, ir.Undefined)
        with _sixteen(b) as m:
            total = cgutils.alloca_once(b, line)
            b.store(b.load(_row(b, c, m.index)), total)
            a_row = b.bitcast(_row(b, left, m.index), _I32.as_pointer())
            with _sixteen(b) as k:
                word = b.insert_element(none, b.load(b.gep(a_row, [k.index])), ir.Constant(_I32, 0))
                word = b.shuffle_vector(word, none, _same(line, 0))
                other = b.load(_row(b, right, k.index))
                u, s = (word, other) if left_is_unsigned else (other, word)
                b.store(_quads(b, b.load(total), u, s), total)
            b.store(b.load(total), _row(b, c, m.index))
        b.ret_void()

    return body


def _nothing(b, *_):
    b.ret_void()


BODIES: dict[str, Callable[..., None]] = {
    "llvm.x86.avx512.vpdpbusd.512": _vpdpbusd,
    "llvm.x86.avx512.vpdpbusd.256": _vpdpbusd,
    "llvm.x86.avx512.pmaddubs.w.512": _pmaddubsw,
    "llvm.x86.avx2.pmadd.ub.sw": _pmaddubsw,
    "llvm.x86.avx512.pmaddw.d.512": _pmaddwd,
    "llvm.x86.avx2.pmadd.wd": _pmaddwd,
    "llvm.x86.avx512.mask.compress.v16i32": _compress,
    "llvm.x86.ldtilecfg": _nothing,  # every tile has 16 rows of 64 bytes; the test looks at the configuration
    "llvm.x86.tilerelease": _nothing,
    "llvm.x86.tilezero": _tilezero,
    "llvm.x86.tileloadd64": _tileload,
    "llvm.x86.tilestored64": _tilestore,
    "llvm.x86.tdpbusd": _product(True),
    "llvm.x86.tdpbsud": _product(False),
}


def emulating(builder, name, ftype):
    """Takes the place of `lanes.function`."""
    if not name.startswith("llvm.x86."):
        return builder.module.globals.get(name) or ir.Function(builder.module, ftype, name)
    known = "emulated." + name.removeprefix("llvm.x86.")
    if known not in builder.module.globals:
        f = ir.Function(builder.module, ftype, known)
        f.linkage = "linkonce_odr"
        BODIES[name](ir.IRBuilder(f.append_basic_block()), *f.args)
    return builder.module.globals[known]


def main() -> None:
    tier, *parts = sys.argv[1:]
    from gossipdbn.kernels import tiers

    with tempfile.TemporaryDirectory() as folder:
        tiers.TIER, tiers.WIDE, tiers.CACHE_FOLDER = tier, tier != "avxvnni", Path(folder)  # type: ignore[assignment]
        from gossipdbn.kernels import lanes  # before whatever copies the name out of it

        lanes.function = emulating
        from tests.kernels.state_digest import PARTS

        print(json.dumps({"tier": tier, "digests": {name: PARTS[name]() for name in parts or PARTS}}))


if __name__ == "__main__":
    main()
