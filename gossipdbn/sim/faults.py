"""What each kind of fault does to a world, and how everything heals in the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace

from gossipdbn.core import rounds
from gossipdbn.core.revocation import minus
from gossipdbn.core.slot import RUNNING
from gossipdbn.core.values import (
    GIVEN_UP,
    RESET,
    Claim,
    Revocation,
    SnapshotAnnounced,
)
from gossipdbn.errors import StoreError
from gossipdbn.kernels import codec
from gossipdbn.sim.brokers import CONTROL, SHARDS, UPDATES
from gossipdbn.sim.options import Fault
from gossipdbn.wire.messages import RunWire, decode_control, payload_name

if TYPE_CHECKING:
    from gossipdbn.sim.worker import Worker
    from gossipdbn.sim.world import World

__all__ = ["heal", "strike"]


def strike(world: World, fault: Fault) -> bool:
    """Let a fault happen; False when there is nothing for it to happen to."""
    done = _KINDS[fault.kind](world, fault)
    if done:
        world.say(f"--- {fault.kind}: {done}")
    return bool(done)


def heal(world: World) -> None:
    """From now on nothing breaks: everybody runs, everything can be reached, old software is replaced."""
    world.say("--- faults end")
    world.paused_run = False
    world.poisoned.clear()
    world.log.repeat_until_s = world.store_slow_until_s = 0.0
    world.store.torn_next = False
    for key in world.log.away_until_s:
        world.log.away_until_s[key] = min(world.log.away_until_s[key], world.now_s)
    for w in world.workers:
        if w.alive:
            w.cut_until_s = min(w.cut_until_s, world.now_s)
            w.paused_until_s = min(w.paused_until_s, world.now_s)
            w.pace = 1.0
            if w.damaged or w.name.endswith("-old"):
                world.crashed(w, "replaced")
            else:
                w.wake(0.0)


def _worker(world: World, fault: Fault) -> Worker | None:
    live = [w for w in world.workers if w.alive]
    return live[fault.a % len(live)] if live else None


def _with_worker(act: Callable[[World, Worker, Fault], str]) -> Callable[[World, Fault], str]:
    def on_one(world: World, fault: Fault) -> str:
        worker = _worker(world, fault)
        return act(world, worker, fault) if worker is not None else ""

    return on_one


def _kill(world: World, w: Worker, _: Fault) -> str:
    world.crashed(w, "killed")
    return w.name


def _pause(world: World, w: Worker, f: Fault) -> str:
    w.paused_until_s = world.now_s + 0.05 * f.size
    return f"{w.name} for {0.05 * f.size:.3f} s"


def _zombie(world: World, w: Worker, f: Fault) -> str:
    w.paused_until_s = world.now_s + world.options.session_s * (1 + 3 * f.size)
    others = [m for m in world.members() if m is not w]
    for slot, owner in enumerate(world.owner):
        if owner is w and others:
            at = others[(f.b + slot) % len(others)]
            world.later(world.options.session_s, lambda s=slot, m=at: world.give(s, m) if m.alive else None)  # type: ignore[misc]
    return f"{w.name} until {w.paused_until_s:.3f}"


def _slow(world: World, w: Worker, f: Fault) -> str:
    w.pace = 10.0
    world.later(0.3 * f.size, lambda: setattr(w, "pace", 1.0))
    return w.name


def _leave(world: World, w: Worker, _: Fault) -> str:
    if w.leaving:
        return ""
    world.leave(w)
    return w.name


def _join(world: World, _: Fault) -> str:
    w = world.spawn()
    return w.name if w else ""


def _old(world: World, _: Fault) -> str:
    w = world.spawn(old=True) if world.options.rotate_at_s is not None else None
    return w.name if w else ""


def _move(world: World, f: Fault) -> str:
    members, slot = world.members(), f.b % world.options.slots
    if len(members) < 2:
        return ""
    to = members[f.a % len(members)]
    world.give(slot, to)
    return f"slot {slot} to {to.name}"


def _reset(world: World, f: Fault) -> str:
    awake = [w for w in world.workers if w.alive and world.now_s >= w.paused_until_s]
    running = [(w, s) for w in awake for s in w.host.slots.values() if s.stage == RUNNING]
    just_kept = [(w, s) for w, s in running if s.snapshot_seq == world.checker.replica.chains[s.slot].count > 0]
    chosen = just_kept or running  # a reset where a snapshot was taken is the hard case
    if not chosen:
        return ""
    w, slot = chosen[f.a % len(chosen)]
    w.perform(w.host.reset(slot.slot, "a fault"))
    others = [m for m in world.members() if m is not w]
    if others and f.size < 0.7:  # and its next owner has to go through it
        after_s = 4 * world.options.latency_s + 0.1 * f.size
        world.later(after_s, lambda: world.give(slot.slot, others[f.b % len(others)]))
    return f"{w.name} slot {slot.slot}"


def _cut(world: World, w: Worker, f: Fault) -> str:
    w.cut_until_s = world.now_s + 0.4 * f.size
    return f"{w.name} until {w.cut_until_s:.3f}"


def _broker(world: World, f: Fault) -> str:
    until = world.now_s + 0.3 * f.size
    for key in world.log.away_until_s:
        world.log.away_until_s[key] = until
    return f"until {until:.3f}"


def _partition(world: World, f: Fault) -> str:
    key = (UPDATES, f.a % (world.options.slots + 1))
    world.log.away_until_s[key] = world.now_s + 0.3 * f.size
    return f"{key[1]} until {world.log.away_until_s[key]:.3f}"


def _lose(_: World, w: Worker, f: Fault) -> str:
    w.writer.broken = "a record was given up"
    w.writer.give_up(f.size)
    w.wake(0.0)
    return w.name


def _unacked(_world: World, w: Worker, _: Fault) -> str:
    w.writer.broken = "no acknowledgement"
    w.writer.give_up(1.0)
    w.wake(0.0)
    return w.name


def _repeat(world: World, f: Fault) -> str:
    world.log.repeat_until_s = world.now_s + 0.3 * f.size
    return f"until {world.log.repeat_until_s:.3f}"


def _garbage(world: World, f: Fault) -> str:
    p = f.a % (world.options.slots + 1)
    q = f.b % (world.options.slots + 1)
    records = world.log.records[UPDATES, q]
    raw = bytearray((records[f.b % len(records)].raw if records else b"") or b"gdbn\x01 nothing")
    kind = f.b % 4
    if kind == 1:
        del raw[int(len(raw) * f.size) :]
    elif kind == 2:
        at = 5 + int((len(raw) - 5) * f.size * 0.999)  # not magic and format: an unknown format stops readers for good
        if 5 <= at < 9:
            at = 30  # nor the key id
        raw[min(at, len(raw) - 1)] ^= 1 << (f.a % 8)
    elif kind == 3:
        raw = bytearray(b"\xff" * 40)
    world.log.append(UPDATES, p, bytes(raw), "somebody")
    return f"{('replayed', 'cut', 'damaged', 'noise')[kind]} bytes in partition {p}"


def _slow_store(world: World, f: Fault) -> str:
    world.store_slow_until_s = world.now_s + 0.5 * f.size
    return f"until {world.store_slow_until_s:.3f}"


def _torn(world: World, _: Fault) -> str:
    world.store.torn_next = True
    return "the next object"


def _missing(world: World, f: Fault) -> str:
    names = sorted(n for n in world.store.objects if n.startswith("snapshots/"))
    if not names or any(world.log.first.values()):
        return ""
    world.store.delete(names[f.a % len(names)])
    return names[f.a % len(names)]


def _lost(world: World, f: Fault) -> str:
    """It can be recomputed as long as the log goes back to a snapshot before it."""
    names = sorted(n for n in world.store.objects if n.startswith("payloads/"))
    if not names or any(world.log.first.values()):
        return ""
    name = names[-1 - int(len(names) * f.size**2 * 0.999)]
    world.store.delete(name)
    return name[:20]


def _trim(world: World, _: Fault) -> str:
    """Below a version that every slot's kept snapshots contain; never while a payload is missing."""
    if any(n.startswith("payloads/") and n not in world.store.objects for n in world.store.ever):
        return ""
    kept: dict[int, list[tuple[int, ...]]] = {}
    for record in world.log.records[CONTROL, 0]:
        a = decode_control(record.raw, world.keys)
        if isinstance(a, SnapshotAnnounced) and a.name in world.store.objects:
            kept.setdefault(a.slot, []).append(a.version)
    if len(kept) < world.options.slots:
        return ""
    version = [min(v[p] for vs in kept.values() for v in vs) for p in range(world.options.slots + 1)]
    trimmed = []
    for p, n in enumerate(version):
        offset = next(i for i, c in enumerate(world.checker.partitions[p].chains) if c.count == n)
        if offset > world.log.first[UPDATES, p]:
            world.log.first[UPDATES, p] = offset
            trimmed.append(f"{p} to {offset}")
    return ", ".join(trimmed)


