"""Who hosts what: tests that kill, pause or count must wait until a worker that came up late has its share."""

from __future__ import annotations

from collections import Counter

from gossipdbn.launch.follow import Follower


def evenly_hosted(follower: Follower, *workers: str, number: int = 0) -> bool:
    """Whether these workers (or ``number`` of any names) host the open slots, none more than one more than another."""
    hosted = Counter(c.worker.split("#")[0] for c in follower.replica.chains[:-1] if not c.closed)
    expected = len(hosted) == number and "" not in hosted if number else set(hosted) == set(workers)
    return expected and max(hosted.values()) - min(hosted.values()) <= 1
