"""Lost payloads in the simulated world, put back by the production's mender, and a judge of what comes back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gossipdbn.core.events import Effect, Recover, Report
from gossipdbn.core.mending import Mender, Recovery
from gossipdbn.core.revocation import Subtraction
from gossipdbn.core.values import PayloadRef, Revocation
from gossipdbn.errors import StoreError
from gossipdbn.sim.checkers import Violation
from gossipdbn.wire.messages import payload_name

if TYPE_CHECKING:
    from gossipdbn.sim.worker import Worker

__all__ = ["mend", "mender", "put_back"]

MEND_S = 0.05
AGAIN_S = 0.2


def mender(w: Worker) -> Mender:
    """A worker's mender, with this world's log, store and rows behind it."""

    def recovery(effect: Recover) -> Recovery:
        return w.resume(effect, mend=True)[0]

    def subtraction(m: Revocation) -> Subtraction:
        return Subtraction(w.world.manifest, m, w.wire, w.record, w.fetch)

    return Mender(w.host, w.wire, recovery, subtraction, w.put_back, MEND_S, AGAIN_S)


def mend(w: Worker) -> list[Effect]:
    """A step of the mender, for what the worker's partitions and recoveries wait for."""
    lacking = [r.lacks for r, _ in w.recoveries.values() if r.lacks is not None]
    effects = w.mender.turn([*w.holds.values(), *lacking], w.world.now_s)
    for effect in effects:
        if isinstance(effect, Report) and effect.kind == "lost" and not any(w.world.log.first.values()):
            raise Violation(f"{w.name} slot {effect.slot}: {effect.text}, though the log holds everything")
    return effects


def put_back(w: Worker, ref: PayloadRef, data: bytes) -> None:
    """Store a recomputed payload: the bytes that were there before, and no others."""
    name = payload_name(ref)
    if w.world.store.ever.get(name) != data:
        raise Violation(f"{w.name} puts {name} back with other bytes than it had")
    w.world.say(f"{w.name} puts {name[:20]} back")
    with contextlib.suppress(StoreError):
        w.world.store.put(name, data, w.world.store_time())
