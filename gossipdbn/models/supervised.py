"""The stack as a feed-forward network: backprop rounds, and what comes out at any height.

`learners` decides what a phase is and checks its arguments; this file holds the float32 side of it. Rows of bytes
become numbers by their scale as they are copied into the workspace.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels import backprop, counter_rng, dense, workspaces
from gossipdbn.kernels import optimise as opt
from gossipdbn.kernels.rows import floats_of
from gossipdbn.models.rows import AnyRows, row_view
from gossipdbn.models.spec import ModelSpec, PhaseSpec, Tensor, layout

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Labels = NDArray[np.int32] | NDArray[np.float32]
State = dict[str, NDArray[np.generic]]

HEAD_RATE = 0.02
"""In the joint learner the head trains by Adam at this share of the phase's learning rate."""
BLOCK_ROWS = 256
_NO_TARGETS = np.zeros((0, 1), np.float32)


def layer_sizes(spec: ModelSpec, n: int) -> tuple[int, int]:
    """(inputs, outputs) of layer ``n``; the one behind the last hidden layer is the head."""
    below = spec.hidden[n - 1] if n else spec.visible
    return below, spec.hidden[n] if n < len(spec.hidden) else spec.outputs


def layer_kind(spec: ModelSpec, n: int) -> int:
    """What layer ``n`` does to its sums, as `kernels.backprop` numbers it."""
    if n < len(spec.hidden):
        return backprop.RELU if spec.hidden_units == "relu" else backprop.SIGMOID
    if spec.targets:
        return backprop.LINEAR
    return backprop.SOFTMAX_SQUARED if spec.loss == "squared" else backprop.SOFTMAX


def initial_weights(spec: ModelSpec, run_key: int, tensor: Tensor) -> list[int] | Ints:
    """Initial weights (int32, units 2^-24): N(0, 0.01^2), in ReLU networks N(0, 2 / inputs) (He et al., ICCV 2015)."""
    sigma = 0.01 if spec.hidden_units == "binary" else math.sqrt(2.0 / tensor.shape[0])
    key = counter_rng.stream_key(run_key, 0, 0, tensor.id, counter_rng.STREAM_WEIGHTS)
    return counter_rng.normal_int32(key, tensor.size, sigma)


