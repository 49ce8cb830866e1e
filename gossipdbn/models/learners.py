"""The learners: one round of training as a pure function, and the reading of a trained stack.

Parameters go in and come out as the int32 vector of the merge protocol (units 2^-24, layout order). Everything else
that a learner remembers (momentum, Adam's moments, running means, chains) lies in named arrays whose shapes depend on
specification and phase only: they travel in snapshots. Every draw depends on (run key, slot, step, layer, stream, row,
column) and nothing else, so a round is a function of its arguments on any CPU.

Local learning rates are ``share_divisor * lr`` (training with S slots, protocol section 3): S * lr for contrastive
divergence, lr for backprop and for the head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from gossipdbn.errors import ConfigError, DataError, LocalProtocolError
from gossipdbn.kernels import cd_layout, codec, contrastive, counter_rng, dense, workspaces
from gossipdbn.models import supervised
from gossipdbn.models.rows import AnyRows, PackedRows, as_rows, row_view
from gossipdbn.models.rows import dense as dense_rows
from gossipdbn.models.spec import (
    ModelSpec,
    PhaseSpec,
    layout,
    parameter_count,
    require_energy,
    share_divisor,
    spec_problem,
)
from gossipdbn.models.supervised import Labels

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]
State = dict[str, NDArray[np.generic]]

GREY_ONE = 127
_MU_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class RoundContext:
    """Where a round stands.

    Parameters
    ----------
    run_key : uint64. slot : which one. step : minibatches this slot has trained before. slots : S of the run.
    visible_mean : float32 [V], the data means of the manifest (0..1 for binary and grey units).
    learning_rates : float32 [minibatches], the schedule's lr of each minibatch, without the factor S^a.
    """

    run_key: int
    slot: int
    step: int
    slots: int
    visible_mean: Floats
    learning_rates: Floats


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
    binary = _binary_mask(spec)
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


def _binary_mask(spec: ModelSpec) -> NDArray[np.int32]:
    """1 for binary or grey visibles, 0 for Gaussian ones (int32 [V])."""
    mask = np.full(spec.visible, int(spec.integer_rows), np.int32)
    if spec.visible_units == "mixed":
        mask[list(spec.binary_columns)] = 1
    return mask


def _sizes(spec: ModelSpec, layer: int) -> tuple[int, int]:
    return (spec.visible if layer == 0 else spec.hidden[layer - 1]), spec.hidden[layer]


def _integer_layer(spec: ModelSpec, layer: int) -> bool:
    return layer > 0 or spec.integer_rows


def _one(spec: ModelSpec, layer: int) -> int:
    """The byte that stands for 1 among a layer's visibles."""
    return GREY_ONE if layer > 0 or spec.visible_units == "grey" else 1


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
    visible, hidden = _sizes(spec, layer)
    name = f"layer{layer}."
    f4 = np.float32
    if _integer_layer(spec, layer):
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
    _check_phase(spec, phase)
    values = _checked_rows(spec, values)
    _check_round(spec, phase, parameters, values, labels, ctx)
    n = values.shape[0]
    if n == 0:
        return RoundStats(0, 0.0, 0.0, 0, 0)
    if phase.learner in ("cd", "pcd"):
        x = _features_below(spec, parameters, values, phase.layer)
        trainer = _LayerTrainer.open(spec, phase, phase.layer, parameters, state, ctx, x)
        error, last = trainer.run(x, ctx.learning_rates, ctx.step, measure=True)
        trainer.close(parameters)
        return RoundStats(n, error / last, 0.0, 0, len(ctx.learning_rates))
    if phase.learner == "backprop":
        if labels is None:
            raise DataError("backprop needs labels; the rows of this round have none")
        keys = np.array([ctx.run_key & ((1 << 64) - 1), ctx.slot], np.uint64)
        loss, correct = supervised.train(
            spec, phase, parameters, state, values, labels, keys, ctx.step, ctx.learning_rates, _byte_value(spec)
        )
        return RoundStats(n, 0.0, loss, correct, len(ctx.learning_rates))
    return _train_joint(spec, phase, parameters, state, values, labels, ctx)


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


