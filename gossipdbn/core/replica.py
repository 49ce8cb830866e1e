"""The whole idea on one screen: the model is an exact integer sum of the updates in a log.

A replica starts from the manifest's initial parameters and reads the updates topic, each partition in order. A record
is accepted, void, or undecided (``chain.py`` says when); an accepted update's integers are added. Addition commutes, so
two replicas that contain the same updates are equal bit for bit, whatever order they read them in. ``version`` says
what is contained: one count per partition. Nothing else ever changes a parameter, a worker's own updates included:
they count when the log has them, like everybody's.
"""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import chain as chains
from gossipdbn.core.sums import Sum
from gossipdbn.core.values import (
    Accepted,
    Claim,
    Decoded,
    Manifest,
    Payload,
    Pending,
    Undecided,
    Update,
    Verdict,
    Version,
)
from gossipdbn.errors import LocalProtocolError
from gossipdbn.kernels import codec

__all__ = ["DigestMismatch", "Replica", "add_payload"]

WAITING_MAX = 4096
REMEMBERED = 1 << 15
"""Digests kept of each partition, at least: what an update says it started from is seldom older than so many others."""
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class DigestMismatch:
    """An update states another digest for its start version than the log gives: its owner's memory is damaged."""

    slot: int
    seq: int
    incarnation: int
    stated: int
    expected: int


@dataclass(frozen=True, slots=True)
class _Stated:
    """What an update says about its start; kept without the update, whose payload may be large."""

    version: Version
    slot: int
    seq: int
    incarnation: int
    digest: int


def add_payload(manifest: Manifest, acc: NDArray[np.int32], payload: Payload) -> None:
    """Add the deltas of a payload to flat parameters int32 [P], wrapping."""
    codec.merge(acc, chains.read_payload(manifest, payload))


class Replica:
    """Merged parameters at a version.

    Parameters
    ----------
    parameters : int32 [P] in units 2^-24 at the version that ``chains`` tell; copied.
    decode : wire decoder, bytes to message.
    """

    def __init__(
        self,
        manifest: Manifest,
        decode: Callable[[bytes], Decoded],
        parameters: NDArray[np.int32],
        at: Sequence[chains.Chain] | None = None,
    ) -> None:
        self.manifest = manifest
        self._sum = Sum(parameters.astype(np.int32, copy=True))
        self.chains: list[chains.Chain] = list(at or [chains.genesis(manifest.slots)] * (manifest.slots + 1))
        self.mismatches: list[DigestMismatch] = []
        self._decode = decode
        # Digest sums per partition: _sums[p][i] is that of its first _oldest[p] + i updates, less what we began with.
        self._oldest = list(self.version)
        self._base_digest = codec.digest(self.acc)
        self._sums = [array("Q", [0]) for _ in self.chains]
        self._waiting: dict[int, list[tuple[int, int, _Stated]]] = {}  # heaps by the count that is waited for
        self._ticket = count()

    @property
    def acc(self) -> NDArray[np.int32]:
        """The parameters at ``version``, int32 [P]. Updates wait until somebody looks; then one pass adds them all."""
        return self._sum.total

    def lend(self, beyond: Sequence[codec.Deltas] = ()) -> NDArray[np.int32]:
        """``acc`` and what is ``beyond`` it, for a round to start from; it stays as it is until ``give_back``."""
        return self._sum.lend(beyond)

    def give_back(self, lent: NDArray[np.int32]) -> None:
        """The round is over."""
        self._sum.give_back(lent)

    @property
    def version(self) -> Version:
        """How many updates of each partition are contained."""
        return tuple(c.count for c in self.chains)

    @property
    def finished(self) -> bool:
        """All slots are closed: the parameters are final."""
        return all(c.closed for c in self.chains[:-1])

    def read(
        self, partition: int, offset: int, raw: bytes, fetched: Payload | None = None, own: Pending | None = None
    ) -> Verdict:
        """Give the verdict on the next record of a partition, and merge it if accepted: the only door for change.

        ``own``: what these bytes are, said by who made them; its deltas are lent to rounds meanwhile.
        """
        chain = self.chains[partition]
        if offset != chain.offset:
            raise LocalProtocolError(f"updates partition {partition}: read offset {offset}, expected {chain.offset}")
        if own is None:
            verdict = self.judge(partition, raw, fetched)
        else:
            verdict = chains.judge(self.manifest, chain, partition, own.sealed, fetched, own.deltas)
        if isinstance(verdict, Undecided):
            return verdict
        self.chains[partition] = chains.fold(self.manifest, chain, raw, verdict)
        if isinstance(verdict, Accepted) and not isinstance(verdict.message, Claim):
            m = verdict.message
            self._sum.add(verdict.deltas)
            self._remember(partition, m.digest)
            for stated in self._complete(partition):
                self._check_start_digest(stated)
            if isinstance(m, Update) and verdict.start_version is not None:
                self._check_start_digest(
                    _Stated(verdict.start_version, m.slot, m.seq, m.incarnation, m.start_digest)
                )
        return verdict

    def judge(self, partition: int, raw: bytes, fetched: Payload | None = None) -> Verdict:
        """The verdict on the next record of a partition, without merging it."""
        return chains.judge(self.manifest, self.chains[partition], partition, self._decode(raw), fetched)

    def digest(self) -> int:
        """Digest of the parameters, computed from memory."""
        return codec.digest(self.acc)

    def expected_digest(self, version: Version) -> int | None:
        """What the log says the digest at ``version`` must be; None when it is not contained, or not remembered."""
        total = self._base_digest
        for sums, oldest, n in zip(self._sums, self._oldest, version, strict=True):
            if not 0 <= n - oldest < len(sums):
                return None
            total += sums[n - oldest]
        return total & _MASK

    def _remember(self, partition: int, digest: int) -> None:
        """Count an update's digest in. A stream has no end: those of long ago are forgotten, many at a time."""
        sums = self._sums[partition]
        sums.append((sums[-1] + digest) & _MASK)
        if len(sums) > 2 * REMEMBERED:
            del sums[:-REMEMBERED]
            self._oldest[partition] = self.chains[partition].count + 1 - REMEMBERED

    def _complete(self, partition: int) -> list[_Stated]:
        """Take those that waited for no more of this partition than is read by now."""
        heap, have = self._waiting.get(partition, []), self.chains[partition].count
        found = []
        while heap and heap[0][0] <= have:
            found.append(heapq.heappop(heap)[2])
        return found

    def _check_start_digest(self, s: _Stated) -> None:
        """Compare a stated start digest with the log's; an update whose start is not complete here waits for it.

        Each waits at the first partition that lacks something. What waits is bounded: one that waits long goes
        unchecked then.
        """
        p = next((p for p, n in enumerate(s.version) if n > self.chains[p].count), None)
        if p is not None:
            heap = self._waiting.setdefault(p, [])
            if len(heap) >= WAITING_MAX:
                heap.pop()  # a leaf: of those that wait longest
            heapq.heappush(heap, (s.version[p], next(self._ticket), s))
            return
        expected = self.expected_digest(s.version)
        if expected is not None and expected != s.digest:
            self.mismatches.append(DigestMismatch(s.slot, s.seq, s.incarnation, s.digest, expected))
