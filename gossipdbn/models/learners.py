"""The learners: one round of training as a pure function.

Parameters go in and come out as the int32 vector of the merge protocol (units 2^-24, layout order). Everything else
that a learner remembers (momentum, Adam's moments, running means, chains) lies in named arrays whose shapes depend on
specification and phase only: they travel in snapshots. Every draw depends on (run key, slot, step, layer, stream, row,
column) and nothing else, so a round is a function of its arguments on any CPU.

Local learning rates are ``share_divisor * lr`` (training with S slots, protocol section 3): S * lr for contrastive
divergence, lr for backprop and for the head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import ConfigError, DataError, LocalProtocolError
from gossipdbn.kernels import cd_layout, codec, counter_rng, dense, workspaces
from gossipdbn.models import supervised
from gossipdbn.models.layers import LayerTrainer, RoundContext, Trained, collected, in_order
from gossipdbn.models.reading import (
    GREY_ONE,
    binary_mask,
    byte_value,
    checked_rows,
    features_below,
    hidden_of,
    integer_layer,
    predict_outputs,
    transform,
)
from gossipdbn.models.rows import AnyRows
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout, parameter_count, spec_problem
from gossipdbn.models.supervised import Labels

__all__ = [
    "RoundContext",
    "RoundStats",
    "Trained",
    "initial_parameters",
    "new_state",
    "train",
    "train_round",
    "warm",
]

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
State = dict[str, NDArray[np.generic]]


@dataclass(frozen=True, slots=True)
class RoundStats:
    """What a round saw: rows; mean squared reconstruction error per row (of the last minibatch, hidden states drawn,
    visible means); mean loss (see `ModelSpec`) and number of right answers where there are labels; minibatches.
    """

    rows: int
    reconstruction_error: float
    loss: float
    correct: int
    minibatches: int


def initial_parameters(spec: ModelSpec, run_key: int, visible_mean: Floats) -> Ints:
    """Parameters before training (int32 [P]), a function of the manifest alone.

    Weights N(0, 0.01^2), N(0, 2 / inputs) in ReLU networks; visible bias log(p / (1 - p)), p clipped to 0.001..0.999,
    for binary and grey units, the mean for Gaussian ones; hidden biases 0 (Hinton, "A practical guide to training
    RBMs", 2010).
    """
    out = np.zeros(parameter_count(spec), np.int32)
    for tensor in layout(spec):
        if tensor.name.endswith("weights"):
            out[tensor.offset : tensor.offset + tensor.size] = supervised.initial_weights(spec, run_key, tensor)
    mean = _checked_mean(spec, visible_mean)
    binary = binary_mask(spec)
    bias = [_logit(float(m)) if b else float(m) for m, b in zip(mean, binary, strict=True)]
    start = layout(spec)[1].offset
    limit = cd_layout.LIMIT - 1
    out[start : start + spec.visible] = [max(min(round(b * 2.0**24), limit), -limit) for b in bias]
    return out


def _logit(p: float) -> float:
    """log(p / (1 - p)) rounded to 1/1024, so that a last-bit difference between math libraries cannot show."""
    p = min(max(p, 0.001), 0.999)
    return round(math.log(p / (1.0 - p)) * 1024.0) / 1024.0


def _checked_mean(spec: ModelSpec, visible_mean: Floats) -> Floats:
    mean = np.asarray(visible_mean, np.float32)
    if mean.shape != (spec.visible,) or not np.isfinite(mean).all():
        raise DataError(f"data means have shape {mean.shape} or are not finite; expected {spec.visible} numbers")
    return mean


def new_state(spec: ModelSpec, phase: PhaseSpec) -> State:
    """What a slot remembers at the start of a phase (or after a reset), all zero but the means."""
    _check_phase(spec, phase)
    if phase.learner == "backprop":
        return supervised.new_state(spec, range(len(spec.hidden) + 1))
    layers = range(len(spec.hidden)) if phase.learner == "joint" else (phase.layer,)
    state: State = {}
    for n in layers:
        state |= _layer_state(spec, phase, n)
    if phase.learner == "joint" and spec.outputs:
        state |= supervised.new_state(spec, (len(spec.hidden),))
    return state


def _layer_state(spec: ModelSpec, phase: PhaseSpec, layer: int) -> State:
    visible, hidden = supervised.layer_sizes(spec, layer)
    name = f"layer{layer}."
    f4 = np.float32
    if integer_layer(spec, layer):
        vp, hp = cd_layout.padded(visible), cd_layout.padded(hidden)
        speed: NDArray[np.generic] = np.zeros((hp // 16, vp // 2, 16, 2), np.uint16)
    else:
        vp, hp = dense.pad16(visible), dense.pad32(hidden)
        speed = np.zeros((hp // 16, vp, 16), f4)
    lam = np.zeros(hp, f4)
    lam[:hidden] = 0.5
    state: State = {
        name + "speed": speed,
        name + "hidden_speed": np.zeros(hp, f4),
        name + "visible_speed": np.zeros(vp, f4),
        name + "lam": lam,
    }
    if layer > 0:
        state[name + "mu"] = np.full(visible, 0.5, f4)
        state[name + "mu_rows"] = np.zeros(1, np.int64)
    if phase.learner == "pcd":
        state[name + "chains"] = np.zeros((phase.batch, hidden), np.uint8)
    return state


def _check_phase(spec: ModelSpec, phase: PhaseSpec) -> None:
    if problem := spec_problem(spec):
        raise ConfigError(problem)
    if spec.hidden_units == "relu" and phase.learner != "backprop":
        raise ConfigError(f"{phase.learner} cannot train ReLU units: use binary hidden units, or backprop phases alone")
    if phase.learner in ("cd", "pcd") and not 0 <= phase.layer < len(spec.hidden):
        raise ConfigError(f"phase trains layer {phase.layer}; the model has layers 0..{len(spec.hidden) - 1}")
    if phase.learner == "backprop" and not spec.outputs:
        raise ConfigError("a backprop phase needs a model with classes or targets")
    if phase.learner == "backprop" and (phase.max_norm or phase.sparsity_cost):
        raise ConfigError("max_norm and sparsity_cost belong to contrastive divergence; backprop has neither")
    if not 1 <= phase.batch <= cd_layout.ROWS_MAX:
        raise ConfigError(f"batch is {phase.batch}; it must lie in 1..{cd_layout.ROWS_MAX}")
    if phase.weight_bits not in (8, 16):
        raise ConfigError(f"weight_bits is {phase.weight_bits}; weights are multiplied as 16 or as 8 bits")
    if phase.k < 1:
        raise ConfigError(f"k is {phase.k}; a learner needs at least one Gibbs step")
    if not 0.0 <= phase.dropout < 1.0:
        raise ConfigError(f"dropout is {phase.dropout}; it must lie in 0..1, 1 excluded")


def train_round(
    spec: ModelSpec,
    phase: PhaseSpec,
    parameters: Ints,
    state: State,
    values: AnyRows,
    labels: Labels | None,
    ctx: RoundContext,
) -> RoundStats:
    """Train one round: ``parameters`` and ``state`` change in place, only in the phase's tensors.

    Parameters
    ----------
    parameters : int32 [P], contiguous. state : from `new_state`. values : uint8 or float32 [n, V], or `PackedRows`, or
        `SparseRows` or a CSR matrix of scipy with uint8 or float32 data (see `models.rows`); minibatches are
        consecutive runs of ``phase.batch`` rows, the last may be short, none is fine. labels : int32 [n], -1 for a
        missing one; float32 [n, targets] with a missing row as NaN; or None.

    Raises
    ------
    DataError : rows of the wrong width or type, labels outside the classes. LocalProtocolError : a wrong vector,
        state, or number of learning rates.
    """
    stats, trained = train(spec, phase, parameters, lambda: parameters, state, values, labels, ctx)
    trained.store(spec, parameters)
    return stats


def train(
    spec: ModelSpec,
    phase: PhaseSpec,
    start: Ints,
    scratch: Callable[[], Ints],
    state: State,
    values: AnyRows,
    labels: Labels | None,
    ctx: RoundContext,
) -> tuple[RoundStats, Trained]:
    """As `train_round`, but what comes of it stays where it was trained, and ``start`` int32 [P] is only read.

    ``scratch`` gives a vector like ``start`` that may change, for learners that need one: those in floats add to it
    what they gained, live ones keep the head there. It is asked once at most.
    """
    _check_phase(spec, phase)
    values = checked_rows(spec, values)
    _check_round(spec, phase, start, values, labels, ctx)
    n, minibatches = values.shape[0], len(ctx.learning_rates)
    if n == 0:
        return RoundStats(0, 0.0, 0.0, 0, 0), in_order(spec, phase, start)
    if phase.learner in ("cd", "pcd"):
        x = features_below(spec, start, values, phase.layer)
        trainer = LayerTrainer.open(spec, phase, phase.layer, start, state, ctx)
        error, last = trainer.run(x, ctx.learning_rates, ctx.step, measure=True)
        return RoundStats(n, error / last, 0.0, 0, minibatches), collected(spec, phase, [trainer], scratch)
    if phase.learner == "backprop":
        if labels is None:
            raise DataError("backprop needs labels; the rows of this round have none")
        keys, parameters = np.array([ctx.run_key & ((1 << 64) - 1), ctx.slot], np.uint64), scratch()
        loss, correct = supervised.train(
            spec, phase, parameters, state, values, labels, keys, ctx.step, ctx.learning_rates, byte_value(spec)
        )
        return RoundStats(n, 0.0, loss, correct, minibatches), in_order(spec, phase, parameters)
    return _train_joint(spec, phase, scratch(), state, values, labels, ctx)


def _check_round(
    spec: ModelSpec, phase: PhaseSpec, parameters: Ints, values: AnyRows, labels: Labels | None, ctx: RoundContext
) -> None:
    if parameters.dtype != np.int32 or parameters.shape != (parameter_count(spec),):
        raise LocalProtocolError(f"parameters are {parameters.dtype} {parameters.shape}, not int32 of this model")
    batches = -(-values.shape[0] // phase.batch)
    if len(ctx.learning_rates) != batches:
        raise LocalProtocolError(f"{len(ctx.learning_rates)} learning rates for {batches} minibatches")
    if labels is None:
        return
    if spec.targets:
        _check_targets(spec, values, labels)
    else:
        if labels.shape != (values.shape[0],):
            raise DataError(f"labels have shape {labels.shape} for {values.shape[0]} rows")
        if spec.classes and labels.size and not -1 <= int(labels.min()) <= int(labels.max()) < spec.classes:
            raise DataError(f"labels lie in {labels.min()}..{labels.max()}; expected -1..{spec.classes - 1}")


def _check_targets(spec: ModelSpec, values: AnyRows, labels: Labels) -> None:
    if labels.dtype != np.float32 or labels.shape != (values.shape[0], spec.targets):
        wanted = f"float32 [{values.shape[0]}, {spec.targets}]"
        raise DataError(f"targets are {labels.dtype} {list(labels.shape)}; this model takes {wanted}")
    if np.isinf(labels).any():
        raise DataError("targets hold infinite numbers; a row without targets has NaN")


def _train_joint(
    spec: ModelSpec,
    phase: PhaseSpec,
    parameters: Ints,
    state: State,
    values: AnyRows,
    labels: Labels | None,
    ctx: RoundContext,
) -> tuple[RoundStats, Trained]:
    """Every layer by one minibatch of CD on the features below it, the head on the top features; then the next.

    Layers of exact 16-bit operands stay in their workspaces; what is read above them are those operands. Others go in
    and out of ``parameters`` with every minibatch, and are rounded as what is sent is.
    """
    lasting = {
        n: LayerTrainer.open(spec, phase, n, parameters, state, ctx)
        for n in range(len(spec.hidden))
        if integer_layer(spec, n) and phase.weight_bits == 16
    }
    error, loss, correct, labelled = 0.0, 0.0, 0, 0
    last = 1
    keys = np.array([ctx.run_key & ((1 << 64) - 1), ctx.slot], np.uint64)
    for i, rate in enumerate(ctx.learning_rates):
        x: AnyRows = values[i * phase.batch : (i + 1) * phase.batch]
        y = None if labels is None else labels[i * phase.batch : (i + 1) * phase.batch]
        rates = np.full(1, rate, np.float32)
        for layer in range(len(spec.hidden)):
            trainer = lasting.get(layer) or LayerTrainer.open(spec, phase, layer, parameters, state, ctx)
            e, rows = trainer.run(x, rates, ctx.step + i, measure=layer == 0)
            if layer == 0:
                error, last = e, rows
            if layer in lasting:
                x = trainer.hidden_of(x)
            else:
                trainer.close(parameters)
                x = hidden_of(spec, parameters, x, layer, as_bytes=True)
        known = int(supervised.known_rows(spec, y).sum()) if y is not None and spec.outputs else 0
        if y is not None and known:
            batch_loss, right = supervised.train(
                spec, phase, parameters, state, x, y, keys, ctx.step + i, rates, np.float32(1.0 / GREY_ONE),
                head_only=True,
            )  # fmt: skip
            loss, correct, labelled = loss + batch_loss * known, correct + right, labelled + known
    stats = RoundStats(values.shape[0], error / last, loss / max(labelled, 1), correct, len(ctx.learning_rates))
    return stats, collected(spec, phase, list(lasting.values()), lambda: parameters)


def warm(spec: ModelSpec, phases: tuple[PhaseSpec, ...] | list[PhaseSpec]) -> None:
    """Compile, or load from the cache, everything that a run of these phases calls, updates and all.

    Trains one minibatch of zeros per phase on throw-away parameters and reads the model once.
    """
    codec.warm()
    counter_rng.permutation(0, 0, 0, 2)
    mean = np.full(spec.visible, 0.5, np.float32)
    parameters = initial_parameters(spec, 0, mean)
    kind = np.uint8 if spec.integer_rows else np.float32
    rows = np.zeros((2, spec.visible), kind)
    labels: Labels = np.zeros((2, spec.targets), np.float32) if spec.targets else np.zeros(2, np.int32)
    for phase in phases:
        ctx = RoundContext(0, 0, 0, 1, mean, np.full(-(-2 // phase.batch), 0.0, np.float32))
        train_round(spec, phase, parameters, new_state(spec, phase), rows, labels, ctx)
    if spec.outputs:
        predict_outputs(spec, parameters, rows)
    transform(spec, parameters, rows)
    workspaces.clear()  # of two rows, and for reading: training makes others
