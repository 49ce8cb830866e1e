"""What is trained: the shape of a deep belief network and the phases of its training.

All values are frozen and travel in the run's manifest; together with the seed and the data means they determine the
initial parameters. A parameter's *global index* is its place in the concatenation of all tensors in layout order.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from gossipdbn.errors import ConfigError

VisibleUnits = Literal["binary", "grey", "gaussian", "mixed"]
Learner = Literal["cd", "pcd", "backprop", "joint"]
Optimizer = Literal["adam", "sgd"]
HiddenUnits = Literal["binary", "relu"]
Loss = Literal["cross_entropy", "squared"]

UNIT = 2.0**-24
"""The value of one integer step of a parameter."""


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A stack of RBMs, or of rectified linear layers, with an optional head for classes or for numbers.

    Parameters
    ----------
    visible : number of visible units.
    hidden : number of hidden units of each layer, bottom up.
    visible_units : "binary" (0/1), "grey" (0..127, read as 0..1), "gaussian" (float32, standardised),
        "mixed" (float32; columns named by ``binary_columns`` are 0/1, the others Gaussian).
    classes : number of softmax outputs, 0 for none.
    binary_columns : indices of the 0/1 columns of "mixed" rows.
    hidden_units : "binary" (Bernoulli units, sigmoids in backprop) or "relu" (max(0, x); backprop alone trains them).
    loss : what the head minimises, per row: "cross_entropy" of the classes, or "squared": half the squared distance
        between class probabilities and the one true class (Brier 1950), or between ``targets`` and linear outputs.
    targets : number of linear outputs trained towards real numbers, 0 for none; excludes ``classes``, needs "squared".
    """

    visible: int
    hidden: tuple[int, ...]
    visible_units: VisibleUnits = "binary"
    classes: int = 0
    binary_columns: tuple[int, ...] = ()
    hidden_units: HiddenUnits = "binary"
    loss: Loss = "cross_entropy"
    targets: int = 0

    @property
    def outputs(self) -> int:
        """Units of the head: classes or targets, 0 without a head."""
        return self.classes or self.targets

    @property
    def integer_rows(self) -> bool:
        """Whether rows are uint8 (binary, grey) and layer 0 trains in exact integers; else float32."""
        return self.visible_units in ("binary", "grey")


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of the layout: its name, shape, and where it starts in the flat parameter vector."""

    id: int
    name: str
    shape: tuple[int, ...]
    offset: int

    @property
    def size(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    @property
    def blocks(self) -> tuple[int, int]:
        """(number of codec blocks, block length): a block is a row of a weight matrix or a whole bias vector."""
        return (1, self.shape[0]) if len(self.shape) == 1 else (self.shape[0], self.shape[1])


@lru_cache(maxsize=64)
def layout(spec: ModelSpec) -> tuple[Tensor, ...]:
    """Tensors in global order: per layer weights [V, H], visible_bias [V], hidden_bias [H]; then the head's."""
    shapes: list[tuple[str, tuple[int, ...]]] = []
    below = spec.visible
    for i, h in enumerate(spec.hidden):
        shapes += [
            (f"layer{i}.weights", (below, h)),
            (f"layer{i}.visible_bias", (below,)),
            (f"layer{i}.hidden_bias", (h,)),
        ]
        below = h
    if spec.outputs:
        shapes += [("head.weights", (below, spec.outputs)), ("head.bias", (spec.outputs,))]
    tensors: list[Tensor] = []
    offset = 0
    for i, (name, shape) in enumerate(shapes):
        t = Tensor(i, name, shape, offset)
        tensors.append(t)
        offset += t.size
    return tuple(tensors)


def spec_problem(spec: ModelSpec) -> str:
    """What no model can be, in words, or ''."""
    if spec.visible < 1 or not spec.hidden or min(spec.hidden) < 1 or min(spec.classes, spec.targets) < 0:
        return f"a model of {spec.visible} visible, {list(spec.hidden)} hidden units and {spec.outputs} outputs"
    if any(not 0 <= c < spec.visible for c in spec.binary_columns):
        return "binary_columns name units that are not there"
    if spec.classes and spec.targets:
        return f"a head of {spec.classes} classes and {spec.targets} targets; it has one of them"
    if spec.targets and spec.loss != "squared":
        return f"{spec.targets} targets with the loss {spec.loss}; numbers are trained with the loss squared"
    if spec.hidden_units == "relu" and not spec.outputs:
        return "ReLU units without classes or targets: only backprop can train them"
    return ""


