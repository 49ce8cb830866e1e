"""A Spark session that starts fast, says little and shares the machine with training."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gossipdbn.embedded import artifacts
from gossipdbn.embedded.archive import ClassArchive
from gossipdbn.embedded.java import cache_folder, find_java, spark_java_home
from gossipdbn.errors import EmbeddedError

__all__ = ["class_archive", "close_session", "kafka_jars", "open_session", "own_session", "session_is_open"]

_LOG_SETTINGS = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {path}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{yyyy-MM-dd HH:mm:ss.SSS}} %p %c{{1}}: %m%n%ex
"""

_LOCAL = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.memory": "768m",
    "spark.sql.catalogImplementation": "in-memory",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",  # compiling plans takes longer than running these
    "spark.sql.streaming.ui.enabled": "false",
    "spark.sql.streaming.metricsEnabled": "false",
    "spark.eventLog.enabled": "false",
    "spark.shuffle.compress": "false",
    "spark.broadcast.compress": "false",
    "spark.rdd.compress": "false",
}
_COMMON = {
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
    "spark.sql.streaming.stopTimeout": "20s",
}


def kafka_jars() -> list[Path]:
    """The jars of Spark's Kafka connector, fetched once."""
    return artifacts.jars(artifacts.SPARK_KAFKA, artifacts.ensure(artifacts.SPARK_KAFKA))


def open_session(
    name: str = "gossipdbn feed",
    master: str = "local[*]",
    log_folder: Path | None = None,
    extra: Mapping[str, str] | None = None,
    archive: ClassArchive | None = None,
) -> Any:
    """Start a session of our own, or return the one that is there (under ``spark-submit``).

    Parameters
    ----------
    master : Spark master; with ``local[n]`` everything runs in one JVM on this machine.
    log_folder : folder for ``spark.log`` and ``spark.out``; default a temporary one. Nothing goes to the terminal.
    extra : Spark settings that win over ours.
    archive : record the JVM's classes into this archive (``prepare``); default: use the one that is there.

    Returns
    -------
    pyspark.sql.SparkSession

    Raises
    ------
    EmbeddedError : no Java, no connector, or the session does not start.
    """
    from pyspark.sql import SparkSession

    if session_is_open() or not own_session():
        builder = SparkSession.builder.appName(name)  # master, jars and logs are spark-submit's business
        for key, value in _COMMON.items():
            builder = builder.config(key, value)
        return builder.getOrCreate()
    local = master.startswith("local")
    settings = dict(_COMMON)
    paths = [str(p) for p in kafka_jars()]
    if local:
        settings |= _LOCAL | {"spark.driver.extraClassPath": os.pathsep.join(paths)}
        settings["spark.local.dir"] = tempfile.gettempdir()
    else:
        settings["spark.jars"] = ",".join(paths)
    logs = Path(tempfile.mkdtemp(prefix="gossipdbn-spark-")) if log_folder is None else log_folder
    settings["spark.driver.extraJavaOptions"] = " ".join(_java_options(logs.absolute(), archive))
    settings |= {"spark.app.name": name, "spark.master": master, **(extra or {})}
    with _environment(local=local):
        try:
            return _start(settings, logs / "spark.out")
        except Exception as error:
            raise EmbeddedError(
                f"Spark did not start ({str(error).splitlines()[0][:300]}). See spark.log and spark.out in {logs}"
            ) from error


def _start(settings: Mapping[str, str], output: Path) -> Any:
    """Start the JVM with its own output in a file (Java likes to warn), and a session in it."""
    from pyspark import SparkConf, SparkContext
    from pyspark.java_gateway import launch_gateway
    from pyspark.sql import SparkSession

    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    gateway = SparkContext._gateway
    if gateway is None:
        with output.open("ab") as sink:
            gateway = launch_gateway(conf, {"stdout": sink, "stderr": subprocess.STDOUT})
    SparkContext(conf=conf, gateway=gateway)
    return SparkSession.builder.getOrCreate()


def session_is_open() -> bool:
    """Whether this process has a session already; ``open_session`` returns it, and its owner closes it."""
    from pyspark import SparkContext

    return SparkContext._active_spark_context is not None


def own_session() -> bool:
    """Whether a session's JVM is started by this process, not by ``spark-submit``."""
    return "PYSPARK_GATEWAY_PORT" not in os.environ


def class_archive() -> ClassArchive | None:
    """The class data archive of this Java with this PySpark: with it a session starts twice as fast."""
    import pyspark

    return ClassArchive.of(find_java(), f"spark {pyspark.__version__} {pyspark.__file__}", cache_folder())


def _java_options(logs: Path, record: ClassArchive | None) -> list[str]:
    try:
        logs.mkdir(parents=True, exist_ok=True)
        log_settings = logs / "log4j2.properties"
        log_settings.write_text(_LOG_SETTINGS.format(path=logs / "spark.log"))
    except OSError as error:
        raise EmbeddedError(f"cannot write Spark's log folder {logs}: {error.strerror}. Choose another") from error
    archive = class_archive() if record is None else record
    return [
        f"-Dlog4j2.configurationFile={log_settings.as_uri()}",
        "-XX:+UseSerialGC",
        "-XX:-UsePerfData",
        "-XX:TieredStopAtLevel=1",
        "-Xlog:disable",  # remarks on the archive; errors are still written
        *([] if archive is None else archive.flags(record=record is not None)),
    ]


@contextlib.contextmanager
def _environment(*, local: bool) -> Any:
    """What PySpark reads from the environment when it starts its JVM and, later, its Python workers."""
    wanted = {"PYSPARK_PYTHON": sys.executable, "PYSPARK_DRIVER_PYTHON": sys.executable}
    # without the incubating vector module: only linear algebra would use it, and Java warns about it
    wanted["JAVA_HOME"] = str(spark_java_home(replace(find_java(), has_vector=False)))
    if local:
        wanted["SPARK_LOCAL_IP"] = "127.0.0.1"
    before = {key: os.environ.get(key) for key in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key, None)
            else:
                os.environ[key] = value


def close_session(spark: Any, patience_s: float = 10.0) -> int | None:
    """Stop the session and, where it is ours, its JVM: training gets the memory back at once. The JVM's exit code."""
    from pyspark import SparkContext

    ours = own_session()
    with contextlib.suppress(Exception):
        spark.stop()
    gateway = SparkContext._gateway
    if not ours or gateway is None:
        return None
    process = getattr(gateway, "proc", None)
    with contextlib.suppress(Exception):
        gateway.shutdown()
    SparkContext._gateway = None
    SparkContext._jvm = None
    if process is None:
        return None
    with contextlib.suppress(Exception):
        process.stdin.close()
        process.wait(patience_s)
    if process.poll() is None:
        process.kill()
        process.wait(10)
    return int(process.returncode)