def _checked_rows(spec: ModelSpec, values: AnyRows) -> AnyRows:
    """Rows in a form that kernels read; DataError unless they are rows of this model."""
    values = as_rows(values)
    kind = np.uint8 if spec.integer_rows else np.float32
    if len(values.shape) != 2 or values.shape[1] != spec.visible or values.dtype != kind:
        expected = f"{np.dtype(kind)} [n, {spec.visible}]"
        raise DataError(f"rows are {values.dtype} {list(values.shape)}; this model takes {expected}")
    if isinstance(values, PackedRows) and spec.visible_units != "binary":
        raise DataError(f"rows are packed bits; this model's visible units are {spec.visible_units}")
    return values


@dataclass(frozen=True, slots=True, eq=False)
class _LayerTrainer:
    """One layer of contrastive divergence while it trains: its weights unpacked into a workspace."""

    spec: ModelSpec
    phase: PhaseSpec
    layer: int
    state: State
    space: workspaces.LayerSpace
    keys: NDArray[np.uint64]
    options: Floats
    factor: float
    shift: int

    @classmethod
    def open(
        cls,
        spec: ModelSpec,
        phase: PhaseSpec,
        layer: int,
        parameters: Ints,
        state: State,
        ctx: RoundContext,
        x: AnyRows,
    ) -> _LayerTrainer:
        visible, hidden = _sizes(spec, layer)
        name = f"layer{layer}."
        if layer > 0:
            _update_mu(state, name, x, _one(spec, layer))
            mu = state[name + "mu"]
        else:
            mu = np.asarray(ctx.visible_mean, np.float32)
        tensors = layout(spec)[3 * layer : 3 * layer + 3]
        flat = [parameters[t.offset : t.offset + t.size] for t in tensors]
        space = workspaces.take(_integer_layer(spec, layer), visible, hidden)
        shift = 0
        if phase.weight_bits == 8:
            shift = cd_layout.one_plane_shift(max(int(flat[0].max()), -int(flat[0].min())))
        space.load(flat[0], flat[1], flat[2], mu, _binary_mask(spec) if layer == 0 else None, shift=shift)
        options = np.zeros(6, np.float32)
        options[contrastive.MOMENTUM] = phase.momentum
        options[contrastive.DECAY] = phase.weight_decay
        options[contrastive.L1] = phase.l1
        options[contrastive.TARGET] = phase.sparsity_target
        options[contrastive.COST] = phase.sparsity_cost
        options[contrastive.MAX_NORM] = phase.max_norm
        keys = np.array([ctx.run_key & ((1 << 64) - 1), ctx.slot, layer], np.uint64)
        factor = float(share_divisor(spec, phase, 3 * layer, ctx.slots))
        return cls(spec, phase, layer, state, space, keys, options, factor, shift)

    def run(self, x: AnyRows, rates: Floats, step: int, *, measure: bool) -> tuple[float, int]:
        """Train all minibatches of ``x``; returns (squared error of the last one, its rows)."""
        n, batch = x.shape[0], self.phase.batch
        whole = n // batch
        local = (np.asarray(rates, np.float64) * self.factor).astype(np.float32)
        error, last = 0.0, batch
        if whole:
            error = self._train(x, 0, whole, batch, local[:whole], step, measure and whole * batch == n)
        if whole * batch < n:
            last = n - whole * batch
            error = self._train(x, whole * batch, 1, last, local[whole:], step + whole, measure)
        return error, last

    def _train(self, x: AnyRows, first: int, count: int, rows: int, rates: Floats, step: int, measure: bool) -> float:
        names = ("speed", "hidden_speed", "visible_speed", "lam")
        arrays = [self.state[f"layer{self.layer}.{name}"] for name in names]
        persistent = self.phase.learner == "pcd"
        chains = self.state[f"layer{self.layer}.chains"] if persistent else None
        return self.space.train(
            row_view(x), first, count, rows, arrays, chains, rates, self.options, self.keys, step, measure,
            gibbs=self.phase.k, one=_one(self.spec, self.layer), shift=self.shift,
        )  # fmt: skip

    def close(self, parameters: Ints) -> None:
        """Write the weights back and hand the workspace on."""
        tensors = layout(self.spec)[3 * self.layer : 3 * self.layer + 3]
        self.space.store(*(parameters[t.offset : t.offset + t.size] for t in tensors))
        workspaces.give(self.space)


