"""The simulator's eyes: every deliberate bug in the core is seen in a scene, or within 300 seeds."""

from __future__ import annotations

import builtins
import copy
import itertools
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from gossipdbn.core import chain as chains
from gossipdbn.core import replica as replicas
from gossipdbn.core import rounds
from gossipdbn.core.acks import Acks
from gossipdbn.core.events import Logged, SnapshotWhole
from gossipdbn.core.host import Host
from gossipdbn.core.recompute import Recomputation
from gossipdbn.core.replica import Replica
from gossipdbn.core.slot import RUNNING, Slot
from gossipdbn.core.sums import Sum
from gossipdbn.core.values import RESET, Accepted, Claim, Malformed, Unknown, Update, Void
from gossipdbn.kernels import codec
from gossipdbn.sim import worker as workers
from gossipdbn.sim.brokers import SHARDS
from gossipdbn.sim.options import draw
from gossipdbn.sim.run import run_one
from gossipdbn.wire.messages import RunWire
from tests.sim.test_transcripts import SCENES

SEEDS = 300
Patch = pytest.MonkeyPatch


def double_apply(patch: Patch) -> None:
    """A record that arrives twice is void, and its deltas are added all the same."""
    read = Replica.read

    def twice(self, partition, offset, raw, fetched=None, own=None):
        verdict = read(self, partition, offset, raw, fetched, own)
        if isinstance(verdict, Void) and isinstance(verdict.message, Update):
            payload = verdict.message.payload or fetched
            if payload and verdict.message.seq == self.chains[partition].count - 1:
                replicas.add_payload(self.manifest, self.acc, payload)
        return verdict

    patch.setattr(Replica, "read", twice)


def lost_residual(patch: Patch) -> None:
    """Whoever recovers from a snapshot begins with an empty residual."""
    decode = workers.decode_snapshot

    def without(manifest, data, sha256):
        snapshot = decode(manifest, data, sha256)
        snapshot.state.residual[:] = 0
        return snapshot

    patch.setattr(workers, "decode_snapshot", without)


def missing_fence(patch: Patch) -> None:
    """An update is accepted by its seq alone, whoever owns the slot by now."""

    def order(manifest, chain, m, sealed):
        return "" if (m.seq, m.phase, m.step) == (chain.count, chain.phase, chain.step) else "out of order"

    patch.setattr(chains, "_update_order", order)


def merge_at_the_wrong_version(patch: Patch) -> None:
    """An update names the version at its publication, not the one its round started from."""
    trained = Slot.trained

    def late(self, event):
        if self.state is not None and self.busy:
            event.job.start_version = self.version()
        return trained(self, event)

    patch.setattr(Slot, "trained", late)


def wrong_phase_switch(patch: Patch) -> None:
    """A slot leaves its phase as soon as another one has."""
    next_round = Slot._round

    def hurried(self, state, version):
        ahead = any(c.phase > state.phase for c in self._replica.chains[:-1])
        if ahead and self.ended and state.phase < len(self._manifest.phases) - 1:
            return self._publish_closing(state, version, rounds.CLOSES_PHASE)
        return next_round(self, state, version)

    patch.setattr(Slot, "_round", hurried)


