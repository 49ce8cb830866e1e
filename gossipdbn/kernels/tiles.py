"""The one micro-kernel: a register block of outputs, held in registers through the whole inner loop.

``tile`` computes, for ``rows`` rows and ``groups`` groups of 16 lanes::

    c[i, g, :] (+)= sum over k of a[i, k] * b[g, k, :]

where ``a[i, k]`` is one 32-bit word, broadcast to all lanes, and ``b[g, k, :]`` is 64 bytes. What a word is, says the
kind:

``F32``   one float32; one fused multiply-add per k, so every output is one chain in the order of k on every tier
``UB``    four u8 (0..127) times four s8
``BU``    four s8 times four u8 (0..255)
``BUS``   the same with the s8 in -1..1 (a cheaper instruction where there is no VNNI)

Integer sums are exact in int32. Emitted as LLVM IR by a single intrinsic, because LLVM's own vectorisation of plain
loops reaches half of this; accumulators are phi nodes, so they never leave the registers. Only here, in `amx` and for
`masks.compress` are x86 instructions named; every kind also has a form that any CPU can run.

Strides are in bytes. ``hop`` makes ``a`` jump by ``jump`` extra bytes after every ``every`` steps of k, to walk
through a panel-major matrix along its rows.
"""

# mypy: disable-error-code="no-untyped-def,misc,no-untyped-call"
from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from gossipdbn.kernels.lanes import function
from gossipdbn.kernels.tiers import TIER, WIDE, inline

F32, UB, BU, BUS = 0, 1, 2, 3
LANES = 16 if WIDE else 8
_VNNI = TIER in ("amx", "vnni", "avxvnni")
_F, _I, _I8, _I16, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(8), ir.IntType(16), ir.IntType(64)


def _multiply_add(b, kind, acc, word, lanes):
    """acc + word * lanes for one register, by the tier's best exact instruction."""
    vi = ir.VectorType(_I, LANES)
    if kind == F32:
        vf = ir.VectorType(_F, LANES)
        return b.call(function(b, f"llvm.fma.v{LANES}f32", ir.FunctionType(vf, [vf] * 3)), [word, lanes, acc])
    unsigned, signed = (word, lanes) if kind == UB else (lanes, word)
    if TIER == "generic":
        return _by_parts(b, acc, unsigned, signed, vi)
    halves = ir.VectorType(_I16, 2 * LANES)
    bytes_ = ir.VectorType(_I8, 4 * LANES)
    if _VNNI:
        f = function(b, f"llvm.x86.avx512.vpdpbusd.{LANES * 32}", ir.FunctionType(vi, [vi, bytes_, bytes_]))
        return b.call(f, [acc, b.bitcast(unsigned, bytes_), b.bitcast(signed, bytes_)])
    wide = TIER == "avx512"
    pairs = function(b, "llvm.x86.avx512.pmaddw.d.512" if wide else "llvm.x86.avx2.pmadd.wd",
                     ir.FunctionType(vi, [halves, halves]))
    if kind == BU:  # 127 * 255 * 2 would saturate in pmaddubsw: even and odd bytes as 16-bit numbers instead
        eight, low = ir.Constant(halves, [8] * 2 * LANES), ir.Constant(halves, [255] * 2 * LANES)
        u, s = b.bitcast(unsigned, halves), b.bitcast(signed, halves)
        even = b.call(pairs, [b.and_(u, low), b.ashr(b.shl(s, eight), eight)])
        odd = b.call(pairs, [b.lshr(u, eight), b.ashr(s, eight)])
        return b.add(acc, b.add(even, odd))
    name = "llvm.x86.avx512.pmaddubs.w.512" if wide else "llvm.x86.avx2.pmadd.ub.sw"
    products = b.call(function(b, name, ir.FunctionType(halves, [bytes_, bytes_])),
                      [b.bitcast(unsigned, bytes_), b.bitcast(signed, bytes_)])
    return b.add(acc, b.call(pairs, [products, ir.Constant(halves, [1] * 2 * LANES)]))


def _by_parts(b, acc, unsigned, signed, vi):
    def n(k):
        return ir.Constant(vi, [k] * LANES)

    for q in range(4):
        u = b.and_(b.lshr(unsigned, n(8 * q)), n(255))
        acc = b.add(acc, b.mul(u, b.ashr(b.shl(signed, n(24 - 8 * q)), n(24))))
    return acc


