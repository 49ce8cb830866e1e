"""Configuration files: what they mean, and how every mistake in them is told."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path

import pytest

from gossipdbn.config import RunConfig, default_home, explain_all, load, loads, read_keys
from gossipdbn.config.settings import explain, read_table, setting
from gossipdbn.errors import ConfigError
from gossipdbn.models.spec import PhaseSpec

EXAMPLES = Path(__file__).parent.parent / "examples"
SMALL = """
[source]
kind = "csv"
path = "rows"
[model]
hidden = [8]
"""


def config(extra: str = "", *, base: str = SMALL) -> RunConfig:
    return loads(base + extra)


def problems(extra: str, *, base: str = SMALL) -> str:
    with pytest.raises(ConfigError) as raised:
        loads(base + extra)
    return str(raised.value)


def test_defaults_are_the_measured_recipe() -> None:
    found = config(
        base='[source]\nkind = "idx"\npath = "i"\nlabels = "l"\n[model]\nhidden = [500, 500]\nclasses = 10\n'
    )
    assert found.run.slots == 4 and found.run.workers == 2 and found.run.gate == 0
    assert (
        found.exchange.codec == "ternary" and found.exchange.pending == 8 and found.exchange.inline_bytes == 512 * 1024
    )
    layer = PhaseSpec("cd", epochs=5, batch=100, tau=10, lr=0.05, lr_final=0.05)
    assert found.phases[:2] == (layer, dataclasses.replace(layer, layer=1))
    last = found.phases[2]
    assert (last.learner, last.epochs, last.batch, last.tau, last.optimizer) == ("backprop", 20, 50, 5, "adam")
    assert (last.lr, last.lr_final) == (0.001, 0.0)
    assert len(found.phases) == 3 and found.warnings() == ()


def test_without_classes_nothing_is_fine_tuned() -> None:
    assert [p.learner for p in config().phases] == ["cd"]


def test_hidden_units_and_loss_are_chosen_in_the_model() -> None:
    base = '[source]\nkind = "csv"\npath = "rows"\n[model]\nhidden = [8, 4]\n'
    head = 'classes = 2\nhidden_units = "relu"\nloss = "squared"\n'
    found = config("[train]\nepochs = 0\n", base=base + head)
    assert (found.model.hidden_units, found.model.loss) == ("relu", "squared")
    assert [p.learner for p in found.phases] == ["backprop"]
    with pytest.raises(ConfigError, match=r"cd cannot train ReLU units; set train\.epochs = 0"):
        config(base=base + head)
    with pytest.raises(ConfigError, match=r"model\.loss: found \"squared\"; without model\.classes"):
        config(base=base + 'loss = "squared"\n')


def test_an_endless_source_is_one_joint_phase() -> None:
    found = config(
        base='[source]\nkind = "kafka"\ntopic = "events"\nendless = true\n[model]\nhidden = [8, 4]\nclasses = 2\n'
    )
    assert [(p.learner, p.epochs) for p in found.phases] == [("joint", None)]


def test_phases_are_taken_as_they_are() -> None:
    found = config(
        '[[phases]]\nlearner = "pcd"\nepochs = 7\nlr = 0.1\n[[phases]]\nlearner = "cd"\nlr = 1\nlr_final = 0\n'
    )
    assert found.phases[0] == PhaseSpec("pcd", epochs=7, lr=0.1, lr_final=0.1)
    assert (found.phases[1].lr, found.phases[1].lr_final) == (1.0, 0.0)


def test_every_field_of_a_phase_can_be_set() -> None:
    table = {f.name for f in dataclasses.fields(PhaseSpec)}
    assert table == {row.path.split(".")[1] for row in explain_all() if row.path.startswith("phases[]")}
    for row in explain_all():
        if row.path.startswith("phases[]"):
            assert row.doc, row.path


def test_paths_start_at_the_file(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        SMALL + '[snapshots]\nstore = "s3://bucket/x"\n[security]\nkey_file = "k"\nkey_id = 1\n'
    )
    found = load(tmp_path / "run.toml")
    assert found.source.path == str(tmp_path / "rows")
    assert found.snapshots.store == "s3://bucket/x"
    assert found.security.key_file == str(tmp_path / "k")
    assert found.text.startswith("\n[source]")


def test_an_absolute_path_stays(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('[source]\nkind = "csv"\npath = "/data"\n[model]\nhidden = [1]\n')
    assert load(tmp_path / "run.toml").source.path == "/data"


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        ("[run]\nslotz = 4\n", ["run.slotz", "unknown key", "Did you mean slots?"]),
        ("[runn]\n", ["runn", "Did you mean run?"]),
        ('[run]\nslots = "four"\n', ["run.slots", 'found "four"', "a whole number from 1 to 1000"]),
        ("[run]\nslots = 0\n", ["run.slots", "found 0"]),
        ("[run]\nslots = 2.0\n", ["run.slots", "found 2.0"]),
        ("[run]\nslots = true\n", ["run.slots", "found true"]),
        ('[run]\nname = "a b"\n', ["run.name", "letters, digits"]),
        ("run = 3\n", ["run", "found 3", "a table [run]"]),
        ("[run]\nslots = 2\ngate = 3\n", ["run.gate", "0 to run.slots = 2"]),
        ("[train]\nlr = nan\n", ["train.lr", "found nan", "above 0"]),
        ("[train]\nlr = 0\n", ["train.lr", "found 0"]),
        ('[train]\nlearner = "sgd"\n', ["train.learner", '"cd", "pcd"']),
        ("[train]\nepochs = 0\n", ["nothing to train"]),
        ('[exchange]\ncodec = "zip"\n', ["exchange.codec", '"ternary", "int8", "exact"']),
        ("[broker]\noptions = 3\n", ["broker.options", "a table of texts"]),
        ("[security]\nkey_id = 1\n", ["security.key_file"]),
        ('[security]\nkey_file = "k"\n', ["security.key_id"]),
        ('[[phases]]\nlearner = "cd"\nlayer = 1\n', ["phases[0].layer", "0 to 0"]),
        ('[[phases]]\nlearner = "backprop"\n', ["phases[0].learner", "model.classes"]),
        ('[[phases]]\nlearner = "cd"\nepochs = "endless"\n', ["phases[0].epochs", "joint"]),
        ('[[phases]]\nlearner = "joint"\nepochs = "endless"\n[[phases]]\nlearner = "cd"\n', ["no phase can follow"]),
        ('[[phases]]\nlearner = "cd"\nepochs = 0\n', ["phases[0].epochs", "at least 1"]),
        ('[[phases]]\nlearner = "cd"\nepoch = 3\n', ["phases[0].epoch", "Did you mean epochs?"]),
        ("[[phases]]\nepochs = 3\n", ["phases[0].learner", "missing"]),
        ("phases = 3\n", ["[[phases]]"]),
        ('[train]\n[[phases]]\nlearner = "cd"\n', ["keep one of them"]),
        ('[test]\nkind = "csv"\n', ["test.path"]),
        ('[test]\nkind = "cvs"\npath = "x"\n', ["test.kind", "csv"]),
        ("schema = 3\n", ["schema", "a table [schema]"]),
        ('[schema]\nnumeric = "int"\n', ["schema.numeric"]),
        ("[model\n", ["not valid TOML"]),
    ],
)
def test_mistakes_are_told_with_their_path(extra: str, words: list[str]) -> None:
    at_top = extra.split("\n", maxsplit=1)[0].startswith(("run =", "phases =", "schema ="))
    message = problems(SMALL, base=extra) if at_top else problems(extra)
    for word in words:
        assert word in message


def test_all_mistakes_are_told_at_once() -> None:
    message = problems("[run]\nslots = 0\nworkers = -1\n[train]\ntau = 0\n")
    assert message.count("\n") == 3


@pytest.mark.parametrize("text", ["", '[source]\nkind = "csv"\npath = "x"\n'])
def test_missing_tables_are_told(text: str) -> None:
    message = problems("", base=text)
    assert "model.hidden: missing" in message
    assert ("source: missing" in message) == (text == "")


def test_an_empty_stack_is_refused() -> None:
    assert "at least one layer" in problems("", base='[source]\nkind = "csv"\npath = "x"\n[model]\nhidden = []\n')


def test_a_plan_and_an_endless_source_must_agree() -> None:
    live = '[source]\nkind = "kafka"\ntopic = "t"\nendless = true\n[model]\nhidden = [3]\n'
    assert "exactly one phase" in problems('[[phases]]\nlearner = "cd"\n', base=live)
    assert "source.endless" in problems('[[phases]]\nlearner = "joint"\nepochs = "endless"\n')


def test_secrets_are_not_shown() -> None:
    message = problems('[broker.options]\n"sasl.password" = ["hunter2"]\n')
    assert "broker.options" in message and "hunter2" not in message


def test_options_are_texts() -> None:
    found = config('[broker.options]\n"enable.x" = true\n"a.b" = 3\n')
    assert found.broker.options == (("a.b", "3"), ("enable.x", "true"))


def test_large_products_of_slots_and_batch_are_warned_about() -> None:
    found = config("[run]\nslots = 16\n[train]\nbatch = 128\n")
    assert ["16 x 128 = 2048" in w for w in found.warnings()] == [True]


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"c\.toml"):
        load(path)


def test_every_key_is_documented() -> None:
    rows = explain_all()
    assert len({r.path for r in rows}) == len(rows)
    assert [r.path for r in rows if not r.doc] == []
    assert {"run.slots", "source.kind", "schema.label", "phases[].lr", "broker.options"} <= {r.path for r in rows}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda p: p.name)
def test_examples_are_valid(path: Path) -> None:
    found = load(path)
    assert found.warnings() == ()
    assert tomllib.loads(found.text)


def test_home_follows_the_environment() -> None:
    assert default_home({"GOSSIPDBN_HOME": "/a"}).path == Path("/a")
    assert default_home({"XDG_DATA_HOME": "/x"}).path == Path("/x/gossipdbn")
    home = default_home({"HOME": "/h"})
    assert home.path == Path("/h/.local/share/gossipdbn")
    folder = home.run("r1")
    parts = (folder.facts, folder.config, folder.checkpoint, folder.snapshots, folder.model, folder.logs)
    assert {p.parent for p in parts} == {home.path / "runs" / "r1"} and home.broker.parent == home.path


@dataclasses.dataclass(frozen=True)
class _Example:
    need: int = setting(..., "needed", low=1)
    ratio: float = setting(0.5, "share", high=1.0)
    free: float = setting(0.0, "any")
    on: bool = setting(False, "switch")


def test_settings_say_what_they_allow() -> None:
    rows = {r.path: r for r in explain(_Example, "e")}
    assert rows["e.need"].default == "required" and rows["e.need"].allowed == "a whole number, at least 1"
    assert rows["e.ratio"].allowed == "a number, at most 1" and rows["e.free"].allowed == "a number"
    assert rows["e.on"].default == "false" and rows["e.on"].allowed == "true or false"
    found: list[str] = []
    assert read_table(_Example, {"on": 1, "ratio": "x" * 100}, "e", found) is None
    assert len(found) == 3
    good = read_table(_Example, {"need": 2, "ratio": 1}, "e", found := [])
    assert good == _Example(need=2, ratio=1.0) and isinstance(good.ratio, float)


KEY = "ab" * 32


def test_keys_come_from_toml_and_json(tmp_path: Path) -> None:
    (tmp_path / "keys.toml").write_text(f'1 = "{KEY}"\n7 = "{KEY}"\n')
    (tmp_path / "keys.json").write_text('{"1": "%s"}' % KEY)  # noqa: UP031 - braces
    assert sorted(read_keys(tmp_path / "keys.toml", 7)) == [1, 7]
    assert read_keys(tmp_path / "keys.json") == {1: bytes.fromhex(KEY)}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[", "not valid"),
        ("[1]", "one table"),
        ('{"0": "%s"}' % KEY, "from 1 to"),  # noqa: UP031
        ('{"a": "%s"}' % KEY, "from 1 to"),  # noqa: UP031
        ('{"1": 5}', "hexadecimal"),
        ('{"1": "secret"}', "hexadecimal"),
        ('{"1": "abcd"}', "at least 32"),
        ('{"2": "%s"}' % KEY, "security.key_id: 1"),  # noqa: UP031
    ],
)
def test_a_wrong_key_file_is_told_without_its_keys(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_keys(tmp_path / "keys", 1)
    assert words in str(raised.value)
    assert KEY not in str(raised.value) and "secret" not in str(raised.value)


def test_a_missing_key_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        read_keys(tmp_path / "keys")