def _update_mu(state: State, name: str, x: AnyRows, one: int) -> None:
    """Running mean of an upper layer's visibles: the plain mean of the first rows, then a slow one."""
    mu, seen = state[name + "mu"], state[name + "mu_rows"]
    n = x.shape[0]
    known = min(int(seen[0]), _MU_ROWS)
    mean = dense_rows(x).sum(axis=0, dtype=np.int64) / float(n * one)
    mu[:] = mu + (mean - mu) * (n / (n + known))
    seen[0] += n


def _train_joint(
    spec: ModelSpec,
    phase: PhaseSpec,
    parameters: Ints,
    state: State,
    values: AnyRows,
    labels: Labels | None,
    ctx: RoundContext,
) -> RoundStats:
    """Every layer by one minibatch of CD on the features below it, the head on the top features; then the next."""
    error, loss, correct, labelled = 0.0, 0.0, 0, 0
    last = 1
    keys = np.array([ctx.run_key & ((1 << 64) - 1), ctx.slot], np.uint64)
    for i, rate in enumerate(ctx.learning_rates):
        x: AnyRows = values[i * phase.batch : (i + 1) * phase.batch]
        y = None if labels is None else labels[i * phase.batch : (i + 1) * phase.batch]
        rates = np.full(1, rate, np.float32)
        for layer in range(len(spec.hidden)):
            trainer = _LayerTrainer.open(spec, phase, layer, parameters, state, ctx, x)
            e, rows = trainer.run(x, rates, ctx.step + i, measure=layer == 0)
            trainer.close(parameters)
            if layer == 0:
                error, last = e, rows
            x = _hidden(spec, parameters, x, layer, as_bytes=True)
        known = int(supervised.known_rows(spec, y).sum()) if y is not None and spec.outputs else 0
        if y is not None and known:
            batch_loss, right = supervised.train(
                spec, phase, parameters, state, x, y, keys, ctx.step + i, rates, np.float32(1.0 / GREY_ONE),
                head_only=True,
            )  # fmt: skip
            loss, correct, labelled = loss + batch_loss * known, correct + right, labelled + known
    return RoundStats(
        values.shape[0], error / last, loss / max(labelled, 1), correct, len(ctx.learning_rates)
    )


def _byte_value(spec: ModelSpec) -> np.float32:
    """What a row's 1 stands for as a float32."""
    return np.float32(1.0 / (GREY_ONE if spec.visible_units == "grey" else 1))


def _hidden(spec: ModelSpec, parameters: Ints, x: AnyRows, layer: int, *, as_bytes: bool) -> AnyRows:
    """Hidden probabilities of one layer: float32 [n, H], or features uint8 0..127."""
    visible, hidden = _sizes(spec, layer)
    tensors = layout(spec)[3 * layer : 3 * layer + 3]
    flat = [parameters[t.offset : t.offset + t.size] for t in tensors]
    space = workspaces.take(_integer_layer(spec, layer), visible, hidden)
    space.load_to_read(flat[0], flat[2])
    out = space.hidden_of(row_view(x), x.shape[0], _one(spec, layer), as_bytes=as_bytes)
    workspaces.give(space)
    return out


def _features_below(spec: ModelSpec, parameters: Ints, values: AnyRows, layer: int) -> AnyRows:
    x = values
    for n in range(layer):
        x = _hidden(spec, parameters, x, n, as_bytes=True)
    return x


