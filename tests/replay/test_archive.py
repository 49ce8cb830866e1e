"""One file holds a run: it replays alone, notices every change, and unpacks nothing unbounded."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import msgspec
import pytest

from gossipdbn.errors import ConfigError, GossipDbnError, SnapshotCorrupt, SnapshotIncompatible
from gossipdbn.replay import archive
from gossipdbn.replay.history import judge_all, open_run
from gossipdbn.replay.pieces import complete
from gossipdbn.replay.verify import verify
from tests.replay.scene import Scene, eventful, manifest, rows, walk


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("archive")
    run = eventful(manifest=manifest(3, inline_bytes=200)).logged(folder / "spool")
    facts = archive.describe(judge_all(run), {"gossipdbn": "1"}, "a machine")
    sha = archive.write(run.spool, facts, folder / "run.zip")
    assert len(sha) == 64
    assert sha == archive.write(run.spool, facts, folder / "again.zip")  # equal runs give equal archives
    return folder / "run.zip"


def test_an_archive_replays_alone(packed: Path, tmp_path: Path) -> None:
    spool, facts = archive.unpack(packed, tmp_path)
    assert facts.state == "finished" and "v" in "".join(v.letters for v in facts.verdicts)
    assert spool.index.objects, "spilled payloads come along"
    v = verify(open_run(tmp_path, {}), train=walk, expected=facts)
    assert v.identical and v.digest == facts.digest and v.version == facts.version


def test_another_verdict_than_the_archives_is_a_problem(packed: Path, tmp_path: Path) -> None:
    _, facts = archive.unpack(packed, tmp_path)
    first = facts.verdicts[1]
    other = msgspec.structs.replace(
        facts, digest="0" * 16,
        verdicts=(facts.verdicts[0], first._replace(letters=first.letters.replace("v", "u")), *facts.verdicts[2:]),
    )  # fmt: skip
    v = verify(open_run(tmp_path, {}), train=walk, expected=other)
    assert not v.identical
    assert any("another verdict on offset" in p for p in v.problems) and any("digest" in p for p in v.problems)


def test_every_damaged_byte_is_noticed(packed: Path, tmp_path: Path) -> None:
    data = packed.read_bytes()
    missed = 0
    for i, at in enumerate(range(0, len(data), max(1, len(data) // 150))):
        damaged = tmp_path / "damaged.zip"
        damaged.write_bytes(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :])
        try:
            archive.unpack(damaged, tmp_path / str(i))
            missed += 1  # only bytes of the container that mean nothing (times, attributes) may change unnoticed
        except GossipDbnError:
            pass
    assert missed < 15
    cut = tmp_path / "cut.zip"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(SnapshotCorrupt):
        archive.unpack(cut, tmp_path / "cut")


def repack(packed: Path, target: Path, change: dict[str, bytes | None], add: dict[str, bytes] | None = None) -> Path:
    out = io.BytesIO()
    with zipfile.ZipFile(packed) as source, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as result:
        for info in source.infolist():
            data = change.get(info.filename, source.read(info))
            if data is not None:
                result.writestr(info.filename, data)
        for name, data in (add or {}).items():
            result.writestr(name, data)
    target.write_bytes(out.getvalue())
    return target


def header(packed: Path) -> dict[str, object]:
    with zipfile.ZipFile(packed) as source:
        return json.loads(source.read(archive.HEADER))


def test_other_entries_than_named_are_refused(packed: Path, tmp_path: Path) -> None:
    missing = repack(packed, tmp_path / "a.zip", {"index.json": None})
    more = repack(packed, tmp_path / "b.zip", {}, {"extra": b""})
    for path in (missing, more):
        with pytest.raises(SnapshotCorrupt, match="other entries"):
            archive.unpack(path, tmp_path / path.stem)


@pytest.mark.parametrize("name", ["../outside", "/outside", "objects/../../outside", "folder/file", "objects\\x/../y"])
def test_no_entry_leaves_its_folder(packed: Path, tmp_path: Path, name: str) -> None:
    facts = header(packed)
    facts["entries"] = [*facts["entries"], [name, 1, "00"]]  # type: ignore[misc]
    path = repack(packed, tmp_path / "a.zip", {archive.HEADER: json.dumps(facts).encode()}, {name: b"x"})
    with pytest.raises(SnapshotCorrupt):
        archive.unpack(path, tmp_path / "inside" / "deep")
    assert not list(tmp_path.rglob("outside"))


def test_an_entry_that_grows_while_it_is_unpacked_is_cut_off(packed: Path, tmp_path: Path) -> None:
    bomb = repack(packed, tmp_path / "a.zip", {"control-00000.records": bytes(50 << 20)})
    assert bomb.stat().st_size < 1 << 20
    with pytest.raises(SnapshotCorrupt, match="checksum"):
        archive.unpack(bomb, tmp_path / "x")
    assert sum(p.stat().st_size for p in (tmp_path / "x").rglob("*")) < 2 << 20


def test_newer_formats_and_other_files_are_named(packed: Path, tmp_path: Path) -> None:
    facts = {**header(packed), "format": 7}
    with pytest.raises(SnapshotIncompatible, match="format 7"):
        archive.read_facts(repack(packed, tmp_path / "a.zip", {archive.HEADER: json.dumps(facts).encode()}))
    with pytest.raises(ConfigError, match="no archive"):
        archive.read_facts(tmp_path / "nothing")
    (tmp_path / "text").write_text("no zip")
    with pytest.raises(SnapshotCorrupt):
        archive.read_facts(tmp_path / "text")


def test_a_copy_of_a_live_run_is_verified_as_far_as_it_is_whole(tmp_path: Path) -> None:
    scene = Scene()
    scene.feed(*rows())
    scene.work("only", until=40)
    del scene.log.data[scene.names.updates][0][-4:]  # the copy of partition 0 was taken a moment before the others
    run = scene.logged(tmp_path)
    whole, version = complete(judge_all(run)), judge_all(run).version
    assert sum(whole) < sum(version) and all(a <= b for a, b in zip(whole, version, strict=True))
    v = verify(run, train=walk)
    assert v.identical and v.beyond == sum(version) - sum(whole) and v.updates == sum(whole)