@intrinsic(prefer_literal=True)
def tile(tc, kind, rows, groups, add, hop, a, a_row, a_k, b_, b_k, b_group, steps, c, c_row, every, jump):
    """See the module; ``kind, rows, groups, add, hop`` must be literals. ``add``: start from c instead of 0."""
    literals = [getattr(x, "literal_value", None) for x in (kind, rows, groups, add, hop)]
    if None in literals:
        return None
    kd, nrows, ngroups, start, hops = literals
    i64 = types.int64

    def code(context, b, sig, args):
        pa, sai, sak, pb, sbk, sbv, steps_, pc, sc, ev, jp = args[5:]
        element = _F if kd == F32 else _I
        vec = ir.VectorType(element, LANES)

        def n(k):
            return ir.Constant(_I64, k)

        index = [(i, g, p) for i in range(nrows) for g in range(ngroups) for p in range(16 // LANES)]
        crow = [b.add(pc, b.mul(sc, n(i))) for i in range(nrows)]

        def out(i, g, p):
            return b.inttoptr(b.add(crow[i], n(g * 64 + p * 32)), vec.as_pointer())

        first = {}
        for t in index:
            if start:
                first[t] = b.load(out(*t))
                first[t].align = 4
            else:
                first[t] = ir.Constant(vec, [0.0 if kd == F32 else 0] * LANES)
        row_offset = [b.mul(sai, n(i)) for i in range(nrows)]
        group_offset = [b.mul(sbv, n(g)) for g in range(ngroups)]
        before, loop, after = b.block, b.append_basic_block("k"), b.append_basic_block("done")
        b.cbranch(b.icmp_signed(">", steps_, n(0)), loop, after)
        b.position_at_end(loop)
        k, qa, qb, left = (b.phi(_I64) for _ in range(4))
        for phi, value in ((k, n(0)), (qa, pa), (qb, pb), (left, ev)):
            phi.add_incoming(value, before)
        acc = {t: b.phi(vec) for t in index}
        for t in index:
            acc[t].add_incoming(first[t], before)
        right = {}
        for g in range(ngroups):
            for p in range(16 // LANES):
                x = b.load(b.inttoptr(b.add(b.add(qb, group_offset[g]), n(p * 32)), vec.as_pointer()))
                x.align = 4
                right[g, p] = x
        new = {}
        for i in range(nrows):
            s = b.load(b.inttoptr(b.add(qa, row_offset[i]), element.as_pointer()))
            s.align = 4 if kd == F32 else 1
            undef = ir.Constant(vec, ir.Undefined)
            s = b.insert_element(undef, s, ir.Constant(_I, 0))
            s = b.shuffle_vector(s, undef, ir.Constant(ir.VectorType(_I, LANES), [0] * LANES))
            for g in range(ngroups):
                for p in range(16 // LANES):
                    new[i, g, p] = _multiply_add(b, kd, acc[i, g, p], s, right[g, p])
        k2, qb2, qa2, left2 = b.add(k, n(1)), b.add(qb, sbk), b.add(qa, sak), left
        if hops:
            less = b.sub(left, n(1))
            edge = b.icmp_signed("==", less, n(0))
            qa2, left2 = b.add(qa2, b.select(edge, jp, n(0))), b.select(edge, ev, less)
        for phi, value in ((k, k2), (qa, qa2), (qb, qb2), (left, left2)):
            phi.add_incoming(value, loop)
        for t in index:
            acc[t].add_incoming(new[t], loop)
        b.cbranch(b.icmp_signed("<", k2, steps_), loop, after)
        b.position_at_end(after)
        for t in index:
            final = b.phi(vec)
            final.add_incoming(first[t], before)
            final.add_incoming(new[t], loop)
            first[t] = final
        for t in index:
            b.store(first[t], out(*t)).align = 4
        return context.get_dummy_value()

    return types.void(kind, rows, groups, add, hop, *[i64] * 11), code


@inline
def block8(kind, add, a, a_row, a_k, b, b_k, b_group, steps, c, c_row):
    """8 rows x 2 groups by the tier's best register blocks."""
    if WIDE:
        tile(kind, 8, 2, add, 0, a, a_row, a_k, b, b_k, b_group, steps, c, c_row, 0, 0)
    else:
        for g in range(2):
            for m in range(0, 8, 4):
                tile(kind, 4, 1, add, 0, a + m * a_row, a_row, a_k, b + g * b_group, b_k, 64, steps,
                     c + m * c_row + g * 64, c_row, 0, 0)
