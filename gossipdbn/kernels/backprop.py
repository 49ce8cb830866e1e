"""Backpropagation through a stack of sigmoid or rectified linear layers: one minibatch per call.

The head is a softmax with cross-entropy or squared error (Brier's score), or linear with squared error. Forward, then
the gradient of the head's loss, then from the top down: the delta of the layer below with the old
weights, and the gradient of this layer's weights in register blocks, each consumed by the optimiser at once.

Every layer is described by a row of addresses and sizes (`layer_row`), so one compiled function serves all stacks.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"
from __future__ import annotations

import numpy as np

from gossipdbn.kernels.activation import LOG2E, exp2, flush, hash16, high16, low16, sigmoid
from gossipdbn.kernels.counter_rng import child64
from gossipdbn.kernels.dense import block, panels_times, times_panels, transpose
from gossipdbn.kernels.memory import loadf, peekf, pokef, storef
from gossipdbn.kernels.optimise import rate_and_eps2, step
from gossipdbn.kernels.tiers import device, inline, kernel
from gossipdbn.kernels.vectors import (
    bits,
    fadd,
    fdiv,
    fma,
    fmax,
    fmin,
    fmul,
    from_bits,
    fsub,
    fsum,
    i_less,
    iadd,
    iand,
    iota,
    vf,
    vi,
)

f4 = np.float32
(IN, OUT, IN_ROWS, W, W_M, W_V, BIAS, BIAS_M, BIAS_V, ACT, SLOPE, DELTA, DELTA_T, BELOW_T, KIND) = range(15)
"""Columns of the layer table: sizes, addresses, kind. ACT, SLOPE, DELTA float32 [rows, pad32(OUT)]."""
FIELDS = 15
SIGMOID, RELU, SOFTMAX, SOFTMAX_SQUARED, LINEAR = range(5)
"""Kinds: SIGMOID and RELU for hidden layers, the others for the head."""
RELU_MAX = f4(2.0**16)
"""Activations of rectified units end here, with slope 0 beyond: what diverges saturates and never becomes infinite."""
_DELTA_MAX = f4(2.0**20)
_LN2 = 0.6931471805599453
_LOW, _S32 = np.uint64(0xFFFFFFFF), np.uint64(32)


@inline
def _column_mask(first, columns):
    return i_less(iadd(iota(), vi(first)), vi(columns), vi(-1))


@device
def _sigmoid_layer(act, slope, bias, rows, columns, width, keep, key):
    """Pre-activations -> (dropped) activations and the slopes that belong to them; padding becomes 0."""
    scale = f4(f4(1) / keep)
    for r in range(rows):
        k = child64(key, np.uint64(r >> 1))
        k0, k1 = vi(np.int64(k & _LOW)), vi(np.int64(k >> _S32))
        for c in range(0, width, 16):
            o = r * width * 4 + c * 4
            p = flush(sigmoid(fadd(loadf(act + o), loadf(bias + c * 4))))
            mask = _column_mask(c, columns)
            p = from_bits(iand(bits(p), mask))
            s = fmul(p, fsub(vf(f4(1)), p))
            if keep < f4(1):
                h = hash16(iadd(iota(), vi(c)), k0, k1)
                draw = high16(h) if r & 1 else low16(h)
                kept = i_less(draw, vi(np.int64(f4(keep * f4(65536)))), vi(-1))
                p = from_bits(iand(bits(fmul(p, vf(scale))), kept))
                s = from_bits(iand(bits(fmul(s, vf(scale))), kept))
            storef(act + o, p)
            storef(slope + o, s)


@device
def _relu_layer(act, slope, bias, rows, columns, width, keep, key):
    """As `_sigmoid_layer`, for max(0, x) up to RELU_MAX."""
    scale = f4(f4(1) / keep)
    for r in range(rows):
        k = child64(key, np.uint64(r >> 1))
        k0, k1 = vi(np.int64(k & _LOW)), vi(np.int64(k >> _S32))
        for c in range(0, width, 16):
            o = r * width * 4 + c * 4
            p = flush(fmin(fadd(loadf(act + o), loadf(bias + c * 4)), vf(RELU_MAX)))
            # floats compare as integers where both are positive; a negative one is a negative integer
            on = iand(i_less(vi(0), bits(p), vi(-1)), _column_mask(c, columns))
            p = from_bits(iand(bits(p), on))
            s = from_bits(iand(iand(bits(vf(f4(1))), on), i_less(bits(p), bits(vf(RELU_MAX)), vi(-1))))
            if keep < f4(1):
                h = hash16(iadd(iota(), vi(c)), k0, k1)
                draw = high16(h) if r & 1 else low16(h)
                kept = i_less(draw, vi(np.int64(f4(keep * f4(65536)))), vi(-1))
                p = from_bits(iand(bits(fmul(p, vf(scale))), kept))
                s = from_bits(iand(bits(fmul(s, vf(scale))), kept))
            storef(act + o, p)
            storef(slope + o, s)


@device
def _linear_layer(act, bias, rows, columns, width):
    """Pre-activations -> outputs; padding becomes 0."""
    for r in range(rows):
        for c in range(0, width, 16):
            o = r * width * 4 + c * 4
            x = fadd(loadf(act + o), loadf(bias + c * 4))
            storef(act + o, from_bits(iand(bits(x), _column_mask(c, columns))))


@inline
def natural_log(x):
    """ln(x) of a positive float64 by halving and an odd series; no library call, so the same everywhere."""
    e = 0
    while x < 0.70710678118654752:
        x *= 2.0
        e -= 1
    while x > 1.4142135623730951:
        x *= 0.5
        e += 1
    z = (x - 1.0) / (x + 1.0)
    z2 = z * z
    s = 0.0
    for k in range(17, 0, -2):
        s = s * z2 + 1.0 / k
    return e * _LN2 + 2.0 * z * s


@device
def softmax(logits, bias, rows, columns, width):
    """Rows of logits -> probabilities in place; padding becomes 0."""
    for r in range(rows):
        high = f4(-3.0e38)
        at = logits + r * width * 4
        for c in range(columns):
            x = f4(peekf(at + c * 4) + peekf(bias + c * 4))
            pokef(at + c * 4, x)
            high = max(high, x)
        total = vf(f4(0))
        for c in range(0, width, 16):
            e = exp2(fmul(fsub(loadf(at + c * 4), vf(high)), vf(LOG2E)))
            e = from_bits(iand(bits(e), _column_mask(c, columns)))
            storef(at + c * 4, e)
            total = fadd(total, e)
        s = vf(fsum(total))
        for c in range(0, width, 16):
            storef(at + c * 4, fdiv(loadf(at + c * 4), s))


@inline
def _best(at, columns):
    """The first column with the largest value."""
    best = 0
    for c in range(1, columns):
        if peekf(at + c * 4) > peekf(at + best * 4):
            best = c
    return best


@device
def _cross_entropy_delta(p, delta, labels, first, rows, columns, width, share):
    """Cross-entropy delta of probabilities; returns (summed loss, correct)."""
    loss, correct = 0.0, 0
    for r in range(rows):
        label = np.int64(labels[first + r])
        at, d = p + r * width * 4, delta + r * width * 4
        if label < 0:
            for c in range(0, width, 16):
                storef(d + c * 4, vf(f4(0)))
            continue
        for c in range(0, width, 16):
            storef(d + c * 4, flush(fmul(loadf(at + c * 4), vf(share))))
        pokef(d + label * 4, f4(f4(peekf(at + label * 4) - f4(1)) * share))
        correct += _best(at, columns) == label
        loss -= natural_log(max(np.float64(peekf(at + label * 4)), 1e-37))
    return loss, correct


@device
def _softmax_squared_delta(p, delta, labels, first, rows, columns, width, share):
    """Delta of half the squared distance e of probabilities to the true class: p (e - p e); as above."""
    loss, correct = 0.0, 0
    for r in range(rows):
        label = np.int64(labels[first + r])
        at, d = p + r * width * 4, delta + r * width * 4
        for c in range(0, width, 16):
            storef(d + c * 4, loadf(at + c * 4) if label >= 0 else vf(f4(0)))
        if label < 0:
            continue
        pokef(d + label * 4, f4(peekf(at + label * 4) - f4(1)))
        total = vf(f4(0))
        for c in range(0, width, 16):
            total = fma(loadf(at + c * 4), loadf(d + c * 4), total)
        for c in range(columns):
            e = np.float64(peekf(d + c * 4))
            loss += 0.5 * e * e
        mean = vf(fsum(total))
        for c in range(0, width, 16):
            g = fmul(fmul(loadf(at + c * 4), fsub(loadf(d + c * 4), mean)), vf(share))
            storef(d + c * 4, flush(g))
        correct += _best(at, columns) == label
    return loss, correct


@device
def _linear_delta(act, delta, labels, targets, first, rows, columns, width, share):
    """Delta of half the squared distance of outputs to ``targets``; rows with a label below 0 have none."""
    loss = 0.0
    for r in range(rows):
        at, d = act + r * width * 4, delta + r * width * 4
        known = labels[first + r] >= 0
        for c in range(columns):
            e = f4(peekf(at + c * 4) - targets[first + r, c]) if known else f4(0)
            pokef(d + c * 4, e)
            loss += 0.5 * np.float64(e) * np.float64(e)
        for c in range(0, width, 16):
            storef(d + c * 4, flush(fmul(_bounded(loadf(d + c * 4)), vf(share))))
    return loss, 0


@inline
def _bounded(d):
    return fmin(fmax(d, vf(f4(-_DELTA_MAX))), vf(_DELTA_MAX))


@device
def _head_delta(head, labels, targets, first, rows):
    """The head's delta; returns (summed loss, correct, labelled)."""
    labelled = 0
    for r in range(rows):
        if labels[first + r] >= 0:
            labelled += 1
    share = f4(f4(1) / f4(max(labelled, 1)))
    act, delta, columns, width = head[ACT], head[DELTA], head[OUT], (head[OUT] + 31) & -32
    if head[KIND] == LINEAR:
        loss, correct = _linear_delta(act, delta, labels, targets, first, rows, columns, width, share)
    elif head[KIND] == SOFTMAX_SQUARED:
        loss, correct = _softmax_squared_delta(act, delta, labels, first, rows, columns, width, share)
    else:
        loss, correct = _cross_entropy_delta(act, delta, labels, first, rows, columns, width, share)
    return loss, correct, labelled


