"""The settings that are shipped for spark-submit are ones that the pinned Spark reads."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

pyspark = pytest.importorskip("pyspark")
FILES = sorted((Path(__file__).parents[2] / "streams" / "conf").glob("*.conf"))
CLASSES = ("org/apache/spark/internal/config/", "org/apache/spark/deploy/yarn/config/", "org/apache/spark/deploy/k8s/")


@pytest.fixture(scope="module")
def names() -> bytes:
    """The constants of the classes that define settings."""
    found = b""
    for jar in (Path(pyspark.__file__).parent / "jars").glob("spark-*_2.13-*.jar"):
        if jar.name.startswith(("spark-core", "spark-yarn", "spark-kubernetes")):
            with zipfile.ZipFile(jar) as archive:
                found += b"".join(archive.read(n) for n in archive.namelist() if n.startswith(CLASSES))
    return found


def known(setting: str, names: bytes) -> bool:
    """Whether Spark has this name, as a whole, in two parts, or as an environment variable of somebody's."""
    if setting.startswith(("spark.yarn.appMasterEnv.", "spark.executorEnv.")):
        return True
    head, _, tail = setting.rpartition(".")
    return setting.encode() in names or (head.encode() in names and tail.encode() in names)


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_every_setting_is_one_of_sparks(file, names):
    settings = [line.split(None, 1) for line in file.read_text().splitlines() if line and not line.startswith("#")]
    assert len(settings) >= 5 and all(len(s) == 2 for s in settings)
    assert [name for name, _ in settings if not known(name, names)] == []
    assert dict(settings)["spark.speculation"] == "false"


def test_a_setting_that_spark_does_not_have_is_noticed(names):
    assert not known("spark.yarn.maxDriverAttempts", names)
