"""Mutated records, payloads and snapshots: no crash, no wrong acceptance, bounded memory.

    python -m tests.wire.fuzz 1000000

Most mutants are sealed again after the damage, so that they get to the schema, the judge and the codec.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import resource
import struct
import time
from collections import Counter
from pathlib import Path

import numpy as np

from gossipdbn.core import chain as chains
from gossipdbn.core import events as ev
from gossipdbn.core.values import Accepted, Malformed, Sealed, Undecided, Unknown, Update, Void
from gossipdbn.errors import SnapshotError
from gossipdbn.wire import envelope
from gossipdbn.wire.messages import RunWire, decode_payload
from gossipdbn.wire.snapshots import decode_snapshot, encode_snapshot
from tests.core.making import WIRE, Author, a_manifest

KEYS = {1: b"k" * 16}
MEMORY_MIB = 256


def material() -> tuple[Author, list[tuple[int, chains.Chain, bytes]], list[tuple[object, bytes]], bytes]:
    """Valid records with the chain before each, spilled payloads, a snapshot."""
    author = Author(a_manifest(codec=1))
    records: list[tuple[int, chains.Chain, bytes]] = []

    def note(slot, write):
        before = author.replica.chains[slot]
        records.append((slot, before, write()))

    for slot in (0, 1):
        note(slot, lambda s=slot: author.claim(s))
        for i in range(3):
            note(slot, lambda s=slot, i=i: author.update(s, 1, spill=i == 1))
        note(slot, lambda s=slot: author.close(s))
    s = author.states[0]
    snapshot = ev.Snapshot(0, author.replica.acc.copy(), tuple(author.replica.chains), s, author.replica.digest())
    return author, records, list(author.objects.items()), encode_snapshot(author.manifest, snapshot)


INTERESTING = (
    *(
        b"\x00",
        b"\xc0",
        b"\xc3",
        b"\x7f",
        b"\x92\x92",
        b"\xc7\xff\x01",
        b"\xdd\xff\xff\xff\xff",
        b"\xdb\x7f\xff\xff\xff",
    ),
    *(b"\xcf" + b"\xff" * 8, b"\xcb\x7f\xf0" + bytes(6), b"\xd3\x80" + bytes(7)),
)


def mutate(rng: random.Random, data: bytes) -> bytes:
    """One to four small damages."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(out) + 1)
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[at % len(out)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : at + rng.choice((1, 1, 4, 40))]
        elif kind == 2:
            out[at:at] = rng.choice(INTERESTING)
        elif kind == 3 and out:
            out[at % len(out)] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
        elif kind == 4:
            out[at:at] = out[rng.randrange(len(out) + 1) :][: rng.choice((1, 8, 50))]
        elif len(out) > 8:
            at %= len(out) - 4
            out[at : at + 4] = struct.pack("<I", rng.choice((0, 1, 1 << 31, (1 << 32) - 1)))
    return bytes(out)


