"""The books: every row as often as planned, or named."""

from __future__ import annotations

from gossipdbn.core.ledger import Ledger
from gossipdbn.core.values import FAILED, Claim, Revocation
from gossipdbn.models.spec import PhaseSpec
from tests.core.making import WIRE, Author, a_manifest, changed

M = a_manifest()
ENDLESS = a_manifest(slots=1, phases=(PhaseSpec("joint", 0, None, 2, 2),))


def books(author, manifest=M, extra=()):
    ledger = Ledger(manifest)
    for records in author.log:
        for raw in records:
            ledger.record(WIRE.decode(raw).message)
    for m in extra:
        ledger.record(m)
    return ledger


def test_a_finished_run_is_exact():
    author = Author(M)
    author.whole_slot(0)
    author.whole_slot(1)
    s = books(author).summary({0: 4, 1: 4})
    assert s.exact and (s.planned_rows, s.trained_rows, s.outstanding_rows, s.updates) == (24, 24, 0, 16)
    assert s.problems == ()


def test_a_running_slot_is_outstanding_and_unknown_rows_are_unknown():
    author = Author(M)
    author.claim(0)
    author.update(0)
    ledger = books(author)
    s = ledger.summary({0: 4, 1: 4})
    assert s.exact and (s.trained_rows, s.outstanding_rows) == (2, 22)
    s = ledger.summary({0: 4, 1: None})
    assert s.exact and s.planned_rows is None and s.outstanding_rows is None


def test_a_failed_slot_leaves_its_rows_outstanding():
    author = Author(M)
    author.claim(0)
    author.update(0)
    author.write(author.next_closing(0, FAILED))
    s = books(author).summary({0: 4, 1: 0})
    assert s.exact and s.outstanding_rows == 10


def test_skipped_repeated_and_surplus_rows_are_problems():
    author = Author(M)
    author.claim(0)
    first = author.next_update(0)
    skipped = changed(first, rows=first.rows._replace(first=3), seq=1)
    ledger = books(author, extra=[first, skipped])
    assert "after (0, 2)" in ledger.summary({0: 4, 1: 0}).problems[0]
    ledger = books(author, extra=[first, changed(first, seq=1)])
    assert not ledger.summary({0: 4, 1: 0}).exact
    assert "row 1 of 1" in ledger.summary({0: 1, 1: 0}).problems[0]


def test_done_too_early_is_a_problem():
    author = Author(M)
    author.claim(0)
    author.close(0)
    author.close(0)
    s = books(author).summary({0: 4, 1: 0})
    assert not s.exact and "done after 0 of 12" in s.problems[0]


def test_an_endless_plan_counts_one_pass():
    author = Author(ENDLESS)
    author.claim(0)
    author.update(0, 4)
    s = books(author, ENDLESS).summary({0: 4})
    assert s.planned_rows is None and s.exact
    author.close(0)
    s = books(author, ENDLESS).summary({0: 4})
    assert (s.planned_rows, s.outstanding_rows) == (4, 0)


def test_revoked_rows_are_counted():
    author = Author(M)
    author.claim(0)
    author.update(0)
    revoked = Revocation("r", 0, 0, 0, 0, 0)
    ledger = books(author, extra=[revoked, Claim("r", 0, 2, "w", 0, 0, 1)])
    assert ledger.summary({0: 4, 1: 4}).revoked_rows == 2
