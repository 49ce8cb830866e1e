"""A run recorded once and committed replays bit for bit, on every machine, for ever.

When the arithmetic is changed on purpose: a new numerics version, and ``python -m tests.golden.record``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gossipdbn.core.values import Revocation, Update
from gossipdbn.replay import archive
from gossipdbn.replay.audit import audit
from gossipdbn.replay.history import LoggedRun, judge_all, open_run
from gossipdbn.replay.verify import verify

GOLDEN = Path(__file__).parent.parent / "golden" / "digits.zip"


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoggedRun, archive.ArchiveFacts]:
    folder = tmp_path_factory.mktemp("golden")
    _, facts = archive.unpack(GOLDEN, folder)
    return open_run(folder, {}), facts


def test_the_golden_run_is_small_and_eventful(golden: tuple[LoggedRun, archive.ArchiveFacts]) -> None:
    run, _ = golden
    assert GOLDEN.stat().st_size < 1 << 20
    history = judge_all(run)
    kinds = [x.message for x in history.order]
    assert any(isinstance(m, Update | Revocation) and m.payload_ref is not None for m in kinds)
    assert any(isinstance(m, Revocation) for m in kinds)
    assert sum(p.chain.resets for p in history.partitions[:-1]) >= 1
    assert history.voids >= 1
    assert {p.learner for p in run.manifest.phases} == {"cd", "pcd", "backprop"}
    for slot in range(run.manifest.slots):
        names = {u.worker.partition("#")[0] for u in audit(history).updates if u.slot == slot}
        assert len(names) >= 2, "no takeover"


def test_the_golden_run_replays_bit_for_bit(golden: tuple[LoggedRun, archive.ArchiveFacts]) -> None:
    run, facts = golden
    v = verify(run, expected=facts)
    assert v.identical, (v.divergences[:1], v.problems)
    assert v.digest == facts.digest


def test_the_golden_books_are_exact(golden: tuple[LoggedRun, archive.ArchiveFacts]) -> None:
    books = audit(judge_all(golden[0]))
    assert books.exact and len(books.dropped) == 1 and books.revocations[0].in_between


@pytest.mark.slow
def test_the_golden_run_replays_on_the_plainest_of_processors(tmp_path: Path) -> None:
    """It was recorded with the widest instructions there are; a processor with none of them gives the same bits."""
    facts = tmp_path / "facts.json"
    command = [sys.executable, "-m", "gossipdbn", "replay", str(GOLDEN), "--jobs", "1", "--json", str(facts)]
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(facts.read_text())
    assert found["identical"] and found["tier"] == "generic"
