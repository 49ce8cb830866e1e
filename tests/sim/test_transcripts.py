"""Transcripts of a few schedules, kept as they are: a change of behaviour shows as a diff.

Rewritten by ``GOSSIPDBN_REWRITE=1 python -m pytest tests/sim/test_transcripts.py``; read the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gossipdbn.models.spec import PhaseSpec
from gossipdbn.sim.options import Fault, Options, draw
from gossipdbn.sim.run import describe
from tests.core.making import replace

FOLDER = Path(__file__).parent / "transcripts"


def scene(seed: int, **changes: object) -> Options:
    phases = (PhaseSpec("cd", 0, 2, 2, 1, 0.1, 0.0), PhaseSpec("pcd", 0, 1, 2, 1))
    run = {"faults": (), "workers": 2, "slots": 2, "rows": (6, 4), "rotate_at_s": None, "inline_bytes": 1 << 19}
    world = {"latency_s": 0.002, "jitter": 1.0, "train_s": 0.006, "feed_s": 0.0, "snapshot_every_s": 0.05, "codec": 1}
    calm = {**run, **world, "phases": phases, "classes": 0, "hidden": (2,), "poll_max": 50, "gate": 0, "store_s": 0.002}
    return replace(draw(seed), **{**calm, **changes})


def at(time_s: float, kind: str, a: int = 0, b: int = 0, size: float = 0.5) -> Fault:
    return Fault(time_s, kind, a, b, size)


SCENES = {
    "quiet_run": scene(1),
    "a_worker_is_killed": scene(2, faults=(at(0.06, "kill"),), snapshot_every_s=0.03),
    "a_zombie_wakes_up": scene(3, faults=(at(0.05, "zombie", 0, 1, 0.9),), workers=2),
    "a_slot_moves_and_comes_back": scene(
        4, faults=(at(0.03, "move", 1, 0), at(0.06, "move", 0, 0)), snapshot_every_s=0.03
    ),
    "reset_at_a_snapshot": scene(
        4, faults=(at(0.07, "reset", 0, 0, 0.2), at(0.11, "kill", 0)), snapshot_every_s=0.005
    ),
    "a_payload_is_lost": scene(
        10, faults=(at(0.05, "lost", 0, 0, 0.4), at(0.051, "kill", 0)), inline_bytes=0, snapshot_every_s=0.02
    ),
    "a_revocations_payload_is_lost": scene(
        8, faults=(at(0.065, "revoke"), at(0.069, "lost", 0, 0, 0.9), at(0.073, "kill", 1)), inline_bytes=8
    ),
    "a_recovery_lacks_what_every_replica_holds": scene(
        8, faults=(at(0.065, "revoke"), at(0.069, "lost", 0, 0, 0.0), at(0.073, "kill", 1)), inline_bytes=8
    ),
    "a_writer_gives_up": scene(6, faults=(at(0.04, "unacked"), at(0.08, "lose"))),
    "memory_is_damaged": scene(7, faults=(at(0.04, "damage", 0, 3),)),
    "the_operator_revokes_and_gives_up": scene(8, faults=(at(0.065, "revoke"), at(0.075, "give-up", 1))),
}


@pytest.mark.parametrize("name", SCENES)
def test_the_transcript_is_as_it_was(name: str) -> None:
    lines = "\n".join(describe(SCENES[name])) + "\n"
    path = FOLDER / f"{name}.txt"
    if os.environ.get("GOSSIPDBN_REWRITE"):
        path.write_text(lines)
    assert lines == path.read_text(), f"{path} differs; rewrite it with GOSSIPDBN_REWRITE=1 and read the diff"


def test_no_scene_breaks_anything_and_each_shows_its_trouble() -> None:
    for name, options in SCENES.items():
        text = (FOLDER / f"{name}.txt").read_text()
        assert "ends well" in text and all(f"--- {f.kind}" in text for f in options.faults), name