def require_energy(spec: ModelSpec) -> None:
    """ConfigError unless the layers are Boltzmann machines, which ReLU layers are not."""
    if spec.hidden_units != "binary":
        raise ConfigError("a network of ReLU units is no Boltzmann machine: it has no energy and no reconstructions")


def parameter_count(spec: ModelSpec) -> int:
    """Length of the flat parameter vector."""
    last = layout(spec)[-1]
    return last.offset + last.size


@dataclass(frozen=True, slots=True)
class PhaseSpec:
    """One stage of the plan.

    Parameters
    ----------
    learner : "cd"/"pcd" train one layer; "backprop" the whole stack with the head; "joint" every layer by CD on the
        features below it, and the head (if any) as softmax regression on the top features, all in each minibatch.
    layer : which layer ("cd", "pcd").
    epochs : passes over the slot's rows; None = endless (a live stream; rows are used once).
    batch : rows per minibatch. tau : minibatches per round.
    lr, lr_final : learning rate, linear from the first to the last row of the phase.
    optimizer, momentum, weight_decay (L2), l1, sparsity_target, sparsity_cost, max_norm (0 = none), k (Gibbs steps),
    dropout (backprop): the usual.
    weight_bits : 16, or 8 ("turbo"): the operands of the weights in layers of bytes ("cd", "pcd", "joint"). The weights
        themselves stay int32; only what is multiplied is coarser, with a step chosen at the start of each round.
    """

    learner: Learner
    layer: int = 0
    epochs: int | None = 1
    batch: int = 100
    tau: int = 10
    lr: float = 0.05
    lr_final: float = 0.05
    optimizer: Optimizer = "sgd"
    momentum: float = 0.5
    weight_decay: float = 0.0
    l1: float = 0.0
    sparsity_target: float = 0.0
    sparsity_cost: float = 0.0
    max_norm: float = 0.0
    k: int = 1
    dropout: float = 0.0
    weight_bits: Literal[8, 16] = 16


def phase_tensors(spec: ModelSpec, phase: PhaseSpec) -> tuple[int, ...]:
    """Ids of the tensors that a round of the phase changes, in layout order."""
    n = len(spec.hidden)
    if phase.learner in ("cd", "pcd"):
        return (3 * phase.layer, 3 * phase.layer + 1, 3 * phase.layer + 2)
    head = (3 * n, 3 * n + 1) if spec.outputs else ()
    if phase.learner == "joint":
        return (*range(3 * n), *head)
    return (*(t for i in range(n) for t in (3 * i, 3 * i + 2)), *head)


class PhaseTensor(NamedTuple):
    """A tensor that a phase trains: where it lies in the flat parameters, and among those that the phase trains."""

    tensor: Tensor
    at: slice
    among: slice


@lru_cache(maxsize=64)
def trained_tensors(spec: ModelSpec, phase: PhaseSpec) -> tuple[PhaseTensor, ...]:
    """The tensors of `phase_tensors` and where they lie."""
    found, end = [], 0
    for i in phase_tensors(spec, phase):
        t = layout(spec)[i]
        found.append(PhaseTensor(t, slice(t.offset, t.offset + t.size), slice(end, end + t.size)))
        end += t.size
    return tuple(found)


def trained_count(spec: ModelSpec, phase: PhaseSpec) -> int:
    """How many parameters the phase trains."""
    return int(trained_tensors(spec, phase)[-1].among.stop)


def share_divisor(spec: ModelSpec, phase: PhaseSpec, tensor_id: int, slots: int) -> int:
    """S^a of protocol section 3: progress of a slot is divided by this before it is published.

    a = 1 for contrastive divergence (the local learning rate is ``slots * lr``), 0 for backprop with local Adam
    and for the head; measured in the learning-rate study that the design documents report.
    """
    return slots if phase.learner != "backprop" and tensor_id < 3 * len(spec.hidden) else 1