def new_state(spec: ModelSpec, layers: range | tuple[int, ...]) -> State:
    """Optimiser state of these layers: moments 0, powers 1."""
    state: State = {"powers": np.ones(2, np.float32)}
    for n in layers:
        below, out = layer_sizes(spec, n)
        shape = (dense.pad32(out) // 16, dense.pad16(below), 16)
        for moment in ("m", "v"):
            state[f"dense{n}.{moment}"] = np.zeros(shape, np.float32)
            state[f"dense{n}.bias_{moment}"] = np.zeros(dense.pad32(out), np.float32)
    return state


def known_rows(spec: ModelSpec, labels: Labels) -> NDArray[np.bool_]:
    """Which rows have a label (not -1), or all their targets (none NaN): bool [n]."""
    return np.asarray(~np.isnan(labels).any(axis=1) if spec.targets else labels >= 0)


def _goals(spec: ModelSpec, labels: Labels) -> tuple[Ints, Floats]:
    """(labels int32 [n], targets float32 [n, targets]) as the kernel takes them: one of them says nothing."""
    if not spec.targets:
        return np.ascontiguousarray(labels, np.int32), _NO_TARGETS
    return known_rows(spec, labels).astype(np.int32) - 1, np.ascontiguousarray(labels, np.float32)


def train(
    spec: ModelSpec,
    phase: PhaseSpec,
    parameters: Ints,
    state: State,
    values: AnyRows,
    labels: Labels,
    keys: NDArray[np.uint64],
    step: int,
    rates: Floats,
    scale: np.float32,
    *,
    head_only: bool = False,
) -> tuple[float, int]:
    """Backprop over the whole stack, or the head alone on top features; returns (mean loss, correct).

    keys : (run key, slot). step : number of the first minibatch. rates : of each. scale : the value of a row's 1.
    """
    layers = tuple(range(len(spec.hidden) if head_only else 0, len(spec.hidden) + 1))
    space = _space(spec, layers, min(phase.batch, max(values.shape[0], 1)))
    space.load([_flat(spec, parameters, n) for n in layers], [_moments(state, n) for n in layers])
    options = np.zeros(7, np.float32)
    options[opt.MOMENTUM] = phase.momentum
    options[opt.DECAY] = phase.weight_decay
    options[opt.L1] = phase.l1
    options[opt.ADAM] = float(phase.optimizer == "adam" or head_only)
    options[opt.POWER1 : opt.POWER2 + 1] = state["powers"]
    known, targets = _goals(spec, labels)
    keep = np.float32(1.0 if head_only else 1.0 - phase.dropout)
    share = HEAD_RATE if head_only else 1.0
    loss, correct, labelled = 0.0, 0, 0
    view, visible = row_view(values), values.shape[1]
    for i, rate in enumerate(rates):
        first = i * phase.batch
        rows = min(phase.batch, values.shape[0] - first)
        options[opt.RATE] = float(rate) * share
        floats_of(view, first, rows, visible, scale, space.x)
        got = backprop.train_minibatch(
            space.table, space.x.ctypes.data, space.x.shape[1] * 4, known, targets, first, rows, 0, keep, options,
            keys, step + i, space.scratch.ctypes.data,
        )  # fmt: skip
        loss, correct, labelled = loss + got[0], correct + int(got[1]), labelled + int(got[2])
    state["powers"][:] = options[opt.POWER1 : opt.POWER2 + 1]
    space.store([_flat(spec, parameters, n) for n in layers])
    workspaces.give_stack(space)
    return loss / max(labelled, 1), correct


def outputs(spec: ModelSpec, parameters: Ints, values: AnyRows, scale: np.float32, layers: int) -> Floats:
    """Activations of layer ``layers`` - 1 (float32 [n, its units]); the layer behind the hidden ones is the head."""
    chain = tuple(range(layers))
    space = _space(spec, chain, BLOCK_ROWS)
    space.load([_flat(spec, parameters, n) for n in chain], None)
    width = layer_sizes(spec, layers - 1)[1]
    out = np.empty((values.shape[0], width), np.float32)
    keys = np.zeros(2, np.uint64)
    view, visible = row_view(values), values.shape[1]
    for first in range(0, values.shape[0], BLOCK_ROWS):
        rows = min(BLOCK_ROWS, values.shape[0] - first)
        floats_of(view, first, rows, visible, scale, space.x)
        backprop.predict_rows(space.table, space.x.ctypes.data, space.x.shape[1] * 4, rows, keys)
        out[first : first + rows] = space.activations[-1][:rows, :width]
    workspaces.give_stack(space)
    return out


def _space(spec: ModelSpec, layers: tuple[int, ...], rows: int) -> workspaces.StackSpace:
    sizes = tuple(layer_sizes(spec, n) for n in layers)
    return workspaces.take_stack(sizes, tuple(layer_kind(spec, n) for n in layers), rows)


def _flat(spec: ModelSpec, parameters: Ints, n: int) -> tuple[Ints, Ints]:
    """Weights and bias slices of a layer (its hidden bias) or the head."""
    tensors = layout(spec)
    w, b = tensors[3 * n], tensors[3 * n + (2 if n < len(spec.hidden) else 1)]
    return parameters[w.offset : w.offset + w.size], parameters[b.offset : b.offset + b.size]


def _moments(state: State, n: int) -> tuple[NDArray[np.generic], ...]:
    return tuple(state[f"dense{n}.{name}"] for name in ("m", "v", "bias_m", "bias_v"))
