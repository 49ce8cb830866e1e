"""A schedule's options, all drawn from its seed: the size of the run, the moods of the world, and when what breaks.

Each seed draws which kinds of faults it may have at all (a swarm): with every kind always possible, rare combinations
would never come up.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace

import numpy as np

from gossipdbn.core.values import Manifest
from gossipdbn.models.spec import ModelSpec, PhaseSpec

__all__ = ["FAULTS", "Fault", "Options", "draw", "manifest_of"]

FAULTS = {
    "kill": "a worker dies; what it had sent may or may not arrive",
    "pause": "a worker stops for a moment",
    "zombie": "a worker stops, its slots go to others, then it wakes up",
    "slow": "a worker becomes ten times slower",
    "leave": "a worker is asked to leave",
    "join": "a worker joins",
    "old": "a worker joins that does not know the new key",
    "move": "a slot is given to another worker; the old one learns of it at some time",
    "reset": "an owner gives its slot up and claims with reset",
    "cut": "a worker cannot reach the brokers for a while",
    "broker": "no partition can be read or written for a while",
    "partition": "one partition of the updates cannot be read or written for a while",
    "lose": "a writer gives up; its unsent records are lost",
    "unacked": "a writer gives up, though its records arrive later",
    "repeat": "records are appended twice for a while",
    "garbage": "damaged, forged or replayed bytes are appended",
    "slow-store": "objects take long to be stored and seen",
    "torn": "the next object is stored only in part",
    "missing": "a stored snapshot disappears",
    "trim": "the log is trimmed below what every kept snapshot contains",
    "damage": "a bit flips in a worker's replica",
    "refeed": "the feed restarts and sends its last shards again",
    "poison": "a slot's next round cannot be trained",
    "stop": "the run is stopped, and resumed later",
    "clock": "a worker's clock jumps",
    "revoke": "the operator revokes updates",
    "give-up": "the operator claims a slot and closes it",
    "lost": "a stored payload disappears",
}
"""Kinds of faults and what they do."""

_OFTEN = {"reset": 4, "move": 3, "kill": 2, "zombie": 2, "lost": 2}
_RARE = {"poison": 0.15, "give-up": 0.15, "damage": 0.4, "stop": 0.4, "old": 0.5, "trim": 0.5}


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens at a time. ``a``, ``b`` choose among what is there; ``size`` in 0..1 says how much."""

    at_s: float
    kind: str
    a: int
    b: int
    size: float


@dataclass(frozen=True, slots=True)
class Options:
    """One schedule. Times in seconds of virtual time."""

    seed: int
    slots: int
    workers: int
    rows: tuple[int, ...]
    shard_rows: int
    phases: tuple[PhaseSpec, ...]
    hidden: tuple[int, ...]
    classes: int
    codec: int
    pending: int
    gate: int
    inline_bytes: int
    keep: int
    snapshot_every_s: float
    linger_s: float
    claim_delay_s: float
    latency_s: float
    jitter: float
    train_s: float
    store_s: float
    session_s: float
    poll_max: int
    feed_s: float
    rotate_at_s: float | None
    faults: tuple[Fault, ...]

    @property
    def healed_s(self) -> float:
        """From here on nothing breaks any more."""
        return max([f.at_s for f in self.faults], default=0.0) + 1.0


def _phases(rng: random.Random, classes: int, hidden: int) -> tuple[PhaseSpec, ...]:
    batch, tau = rng.choice((1, 2, 3)), rng.choice((1, 1, 2))

    def phase(learner: str, layer: int = 0, epochs: int | None = 1) -> PhaseSpec:
        lr = rng.choice((0.05, 0.1))
        return PhaseSpec(learner, layer, epochs, batch, tau, lr, rng.choice((lr, 0.0)))  # type: ignore[arg-type]

    kind = rng.random()
    if kind < 0.15:
        return (phase("joint", 0, None),)
    out = [phase(rng.choice(("cd", "pcd")), layer, rng.choice((1, 1, 2))) for layer in range(hidden)]
    if classes:
        out.append(phase("backprop", 0, rng.choice((1, 2))))
    if len(out) == 1 and kind < 0.6:
        out.append(phase("cd", 0, 1))
    return tuple(out)


