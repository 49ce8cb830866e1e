"""The model at any moment of a run, what changed between two, and where a measure broke."""

from __future__ import annotations

import datetime as dt

import numpy as np
import pytest

from gossipdbn.errors import ConfigError
from gossipdbn.kernels import codec
from gossipdbn.replay.history import judge_all
from gossipdbn.replay.moments import Timeline, bisect_metric, diff, parse_moment
from tests.replay.scene import eventful


@pytest.fixture(scope="module")
def timeline(tmp_path_factory: pytest.TempPathFactory) -> Timeline:
    return Timeline(judge_all(eventful().logged(tmp_path_factory.mktemp("spool"))))


def test_parameters_move_both_ways_without_loss(timeline: Timeline) -> None:
    every = len(timeline.order)
    for count in (every, 7, every - 3, 0, every):
        version = timeline.version(count)
        assert sum(version) == count
        assert codec.digest(timeline.parameters(version)) == timeline.history.digest_at(version)
    assert np.array_equal(timeline.parameters(timeline.version(0)), timeline.run.initial())


def test_a_moment_has_many_names(timeline: Timeline) -> None:
    end = parse_moment(timeline, "end")
    assert end.version == timeline.history.version
    assert parse_moment(timeline, "start").updates == 0
    assert parse_moment(timeline, ",".join(map(str, end.version))).version == end.version
    assert parse_moment(timeline, ",".join(map(str, end.version[:-1]))).version == end.version
    assert parse_moment(timeline, "#5").updates == 5
    after = parse_moment(timeline, "1:4")
    assert after.version[1] == 5
    assert parse_moment(timeline, "+1h").version == end.version
    assert parse_moment(timeline, "+0s").updates <= 5
    assert parse_moment(timeline, "1999-01-01").updates == 0
    when = dt.datetime.fromtimestamp(after.at_ms / 1000, dt.UTC).isoformat()
    assert parse_moment(timeline, when).updates >= after.updates


@pytest.mark.parametrize("text", ["", "now", "7", "9:1", "0:99999", "#99999", "1,2", "9999,0,0,0", "1,2,3,4,5"])
def test_a_moment_that_is_not_is_a_configuration_error(timeline: Timeline, text: str) -> None:
    with pytest.raises(ConfigError):
        parse_moment(timeline, text)


def test_the_model_at_a_moment_says_what_it_is(timeline: Timeline) -> None:
    model = timeline.model(parse_moment(timeline, "#12"))
    assert sum(model.provenance.version) == 12
    assert model.provenance.digest == f"{codec.digest(model.parameters):016x}"


def test_a_diff_names_tensors_and_contributors(timeline: Timeline) -> None:
    a, b = parse_moment(timeline, "#10"), parse_moment(timeline, "#30")
    found = diff(timeline, a, b)
    assert sum(c.updates for c in found.contributions) == 20
    assert {c.who for c in found.contributions} <= {"slot 0", "slot 1", "slot 2"}
    assert all(c.workers and c.length > 0 for c in found.contributions)
    assert found.length == pytest.approx(sum(t.length**2 for t in found.tensors) ** 0.5)
    back = diff(timeline, b, a)
    assert back.length == pytest.approx(found.length)
    nothing = diff(timeline, a, a)
    assert nothing.length == 0 and not nothing.contributions


def test_bisection_finds_the_update(timeline: Timeline) -> None:
    looks: list[int] = []

    def measure(count: int) -> float:
        looks.append(count)
        return 0.3 - count / 1000 if count < 41 else 0.9

    found = bisect_metric(timeline, measure)
    assert found.broken and (found.good, found.bad) == (40, 41)
    line = timeline.order[40]
    assert (found.slot, found.offset) == (line.partition, line.offset)
    assert found.worker and len(looks) == len(set(looks)) < 20


def test_what_did_not_break_is_not_blamed_on_anyone(timeline: Timeline) -> None:
    found = bisect_metric(timeline, lambda n: 1.0 / (1 + n))
    assert not found.broken and found.slot == -1
    always = bisect_metric(timeline, lambda _n: 1.0, threshold=0.5)
    assert always.broken and always.slot == -1