@device
def _update_layer(t, below, below_row, rows, rate, eps2, options, c):
    """Gradients of one layer from its delta and the activations below it; optimiser step."""
    width = ((t[OUT] + 31) & -32) * 4
    in_rows = t[IN_ROWS]
    for g in range(0, width // 64, 2):
        for v in range(0, t[IN], 8):
            block(0, below + v * 4, 4, below_row, t[DELTA] + g * 64, width, 64, rows, c, 128)
            for i in range(8):
                if v + i < t[IN]:
                    for n in range(2):
                        o = ((g + n) * in_rows + v + i) * 64
                        step(t[W] + o, t[W_M] + o, t[W_V] + o, loadf(c + i * 128 + n * 64), rate, eps2, options, True)
    for g in range(width // 64):
        total = vf(f4(0))
        for r in range(rows):
            total = fadd(total, loadf(t[DELTA] + r * width + g * 64))
        o = g * 64
        step(t[BIAS] + o, t[BIAS_M] + o, t[BIAS_V] + o, total, rate, eps2, options, False)


@device
def _forward(table, x, x_row, rows, keep, keys, step_number):
    below, row = x, x_row
    for n in range(table.shape[0]):
        t = table[n]
        width = (t[OUT] + 31) & -32
        times_panels(below, row, 4, t[W], t[IN_ROWS], t[IN], t[ACT], width * 4, rows, width // 16)
        if t[KIND] <= RELU:
            key = child64(child64(child64(keys[0], keys[1]), np.uint64(step_number)), np.uint64(n))
            key = child64(key, np.uint64(1 << 20))
            if t[KIND] == RELU:
                _relu_layer(t[ACT], t[SLOPE], t[BIAS], rows, t[OUT], width, keep, key)
            else:
                _sigmoid_layer(t[ACT], t[SLOPE], t[BIAS], rows, t[OUT], width, keep, key)
        elif t[KIND] == LINEAR:
            _linear_layer(t[ACT], t[BIAS], rows, t[OUT], width)
        else:
            softmax(t[ACT], t[BIAS], rows, t[OUT], width)
        below, row = t[ACT], width * 4


@kernel
def train_minibatch(table, x, x_row, labels, targets, first, rows, lowest, keep, options, keys, step_number, scratch):
    """One minibatch of rows at ``x`` (float32, ``x_row`` bytes a row, padded to 8 rows).

    table : int64 [layers, FIELDS], bottom up, the head last. labels : int32, -1 for none, from ``first`` on.
    targets : float32 [n, outputs] of a linear head (its labels say which rows have some), else of no rows.
    lowest : first layer that is trained (the head alone: the last). keep : share of hidden units kept by dropout.
    options : see `optimise`. keys : uint64 (run key, slot). Returns (summed loss, correct, labelled).
    """
    _forward(table, x, x_row, rows, keep, keys, step_number)
    last = table.shape[0] - 1
    head = table[last]
    padded_rows = (rows + 15) & -16
    loss, correct, labelled = _head_delta(head, labels, targets, first, rows)
    if labelled == 0:
        return loss, correct, labelled
    rate, eps2 = rate_and_eps2(options)
    for n in range(last, lowest - 1, -1):
        t = table[n]
        width = ((t[OUT] + 31) & -32) * 4
        if n > lowest:
            b = table[n - 1]
            b_width = ((b[OUT] + 31) & -32) * 4
            lanes = padded_rows * 4
            transpose(t[DELTA], width, t[DELTA_T], lanes, padded_rows, (t[OUT] + 15) & -16, scratch)
            panels_times(t[W], t[IN_ROWS], t[OUT], t[DELTA_T], lanes, t[BELOW_T], lanes, padded_rows // 16)
            transpose(t[BELOW_T], lanes, b[DELTA], b_width, (t[IN] + 15) & -16, padded_rows, scratch)
            for r in range(rows):
                for c in range(0, b_width, 64):
                    o = r * b_width + c
                    d = fmul(loadf(b[DELTA] + o), loadf(b[SLOPE] + o))
                    if b[KIND] == RELU:
                        d = _bounded(d)
                    storef(b[DELTA] + o, flush(d))
            _update_layer(t, b[ACT], b_width, rows, rate, eps2, options, scratch)
        elif n > 0:
            b = table[n - 1]
            _update_layer(t, b[ACT], ((b[OUT] + 31) & -32) * 4, rows, rate, eps2, options, scratch)
        else:
            _update_layer(t, x, x_row, rows, rate, eps2, options, scratch)
    return loss, correct, labelled


@kernel
def predict_rows(table, x, x_row, rows, keys):
    """Activations of a block of rows into every layer's ACT: the last one's are the outputs of the stack."""
    _forward(table, x, x_row, rows, f4(1), keys, 0)
