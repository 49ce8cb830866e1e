"""A worker may be started before its run: it waits, says why, and not for ever."""

from __future__ import annotations

import pytest

from gossipdbn.adapters.memory import MemoryLog
from gossipdbn.core.topics import run_topics
from gossipdbn.errors import ConfigError, LogError, RunMissing
from gossipdbn.kernels.version import NUMERICS
from gossipdbn.launch.look import await_run
from gossipdbn.launch.runs import create_run
from tests.core.making import a_manifest


class Waiting:
    """What a wait says, and what happens at its n-th pause."""

    def __init__(self, *happenings) -> None:
        self.said: list[str] = []
        self._happenings = list(happenings)

    def paused(self, seconds: float) -> bool:
        if seconds and self._happenings:
            self._happenings.pop(0)()
        return False

    def run(self, log, wanted="r", wait_s=60.0, stopped=None) -> str:
        return await_run(log, wanted, "", {}, wait_s, self.said.append, stopped or self.paused)


def test_it_waits_for_the_topics_then_for_the_manifest_and_says_so_once_each() -> None:
    log = MemoryLog()
    topics = run_topics("r", 2)
    manifest = a_manifest(numerics=NUMERICS)
    waiting = Waiting(lambda: None, lambda: log.create_topics(topics), lambda: create_run(log, manifest))
    assert waiting.run(log) == "r"
    assert ["is not on this log" in waiting.said[0], "has no manifest yet" in waiting.said[1]] == [True, True]
    assert len(waiting.said) == 2 and waiting.said[0].startswith("waiting up to 60 s more")


def test_brokers_that_do_not_answer_yet_are_waited_for() -> None:
    class Starting(MemoryLog):
        asked = 0

        def topics(self) -> list[str]:
            self.asked += 1
            if self.asked < 3:
                raise LogError("no broker answers", retryable=True)
            return super().topics()

    log = Starting()
    create_run(log, a_manifest(numerics=NUMERICS))
    waiting = Waiting()
    assert waiting.run(log) == "r" and len(waiting.said) == 1


def test_the_wait_ends_with_its_time_or_when_asked() -> None:
    waiting = Waiting()
    with pytest.raises(RunMissing):
        waiting.run(MemoryLog(), wait_s=0.0)
    with pytest.raises(RunMissing):
        waiting.run(MemoryLog(), stopped=lambda _: True)
    assert waiting.said == []


def test_what_waiting_does_not_change_is_said_at_once() -> None:
    log = MemoryLog()
    log.create_topics([*run_topics("run-a", 1), *run_topics("run-b", 1)])
    with pytest.raises(ConfigError, match="could be run-a, run-b"):
        Waiting().run(log, "run")
