"""Who hosts what: tests that kill, pause or count must wait until a worker that came up late has its share."""

from __future__ import annotations

from collections import Counter

from gossipdbn.launch.follow import Follower


def evenly_hosted(follower: Follower, *workers: str) -> bool:
    """Whether exactly these workers host the slots that are open, and none has more than one slot more than another."""
    hosted = Counter(c.worker.split("#")[0] for c in follower.replica.chains[:-1] if not c.closed)
    return set(hosted) == set(workers) and max(hosted.values()) - min(hosted.values()) <= 1
