"""A run whose workers are somebody else's waits for what they say when they leave, and not for ever."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from gossipdbn.launch import train
from gossipdbn.launch.follow import Follower


class Log:
    """A follower of closed slots; each worker's state is read at some poll."""

    level = Follower.level

    def __init__(self, said_at: dict[str, int]) -> None:
        owners = [SimpleNamespace(worker=f"{name}#1") for name in said_at]
        self.replica = SimpleNamespace(chains=[*owners, SimpleNamespace(worker="")], version=(9, 9))
        self.control = SimpleNamespace(workers={})
        self.polls, self._said_at = 0, said_at

    def poll(self, timeout_s: float, now_s: float) -> int:
        self.polls += 1
        for name, at in self._said_at.items():
            if at == self.polls:
                self.say(name, (9, 9))
        return 0

    def say(self, name: str, version: tuple[int, ...]) -> None:
        self.control.workers[name] = SimpleNamespace(worker=name, version=version, digest=1)


def test_every_owner_elsewhere_is_waited_for() -> None:
    log = Log({"a": 3, "b": 5})
    train._await_last_words(log, ())  # type: ignore[arg-type]
    assert log.polls == 5


def test_who_left_before_the_end_and_came_again_is_waited_for() -> None:
    log = Log({"a": 4})
    log.say("a", (7, 9))
    train._await_last_words(log, ())  # type: ignore[arg-type]
    assert log.polls == 4


def test_own_workers_have_said_theirs() -> None:
    log = Log({"w1": 99, "w2": 99})
    train._await_last_words(log, {"w1": 0, "w2": 0})  # type: ignore[arg-type]
    assert log.polls == 0


def test_who_is_silent_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "LAST_WORDS_S", 0.05)
    log = Log({"a": 1, "gone": 0})
    train._await_last_words(log, ())  # type: ignore[arg-type]
    assert log.polls > 1 and set(log.control.workers) == {"a"}
