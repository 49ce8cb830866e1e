"""The model at any moment of a run, what changed between two, and the update after which a measure broke.

A moment is a version. People name it in several ways (``parse_moment``): a version itself, a time, an update, a count.
Deltas are integers, so parameters move forwards and backwards along the log without loss.
"""

from __future__ import annotations

import datetime as dt
import re
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gossipdbn.core.values import Claim, Revocation, Update, Version
from gossipdbn.errors import ConfigError, LocalProtocolError
from gossipdbn.kernels import codec
from gossipdbn.models.files import Model, Provenance
from gossipdbn.models.spec import UNIT, layout, parameter_count
from gossipdbn.replay.history import History, Line

__all__ = [
    "MOMENTS",
    "Bisection",
    "Contribution",
    "Diff",
    "Moment",
    "TensorChange",
    "Timeline",
    "bisect_metric",
    "check_moment",
    "diff",
    "parse_moment",
]

MOMENTS = (
    "start; end; a version such as 120,118,121,0 (updates of every slot, then the operator's); an update such as 2:117 "
    "(slot 2's update 117 and all that the log took before it); a time such as 2025-01-31T12:00:00Z or +90s after the "
    "first record; #500 (the first 500 updates)"
)
_COUNT, _PLACE = re.compile(r"#(\d{1,18})"), re.compile(r"(\d{1,9}):(\d{1,18})")
_VERSION, _SINCE = re.compile(r"\d{1,18}(,\d{1,18})+"), re.compile(r"\+(\d{1,9}(?:\.\d{1,6})?)([smh]?)")
_TIMES = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, slots=True)
class Moment:
    """A version and how it came to be named. ``at_ms``: when the log took its newest update (0: none)."""

    version: Version
    name: str
    at_ms: int = 0

    @property
    def updates(self) -> int:
        """How many updates it contains."""
        return sum(self.version)


class Timeline:
    """Parameters at versions of one history; going from one version to the next costs the updates between them.

    Attributes
    ----------
    order : accepted updates as the log took them; the first ``n`` of them are a version.
    """

    def __init__(self, history: History) -> None:
        self.history, self.run, self.order = history, history.run, history.order
        self._offsets = [[x.offset for x in p.updates()] for p in history.partitions]
        self._at = [0] * len(self._offsets)
        self._acc = self.run.initial()

    def version(self, count: int) -> Version:
        """The version after the first ``count`` updates."""
        found = [0] * len(self._offsets)
        for line in self.order[:count]:
            found[line.partition] += 1
        return tuple(found)

    def moment(self, count: int, name: str = "") -> Moment:
        """The moment after the first ``count`` updates."""
        at = self.order[count - 1].at_ms if count else 0
        return Moment(self.version(count), name or f"#{count}", at)

    def parameters(self, version: Version) -> NDArray[np.int32]:
        """int32 [P] at a version; raises ConfigError when the log does not hold it."""
        ends = self.history.version
        if len(version) != len(ends) or any(not 0 <= n <= end for n, end in zip(version, ends, strict=True)):
            raise ConfigError(f"version {_text(version)} is not of this run, which ends at {_text(ends)}")
        for p, n in enumerate(version):
            for offset in self._offsets[p][self._at[p] : n]:
                self.run.add(self._acc, p, offset)
            if n < self._at[p]:
                minus = -self._acc
                for offset in self._offsets[p][n : self._at[p]]:
                    self.run.add(minus, p, offset)
                self._acc = -minus
            self._at[p] = n
        return self._acc.copy()

    def model(self, moment: Moment) -> Model:
        """The model at a moment; its digest is checked against the log's."""
        m, acc = self.run.manifest, self.parameters(moment.version)
        digest = codec.digest(acc)
        if digest != self.history.digest_at(moment.version):
            raise LocalProtocolError(f"parameters at {moment.name} do not have the digest that the log gives")
        names = m.schema.get("classes") or ()
        assert isinstance(names, list | tuple)
        provenance = Provenance(
            m.run, moment.version, f"{digest:016x}", m.numerics, tuple(sorted(m.versions.items())),
            {"moment": moment.name},
        )  # fmt: skip
        classes = tuple(str(c) for c in names) if m.spec.classes else ()
        return Model(m.spec, acc, dict(m.schema), classes, provenance)


def _text(version: Version) -> str:
    return ",".join(str(n) for n in version)


