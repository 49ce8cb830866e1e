"""The commands that look back at a run, on an archive file: no broker, no Kafka."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from gossipdbn.cli.app import app
from gossipdbn.core import rounds
from gossipdbn.models.files import load_model
from gossipdbn.replay import archive
from gossipdbn.replay.history import judge_all
from gossipdbn.schema import SchemaConfig, fit, schema_to_dict
from tests.replay.scene import Scene, manifest, rows, walk

runner = CliRunner()


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schema = schema_to_dict(fit({f"x{i}": np.arange(50) % 2 for i in range(20)}, SchemaConfig()))
    return pack(Scene(train=rounds.run, manifest=manifest(3, schema=schema)), tmp_path_factory.mktemp("run"))


def pack(scene: Scene, folder: Path) -> Path:
    scene.feed(*rows(120))
    scene.work("first", until=15)
    scene.work("second")
    run = scene.logged(folder / "spool")
    archive.write(run.spool, archive.describe(judge_all(run), {}, "here"), folder / "run.zip")
    return folder / "run.zip"


def test_a_file_is_verified(packed: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["replay", str(packed), "--jobs", "1", "--json", str(tmp_path / "v.json")])
    assert result.exit_code == 0, result.output
    facts = json.loads((tmp_path / "v.json").read_text())
    assert re.search(rf"bit-identical, {facts['updates']} updates, digest {facts['digest']}", result.output)
    assert facts["identical"] is True and facts["packages_here"]["numpy"]


def test_a_run_that_is_not_what_it_claims_ends_with_status_5(tmp_path: Path) -> None:
    path = pack(Scene(train=walk), tmp_path)  # recorded with another learner than the manifest names
    result = runner.invoke(app, ["replay", str(path), "--verify", "--jobs", "1"])
    assert result.exit_code == 5
    assert "diverges at slot" in result.output and "NOT IDENTICAL" in result.output and "packages:" in result.output


def test_the_model_at_a_moment(packed: Path, tmp_path: Path) -> None:
    for moment, name in (("start", "a"), ("#10", "b"), ("end", "c")):
        target = tmp_path / f"{name}.safetensors"
        result = runner.invoke(app, ["replay", str(packed), "--until", moment, "-o", str(target)])
        assert result.exit_code == 0, result.output
    first, last = load_model(tmp_path / "a.safetensors"), load_model(tmp_path / "c.safetensors")
    assert not np.array_equal(first.parameters, last.parameters)
    assert last.provenance.digest in result.output


def test_what_changed(packed: Path, tmp_path: Path) -> None:
    result = runner.invoke(app, ["replay", str(packed), "--diff", "#5", "end", "--json", str(tmp_path / "d.json")])
    assert result.exit_code == 0, result.output
    assert "layer0.weights" in result.output and "slot 2" in result.output and "second" in result.output
    assert json.loads((tmp_path / "d.json").read_text())["b"]["name"] == "end"


def test_the_books(packed: Path, tmp_path: Path) -> None:
    page, facts = tmp_path / "books.html", tmp_path / "books.json"
    result = runner.invoke(app, ["audit", str(packed), "-o", str(page), "--json", str(facts)])
    assert result.exit_code == 0, result.output
    assert "the books are exact" in result.output and "The books are exact" in page.read_text()
    assert len(json.loads(facts.read_text())["updates"]) > 10
    row = runner.invoke(app, ["audit", str(packed), "--row", "1:3"])
    assert "was trained 5 times" in row.output


def test_books_that_do_not_add_up_end_with_status_5(tmp_path: Path) -> None:
    scene = Scene(train=walk)
    scene.feed(*rows(120))
    scene.work("only")
    scene.log.data[scene.names.shards][1].pop(0)
    run = scene.logged(tmp_path / "spool")
    archive.write(run.spool, archive.describe(judge_all(run), {}, "here"), tmp_path / "run.zip")
    result = runner.invoke(app, ["audit", str(tmp_path / "run.zip")])
    assert result.exit_code == 5 and "DO NOT ADD UP" in result.output


def test_a_bisection_over_a_file_of_rows(packed: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    lines = [",".join(f"x{i}" for i in range(20))]
    lines += [",".join(str(int(x)) for x in row) for row in rng.random((30, 20)) < 0.3]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    words = ["bisect", str(packed), "--metric", "free-energy", "--data", str(tmp_path / "rows.csv"), "--looks", "3"]
    result = runner.invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "free-energy" in result.output and "after 0 updates" in result.output
    broken = runner.invoke(app, [*words, "--above", "-1e9"])
    assert broken.exit_code == 0 and "never was good" in broken.output
    wrong = runner.invoke(app, ["bisect", str(packed), "--metric", "beauty"])
    assert wrong.exit_code == 2 and "--metric" in wrong.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["replay", "{}", "--until", "7:3", "-o", "m.safetensors"], "the run has slots 0 to 2; 3 is the operator"),
        (["replay", "{}", "--until", "1:999", "-o", "m.safetensors"], "slot 1 has updates 0 to"),
        (["replay", "{}", "--until", "3:0", "-o", "m.safetensors"], "the operator has no revocations yet"),
        (["audit", "{}", "--row", "1:9999"], "slot 1 has no row 9999, it has rows 0 to"),
        (["revoke", "{}", "--slot", "0", "--from", "0"], "an archive cannot be changed"),
    ],
)
def test_what_is_not_there_is_named_with_what_is(packed: Path, words: list[str], told: str) -> None:
    result = runner.invoke(app, [w.format(packed) for w in words])
    assert result.exit_code == 2 and told in result.output, result.output


def test_a_moment_after_the_end_says_how_much_of_the_run_it_is(packed: Path, tmp_path: Path) -> None:
    words = ["replay", str(packed), "--until", "+100h", "-o", str(tmp_path / "m.safetensors")]
    found = re.search(r"(\d+) of (\d+) updates", runner.invoke(app, words).output)
    assert found is not None and found[1] == found[2]


def test_an_archive_that_is_cut_off_says_what_to_do(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.zip").write_bytes(packed.read_bytes()[:5000])
    result = runner.invoke(app, ["replay", str(tmp_path / "cut.zip")])
    assert result.exit_code == 5 and "copy it again" in result.output


@pytest.mark.parametrize(
    "words",
    [
        ["replay"], ["replay", "x.zip"], ["replay", "RUN", "--last"], ["replay", "{}", "--until", "end"],
        ["replay", "{}", "-o", "m.safetensors"], ["replay", "{}", "--verify", "--diff", "start", "end"],
        ["replay", "{}", "--until", "whenever", "-o", "m.safetensors"], ["audit", "{}", "--row", "x"],
        ["audit", "{}", "--row", "9:1"], ["audit", "{}", "-o", "no/books.html"], ["archive", "{}", "-o", "no/x.zip"],
        ["replay", "{}", "--until", "end", "-o", "no/m.safetensors"],
        ["revoke", "", "--slot", "0", "--from", "0"], ["revoke", "{}", "--slot", "0", "--from", "0"],
        ["give-up", "", "--slot", "0"], ["fork", ""], ["fork", "{}"], ["fork", "x", "--at", "whenever"],
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_a_configuration_error(packed: Path, words: list[str]) -> None:
    result = runner.invoke(app, [w.format(packed) for w in words])
    assert result.exit_code == 2, result.output
    assert "error:" in result.output
