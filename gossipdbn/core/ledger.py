"""The ledger: which rows were trained, by which update, how often; and which are outstanding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gossipdbn.core.values import DONE, FAILED, GIVEN_UP, OPEN, Manifest, Revocation, Update

__all__ = ["Entry", "Ledger", "Summary"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One accepted update's rows: pass ``epoch``, rows ``first`` .. ``first + count - 1`` of the slot."""

    seq: int
    incarnation: int
    phase: int
    epoch: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Summary:
    """Row counts over all slots; a row counts once per epoch that the plan gives it.

    ``exact``: every row was trained exactly as often as planned, or the difference is outstanding (slots given up,
    failed or still running); nothing was trained twice, nothing skipped in silence.
    """

    exact: bool
    planned_rows: int | None
    trained_rows: int
    outstanding_rows: int | None
    revoked_rows: int
    updates: int
    problems: tuple[str, ...]


class Ledger:
    """Collects accepted updates in partition order."""

    def __init__(self, manifest: Manifest) -> None:
        self.manifest = manifest
        self.entries: list[list[Entry]] = [[] for _ in range(manifest.slots)]
        self.closed: list[int] = [OPEN] * manifest.slots
        self.updates = 0
        self.revoked: list[tuple[int, int, int]] = []

    def record(self, message: object) -> None:
        """Add an accepted record; claims are ignored."""
        if isinstance(message, Update):
            self.updates += 1
            if message.rows.count:
                self.entries[message.slot].append(Entry(message.seq, message.incarnation, message.phase, *message.rows))
            if message.closing in (DONE, FAILED, GIVEN_UP):
                self.closed[message.slot] = message.closing
        elif isinstance(message, Revocation):
            self.updates += 1
            self.revoked.append((message.slot, message.first_seq, message.last_seq))

    def trained(self, slot: int) -> int:
        """Rows trained by the slot, over all epochs."""
        return sum(e.count for e in self.entries[slot])

    def epochs_planned(self) -> int | None:
        """Passes that the plan gives every row; None on an endless plan."""
        total = 0
        for p in self.manifest.phases:
            if p.epochs is None:
                return None
            total += p.epochs
        return total

    def summary(self, rows_of_slot: Mapping[int, int | None]) -> Summary:
        """Check every slot's chain of ranges. ``rows_of_slot``: rows counted by the end mark, None while unknown."""
        epochs, problems = self.epochs_planned(), []
        planned: int | None = 0
        for slot, entries in enumerate(self.entries):
            rows = rows_of_slot.get(slot)
            problems += self._slot_problems(slot, entries, rows)
            if rows is None or (epochs is None and not self.closed[slot]):
                planned = None
            elif planned is not None:
                passes = 1 + sum(p.epochs or 0 for p in self.manifest.phases) if epochs is None else epochs
                planned += rows * passes
            if (
                rows is not None
                and epochs is not None
                and self.closed[slot] == DONE
                and self.trained(slot) != rows * epochs
            ):
                problems.append(f"slot {slot} is done after {self.trained(slot)} of {rows * epochs} rows")
        trained = sum(self.trained(s) for s in range(self.manifest.slots))
        revoked = sum(e.count for s, a, b in self.revoked for e in self.entries[s] if a <= e.seq <= b)
        outstanding = None if planned is None else planned - trained
        return Summary(
            not problems and (outstanding is None or outstanding >= 0),
            planned,
            trained,
            outstanding,
            revoked,
            self.updates,
            tuple(problems),
        )

    def _slot_problems(self, slot: int, entries: list[Entry], rows: int | None) -> list[str]:
        problems, epoch, nxt = [], 0, 0
        for e in entries:
            if (e.epoch, e.first) == (epoch + 1, 0) and (rows is None or nxt == rows):
                epoch, nxt = e.epoch, 0
            if (e.epoch, e.first) != (epoch, nxt):
                problems.append(f"slot {slot} update {e.seq}: rows ({e.epoch}, {e.first}) after ({epoch}, {nxt})")
                epoch, nxt = e.epoch, e.first
            nxt += e.count
            if rows is not None and nxt > rows:
                problems.append(f"slot {slot} update {e.seq}: row {nxt - 1} of {rows}")
        return problems
