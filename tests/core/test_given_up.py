"""A slot that the operator gives up closes in any phase, fails nothing, and leaves its rows outstanding."""

from __future__ import annotations

import numpy as np
import pytest

from gossipdbn.core import chain as chains
from gossipdbn.core.ledger import Ledger
from gossipdbn.core.values import (
    DONE,
    FAILED,
    GIVEN_UP,
    OPEN,
    RESET,
    Accepted,
    Claim,
    Manifest,
    RowRange,
    Update,
    Void,
)
from gossipdbn.models.spec import ModelSpec, PhaseSpec
from gossipdbn.wire.messages import RunWire

SPEC = ModelSpec(4, (3,))
MANIFEST = Manifest(
    run="r", slots=2, spec=SPEC, phases=(PhaseSpec("cd", batch=5), PhaseSpec("cd", batch=5)), run_key=1,
    visible_mean=np.zeros(4, "<f4").tobytes(),
)  # fmt: skip
WIRE = RunWire()


def closing(chain: chains.Chain, kind: int, rows: RowRange) -> Update:
    return Update(
        "r", 0, chain.incarnation, chain.count, chain.tip, chain.phase, kind, (chain.count, 0, 0), 0, rows, chain.step,
        0, (),
    )  # fmt: skip


def claimed() -> chains.Chain:
    raw = WIRE.encode(Claim("r", 0, 1, "operator", RESET, 0, 1))
    start = chains.genesis(2)
    verdict = chains.judge(MANIFEST, start, 0, WIRE.decode(raw))
    assert isinstance(verdict, Accepted)
    return chains.fold(MANIFEST, start, raw, verdict)


CASES = [(GIVEN_UP, True, ""), (FAILED, True, "why"), (DONE, False, "")]


@pytest.mark.parametrize(("kind", "allowed", "failed"), CASES)
def test_only_done_belongs_to_the_last_phase(kind: int, allowed: bool, failed: str) -> None:
    chain = claimed()
    message = closing(chain, kind, RowRange(0, 0, 0))
    if failed:
        message = Update(**{**{f: getattr(message, f) for f in message.__struct_fields__}, "note": failed})
    raw = WIRE.encode(message)
    verdict = chains.judge(MANIFEST, chain, 0, WIRE.decode(raw))
    assert isinstance(verdict, Accepted if allowed else Void)
    if not isinstance(verdict, Void) and isinstance(verdict, Accepted):
        after = chains.fold(MANIFEST, chain, raw, verdict)
        assert after.closed and after.failed == failed
        assert isinstance(chains.judge(MANIFEST, after, 0, WIRE.decode(raw)), Void)


def test_a_given_up_slot_leaves_its_rows_outstanding() -> None:
    chain = claimed()
    ledger = Ledger(MANIFEST)
    ledger.record(closing(chain, OPEN, RowRange(0, 0, 5)))
    ledger.record(closing(chain, GIVEN_UP, RowRange(0, 5, 0)))
    summary = ledger.summary({0: 10, 1: 0})
    assert (summary.planned_rows, summary.trained_rows, summary.outstanding_rows) == (20, 5, 15)
    assert summary.exact and ledger.closed[0] == GIVEN_UP
