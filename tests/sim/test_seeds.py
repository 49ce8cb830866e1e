"""300 schedules without a violation; the same seed is the same world; failures shrink."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from gossipdbn.cli.app import app
from gossipdbn.core.slot import Slot
from gossipdbn.sim.options import FAULTS, draw
from gossipdbn.sim.run import run_one, run_seeds, shrink, trace

CHUNK = 30


@pytest.mark.parametrize("first", range(0, 300, CHUNK))
def test_no_schedule_breaks_an_invariant(first: int) -> None:
    result = run_seeds(range(first, first + CHUNK), stop_at=1)
    assert not result.failures, result.failures
    assert result.seeds == CHUNK and result.updates > 100 and result.snapshots > 10


def test_a_seed_is_one_world() -> None:
    assert trace(7) == trace(7)
    assert trace(7) != trace(8)


def test_seeds_draw_every_kind_of_fault() -> None:
    drawn = {f.kind for seed in range(200) for f in draw(seed).faults}
    assert drawn == set(FAULTS)


def test_facts_are_those_of_the_command_line() -> None:
    facts = run_seeds(range(3)).facts()
    assert {"seeds", "violations", "events", "seconds", "faults", "failing_seeds"} <= set(facts)
    assert facts["seeds"] == 3 and facts["violations"] == 0 and facts["failing_seeds"] == []


def test_a_failing_seed_is_reported_with_fewer_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(self: Slot, *_: object) -> list[object]:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Slot, "_claim_read", crash)
    options = next(o for o in map(draw, range(50)) if len(o.faults) > 3)
    violation = run_one(options)[1]
    assert "ZeroDivisionError" in violation and "a bug" in violation
    assert not shrink(options).faults
    result = run_seeds([options.seed], stop_at=1)
    assert result.facts()["failing_seeds"] == [options.seed]
    assert "VIOLATION" in trace(options.seed, least=True)[-1]


@pytest.mark.parametrize("words", [["--trace"], ["--seed", "3", "--least"]])
def test_a_transcript_without_its_schedule_is_refused(words: list[str]) -> None:
    result = CliRunner().invoke(app, ["sim", *words])
    assert result.exit_code == 2 and "--trace" in result.output
