"""What a round, an update and a merge cost on this machine: the numbers that ``scaling`` runs on."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from gossipdbn.core import rounds
from gossipdbn.core.replica import Replica
from gossipdbn.core.values import RESUME, Claim, Manifest, RowRange, Sealed, Update
from gossipdbn.kernels import codec
from gossipdbn.models.spec import ModelSpec, PhaseSpec, layout
from gossipdbn.sim.scaling import Costs
from gossipdbn.wire.messages import RunWire

__all__ = ["measure"]

INT8 = 2
COMBINED = 32
MERGED = 8


def _best(run: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of some runs, by this thread's CPU time: what it costs when nothing else runs."""
    run()
    seen = []
    for _ in range(times):
        start = time.thread_time()
        run()
        seen.append(time.thread_time() - start)
    return min(seen)


def measure(tau: int = 10, times: int = 20, batch: int = 100, visible: int = 784, hidden: int = 500) -> Costs:
    """Costs of centred CD-1 by the production's kernels, codec, wire and judge, one thread.

    A merge is an eighth of eight updates read one after the other and added in one pass, as a worker does between two
    rounds. A relay's combined update is the sum of 32 ternary ones, sent by the int8 codec.
    """
    spec = ModelSpec(visible, (hidden,))
    mean = np.full(visible, 0.13, "<f4").tobytes()
    phase = PhaseSpec("cd", 0, 1, batch, tau, 0.05, 0.05)
    m = Manifest(run="costs", slots=8, spec=spec, phases=(phase,), run_key=1, visible_mean=mean)
    wire = RunWire()
    replica = Replica(m, wire.decode, rounds.initial_parameters(m))
    replica.read(0, 0, wire.encode(Claim("costs", 0, 1, "w", RESUME, 0, 1)))
    state, chain = rounds.fresh_state(m, 0, replica.chains[0]), replica.chains[0]
    values = (np.random.default_rng(0).random((batch * tau, visible)) < 0.13).astype(np.uint8)

    def train() -> rounds.RoundJob:
        job = rounds.begin(state, replica.acc, replica.version, RowRange(0, 0, batch * tau))
        rounds.run(m, job, values, None, 0)
        assert job.trained is not None
        job.trained.give_back()  # to the next round; until then its update can be made from it
        return job

    trained = train()
    round_s = _best(train, times)
    publish_s = _best(lambda: wire.encode(rounds.finish(m, state, trained)), times)
    raw = wire.encode(rounds.finish(m, state, trained))

    def merge() -> None:
        for _ in range(MERGED):
            replica.chains[0] = chain
            replica.read(0, 1, raw)
        _ = replica.acc  # adds them all

    merge_s = _best(merge, times) / MERGED
    combined_s, combined_bytes = _combined(m, wire, raw, replica, times)
    return Costs(round_s, batch * tau, publish_s, merge_s, len(raw), combined_s, combined_bytes)


def _combined(m: Manifest, wire: RunWire, raw: bytes, replica: Replica, times: int) -> tuple[float, int]:
    decoded = wire.decode(raw)
    assert isinstance(decoded, Sealed) and isinstance(decoded.message, Update)
    t = layout(m.spec)[0]
    weights = next(p for p in decoded.message.payload or () if p.tensor == t.id)
    one = codec.decode(weights.codec, weights.data, *t.blocks)
    total = np.zeros_like(one)
    for i in range(COMBINED):
        total += np.roll(one, 997 * i)
    data = codec.quantise(INT8, total, m.e_max)

    def merge() -> None:
        codec.merge(replica.acc, [codec.read(INT8, data, *t.blocks, m.e_max, t.offset)])

    return _best(merge, times), len(data) + (len(raw) - len(weights.data))
