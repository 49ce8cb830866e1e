"""A layer of contrastive divergence while it trains, and where a round leaves what it trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossipdbn.kernels import cd_layout, contrastive, workspaces
from gossipdbn.models import supervised
from gossipdbn.models.reading import binary_mask, byte_of_one, integer_layer, layer_slices
from gossipdbn.models.rows import AnyRows, row_view
from gossipdbn.models.rows import dense as dense_rows
from gossipdbn.models.spec import ModelSpec, PhaseSpec, share_divisor, trained_tensors

Ints = NDArray[np.int32]
Floats = NDArray[np.float32]
State = dict[str, NDArray[np.generic]]

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


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """Where the tensors of a phase lie after a round.

    Attributes
    ----------
    tensors : of each tensor's id its parameters, int32 in units 2^-24: flat, or the tiles [G, Vp, 16] of a workspace
        for weights that were left there (`kernels.cd_layout`). To be read before ``give_back``.
    spaces : the workspaces, of each layer that was left in one.
    """

    tensors: dict[int, Ints]
    spaces: dict[int, workspaces.IntegerSpace] = field(default_factory=dict)

    def store(self, spec: ModelSpec, parameters: Ints) -> None:
        """Write what lies in workspaces into the vector int32 [P] that holds the rest, and give them back."""
        for layer, space in self.spaces.items():
            space.store(*layer_slices(spec, layer, parameters))
        self.give_back()

    def give_back(self) -> None:
        """Hand the workspaces on."""
        while self.spaces:
            workspaces.give(self.spaces.popitem()[1])


@dataclass(frozen=True, slots=True, eq=False)
class LayerTrainer:
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
    ) -> LayerTrainer:
        visible, hidden = supervised.layer_sizes(spec, layer)
        w, a, b = layer_slices(spec, layer, parameters)
        space = workspaces.take(integer_layer(spec, layer), visible, hidden)
        shift = 0
        if phase.weight_bits == 8:
            shift = cd_layout.one_plane_shift(max(int(w.max()), -int(w.min())))
        space.load(w, a, b, binary_mask(spec) if layer == 0 else None, shift=shift)
        if layer == 0:
            space.center(np.asarray(ctx.visible_mean, np.float32))
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
        if self.layer > 0:  # its offsets follow the mean of what it sees
            name = f"layer{self.layer}."
            _update_mu(self.state, name, x, byte_of_one(self.spec, self.layer))
            self.space.center(np.asarray(self.state[name + "mu"], np.float32))
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
            gibbs=self.phase.k, one=byte_of_one(self.spec, self.layer), shift=self.shift,
        )  # fmt: skip

    def hidden_of(self, x: AnyRows) -> AnyRows:
        """Features uint8 [n, H] of rows, by the weights as they are now. They must have both planes: 16 bits."""
        one = byte_of_one(self.spec, self.layer)
        return self.space.hidden_of(row_view(x), x.shape[0], one, as_bytes=True)

    def close(self, parameters: Ints) -> None:
        """Write the weights back and hand the workspace on."""
        self.space.store(*layer_slices(self.spec, self.layer, parameters))
        workspaces.give(self.space)


def _update_mu(state: State, name: str, x: AnyRows, one: int) -> None:
    """Running mean of an upper layer's visibles: the plain mean of the first rows, then a slow one."""
    mu, seen = state[name + "mu"], state[name + "mu_rows"]
    n = x.shape[0]
    known = min(int(seen[0]), _MU_ROWS)
    mean = dense_rows(x).sum(axis=0, dtype=np.uint32) / float(n * one)  # bytes of fewer than 2^24 rows
    mu[:] = mu + (mean - mu) * (n / (n + known))
    seen[0] += n


def in_order(spec: ModelSpec, phase: PhaseSpec, parameters: Ints) -> Trained:
    """The phase's tensors as slices of a vector."""
    return Trained({t.id: parameters[at] for t, at, _ in trained_tensors(spec, phase)})


def collected(spec: ModelSpec, phase: PhaseSpec, trainers: list[LayerTrainer], scratch: Callable[[], Ints]) -> Trained:
    """What these layers were trained to: integers where they lie, floats added to a vector; the rest lies there too."""
    tensors: dict[int, Ints] = {}
    real = [t for t in trainers if not isinstance(t.space, workspaces.IntegerSpace)]
    if real or phase.learner == "joint":
        parameters = scratch()
        for trainer in real:
            trainer.close(parameters)
        tensors = in_order(spec, phase, parameters).tensors
    spaces = {t.layer: t.space for t in trainers if isinstance(t.space, workspaces.IntegerSpace)}
    for layer, space in spaces.items():
        tensors |= dict(enumerate(space.trained(), 3 * layer))
    return Trained(tensors, spaces)
