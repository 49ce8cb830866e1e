"""The parts of a run's configuration: one frozen class per table of the TOML file, every key documented.

Each key's text says its unit, its bound and what follows from it; ``gossipdbn config --explain`` prints them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from gossipdbn.config.settings import Options, Setting, setting

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}"
NAME_WORDS = "letters, digits, dot, underscore and dash, at most 80, starting with a letter or digit"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPart:
    """``[run]``: what the run is called and how it is spread out. All but ``workers`` is fixed once it has started."""

    name: str = setting(
        "run", "Start of the run id; the start time is added.", pattern=NAME_PATTERN, pattern_doc=NAME_WORDS
    )
    slots: int = setting(
        4,
        "Number of logical trainers, fixed for the whole run. More slots let more workers help later; above about 8 "
        "the learning per row gets a little worse.",
        low=1,
        high=1000,
    )
    workers: int = setting(
        2,
        "Worker processes that `train` starts here, one thread each. Best is one per free core; 0 starts none "
        "(join them from elsewhere with `gossipdbn worker`).",
        low=0,
        high=1000,
    )
    seed: int = setting(
        1, "Seed of initial weights and every random draw; same seed and same log, same bits.", low=0, high=2**63 - 1
    )
    gate: int = setting(
        0,
        "A phase starts only when this many slots have ended the one before; 0 = nobody waits. Gating makes slow slots "
        "felt by all and is rarely worth it.",
        low=0,
        high=1000,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelPart:
    """``[model]``: the stack that is trained."""

    hidden: tuple[int, ...] = setting(
        ..., "Hidden units of each layer, bottom up: [500, 500] is two layers.", low=1, high=65_536
    )
    classes: int = setting(0, "Softmax outputs on top; 0 = no labels are learned.", low=0, high=65_536)
    hidden_units: Literal["binary", "relu"] = setting(
        "binary",
        "binary: layers of a belief network, sigmoids in backprop; relu: rectified linear units, which only backprop "
        "trains (train.epochs = 0, or backprop phases alone).",
    )
    loss: Literal["cross_entropy", "squared"] = setting(
        "cross_entropy",
        "What backprop minimises: cross_entropy, or squared (half the squared distance between the probabilities and "
        "the true class: Brier's score, which forgives wrong labels more).",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainPart:
    """``[train]``: the plan in short form: every layer in turn, then the whole stack by backprop if there are classes.

    An endless source makes one joint phase of it. ``[[phases]]`` spells a plan out instead.
    """

    learner: Literal["cd", "pcd"] = setting(
        "cd", "Per layer: cd (features for a classifier) or pcd (density, samples, scores)."
    )
    epochs: int = setting(5, "Passes over the rows for each layer.", low=0, high=100_000)
    batch: int = setting(
        100, "Rows per minibatch of each slot. Keep slots x batch under about 1600.", low=1, high=65_536
    )
    tau: int = setting(
        10, "Minibatches between two updates; larger talks less and learns a little less per row.", low=1, high=1000
    )
    lr: float = setting(
        0.05, "Learning rate of the layers, per row mean; slots are compensated for.", above=0.0, high=10.0
    )
    lr_final: float | None = setting(
        None, "Learning rate at the end of each layer, reached linearly; unset = lr.", low=0.0, high=10.0
    )
    momentum: float = setting(0.5, "Momentum of the layers.", low=0.0, high=0.999)
    k: int = setting(1, "Gibbs steps per minibatch.", low=1, high=1000)
    weight_decay: float = setting(0.0, "L2 decay of weights, per step, times lr.", low=0.0, high=1.0)
    l1: float = setting(0.0, "L1 decay of weights, per step, times lr.", low=0.0, high=1.0)
    sparsity_target: float = setting(0.0, "Wanted mean activity of hidden units.", low=0.0, high=1.0)
    sparsity_cost: float = setting(
        0.0, "How strongly activity is pulled to the target; 0 = not at all.", low=0.0, high=100.0
    )
    max_norm: float = setting(0.0, "Largest norm of a hidden unit's weights; 0 = no bound.", low=0.0, high=1e6)
    weight_bits: Literal[16, 8] = setting(
        16,
        "Bits of a weight where layers of binary or grey units multiply it; 8 is faster and reconstructs about 1 % "
        "worse. The weights themselves keep 32.",
    )
    fine_tune_epochs: int = setting(
        20, "Passes of backprop through the whole stack (with classes only); 0 = none.", low=0, high=100_000
    )
    fine_tune_batch: int = setting(50, "Rows per minibatch of backprop.", low=1, high=65_536)
    fine_tune_tau: int = setting(
        5,
        "Minibatches between two updates in backprop; here staleness costs more than in the layers.",
        low=1,
        high=1000,
    )
    fine_tune_lr: float = setting(0.001, "Learning rate of backprop at its start.", above=0.0, high=10.0)
    fine_tune_lr_final: float = setting(
        0.0, "Learning rate of backprop at its end, reached linearly.", low=0.0, high=10.0
    )
    fine_tune_optimizer: Literal["adam", "sgd"] = setting(
        "adam", "Optimiser of backprop, local to each slot; sgd uses fine_tune_momentum."
    )
    fine_tune_momentum: float = setting(0.9, "Momentum of sgd in backprop.", low=0.0, high=0.999)
    dropout: float = setting(0.0, "Share of hidden units left out in backprop.", low=0.0, high=0.95)


PHASE_SETTINGS = {
    "learner": Setting(
        "What trains: cd or pcd (one layer), backprop (the whole stack), joint (all layers at once, live)."
    ),
    "layer": Setting("Which layer, from 0 (cd, pcd).", low=0, high=1000),
    "epochs": Setting('Passes over the rows; "endless" (joint on a live source) = until stopped.', low=0, high=100_000),
    "batch": Setting("Rows per minibatch of each slot.", low=1, high=65_536),
    "tau": Setting("Minibatches between two updates.", low=1, high=1000),
    "lr": Setting("Learning rate at the start.", above=0.0, high=10.0),
    "lr_final": Setting("Learning rate at the end, reached linearly.", low=0.0, high=10.0),
    "optimizer": Setting("adam or sgd (backprop)."),
    "momentum": Setting("Momentum.", low=0.0, high=0.999),
    "weight_decay": Setting("L2 decay of weights.", low=0.0, high=1.0),
    "l1": Setting("L1 decay of weights.", low=0.0, high=1.0),
    "sparsity_target": Setting("Wanted mean activity of hidden units.", low=0.0, high=1.0),
    "sparsity_cost": Setting("How strongly activity is pulled to the target.", low=0.0, high=100.0),
    "max_norm": Setting("Largest norm of a hidden unit's weights; 0 = no bound.", low=0.0, high=1e6),
    "k": Setting("Gibbs steps per minibatch.", low=1, high=1000),
    "dropout": Setting("Share of hidden units left out (backprop).", low=0.0, high=0.95),
    "weight_bits": Setting("16, or 8 for faster, coarser products in layers of binary or grey units."),
}
"""Bounds of ``[[phases]]``, whose keys are the fields of :class:`gossipdbn.models.spec.PhaseSpec`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExchangePart:
    """``[exchange]``: what an update looks like."""

    codec: Literal["ternary", "int8", "exact"] = setting(
        "ternary",
        "ternary: about 1/45 of the bytes of float32, what is left behind is carried on; int8; exact: every bit.",
    )
    e_max: int = setting(
        1, "Largest scale exponent: no single code moves a weight by more than 2^e_max.", low=-17, high=6
    )
    inline_bytes: int = setting(
        524_288,
        "Payloads above this many bytes travel through the snapshot store instead of the log.",
        low=1024,
        high=16_777_216,
    )
    pending: int = setting(
        8, "Updates a slot may have sent and not read back; then it waits for the broker.", low=1, high=1000
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPart:
    """``[snapshots]``: the states that a slot goes on from after a crash."""

    store: str = setting(
        "",
        "Folder or URL (hdfs://, s3://, gs://); unset = a folder beside the run. All workers must reach it.",
        path=True,
    )
    failure_every_seconds: float = setting(
        1800.0,
        "How often you expect a worker to be lost, in seconds: days on good machines, a minute on ones that are taken "
        "away. How often slots are snapshotted follows from it and from what a snapshot costs, measured while "
        "training, so that snapshots and recomputation together take least.",
        low=1.0,
        high=31_536_000,
    )
    every_seconds: float = setting(
        0.0,
        "A fixed number of seconds between two snapshots of a slot instead; longer costs less and recovers slower "
        "(later rounds are recomputed). 0 = fitted to failure_every_seconds.",
        low=0.0,
        high=86_400,
    )
    keep: int = setting(2, "Snapshots kept per slot.", low=1, high=1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPart:
    """``[broker]``: the Kafka cluster that holds the run."""

    bootstrap: str = setting(
        "", "host:port[,host:port] of your own cluster; unset = the embedded broker on this machine."
    )
    prefix: str = setting(
        "",
        "Put before every topic's name.",
        pattern=r"[A-Za-z0-9._-]{0,100}",
        pattern_doc="letters, digits, dot, underscore, dash; at most 100",
    )
    data_dir: str = setting("", "Folder of the embedded broker; unset = `broker` in the home of runs.", path=True)
    options: Options = setting(  # noqa: RUF009 - declares a field, as the others do
        (), 'Settings for librdkafka, passed through ("security.protocol", "sasl.username", ...).', secret=True
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SecurityPart:
    """``[security]``: who may write updates."""

    key_file: str = setting(
        "", "TOML or JSON file of key id = hex key (32 bytes or more); unset = records are not signed.", path=True
    )
    key_id: int = setting(0, "Which key signs; readers know all keys of the file. 0 = none.", low=0, high=2**32 - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPart:
    """``[worker]``: how a worker behaves."""

    session_timeout_ms: int = setting(
        6000,
        "Milliseconds without a sign of life after which a dead worker's slots go to others; shorter recovers faster, "
        "longer forgives pauses. The broker's own lower limit holds.",
        low=1000,
        high=1_800_000,
    )
    memory_mb: int = setting(
        1024,
        "Megabytes of packed rows that a slot keeps in memory; beyond them rows are read again from the log.",
        low=1,
        high=1_000_000,
    )
    communication_share: float = setting(
        0.05,
        "Share of a worker's time that exchanging updates may take (0.05 = 5 %): tau of each slot adapts to it, from "
        "half to four times the plan's, while slots x batch x tau stays within 8,000 rows (1,000 in backprop). Every "
        "update records how many rows it was. 0 = tau as planned.",
        low=0.0,
        high=0.5,
    )
