"""The payload of a revocation: minus the exact sum of the updates it names, the same bytes for whoever adds them up."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core import chain as chains
from gossipdbn.core.events import Hold, Wire
from gossipdbn.core.recompute import Fetch, NextRecord
from gossipdbn.core.values import Accepted, Manifest, Payload, Revocation, TensorDelta, Undecided, Update
from gossipdbn.errors import LogError
from gossipdbn.kernels import codec
from gossipdbn.models.spec import layout, parameter_count

__all__ = ["Subtraction", "minus"]

RECORDS = 64


def minus(manifest: Manifest, total: NDArray[np.int32]) -> Payload:
    """What subtracts ``total``, int32 [P] within +-2^30: exact codes of the tensors that are not all zero."""
    parts = []
    for t in layout(manifest.spec):
        values = -total[t.offset : t.offset + t.size].reshape(t.blocks)
        if values.any():
            parts.append(TensorDelta(t.id, codec.EXACT, codec.quantise(codec.EXACT, values, manifest.e_max)))
    return tuple(parts)


class Subtraction:
    """Adds up what a revocation names, from the start of the slot's partition, some records per call.

    Attributes
    ----------
    lacks : the update whose payload it waits for, after a retryable error.
    """

    def __init__(
        self, manifest: Manifest, revocation: Revocation, wire: Wire, record: NextRecord, fetch: Fetch
    ) -> None:
        self.manifest, self.revocation = manifest, revocation
        self.lacks: Hold | None = None
        self._wire, self._record, self._fetch = wire, record, fetch
        self._chain = chains.genesis(manifest.slots)
        self._total = np.zeros(parameter_count(manifest.spec), np.int32)

    def advance(self) -> Payload | None:
        """Read on; the revocation's payload when everything that it names is added up.

        Raises
        ------
        LogError : retryable, a record or payload is not to be had now; else the log does not hold what it needs.
        """
        self.lacks = None
        for _ in range(RECORDS):
            if self._chain.count > self.revocation.last_seq:
                return minus(self.manifest, self._total)
            self._read()
        return None

    def _read(self) -> None:
        slot, offset = self.revocation.slot, self._chain.offset
        raw = self._record(slot, offset)
        if raw is None:
            raise LogError(f"updates partition {slot} ends before update {self.revocation.last_seq}, which is revoked")
        decoded = self._wire.decode(raw)
        verdict = chains.judge(self.manifest, self._chain, slot, decoded)
        if isinstance(verdict, Undecided) and verdict.wants is not None:
            verdict = chains.judge(self.manifest, self._chain, slot, decoded, self._fetch(verdict.wants))
        if isinstance(verdict, Undecided):
            if verdict.wants is not None:
                self.lacks = Hold(slot, offset, raw, verdict.reason, verdict.wants)
            raise LogError(f"updates partition {slot}: {verdict.reason}", retryable=verdict.wants is not None)
        m = verdict.message if isinstance(verdict, Accepted) else None
        if isinstance(m, Update) and m.seq >= self.revocation.first_seq and isinstance(verdict, Accepted):
            codec.merge(self._total, verdict.deltas)
        self._chain = chains.fold(self.manifest, self._chain, raw, verdict)
