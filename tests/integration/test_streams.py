"""The ready jobs, as programs and through spark-submit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gossipdbn.adapters.kafka_log import KafkaLog
from gossipdbn.config import loads
from gossipdbn.embedded.java import spark_java_home
from gossipdbn.launch.runs import build_manifest, create_run
from gossipdbn.spark.feed import fit_source_schema
from gossipdbn.spark.session import kafka_jars

pytestmark = [pytest.mark.integration, pytest.mark.kafka, pytest.mark.spark, pytest.mark.slow]

STREAMS = Path(__file__).parents[2] / "streams"
CONFIG = """
[source]
kind = "csv"
path = "rows"
[model]
hidden = [4]
[train]
learner = "cd"
epochs = 1
"""


@pytest.fixture
def arguments(log: KafkaLog, run_name: str, tmp_path: Path) -> list[str]:
    """A run that exists, made for the rows of a folder; the job's options."""
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("a,b,c\n" + "0,1,1\n1,0,0\n" * 60)
    config = loads(CONFIG, folder=tmp_path)
    create_run(log, build_manifest(config, fit_source_schema(config.source, config.schema), run_name, "", 0))
    return ["--run", run_name, "--bootstrap", log.bootstrap, "--checkpoint", str(tmp_path / "checkpoint")]


def _run(command: list[str], cwd: Path) -> tuple[int, str, str]:
    environ = {**os.environ, "PYSPARK_PYTHON": sys.executable, "JAVA_HOME": str(spark_java_home())}
    environ |= {"SPARK_LOCAL_IP": "127.0.0.1"}
    done = subprocess.run(command, cwd=cwd, env=environ, capture_output=True, text=True, timeout=280, check=False)
    return done.returncode, done.stdout, done.stderr


def _submit(*options: str) -> list[str]:
    program = [str(Path(sys.executable).parent / "spark-submit"), *options, "--conf", "spark.ui.enabled=false"]
    return [*program, "--jars", ",".join(map(str, kafka_jars())), str(STREAMS / "folder.py")]


def test_a_folder_is_fed_by_spark_submit(arguments, tmp_path):
    options = [*arguments, "--kind", "csv", "--path", str(tmp_path / "rows")]
    code, out, err = _run([*_submit("--master", "local[1]"), *options], tmp_path)
    assert code == 0, err[-3000:]
    result = json.loads(out.strip().splitlines()[-1])
    assert (result["finished"], result["rows"]) == (True, 120)

    (tmp_path / "rows" / "b.csv").write_text("a,b,c\n0,1,1\n")
    code, out, _ = _run([sys.executable, str(STREAMS / "folder.py"), *options], tmp_path)
    assert (code, json.loads(out)["rows"]) == (0, 120)  # the end mark is final


def test_a_folder_is_fed_through_a_standalone_master_with_the_settings_that_are_shipped(
    arguments, tmp_path, gossip_spark
):
    submit = _submit("--master", gossip_spark, "--properties-file", str(STREAMS / "conf" / "standalone.conf"))
    code, out, err = _run([*submit, *arguments, "--kind", "csv", "--path", str(tmp_path / "rows")], tmp_path)
    assert code == 0, err[-3000:]
    assert json.loads(out.strip().splitlines()[-1])["rows"] == 120


def test_a_bad_row_ends_the_job_with_one_clear_line(arguments, tmp_path):
    (tmp_path / "rows" / "a.csv").write_text("a,b,c\n0,1,1\n0,5,1\n")
    options = [*arguments, "--kind", "csv", "--path", str(tmp_path / "rows")]
    code, out, err = _run([sys.executable, str(STREAMS / "folder.py"), *options], tmp_path)
    assert (code, out) == (1, "")
    assert err.strip() == "DataError: a.csv: column 'b', row 1: expected 0 or 1, the value is 5"