def check_moment(text: str) -> None:
    """Raise ConfigError unless the text has the form of a moment: before a long way to the run's records."""
    word = text.strip()
    forms = (_COUNT, _PLACE, _VERSION, _SINCE)
    if word not in ("start", "end") and not any(f.fullmatch(word) for f in forms) and _date(word) is None:
        raise ConfigError(f"moment {text!r} is not understood; it is one of: {MOMENTS}")


def parse_moment(timeline: Timeline, text: str) -> Moment:
    """The moment that a text names (``MOMENTS`` says how).

    Raises
    ------
    ConfigError : it names none, or one that this run does not have.
    """
    check_moment(text)
    word = text.strip()
    every = len(timeline.order)
    if word in ("start", "end"):
        return timeline.moment(every if word == "end" else 0, word)
    if match := _COUNT.fullmatch(word):
        if int(match[1]) > every:
            raise ConfigError(f"moment {word}: the run has {every} updates")
        return timeline.moment(int(match[1]), word)
    if match := _PLACE.fullmatch(word):
        return timeline.moment(_place(timeline, int(match[1]), int(match[2])), word)
    if _VERSION.fullmatch(word):
        return _of_version(timeline, tuple(int(n) for n in word.split(",")), word)
    at = _time_ms(timeline, word)
    newest, keys = 0, []
    for line in timeline.order:
        newest = max(newest, line.at_ms)
        keys.append(newest)
    return timeline.moment(bisect_right(keys, at), word)


def _place(timeline: Timeline, slot: int, seq: int) -> int:
    slots = timeline.run.manifest.slots
    if slot > slots:
        raise ConfigError(f"moment {slot}:{seq}: the run has slots 0 to {slots - 1}; {slots} is the operator")
    seen = -1
    for i, line in enumerate(timeline.order):
        seen += line.partition == slot
        if line.partition == slot and seen == seq:
            return i + 1
    who, what = ("the operator", "revocations") if slot == slots else (f"slot {slot}", "updates")
    has = f"{what} 0 to {seen}" if seen >= 0 else f"no {what} yet"
    raise ConfigError(f"moment {slot}:{seq}: {who} has {has}")


def _of_version(timeline: Timeline, version: Version, name: str) -> Moment:
    ends = timeline.history.version
    if len(version) == len(ends) - 1:
        version = (*version, 0)
    if len(version) != len(ends) or any(n > end for n, end in zip(version, ends, strict=True)):
        raise ConfigError(f"version {name} is not of this run, which ends at {_text(ends)}")
    seen, at = [0] * len(ends), 0
    for line in timeline.order:
        seen[line.partition] += 1
        if seen[line.partition] <= version[line.partition]:
            at = max(at, line.at_ms)
    return Moment(version, name, at)


def _time_ms(timeline: Timeline, word: str) -> int:
    if match := _SINCE.fullmatch(word):
        lines = [p.lines[0].at_ms for p in timeline.history.partitions if p.lines]
        return min(lines, default=0) + round(1000 * float(match[1]) * _TIMES[match[2] or "s"])
    when = _date(word)
    assert when is not None
    return round((when if when.tzinfo else when.replace(tzinfo=dt.UTC)).timestamp() * 1000)


def _date(word: str) -> dt.datetime | None:
    try:
        return dt.datetime.fromisoformat(word)
    except ValueError:
        return None


# ---- what changed ---------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class TensorChange:
    """How one tensor moved, in real units. ``relative``: length of the change by length before (0 where that is 0)."""

    tensor: str
    values: int
    changed: int
    length: float
    relative: float
    largest: float


@dataclass(frozen=True, slots=True)
class Contribution:
    """What one partition added between two moments. ``length``: of the sum of its deltas; ``workers`` in order."""

    partition: int
    who: str
    updates: int
    rows: int
    first_seq: int
    last_seq: int
    length: float
    workers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Diff:
    """What happened from ``a`` to ``b``. ``length``: of the whole change, real units."""

    a: Moment
    b: Moment
    digest_a: str
    digest_b: str
    length: float
    tensors: tuple[TensorChange, ...]
    contributions: tuple[Contribution, ...] = field(default=())


def _length(values: NDArray[np.int32]) -> float:
    return float(np.sqrt(np.square(values.astype(np.float64)).sum()) * UNIT)


