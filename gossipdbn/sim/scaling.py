"""How far gossip scales: rounds, merges and bytes on virtual time, from costs measured on one machine.

Every worker has one slot and one thread. A round costs its kernel time; before each round the worker merges every
update that has reached it since the last one, at so much CPU time each, no faster than its link carries their bytes.
Workers differ in speed, as real ones do. With relays (protocol section 10) a group's updates reach the others as one
combined update per interval: fewer, larger, later.
"""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from collections import deque
from dataclasses import dataclass

__all__ = ["Costs", "Point", "curve", "scale"]


@dataclass(frozen=True, slots=True)
class Costs:
    """What one machine measured. Seconds of one thread, bytes on the wire.

    Attributes
    ----------
    round_s : kernels of one round of ``round_rows`` rows. publish_s : quantise, encode and digest one update.
    merge_s : decode, check, judge and add one received update; ``combined_s`` the same of a relay's combined one.
    update_bytes, combined_bytes : sizes. link_bytes_per_s : of a worker. latency_s : from send to readable.
    broker_bytes_per_s : what the cluster delivers to all readers together.
    spread : relative standard deviation of workers' speeds.
    """

    round_s: float
    round_rows: int
    publish_s: float
    merge_s: float
    update_bytes: int
    combined_s: float
    combined_bytes: int
    latency_s: float = 0.010
    link_bytes_per_s: float = 125e6
    broker_bytes_per_s: float = 3.75e9
    spread: float = 0.05


@dataclass(frozen=True, slots=True)
class Point:
    """A run of ``slots`` workers. ``speed_up`` against one worker; ``staleness`` in updates a round had not seen.

    ``stale_rounds`` is staleness in rounds of every slot (staleness / slots): the delay that learning feels, comparable
    between sizes. ``limit`` names what costs most.
    """

    slots: int
    relays: int
    rows_per_s: float
    speed_up: float
    efficiency: float
    staleness: float
    stale_rounds: float
    bytes_per_worker_s: float
    merge_share: float
    wait_share: float
    limit: str


def scale(costs: Costs, slots: int, relays: int = 0, rounds: int = 40, seed: int = 1) -> Point:
    """Simulate ``rounds`` rounds per worker. ``relays``: groups whose updates are combined; 0 = full broadcast.

    A relay combines what its group published during one round time, so its updates are that much later.
    """
    rng = random.Random(seed)  # noqa: S311 - dice of a simulation
    pace = [max(0.5, rng.gauss(1.0, costs.spread)) for _ in range(slots)] if slots > 1 else [1.0]
    link = min(costs.link_bytes_per_s, costs.broker_bytes_per_s / slots)
    lag = 2.5 * costs.latency_s + costs.round_s if relays else costs.latency_s
    group = slots / relays if relays else 1.0
    per_bytes, per_s = (costs.combined_bytes, costs.combined_s) if relays else (costs.update_bytes, costs.merge_s)
    merged, seen_s = [0] * slots, [0.0] * slots
    own: list[deque[float]] = [deque() for _ in range(slots)]
    published: list[float] = []
    staleness = received = merging = waiting = 0.0
    queue = [(costs.round_s * rng.random(), w) for w in range(slots)]
    heapq.heapify(queue)
    done, now = 0, 0.0
    while done < slots * rounds:
        now, w = heapq.heappop(queue)
        there = bisect_right(published, now - lag)
        upto = max(merged[w], min(there, merged[w] + int(link * (now - seen_s[w]) / per_bytes * group)))
        behind = there - upto
        if behind > 2 * slots:  # a reader that cannot keep up stops training until it has caught up
            wait = (behind - slots) / group * per_bytes / link
            waiting += wait
            heapq.heappush(queue, (now + wait, w))
            continue
        pieces = (upto - merged[w]) / group
        merge, work = pieces * per_s * pace[w], (costs.round_s + costs.publish_s) * pace[w]
        while own[w] and own[w][0] <= now - lag:
            own[w].popleft()
        staleness += max(0, bisect_right(published, now) - upto - len(own[w]))
        received, merging, done = received + pieces * per_bytes, merging + merge, done + 1
        merged[w], seen_s[w], end = upto, now, now + merge + work
        own[w].append(end)
        _publish(published, end)
        heapq.heappush(queue, (end, w))
    rate = done * costs.round_rows / now
    alone = costs.round_rows / (costs.round_s + costs.publish_s)
    merge_share, wait_share = merging / (slots * now), waiting / (slots * now)
    limit = "kernels" if max(merge_share, wait_share) < 0.1 else "merging" if merge_share >= wait_share else "links"
    return Point(
        slots, relays, rate, rate / alone, rate / alone / slots, staleness / done, staleness / done / slots,
        received / slots / now, merge_share, wait_share, limit,
    )  # fmt: skip


def _publish(published: list[float], at_s: float) -> None:
    """Insert near the end, where it almost always belongs."""
    i = len(published)
    while i and published[i - 1] > at_s:
        i -= 1
    published.insert(i, at_s)


def curve(costs: Costs, sizes: tuple[int, ...], relays_from: int = 8) -> list[Point]:
    """Full broadcast for every size, and the best number of relays for the large ones."""
    out: list[Point] = []
    for slots in sizes:
        out.append(scale(costs, slots))
        if slots >= relays_from:
            tried = [scale(costs, slots, relays) for relays in (1, 2, 4, 8, 16, 32) if 4 * relays <= slots]
            out.append(max(tried, key=lambda p: p.rows_per_s))
    return out