def non_atomic_snapshot(patch: Patch) -> None:
    """A snapshot is announced while it is still being written under its own name."""
    stored = workers.Worker._stored

    def halfway(self, announced, data):
        stored(self, announced, data[: len(data) // 2])
        self.world.later(0.05, lambda: self.world.store.objects.update({announced.name: data}))

    patch.setattr(workers.Worker, "_stored", halfway)


def snapshot_of_a_dead_branch(patch: Patch) -> None:
    """A copied state is stored before its updates are read back; recovery takes any."""
    whole = Slot._snapshot_whole

    def at_once(self):
        chain = self._replica.chains[self.slot]
        if self._copied is None or chain.count == self._copied:
            return whole(self)
        for p in self.pending:
            verdict = chains.judge(self._manifest, chain, self.slot, self._wire.decode(p.sealed.raw), p.payload)
            if isinstance(verdict, Accepted):
                chain = chains.fold(self._manifest, chain, p.sealed.raw, verdict)
        self._copied = None
        return [SnapshotWhole(self.slot, chain)]

    patch.setattr(Slot, "_snapshot_whole", at_once)


def owner_of_a_void_claim_goes_on(patch: Patch) -> None:
    """Reading its claim back is enough for an owner; the verdict is not."""
    read = Slot._claim_read

    def anyway(self, raw, verdict):
        if raw == self._claim and isinstance(verdict, Void):
            verdict = Accepted(verdict.message)
        return read(self, raw, verdict)

    patch.setattr(Slot, "_claim_read", anyway)


def round_remade_under_the_same_claim(patch: Patch) -> None:
    """After a failed send an owner makes its pending rounds again, without claiming anew."""
    publish, drop = Slot._publish, Slot.drop

    def remember(self, state, update, version):
        if not self.pending:
            self._before = copy.deepcopy(state)
        return publish(self, state, update, version)

    def again(self, why, mode=0):
        if "send failed" in why and self.stage == RUNNING and self.pending and not self.busy:
            self.state = self._before
            self.pending.clear()
            return []
        return drop(self, why, mode)

    patch.setattr(Slot, "_publish", remember)
    patch.setattr(Slot, "drop", again)


def skipped_claim(patch: Patch) -> None:
    """A reader steps over claims that it does not need."""
    fold = chains.fold

    def over(manifest, chain, raw, verdict):
        if isinstance(verdict, Accepted) and isinstance(verdict.message, Claim) and chain.count:
            verdict = Void("not mine")
        return fold(manifest, chain, raw, verdict)

    patch.setattr(chains, "fold", over)


def unknown_format_rejected(patch: Patch) -> None:
    """A reader that does not know a key takes the record for void."""
    decode = RunWire.decode

    def strict(self, raw):
        decoded = decode(self, raw)
        return Malformed(decoded.reason) if isinstance(decoded, Unknown) else decoded

    patch.setattr(RunWire, "decode", strict)


def pending_shared_between_cohosted_slots(patch: Patch) -> None:
    """A round starts from what all slots of the worker have pending."""
    assigned, sent = Host._assigned, Slot._sent

    def together(self, slot):
        effects = assigned(self, slot)
        for s in self.slots.values():
            s.others = self.slots
        return effects

    def shared(self):
        return [d for other in {**self.others, self.slot: self}.values() for d in sent(other)]

    patch.setattr(Host, "_assigned", together)
    patch.setattr(Slot, "_sent", shared)
    patch.setattr(Slot, "_check_memory", lambda *_: None)


def lent_once_in_the_sum_for_ever(patch: Patch) -> None:
    """What a round was lent beyond the sum is left there, whether it came back or not."""
    settled = Sum._with

    def kept(self, beyond):
        self._beyond = []
        return settled(self, beyond)

    patch.setattr(Sum, "_with", kept)
    patch.setattr(Slot, "_check_memory", lambda *_: None)


def carried_digest(patch: Patch) -> None:
    """The stated digest is carried along with the log instead of computed from memory."""
    carried: list[int] = []
    next_round = Slot._round

    def carrying(self, state, version):
        expected = self._replica.expected_digest(self._replica.version)
        carried.append((expected + sum(chains.digest_of(p.deltas) for p in self.pending)) % (1 << 64))
        try:
            return next_round(self, state, version)
        finally:
            carried.pop()

    def digest(acc, base=0):
        return carried[-1] if carried else codec.digest(acc, base)

    def measured(acc):
        computed, largest = codec.measured(acc)
        return (carried[-1] if carried else computed), largest

    patch.setattr(Slot, "_round", carrying)
    patch.setattr(rounds, "codec", SimpleNamespace(**{**vars(codec), "digest": digest, "measured": measured}))


def reset_ignored_at_a_snapshot(patch: Patch) -> None:
    """A reset that stands where a snapshot was taken does not empty the snapshot's state."""
    again, claimed = Recomputation._again, Recomputation._claimed

    def counting(self, *args):
        self.moved = True
        return again(self, *args)

    def at_the_snapshot(self, claim):
        if claim.mode == RESET and not hasattr(self, "moved"):
            claim = Claim(*(getattr(claim, f) if f != "mode" else 0 for f in claim.__struct_fields__))
        claimed(self, claim)

    patch.setattr(Recomputation, "_again", counting)
    patch.setattr(Recomputation, "_claimed", at_the_snapshot)


def acknowledged_wherever_it_stands(patch: Patch) -> None:
    """An own record counts as the next one though others stand before it."""

    def acknowledged(self, event):
        offset = self.replica.chains[event.partition].offset
        return self._logged(Logged(event.partition, offset, event.raw)) if event.offset >= offset else []

    patch.setattr(Host, "_acknowledged", acknowledged)


def a_silent_partition_stays_unread(patch: Patch) -> None:
    """Who reads a partition by its acknowledgements alone hears nothing of its next owner."""
    patch.setattr(Acks, "quiet", lambda *_: [])


def end_mark_out_of_band(patch: Patch) -> None:
    """Workers learn of the end of data beside the partition, not in it."""
    arrived = workers.Worker._rows_arrived

    def told(self, slot, view):
        fed = len(self.world.log.records[SHARDS, slot]) >= len(self.world.feed[slot])
        early = SimpleNamespace(rows=view.rows, ended=view.ended or (fed and view.rows > 0))
        arrived(self, slot, early)

    patch.setattr(workers.Worker, "_rows_arrived", told)


MUTATIONS: list[Callable[[Patch], None]] = [
    double_apply,
    lost_residual,
    missing_fence,
    merge_at_the_wrong_version,
    wrong_phase_switch,
    non_atomic_snapshot,
    snapshot_of_a_dead_branch,
    owner_of_a_void_claim_goes_on,
    round_remade_under_the_same_claim,
    skipped_claim,
    unknown_format_rejected,
    pending_shared_between_cohosted_slots,
    lent_once_in_the_sum_for_ever,
    carried_digest,
    reset_ignored_at_a_snapshot,
    acknowledged_wherever_it_stands,
    a_silent_partition_stays_unread,
    end_mark_out_of_band,
]


def first_caught(seeds: int = SEEDS) -> str:
    """What the first scene says that notices, or the first seed."""
    for options in itertools.chain(SCENES.values(), map(draw, range(seeds))):
        violation = run_one(options)[1]
        if violation:
            assert not hasattr(builtins, violation.partition(" in ")[0]), f"the bug is in this test: {violation}"
            return violation
    return ""


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.__name__)
def test_a_deliberate_bug_is_caught(mutation: Callable[[Patch], None], monkeypatch: Patch) -> None:
    mutation(monkeypatch)
    assert first_caught(), f"{mutation.__name__} ({mutation.__doc__}) was seen in no scene and not in {SEEDS} seeds"