def diff(timeline: Timeline, a: Moment, b: Moment) -> Diff:
    """Compare two moments; where ``b`` is before ``a`` in a partition, its updates between them are counted too."""
    run = timeline.run
    before, after = timeline.parameters(a.version), timeline.parameters(b.version)
    change = after - before
    tensors = []
    for t in layout(run.manifest.spec):
        part, old = change[t.offset : t.offset + t.size], before[t.offset : t.offset + t.size]
        moved, was = _length(part), _length(old)
        tensors.append(
            TensorChange(
                t.name, t.size, int(np.count_nonzero(part)), moved, moved / was if was else 0.0,
                float(np.abs(part.astype(np.int64)).max(initial=0)) * UNIT,
            )
        )  # fmt: skip
    return Diff(
        a, b, f"{codec.digest(before):016x}", f"{codec.digest(after):016x}", _length(change), tuple(tensors),
        tuple(c for p in range(len(a.version)) if (c := _contribution(timeline, p, a, b)) is not None),
    )  # fmt: skip


def _contribution(timeline: Timeline, partition: int, a: Moment, b: Moment) -> Contribution | None:
    first, last = sorted((a.version[partition], b.version[partition]))
    if first == last:
        return None
    run = timeline.run
    lines = list(timeline.history.partitions[partition].updates())[first:last]
    total = np.zeros(parameter_count(run.manifest.spec), np.int32)
    for line in lines:
        run.add(total, partition, line.offset)
    operator = partition == run.manifest.slots
    rows = sum(x.message.rows.count for x in lines if isinstance(x.message, Update))
    who = "operator" if operator else f"slot {partition}"
    workers = () if operator else _workers(timeline, partition, lines)
    return Contribution(partition, who, len(lines), rows, first, last - 1, _length(total), workers)


def _workers(timeline: Timeline, partition: int, lines: list[Line]) -> tuple[str, ...]:
    """Who hosted the slot while it published ``lines``, in order."""
    names: dict[int, str] = {}
    for x in timeline.history.partitions[partition].lines:
        if x.accepted and isinstance(x.message, Claim):
            names[x.message.incarnation] = x.message.worker.partition("#")[0]
    seen = [names[x.message.incarnation] for x in lines if isinstance(x.message, Update)]
    return tuple(dict.fromkeys(seen))


# ---- when it broke --------------------------------------------------------------------------------------------------
@dataclass(frozen=True, slots=True)
class Bisection:
    """Where a measure broke.

    ``broken``: whether it did. ``good``, ``bad``: counts of updates, one apart: after ``bad`` updates the measure is
    above ``threshold``, and stays so wherever it was looked at. ``values``: (count, measure) of every look.
    """

    broken: bool
    threshold: float
    good: int
    bad: int
    values: tuple[tuple[int, float], ...]
    slot: int = -1
    seq: int = -1
    offset: int = -1
    at_ms: int = 0
    worker: str = ""
    revocation: bool = False


def bisect_metric(
    timeline: Timeline, measure: Callable[[int], float], threshold: float | None = None, looks: int = 9
) -> Bisection:
    """Find the update after which a measure (small is good) went above a threshold for good.

    Parameters
    ----------
    measure : the value after the first ``count`` updates.
    threshold : None = half way from the best of ``looks`` evenly spread looks to the end's value, if the end is more
        than 10 % worse than the best.
    """
    every = len(timeline.order)
    if not every:
        raise ConfigError("the run has no updates yet: nothing can have broken")
    known: dict[int, float] = {}

    def look(count: int) -> float:
        if count not in known:
            known[count] = measure(count)
        return known[count]

    places = sorted({round(i * every / (looks - 1)) for i in range(looks)})
    values = [look(n) for n in places]
    if threshold is None:
        best = min(values)
        threshold = (best + values[-1]) / 2 if values[-1] > 1.1 * best else values[-1]
    good = max((i for i, v in enumerate(values) if v <= threshold), default=-1)
    if values[-1] <= threshold or good < 0:
        return Bisection(values[-1] > threshold, threshold, every if good >= 0 else 0, every if good >= 0 else 0,
                         tuple(sorted(known.items())))  # fmt: skip
    low, high = places[good], places[good + 1]
    while high - low > 1:
        middle = (low + high) // 2
        if look(middle) > threshold:
            high = middle
        else:
            low = middle
    line = timeline.order[high - 1]
    m = line.message
    revocation = isinstance(m, Revocation)
    seq = m.number if isinstance(m, Revocation) else m.seq if isinstance(m, Update) else -1
    worker = "operator" if revocation else next(iter(_workers(timeline, line.partition, [line])), "")
    return Bisection(True, threshold, low, high, tuple(sorted(known.items())), line.partition, seq, line.offset,
                     line.at_ms, worker, revocation)  # fmt: skip
