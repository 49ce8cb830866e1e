"""Reading a trained stack: what rows become on their way up, what the model says of them, and its picture of them.

Parameters are the int32 vector of the merge protocol (units 2^-24, layout order); nothing here changes them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import ConfigError, DataError
from gossipdbn.kernels import workspaces
from gossipdbn.models import supervised
from gossipdbn.models.rows import AnyRows, PackedRows, as_rows, row_view
from gossipdbn.models.rows import dense as dense_rows
from gossipdbn.models.spec import ModelSpec, layout, require_energy

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

GREY_ONE = 127


def binary_mask(spec: ModelSpec) -> NDArray[np.int32]:
    """1 for binary or grey visibles, 0 for Gaussian ones (int32 [V])."""
    mask = np.full(spec.visible, int(spec.integer_rows), np.int32)
    if spec.visible_units == "mixed":
        mask[list(spec.binary_columns)] = 1
    return mask


def integer_layer(spec: ModelSpec, layer: int) -> bool:
    """Whether a layer's visibles are bytes, so that it trains in exact integers."""
    return layer > 0 or spec.integer_rows


def layer_slices(spec: ModelSpec, layer: int, parameters: Ints) -> list[Ints]:
    """A layer's weights, visible and hidden biases in a flat vector."""
    return [parameters[t.offset : t.offset + t.size] for t in layout(spec)[3 * layer : 3 * layer + 3]]


def byte_of_one(spec: ModelSpec, layer: int) -> int:
    """The byte that stands for 1 among a layer's visibles."""
    return GREY_ONE if layer > 0 or spec.visible_units == "grey" else 1


def byte_value(spec: ModelSpec) -> np.float32:
    """What a row's 1 stands for as a float32."""
    return np.float32(1.0 / byte_of_one(spec, 0))


def checked_rows(spec: ModelSpec, values: AnyRows) -> AnyRows:
    """Rows in a form that kernels read; DataError unless they are rows of this model."""
    values = as_rows(values)
    kind = np.uint8 if spec.integer_rows else np.float32
    if len(values.shape) != 2 or values.shape[1] != spec.visible or values.dtype != kind:
        expected = f"{np.dtype(kind)} [n, {spec.visible}]"
        raise DataError(f"rows are {values.dtype} {list(values.shape)}; this model takes {expected}")
    if isinstance(values, PackedRows) and spec.visible_units != "binary":
        raise DataError(f"rows are packed bits; this model's visible units are {spec.visible_units}")
    return values


def hidden_of(spec: ModelSpec, parameters: Ints, x: AnyRows, layer: int, *, as_bytes: bool) -> AnyRows:
    """Hidden probabilities of one layer: float32 [n, H], or features uint8 0..127."""
    visible, hidden = supervised.layer_sizes(spec, layer)
    w, _, b = layer_slices(spec, layer, parameters)
    space = workspaces.take(integer_layer(spec, layer), visible, hidden)
    space.load_to_read(w, b)
    out = space.hidden_of(row_view(x), x.shape[0], byte_of_one(spec, layer), as_bytes=as_bytes)
    workspaces.give(space)
    return out


def features_below(spec: ModelSpec, parameters: Ints, values: AnyRows, layer: int) -> AnyRows:
    """Rows as a layer sees them: features of all layers below."""
    x = values
    for n in range(layer):
        x = hidden_of(spec, parameters, x, n, as_bytes=True)
    return x


def transform(spec: ModelSpec, parameters: Ints, values: AnyRows, layers: int | None = None) -> Floats:
    """Hidden probabilities of the top layer, or of the first ``layers`` layers (float32 [n, H]); ReLU activations."""
    values = checked_rows(spec, values)
    top = len(spec.hidden) if layers is None else layers
    if not 1 <= top <= len(spec.hidden):
        raise ConfigError(f"transform to layer {top}; the model has {len(spec.hidden)}")
    if spec.hidden_units == "relu":
        return supervised.outputs(spec, parameters, values, byte_value(spec), top)
    x = features_below(spec, parameters, values, top - 1)
    return np.asarray(hidden_of(spec, parameters, x, top - 1, as_bytes=False), np.float32)


def features(spec: ModelSpec, parameters: Ints, values: AnyRows, layers: int | None = None) -> Bytes:
    """As `transform`, as bytes 0..127: what the layer above is trained on (uint8 [n, H])."""
    values = checked_rows(spec, values)
    require_energy(spec)
    top = len(spec.hidden) if layers is None else layers
    return np.asarray(dense_rows(features_below(spec, parameters, values, top)), np.uint8)


def predict_proba(spec: ModelSpec, parameters: Ints, values: AnyRows) -> Floats:
    """Class probabilities of the whole stack (float32 [n, classes])."""
    if not spec.classes:
        raise ConfigError("this model has no classes")
    return predict_outputs(spec, parameters, values)


def predict_outputs(spec: ModelSpec, parameters: Ints, values: AnyRows) -> Floats:
    """What the head says: class probabilities or targets (float32 [n, outputs])."""
    values = checked_rows(spec, values)
    if not spec.outputs:
        raise ConfigError("this model has no head: neither classes nor targets")
    return supervised.outputs(spec, parameters, values, byte_value(spec), len(spec.hidden) + 1)


def free_energy(spec: ModelSpec, parameters: Ints, values: AnyRows, layer: int = 0) -> Floats:
    """Free energy of rows under one layer's RBM, without log Z (float32 [n]); low means likely.

    For ``layer`` > 0 the rows are first carried up to that layer's visibles.
    """
    space, x, scale = _real_space(spec, parameters, values, layer)
    out = space.free_energies(row_view(x), x.shape[0], scale, _layer_mask(spec, layer))
    return out.astype(np.float32)


def reconstruct(spec: ModelSpec, parameters: Ints, values: AnyRows) -> Floats:
    """Mean visibles after one mean-field trip up to the top and down again (float32 [n, V], real units)."""
    values = checked_rows(spec, values)
    require_energy(spec)
    p = transform(spec, parameters, values)
    for layer in range(len(spec.hidden) - 1, -1, -1):
        space, _, _ = _real_space(spec, parameters, values[:0], layer)
        p = space.visible_of(p, _layer_mask(spec, layer))
    return p


def _layer_mask(spec: ModelSpec, layer: int) -> NDArray[np.int32]:
    return binary_mask(spec) if layer == 0 else np.ones(spec.hidden[layer - 1], np.int32)


def _real_space(
    spec: ModelSpec, parameters: Ints, values: AnyRows, layer: int
) -> tuple[workspaces.RealSpace, AnyRows, np.float32]:
    """A layer's float32 weights, the rows that reach it, and the value of their byte 1."""
    values = checked_rows(spec, values)
    require_energy(spec)
    if not 0 <= layer < len(spec.hidden):
        raise ConfigError(f"layer {layer}; the model has layers 0..{len(spec.hidden) - 1}")
    visible, hidden = supervised.layer_sizes(spec, layer)
    w, a, b = layer_slices(spec, layer, parameters)
    space = workspaces.RealSpace.new(visible, hidden)
    space.load(w, a, b, None)
    x = features_below(spec, parameters, values, layer) if values.shape[0] else values
    scale = np.float32(1.0 / byte_of_one(spec, layer)) if integer_layer(spec, layer) else np.float32(1.0)
    return space, x, scale
