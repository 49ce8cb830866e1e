"""A slice of the fuzzer; ``python -m tests.wire.fuzz 1000000`` is the long form."""

from __future__ import annotations

import pytest

from tests.wire.fuzz import Fuzzer


@pytest.mark.parametrize("seed", range(3))
def test_mutants_neither_crash_nor_pass(seed: int) -> None:
    seen = Fuzzer(seed).run(4000)
    assert {"Void", "Malformed", "Accepted", "SnapshotCorrupt", "payload refused"} <= set(seen)
    assert seen["Accepted"] < seen["Void"]
