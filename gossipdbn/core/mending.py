"""Payloads that the store has lost: which one to compute again, and when.

A partition whose next record names a payload that is not to be had is stopped for every reader, at its owner as well
and for whoever shall own it next; so is a recovery that comes upon one. Whoever still has the payload stores it again;
else an update's is recomputed like any round, from a snapshot or from the start of the log, and a revocation's is added
up from the updates it names: the bytes are named by their sha256, so it does not matter who does it, or how many.

What computes a payload may itself come upon one that is gone. That one comes first; it is older, so there is an end.
Hosts of the slot concerned begin after a while, others after three times as long.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from gossipdbn.core.events import Effect, Hold, Recover, Recovered, Report, Wire
from gossipdbn.core.host import Host
from gossipdbn.core.recompute import Remade
from gossipdbn.core.resume import beyond
from gossipdbn.core.revocation import Subtraction
from gossipdbn.core.values import PayloadRef, Revocation, Sealed, Update
from gossipdbn.errors import LogError, StoreError

__all__ = ["Mender", "Recovery"]

OTHERS_WAIT = 3
AGAIN_S = 60.0
SOON = 0.1


class Recovery(Protocol):
    """Recomputes rounds, one per call; ``lacks``: the record whose payload it waits for, after a retryable error."""

    @property
    def lacks(self) -> Hold | None: ...

    def advance(self) -> Recovered | None: ...


@dataclass(slots=True)
class _Gap:
    """A missing payload: the record that names it, since when, and the one that its computation came upon."""

    hold: Hold
    message: Update | Revocation
    since_s: float
    not_before_s: float = 0.0
    needs: Hold | None = None
    tries: int = 0


class Mender:
    """Computes what is missing, one payload at a time and a step per turn.

    Parameters
    ----------
    recovery : makes a recovery that gives ``keep`` the payloads it recomputed.
    subtraction : makes what adds up a revocation's.
    keep : puts a payload into the store, and tries until it is there.
    after_s : how long a payload may be missing before the slot's host does something about it.
    again_s : how long to wait, at most, before what did not help is tried again.
    """

    def __init__(
        self,
        host: Host,
        wire: Wire,
        recovery: Callable[[Recover], Recovery],
        subtraction: Callable[[Revocation], Subtraction],
        keep: Remade,
        after_s: float,
        again_s: float = AGAIN_S,
    ) -> None:
        self._host, self._wire, self._keep = host, wire, keep
        self._recovery, self._subtraction = recovery, subtraction
        self._after_s, self._again_s = after_s, again_s
        self._gaps: dict[PayloadRef, _Gap] = {}
        self._work: tuple[PayloadRef, Recovery | Subtraction] | None = None

    @property
    def busy(self) -> bool:
        """There is more to do at once."""
        return self._work is not None

    def turn(self, holds: Iterable[Hold], now_s: float) -> list[Effect]:
        """One step more, for one of the payloads that ``holds`` wait for; effects are reports."""
        self._watch(holds, now_s)
        if self._work is None:
            due = min(((self._due_s(g), ref) for ref, g in self._gaps.items()), default=None)
            return self._begin(due[1], now_s) if due is not None and due[0] <= now_s else []
        return self._advance(*self._work, now_s)

    def _watch(self, holds: Iterable[Hold], now_s: float) -> None:
        """Keep to what is waited for, and to what the computation of that waits for."""
        wanted = [h for h in holds if h.wants is not None]
        gaps: dict[PayloadRef, _Gap] = {}
        while wanted:
            hold = wanted.pop()
            if hold.wants is None or hold.wants in gaps:
                continue
            gap = self._gaps.get(hold.wants) or self._new(hold, now_s)
            if gap is not None:
                gaps[hold.wants] = gap
                wanted += [gap.needs] if gap.needs is not None else []
        self._gaps = gaps
        if self._work is not None and self._work[0] not in gaps:
            self._work = None

    def _new(self, hold: Hold, now_s: float) -> _Gap | None:
        decoded = self._wire.decode(hold.raw)
        message = decoded.message if isinstance(decoded, Sealed) else None
        if not isinstance(message, Update | Revocation):
            return None
        return _Gap(hold, message, now_s)

    def _due_s(self, gap: _Gap) -> float:
        patience = 1 if gap.message.slot in self._host.slots else OTHERS_WAIT
        return max(gap.since_s + patience * self._after_s, gap.not_before_s)

    def _begin(self, ref: PayloadRef, now_s: float) -> list[Effect]:
        gap = self._gaps[ref]
        hold, m = gap.hold, gap.message
        payload = self._host.under_way(hold.partition, hold.raw)
        if payload is not None:
            gap.not_before_s = now_s + self._again_s
            self._keep(*self._wire.pack_payload(payload))
            return []
        if isinstance(m, Revocation):
            self._work = ref, self._subtraction(m)
            return [Report("mends", m.slot, f"adding up revocation {m.number} again, its payload is gone")]
        self._work = ref, self._recovery(beyond(self._host.replica.manifest, hold, m))
        return [Report("mends", m.slot, f"recomputing update {m.seq}, its payload is gone")]

    def _advance(self, ref: PayloadRef, work: Recovery | Subtraction, now_s: float) -> list[Effect]:
        gap = self._gaps[ref]
        try:
            outcome = work.advance()
        except (LogError, StoreError) as e:
            if not e.retryable:
                return self._cannot(gap, str(e), now_s)
            gap.tries, gap.needs, self._work = gap.tries + 1, work.lacks, None
            gap.not_before_s = now_s + min(self._again_s, self._after_s * 2 ** min(gap.tries - 1, 10))
            return [Report("waits", gap.message.slot, f"a payload that is gone: {e}")]
        if outcome is None:
            return []
        if isinstance(outcome, Recovered):
            if outcome.state is None:
                return self._cannot(gap, outcome.reason, now_s)
        else:
            found, data = self._wire.pack_payload(outcome)
            if found != ref:
                return self._cannot(gap, "it is not minus the sum of the updates it names", now_s)
            self._keep(found, data)
        self._ended(gap, now_s)
        for other in self._gaps.values():
            if other.needs is not None and other.needs.wants == ref:
                other.not_before_s, other.tries = now_s + SOON * self._after_s, 0
        return []

    def _cannot(self, gap: _Gap, why: str, now_s: float) -> list[Effect]:
        self._ended(gap, now_s)
        return [Report("lost", gap.message.slot, f"a payload cannot be recomputed here: {why}")]

    def _ended(self, gap: _Gap, now_s: float) -> None:
        self._work, gap.needs, gap.not_before_s = None, None, now_s + self._again_s
