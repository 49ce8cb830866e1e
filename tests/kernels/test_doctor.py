"""The self-test knows its result, rates are measured, and a tier that fails is banned."""

from __future__ import annotations

import time

import pytest

from gossipdbn.kernels import doctor, tiers


def test_examination():
    report = doctor.examine(time.perf_counter, 0.01)
    assert report.passed and report.digest == doctor.SELF_TEST_DIGEST and report.tier == tiers.TIER
    assert report.cd1_rows_per_s > 0 and report.encode_us > 0 and report.apply_us > 0


def test_a_failing_tier_is_banned_and_a_passing_one_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(tiers, "CACHE_FOLDER", tmp_path / "kernels")
    monkeypatch.setattr(tiers, "cache_root", lambda: tmp_path)
    monkeypatch.setattr(tiers, "TIER", "vnni")
    line = doctor.ensure_trusted(lambda args: -4)
    assert line is not None and "banned" in line and tiers.ban_marker("vnni").exists()
    commands = []
    assert doctor.ensure_trusted(lambda args: commands.append(args) or 0) is None
    assert doctor.ensure_trusted(lambda args: pytest.fail("tested twice")) is None
    assert commands[0][1:] == ["-m", "gossipdbn.kernels.doctor"]


@pytest.mark.parametrize(
    ("tier", "banned", "allowed"),
    [
        ("amx", "", "amx"),
        ("amx", "amx", "vnni"),
        ("amx", "amx vnni avx512 avx2", "generic"),
        ("avxvnni", "avxvnni", "avx2"),
        ("generic", "generic", "generic"),
    ],
)
def test_banned_tiers_are_stepped_over(tier, banned, allowed):
    assert tiers.first_allowed(tier, lambda t: t in banned.split()) == allowed
