"""The command line: what commands print, and how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gossipdbn import errors
from gossipdbn.cli.app import app
from gossipdbn.cli.options import Commands, exit_status, home_of

EXAMPLE = Path(__file__).parent.parent / "examples" / "mnist.toml"
runner = CliRunner()


def commands() -> list[str]:
    return [c.name or (c.callback.__name__.rstrip("_") if c.callback else "") for c in app.registered_commands]


def test_without_arguments_it_teaches() -> None:
    result = runner.invoke(app, [])
    assert "Usage" in result.output and "config" in result.output


@pytest.mark.parametrize("command", commands())
def test_every_command_teaches_with_an_example(command: str) -> None:
    result = runner.invoke(app, [command, "--help"], terminal_width=200)
    assert result.exit_code == 0
    assert re.search(r"Examples?:", result.output) and f"gossipdbn {command}" in result.output, "no example"


def test_the_version_is_the_packages() -> None:
    assert runner.invoke(app, ["--version"]).output.startswith("gossipdbn ")


def test_an_unknown_command_is_a_usage_error() -> None:
    result = runner.invoke(app, ["trian"])
    assert result.exit_code == 2


def test_a_valid_configuration_is_explained() -> None:
    result = runner.invoke(app, ["config", str(EXAMPLE)])
    assert result.exit_code == 0, result.output
    assert "valid" in result.output and "phase 2: backprop" in result.output


def test_json_on_standard_output_is_alone_there() -> None:
    result = runner.invoke(app, ["config", str(EXAMPLE), "--json", "-"])
    assert json.loads(result.stdout)["run"]["slots"] == 4
    assert "valid" in result.stderr


def test_json_goes_to_a_file(tmp_path: Path) -> None:
    result = runner.invoke(app, ["config", "--explain", "--json", str(tmp_path / "keys.json")])
    assert result.exit_code == 0
    assert {"path", "default", "allowed", "doc"} == set(json.loads((tmp_path / "keys.json").read_text())[0])
    assert "[run]" in result.stdout and "[[phases]]" in result.stdout


def test_a_json_file_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    result = runner.invoke(app, ["config", str(EXAMPLE), "--json", str(tmp_path / "no" / "x.json")])
    assert result.exit_code == 2 and "cannot write" in result.stderr


def test_a_wrong_configuration_ends_with_one_clear_message(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text("[run]\nslotz = 1\n")
    result = runner.invoke(app, ["config", str(path)])
    assert result.exit_code == 2
    assert "run.slotz" in result.stderr and "Did you mean slots?" in result.stderr and "Traceback" not in result.output


def test_config_wants_a_file() -> None:
    assert runner.invoke(app, ["config"]).exit_code == 2


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.ConfigError("x"), 2),
        (errors.DataError("x"), 3),
        (errors.RetentionError("x"), 4),
        (errors.EmbeddedError("x"), 4),
        (errors.StoreError("x"), 4),
        (errors.SnapshotCorrupt("x"), 5),
        (errors.ReplayDivergence("x"), 5),
        (errors.LocalProtocolError("x"), 1),
    ],
)
def test_each_family_of_errors_has_its_exit_status(error: errors.GossipDbnError, status: int) -> None:
    assert exit_status(error) == status


def test_ctrl_c_ends_with_130() -> None:
    import typer

    interrupted = typer.Typer(cls=Commands)

    @interrupted.command()
    def wait() -> None:
        raise KeyboardInterrupt

    @interrupted.callback()
    def _group() -> None: ...

    assert runner.invoke(interrupted, ["wait"]).exit_code == 130


def test_down_without_a_broker_says_so(home: Path) -> None:
    result = runner.invoke(app, ["down"])
    assert result.exit_code == 0 and f"no embedded broker runs in {home / 'broker'}" in result.output


def test_home_is_the_option_or_the_environment(home: Path, tmp_path: Path) -> None:
    assert home_of(None).path == home
    assert home_of(tmp_path / "x").path == tmp_path / "x"


def test_the_module_runs_as_the_program_does() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gossipdbn.cli.app", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("gossipdbn ")


@pytest.mark.kafka
def test_up_and_down(home: Path, tmp_path: Path) -> None:
    facts = tmp_path / "up.json"
    try:
        assert runner.invoke(app, ["up", "--json", str(facts)]).exit_code == 0
        again = runner.invoke(app, ["up", "--port", "1"])
        assert again.exit_code == 0 and "already runs" in again.stderr
        assert json.loads(facts.read_text())["broker"]["bootstrap"] in again.stdout
    finally:
        result = runner.invoke(app, ["down"])
    assert "broker stopped" in result.output