def transform(spec: ModelSpec, parameters: Ints, values: AnyRows, layers: int | None = None) -> Floats:
    """Hidden probabilities of the top layer, or of the first ``layers`` layers (float32 [n, H]); ReLU activations."""
    values = _checked_rows(spec, values)
    top = len(spec.hidden) if layers is None else layers
    if not 1 <= top <= len(spec.hidden):
        raise ConfigError(f"transform to layer {top}; the model has {len(spec.hidden)}")
    if spec.hidden_units == "relu":
        return supervised.outputs(spec, parameters, values, _byte_value(spec), top)
    x = _features_below(spec, parameters, values, top - 1)
    return np.asarray(_hidden(spec, parameters, x, top - 1, as_bytes=False), np.float32)


def features(spec: ModelSpec, parameters: Ints, values: AnyRows, layers: int | None = None) -> Bytes:
    """As `transform`, as bytes 0..127: what the layer above is trained on (uint8 [n, H])."""
    values = _checked_rows(spec, values)
    require_energy(spec)
    top = len(spec.hidden) if layers is None else layers
    return np.asarray(dense_rows(_features_below(spec, parameters, values, top)), np.uint8)


def predict_proba(spec: ModelSpec, parameters: Ints, values: AnyRows) -> Floats:
    """Class probabilities of the whole stack (float32 [n, classes])."""
    if not spec.classes:
        raise ConfigError("this model has no classes")
    return predict_outputs(spec, parameters, values)


def predict_outputs(spec: ModelSpec, parameters: Ints, values: AnyRows) -> Floats:
    """What the head says: class probabilities or targets (float32 [n, outputs])."""
    values = _checked_rows(spec, values)
    if not spec.outputs:
        raise ConfigError("this model has no head: neither classes nor targets")
    return supervised.outputs(spec, parameters, values, _byte_value(spec), len(spec.hidden) + 1)


def free_energy(spec: ModelSpec, parameters: Ints, values: AnyRows, layer: int = 0) -> Floats:
    """Free energy of rows under one layer's RBM, without log Z (float32 [n]); low means likely.

    For ``layer`` > 0 the rows are first carried up to that layer's visibles.
    """
    space, x, scale = _real_space(spec, parameters, values, layer)
    out = space.free_energies(row_view(x), x.shape[0], scale, _layer_mask(spec, layer))
    return out.astype(np.float32)


def reconstruct(spec: ModelSpec, parameters: Ints, values: AnyRows) -> Floats:
    """Mean visibles after one mean-field trip up to the top and down again (float32 [n, V], real units)."""
    values = _checked_rows(spec, values)
    require_energy(spec)
    p = transform(spec, parameters, values)
    for layer in range(len(spec.hidden) - 1, -1, -1):
        space, _, _ = _real_space(spec, parameters, values[:0], layer)
        p = space.visible_of(p, _layer_mask(spec, layer))
    return p


def _layer_mask(spec: ModelSpec, layer: int) -> NDArray[np.int32]:
    return _binary_mask(spec) if layer == 0 else np.ones(spec.hidden[layer - 1], np.int32)


def _real_space(
    spec: ModelSpec, parameters: Ints, values: AnyRows, layer: int
) -> tuple[workspaces.RealSpace, AnyRows, np.float32]:
    """A layer's float32 weights, the rows that reach it, and the value of their byte 1."""
    values = _checked_rows(spec, values)
    require_energy(spec)
    if not 0 <= layer < len(spec.hidden):
        raise ConfigError(f"layer {layer}; the model has layers 0..{len(spec.hidden) - 1}")
    visible, hidden = _sizes(spec, layer)
    tensors = layout(spec)[3 * layer : 3 * layer + 3]
    space = workspaces.RealSpace.new(visible, hidden)
    space.load(*(parameters[t.offset : t.offset + t.size] for t in tensors), None, None)
    x = _features_below(spec, parameters, values, layer) if values.shape[0] else values
    scale = np.float32(1.0 / _one(spec, layer)) if _integer_layer(spec, layer) else np.float32(1.0)
    return space, x, scale


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