def _damage(world: World, w: Worker, f: Fault) -> str:
    """Between two rounds: what is damaged in a round's hands is in its update, and for replay to find."""

    def strike() -> None:
        if not w.alive:
            return
        if any(s.busy for s in w.host.slots.values()):
            world.later(0.0005, strike)
            return
        w.damaged = True
        acc = w.host.replica.acc
        acc[f.b % acc.size] ^= np.int32(1 << (f.a % 20))
        world.say(f"{w.name} is damaged")

    strike()
    return w.name


def _refeed(world: World, f: Fault) -> str:
    slot = f.a % world.options.slots
    sent = len(world.log.records[SHARDS, slot])
    if not sent or not world.log.reachable((SHARDS, slot)):
        return ""
    index = max(0, min(sent, len(world.feed[slot])) - 1 - f.b % 3)
    for i in range(index, min(sent, len(world.feed[slot]))):
        world.log.append(SHARDS, slot, world.feed[slot][i], "feed")
    return f"slot {slot} from shard {index}"


def _poison(world: World, f: Fault) -> str:
    world.poisoned.add(f.a % world.options.slots)
    return f"slot {f.a % world.options.slots}"


def _stop(world: World, f: Fault) -> str:
    world.paused_run = True
    for w in world.members():
        world.leave(w)
    world.later(0.2 + 0.5 * f.size, lambda: setattr(world, "paused_run", False))
    return "the run"


