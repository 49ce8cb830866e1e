"""Random schedules of the executable model, healed at their end: the run must finish and everybody agree.

python -m tests.model.schedules 2000
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable

from tests.model.protocol_model import Broken, Setting, Update, Watch, World


def draw(rng: random.Random) -> Setting:
    slots = rng.choice((1, 2, 2, 3))
    rows = tuple(rng.choice((0, 1, 3, 6, 9)) for _ in range(slots))
    epochs = rng.choice(((1, 1), (1, 2), (2,), (2, 1)))
    take, window, faults = rng.choice((1, 2)), rng.choice((1, 2, 3)), rng.choice((0, 4, 16, 40))
    return Setting(slots, rng.choice((1, 2, 3)), rows, epochs, take, window, faults)


def actions(g: World, rng: random.Random) -> list[tuple[Callable[[], bool], bool]]:
    """What could happen next, each with whether it is a fault."""
    out: list[tuple[Callable[[], bool], bool]] = []
    for w in g.workers:
        out += [(lambda w=w, p=p: g.deliver(w, p), False) for p in {q for q, _ in w.flight}]
        if not w.alive:
            out.append((lambda w=w: g.lose(w), False))
            continue
        if w.paused:
            out.append((lambda w=w: not setattr(w, "paused", False), False))
            continue
        out += [(lambda w=w, p=p: g.read(w, p), False) for p in range(len(g.log))] * 2
        out.append((lambda w=w: g.send(w), False))
        for p in w.assigned | set(w.owners):
            acts = (g.recover, g.work, g.work, g.keep)
            out += [(lambda a=a, w=w, p=p: a(w, p), False) for a in acts]
            reset = rng.random() < 0.2
            out.append((lambda w=w, p=p, r=reset: g.claim(w, p, r), False))
            out.append((lambda w=w, p=p: g.timeout(w, p), True))
        out.append((lambda w=w: g.crash(w), True))
        out.append((lambda w=w: not setattr(w, "paused", True), True))
    for p in range(g.setting.slots):
        out.append((lambda p=p: g.revoke(p), True))
        out += [(lambda p=p, w=w: g.move(p, w), True) for w in g.workers]
    return out


def heal(g: World) -> None:
    """Faults end: the run must end, and everybody agrees."""
    for w in g.workers:
        w.paused = False
    if not any(w.alive for w in g.workers):
        g.join()
    alive = [w for w in g.workers if w.alive]
    for p, name in enumerate(g.hosts):
        if not g.workers[name].alive:
            g.move(p, alive[p % len(alive)])
    for _ in range(500):
        moved = False
        for w in g.workers:
            while w.flight:
                moved = g.deliver(w, w.flight[0][0])
            for p in range(len(g.log)) if w.alive else ():
                while g.read(w, p):
                    moved = True
                if p < g.setting.slots:
                    moved |= g.claim(w, p) or g.recover(w, p) or g.work(w, p)
            while w.alive and w.queue:
                moved = g.send(w)
        if not moved:
            break
    if not all(t.closed for t in g.truth[:-1]):
        raise Broken("the run does not end")
    if {w.version for w in alive} != {tuple(t.count for t in g.truth)}:
        raise Broken("final versions differ")
    for p, t in enumerate(g.truth[:-1]):
        trained = sum(u.rows[2] for u in t.accepted if isinstance(u, Update))
        if trained != g.setting.rows[p] * sum(g.setting.epochs):
            raise Broken(f"slot {p} trained {trained} rows")


def run(seed: int, watch: Watch = lambda *_: None, steps: int | None = None) -> World:
    """One random schedule, healed at its end; raises Broken."""
    rng = random.Random(seed)
    g = World(draw(rng), watch)
    wanted, pace = steps or rng.choice((60, 150, 300)), rng.choice((0.02, 0.1, 0.4))
    for _ in range(10 * wanted):
        act, fault = rng.choice(actions(g, rng))
        if fault and (g.faults <= 0 or rng.random() > pace):
            continue
        done = act()
        g.faults -= done and fault
        wanted -= done
        if not wanted:
            break
        if len(g.workers) < 5 and rng.random() < 0.01:
            g.join()
    heal(g)
    return g


if __name__ == "__main__":
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    records = sum(sum(map(len, run(seed).log)) for seed in range(count))
    print(f"{count} schedules, {records} records, no violation")