def _faults(rng: random.Random) -> tuple[Fault, ...]:
    count = rng.choice((0, 1, 2, 4, 8, 16))
    kinds = [k for k in FAULTS if rng.random() < 0.5 * _RARE.get(k, 1.0)]
    horizon = rng.choice((0.2, 0.5, 1.0))
    if not kinds:
        return ()
    weights = [_OFTEN.get(k, 1) for k in kinds]

    def one(at_s: float, a: int) -> Fault:
        return Fault(at_s, rng.choices(kinds, weights)[0], a, rng.randrange(1 << 30), rng.random())

    drawn: list[Fault] = []
    for _ in range(count):
        at, a = rng.random() * horizon, rng.randrange(1 << 30)
        drawn.append(one(at, a))
        while rng.random() < 0.3:  # troubles come together: soon after, to the same worker or slot
            at += 0.06 * rng.random() ** 2
            drawn.append(one(at, a))
    return tuple(sorted(drawn, key=lambda f: f.at_s))


def draw(seed: int) -> Options:
    """The options of a seed."""
    rng = random.Random(f"options {seed}")  # noqa: S311 - dice of a game
    slots = rng.choice((1, 2, 2, 2, 3))
    classes, hidden = rng.choice(((0, (2,)), (0, (2,)), (2, (2,)), (0, (2, 2))))
    phases = _phases(rng, classes, len(hidden))
    rows = tuple(rng.choice((0, 1, 2, 3, 4, 6, 9)) for _ in range(slots))
    return Options(
        seed=seed,
        slots=slots,
        workers=rng.choice((1, 2, 2, 3, 3)),
        rows=rows,
        shard_rows=rng.choice((1, 2, 4)),
        phases=phases,
        hidden=hidden,
        classes=classes,
        codec=rng.choice((0, 1, 1, 1, 2)),
        pending=rng.choice((1, 2, 3, 8)),
        gate=rng.choice((0, 0, 1, slots)),
        inline_bytes=rng.choice((0, 8, 1 << 19, 1 << 19)),
        keep=rng.choice((1, 2, 4)),
        snapshot_every_s=rng.choice((0.005, 0.01, 0.03, 0.1, 1.0)),
        linger_s=rng.choice((0.0, 0.02, 0.1)),
        claim_delay_s=rng.choice((0.005, 0.02)),
        latency_s=rng.choice((0.001, 0.004, 0.015)),
        jitter=rng.choice((0.0, 1.0, 5.0)),
        train_s=rng.choice((0.002, 0.006, 0.02)),
        store_s=rng.choice((0.001, 0.01, 0.05)),
        session_s=rng.choice((0.05, 0.15)),
        poll_max=rng.choice((1, 3, 50)),
        feed_s=rng.choice((0.0, 0.002, 0.02)),
        rotate_at_s=rng.choice((None, None, 0.0, 0.2)),
        faults=_faults(rng),
    )


def without(options: Options, index: int) -> Options:
    """The same schedule with one fault less."""
    return replace(options, faults=options.faults[:index] + options.faults[index + 1 :])


def manifest_of(options: Options) -> Manifest:
    """The manifest of a schedule's run."""
    spec = ModelSpec(3, options.hidden, "binary", options.classes)
    return Manifest(
        run="sim",
        slots=options.slots,
        spec=spec,
        phases=options.phases,
        run_key=options.seed & ((1 << 64) - 1),
        visible_mean=np.full(spec.visible, 0.5, "<f4").tobytes(),
        codec=options.codec,
        e_max=1,
        pending=options.pending,
        gate=options.gate,
        round_rows_max=1000,
        inline_bytes=options.inline_bytes,
    )