class Fuzzer:
    """Counts what mutants became; raises AssertionError when one passes that must not."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = random.Random(seed)
        self.author, self.records, self.objects, self.snapshot = material()
        self.manifest = self.author.manifest
        self.seen: Counter[str] = Counter()
        self.keyed = RunWire(1, KEYS)

    def record(self) -> None:
        """Damage under the seal (a peer's bug) or of the seal (an accident or a forger)."""
        slot, before, raw = self.rng.choice(self.records)
        if self.rng.random() < 0.2:
            damaged = mutate(self.rng, raw)
            decoded = WIRE.decode(damaged)
            assert damaged == raw or not isinstance(decoded, Sealed), f"a damaged seal passed: {damaged.hex()}"
            self.seen[type(decoded).__name__] += 1
            return
        body = mutate(self.rng, envelope.open_(raw).body)
        damaged = envelope.seal(body)
        decoded = WIRE.decode(damaged)
        fetched = self._fetched(decoded)
        verdict = chains.judge(self.manifest, before, slot, decoded, fetched)
        self.seen[type(verdict).__name__] += 1
        if isinstance(verdict, Accepted):
            self._acceptable(before, slot, damaged, verdict, fetched)
        else:
            assert isinstance(verdict, Void | Undecided)

    def _fetched(self, decoded):
        if (
            isinstance(decoded, Sealed)
            and isinstance(decoded.message, Update)
            and decoded.message.payload_ref is not None
        ):
            data = dict(self.objects).get(decoded.message.payload_ref)
            return None if data is None else decode_payload(decoded.message.payload_ref, data)
        return None

    def _acceptable(self, before, slot, raw, verdict, fetched) -> None:
        """What is accepted continues the chain by every rule and can be merged."""
        m = verdict.message
        after = chains.fold(self.manifest, before, raw, verdict)
        assert m.run == self.manifest.run and m.slot == slot
        if isinstance(m, Update):
            assert (m.prev, m.seq, m.phase, m.step) == (before.tip, before.count, before.phase, before.step)
            payload = m.payload if m.payload is not None else fetched
            assert chains.payload_digest(self.manifest, payload) == m.digest
            assert verdict.start_version[slot] == m.seq and min(m.advance) >= 0
            assert after.count == before.count + 1
        else:
            assert m.incarnation == before.incarnation + 1 == after.incarnation

    def forged(self) -> None:
        """Nothing passes without the key."""
        raw = self.rng.choice(self.records)[2]
        sealed = self.keyed.encode(WIRE.decode(raw).message)
        damaged = mutate(self.rng, sealed)
        decoded = self.keyed.decode(damaged)
        fine = isinstance(decoded, Malformed | Unknown) or damaged == sealed
        assert fine or decoded.key_id != 1, f"forged: {damaged.hex()}"
        self.seen[type(decoded).__name__] += 1

    def payload(self) -> None:
        """Objects of the store: either the bytes named, or nothing, or what no manifest allows."""
        ref, data = self.rng.choice(self.objects)
        damaged = mutate(self.rng, data)
        assert damaged == data or decode_payload(ref, damaged) is None
        named = ref._replace(sha256=hashlib.sha256(damaged).digest(), size=len(damaged))
        payload = decode_payload(named, damaged)
        try:
            chains.payload_digest(self.manifest, payload)
            self.seen["payload parsed"] += 1
        except (ValueError, IndexError):
            self.seen["payload refused"] += 1

    def snapshots(self) -> None:
        """With the right hash of the wrong bytes, a snapshot is refused or is consistent in itself."""
        damaged = self._damaged_snapshot()
        try:
            s = decode_snapshot(self.manifest, damaged, hashlib.sha256(damaged).digest())
        except SnapshotError as e:
            self.seen[type(e).__name__] += 1
            return
        assert s.state.seq == s.chains[s.slot].count and s.parameters.dtype == np.int32
        self.seen["snapshot consistent"] += 1

    def _damaged_snapshot(self) -> bytes:
        if self.rng.random() < 0.5:
            return mutate(self.rng, self.snapshot)
        (n,) = struct.unpack_from("<Q", self.snapshot)
        header = json.loads(self.snapshot[8 : 8 + n])
        inner = mutate(self.rng, header["__metadata__"]["gossipdbn"].encode()).decode("utf-8", "replace")
        header["__metadata__"]["gossipdbn"] = inner
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + self.snapshot[8 + n :]

    def run(self, count: int) -> Counter[str]:
        for i in range(count):
            kind = i % 10
            (
                self.snapshots
                if kind == 9
                else self.payload
                if kind == 8
                else self.forged
                if kind == 7
                else self.record
            )()
        return self.seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", nargs="?", type=int, default=1_000_000, help="mutants")
    parser.add_argument("--json", type=Path, help="write the result here too")
    args = parser.parse_args()
    count = args.count
    fuzzer = Fuzzer(0)
    fuzzer.run(2000)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    seen = fuzzer.run(count)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    seconds = time.perf_counter() - began
    found = {"mutants": count, "seconds": round(seconds, 1), "grown_mib": round(grown, 1), "became": dict(seen)}
    print(json.dumps(found))
    if args.json is not None:
        args.json.write_text(json.dumps(found, indent=1) + "\n")
    assert grown < MEMORY_MIB, f"memory grew by {grown:.0f} MiB"


if __name__ == "__main__":
    main()
