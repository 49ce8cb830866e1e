"""A shipped package lies where its compiled kernels are found again."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gossipdbn
from gossipdbn.spark.placement import _unpacked, package_zip


def test_two_applications_that_ship_one_version_run_it_from_one_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shipped = package_zip(tmp_path / "driver")
    later = tmp_path / "later.zip"  # the same files, checked out at another time
    with zipfile.ZipFile(shipped) as old, zipfile.ZipFile(later, "w") as new:
        for name in old.namelist():
            new.writestr(zipfile.ZipInfo(name), old.read(name))
    places = [_unpacked(str(shipped)), _unpacked(str(later))]
    assert places[0] == places[1]
    ours, theirs = Path(str(gossipdbn.__file__)).parent, Path(places[0]) / "gossipdbn"
    assert (theirs / "kernels/tiers.py").read_bytes() == (ours / "kernels/tiers.py").read_bytes()
    assert [p.name for p in Path(places[0]).parent.iterdir()] == [Path(places[0]).name]


def test_what_is_not_ours_or_has_no_place_stays_a_zip(tmp_path, monkeypatch):
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("theirs/__init__.py", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert _unpacked(str(other)) == str(other)
    assert _unpacked(str(tmp_path)) == str(tmp_path)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    ours = package_zip(tmp_path / "driver")
    assert _unpacked(str(ours)) == str(ours)
