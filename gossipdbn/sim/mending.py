"""Lost payloads in the simulated world, put back as in the real one, and a judge of what comes back."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from gossipdbn.core.events import Hold
from gossipdbn.core.resume import beyond
from gossipdbn.core.values import PayloadRef
from gossipdbn.errors import LogError, RetentionError, StoreError
from gossipdbn.sim.checkers import Violation
from gossipdbn.wire.messages import payload_name

if TYPE_CHECKING:
    from gossipdbn.sim.worker import Worker

__all__ = ["mend", "put_back"]

MEND_S = 0.05


def mend(w: Worker, hold: Hold) -> None:
    """A payload that does not come is stored again by who has it, or recomputed: a round per call."""
    p, waited_s = hold.partition, w.world.now_s - w.held_s[hold.partition]
    if hold.wants is None or p == w.world.options.slots:
        return
    if waited_s < (MEND_S if p in w.host.slots else 3 * MEND_S):
        return
    payload = w.host.under_way(p, hold.raw)
    if payload is not None:
        put_back(w, *w.wire.pack_payload(payload))
        return
    if p not in w.mends:
        w.mends[p] = w.resume(beyond(p, w.host.replica.chains[p], hold.raw), mend=True)[0]
    try:
        outcome = w.mends[p].advance()
    except (LogError, StoreError) as e:
        if isinstance(e, RetentionError):
            raise
        return
    if outcome is not None:
        del w.mends[p]
        if outcome.state is None and not any(w.world.log.first.values()):
            raise Violation(f"{w.name} cannot recompute a payload, though the log holds all: {outcome.reason}")


def put_back(w: Worker, ref: PayloadRef, data: bytes) -> None:
    """Store a recomputed payload: the bytes that were there before, and no others."""
    name = payload_name(ref)
    if w.world.store.ever.get(name) != data:
        raise Violation(f"{w.name} puts {name} back with other bytes than it had")
    w.world.say(f"{w.name} puts {name[:20]} back")
    with contextlib.suppress(StoreError):
        w.world.store.put(name, data, w.world.store_time())
