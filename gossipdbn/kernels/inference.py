"""Reading a trained stack: hidden probabilities, features, reconstructions, free energies, on any number of rows.

Rows of bytes go through the same exact integer products as in training; real-valued rows and everything that needs
the full weights go through the float32 panels. Both give the same bits on every CPU.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.activation import NEG_LOG2E, exp2, sigmoid, unsigned8
from gossipdbn.kernels.backprop import natural_log
from gossipdbn.kernels.dense import panels_times, times_panels
from gossipdbn.kernels.memory import addr, loadf, store8, storef
from gossipdbn.kernels.rows import fill_bytes
from gossipdbn.kernels.tiers import TIER, inline, kernel
from gossipdbn.kernels.vectors import bits, fadd, fmul, from_bits, iand, vf, vi

if TIER == "amx":
    from gossipdbn.kernels.amx import begin, finish
    from gossipdbn.kernels.cd_amx import pass_probabilities
else:
    from gossipdbn.kernels.cd_panels import begin, finish, pass_probabilities

f4 = np.float32
_PLANE_UNIT = f4(NEG_LOG2E * f4(2.0**-12))
_127 = f4(127.0)


@kernel
def hidden_of_bytes(values, x_array, hi, lo, nb, c_array, visible, hidden, xs, p_out, features):
    """Rows of ``values`` (`rows.RowView`, uint8) -> p_out float32 [n, hidden], features uint8 [n, hidden].

    Either output may have no rows: then it is not written. x_array uint8 [rows at a time, vp] and c_array int32 [2048]
    are scratch.
    """
    vp = (visible + 63) & -64
    x, c = addr(x_array), addr(c_array)
    scale = f4(_PLANE_UNIT / f4(xs))
    begin(c)
    for first in range(0, max(p_out.shape[0], features.shape[0]), x_array.shape[0]):
        rows = min(max(p_out.shape[0], features.shape[0]) - first, x_array.shape[0])
        fill_bytes(values, first, rows, x_array, visible)
        p = addr(p_out) + first * hidden * 4 if p_out.shape[0] else 0
        f = addr(features) + first * hidden if features.shape[0] else 0
        pass_probabilities(x, addr(hi), addr(lo), scale, addr(nb), p, f, c, visible, hidden, rows, vp)
    finish()


@inline
def _copy_out(p_rows, byte_rows, first, rows, hidden, p_out, features):
    if p_out.shape[0]:
        for r in range(rows):
            for j in range(hidden):
                p_out[first + r, j] = p_rows[r, j]
    if features.shape[0]:
        for r in range(rows):
            for j in range(hidden):
                features[first + r, j] = byte_rows[r, j]


@kernel
def hidden_of_floats(x_array, rows, panels, bias, c_array, first, hidden, p_out, features):
    """As `hidden_of_bytes`, from float32 rows and panels; c_array float32 [rows padded to 8, pad32(hidden)]."""
    width = c_array.shape[1]
    times_panels(addr(x_array), x_array.shape[1] * 4, 4, addr(panels), panels.shape[1], panels.shape[1],
                 addr(c_array), width * 4, rows, width // 16)
    byte_rows = np.empty((rows, width), np.uint8)
    for r in range(rows):
        for g in range(0, width, 16):
            o = addr(c_array) + r * width * 4 + g * 4
            p = sigmoid(fadd(loadf(o), loadf(addr(bias) + g * 4)))
            storef(o, p)
            store8(addr(byte_rows) + r * width + g, unsigned8(p, vf(_127)))
    _copy_out(c_array, byte_rows, first, rows, hidden, p_out, features)


@kernel
def visible_means(p, first, rows, columns_array, panels, bias, hidden, sigmoids, c_array, out):
    """Means of the visibles given hidden probabilities float32 [n, hidden].

    columns_array float32 [hidden, lanes] and c_array [vp, lanes] are scratch, lanes = rows padded to 16; ``sigmoids``
    int32 [visible]: 1 for binary units.
    """
    lanes = columns_array.shape[1]
    for h in range(hidden):
        for r in range(rows):
            columns_array[h, r] = p[first + r, h]
    panels_times(addr(panels), panels.shape[1], hidden, addr(columns_array), lanes * 4, addr(c_array), lanes * 4,
                 lanes // 16)
    for v in range(out.shape[1]):
        for g in range(0, lanes, 16):
            o = addr(c_array) + v * lanes * 4 + g * 4
            mean = fadd(loadf(o), vf(bias[v]))
            storef(o, sigmoid(mean) if sigmoids[v] else mean)
        for r in range(rows):
            out[first + r, v] = c_array[v, r]


@kernel
def free_energies(x_array, rows, panels, hidden_bias, visible_bias, sigmoids, c_array, first, hidden, out):
    """-log of the unnormalised probability of float32 rows, less the partition function (float64 out [n]).

    Binary units: -a v; Gaussian units: (v - a)^2 / 2; hidden units: the sum of softplus(b + v W).
    """
    width = c_array.shape[1]
    times_panels(addr(x_array), x_array.shape[1] * 4, 4, addr(panels), panels.shape[1], panels.shape[1],
                 addr(c_array), width * 4, rows, width // 16)
    line = np.empty(16, np.float32)
    for r in range(rows):
        energy = 0.0
        for v in range(sigmoids.size):
            x, a = np.float64(x_array[r, v]), np.float64(visible_bias[v])
            energy += -a * x if sigmoids[v] else 0.5 * (x - a) * (x - a)
        product = 1.0
        for g in range(0, width, 16):
            o = addr(c_array) + r * width * 4 + g * 4
            x = fadd(loadf(o), loadf(addr(hidden_bias) + g * 4))
            storef(o, x)
            storef(addr(line), exp2(fmul(from_bits(iand(bits(x), vi(0x7FFFFFFF))), vf(NEG_LOG2E))))
            for j in range(min(hidden - g, 16)):
                energy -= max(np.float64(c_array[r, g + j]), 0.0)
                product *= 1.0 + np.float64(line[j])
            if g & 511 == 496:  # each factor is at most 2
                energy -= natural_log(product)
                product = 1.0
        out[first + r] = energy - natural_log(product)