def _clock(_: World, w: Worker, f: Fault) -> str:
    w.clock_s += (f.size - 0.2) * 2.0
    return f"{w.name} by {(f.size - 0.2) * 2.0:+.2f} s"


def _operator(world: World) -> RunWire:
    return RunWire(1 if world.keys else 0, world.keys)


def _revoke(world: World, f: Fault) -> str:
    slot = f.a % world.options.slots
    part, chain = world.checker.partitions[slot], world.checker.replica.chains[world.options.slots]
    n = len(part.sums) - 1
    if not n:
        return ""
    first = f.b % n
    last = first + int((n - first) * f.size * 0.999)
    total = (part.sums[last + 1] - part.sums[first]).astype(np.int32)
    wire, payload = _operator(world), minus(world.manifest, total)
    m = Revocation("sim", chain.count, slot, first, last, codec.digest(-total), payload)
    if sum(len(p.data) for p in payload) > world.manifest.inline_bytes:
        ref, data = wire.pack_payload(payload)
        try:
            world.store.put(payload_name(ref), data, world.store_time())
        except StoreError:
            return ""
        m = replace(m, payload=None, payload_ref=ref)
    world.log.append(UPDATES, world.options.slots, wire.encode(m), "operator")
    return f"updates {first}..{last} of slot {slot}"


def _give_up(world: World, f: Fault) -> str:
    """The operator claims and closes; its two records race with everybody's."""
    slot = f.a % world.options.slots
    chain = world.checker.replica.chains[slot]
    if chain.closed:
        return ""
    wire = _operator(world)
    claim = wire.encode(Claim("sim", slot, chain.incarnation + 1, "operator", RESET, wire.key_id, 1))
    world.log.append(UPDATES, slot, claim, "operator")

    def close() -> None:
        now = world.checker.replica.chains[slot]
        if now.worker != "operator" or now.closed:
            return
        state = rounds.fresh_state(world.manifest, slot, now)
        replica = world.checker.replica
        version = tuple(max(a, b) for a, b in zip(now.start_version, replica.version, strict=True))
        m = rounds.closing(world.manifest, state, replica.digest(), version, GIVEN_UP, note="nobody runs it")
        world.log.append(UPDATES, slot, wire.encode(m), "operator")

    world.later(world.delay(), close)
    return f"slot {slot}"


_KINDS: dict[str, Callable[[World, Fault], str]] = {
    "kill": _with_worker(_kill),
    "pause": _with_worker(_pause),
    "zombie": _with_worker(_zombie),
    "slow": _with_worker(_slow),
    "leave": _with_worker(_leave),
    "join": _join,
    "old": _old,
    "move": _move,
    "reset": _reset,
    "cut": _with_worker(_cut),
    "broker": _broker,
    "partition": _partition,
    "lose": _with_worker(_lose),
    "unacked": _with_worker(_unacked),
    "repeat": _repeat,
    "garbage": _garbage,
    "slow-store": _slow_store,
    "torn": _torn,
    "missing": _missing,
    "trim": _trim,
    "damage": _with_worker(_damage),
    "refeed": _refeed,
    "poison": _poison,
    "stop": _stop,
    "clock": _with_worker(_clock),
    "revoke": _revoke,
    "give-up": _give_up,
    "lost": _lost,
}
