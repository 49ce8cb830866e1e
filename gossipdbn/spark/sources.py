"""Sources as Spark streams: Spark finds files and events and remembers them; our workers read what is inside."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import Any

from gossipdbn.errors import ConfigError
from gossipdbn.readers import SUFFIXES
from gossipdbn.source import SourceConfig
from gossipdbn.spark.pack import OUTPUT, PackPlan, packer

__all__ = ["base_folder", "file_frame", "is_remote", "java_client_settings", "stream"]

_FILE_SCHEMA = "path string, modificationTime timestamp, length long, content binary"


def base_folder(source: SourceConfig) -> str:
    """The folder that file names in shard ids are relative to: the folder itself, or the file's or glob's one."""
    if source.kind == "kafka":
        return ""
    if is_remote(source.path):
        return source.path.rstrip("/") if not _pattern(source.path) else source.path.rpartition("/")[0]
    path = Path(source.path).expanduser()
    return str((path if path.is_dir() else path.parent).absolute())


def is_remote(path: str) -> bool:
    """Whether the path is a URL of a file system that only Spark is sure to reach."""
    return re.match(r"^[a-z][a-z0-9+.-]*://", path) is not None and not path.startswith("file://")


def _pattern(path: str) -> bool:
    last = path.rpartition("/")[2]
    return glob.has_magic(last) or "." in last


def _name_filter(source: SourceConfig) -> str:
    """Spark's glob for the names of the source's files inside ``base_folder``."""
    if is_remote(source.path):
        if _pattern(source.path):
            return source.path.rpartition("/")[2]
    else:
        path = Path(source.path).expanduser()
        if path.is_file():
            return _literal(path.name)
        if not path.is_dir():
            return path.name
    endings = [s + zipped for s in SUFFIXES[source.kind] for zipped in ("", ".gz")]
    return "*{" + ",".join(endings) + "}"


def _literal(name: str) -> str:
    """``name`` as a glob that matches nothing else."""
    return re.sub(r"([\[\]{}*?\\])", r"\\\1", name)


def stream(spark: Any, plan: PackPlan, bootstrap: str, settings: dict[str, str]) -> Any:
    """The streaming DataFrame of sealed shards (columns value, partition).

    Parameters
    ----------
    bootstrap : the run's brokers, for a source topic without brokers of its own.
    settings : of Spark's Kafka clients (``kafka.*``).
    """
    source = plan.source
    if source.kind == "kafka":
        found = _events(spark, source, source.bootstrap or bootstrap, {} if source.bootstrap else settings)
    else:
        found = _files(spark, source, plan.base)
    return found.mapInArrow(packer(plan), OUTPUT)


def file_frame(reader: Any, source: SourceConfig, base: str) -> Any:
    """The source's files, one row each, by Spark's reader (``spark.read`` or ``spark.readStream``)."""
    described = reader.format("binaryFile").schema(_FILE_SCHEMA).option("pathGlobFilter", _name_filter(source))
    return described.load(base if is_remote(source.path) else "file://" + _literal(base))


def _files(spark: Any, source: SourceConfig, base: str) -> Any:
    found = file_frame(spark.readStream.option("maxFilesPerTrigger", str(source.files_per_batch)), source, base)
    # local files are read piece by piece; what lies elsewhere comes whole, through Spark's own file system clients
    return found.select(*(("path", "content") if is_remote(source.path) else ("path",)))


def _events(spark: Any, source: SourceConfig, bootstrap: str, settings: dict[str, str]) -> Any:
    return (
        spark.readStream.format("kafka")
        .options(**settings)
        .option("kafka.bootstrap.servers", bootstrap)
        .option("subscribe", source.topic)
        .option("startingOffsets", source.starting)
        .option("maxOffsetsPerTrigger", str(source.rows_per_batch))
        .option("failOnDataLoss", "true")
        .load()
        .select("topic", "partition", "offset", "value")
    )


_SAME = ("security.protocol", "sasl.mechanism", "ssl.endpoint.identification.algorithm", "client.dns.lookup")


def java_client_settings(options: dict[str, str]) -> dict[str, str]:
    """Settings of librdkafka as Spark's Kafka client names them, each prefixed with ``kafka.``.

    Raises
    ------
    ConfigError : a security setting that has no equal there.
    """
    rest = dict(options)
    rest.pop("client.id", None)
    if "sasl.mechanisms" in rest:
        rest["sasl.mechanism"] = rest.pop("sasl.mechanisms")
    found = {f"kafka.{key}": rest.pop(key) for key in _SAME if key in rest}
    user, password = rest.pop("sasl.username", None), rest.pop("sasl.password", None)
    if user is not None and password is not None:
        module = (
            "scram.ScramLoginModule" if "SCRAM" in found.get("kafka.sasl.mechanism", "") else "plain.PlainLoginModule"
        )
        quoted = [v.replace("\\", "\\\\").replace('"', '\\"') for v in (user, password)]
        found["kafka.sasl.jaas.config"] = (
            f'org.apache.kafka.common.security.{module} required username="{quoted[0]}" password="{quoted[1]}";'
        )
    authority = rest.pop("ssl.ca.location", None)
    if authority is not None:
        found |= {"kafka.ssl.truststore.type": "PEM", "kafka.ssl.truststore.location": authority}
    lost = [k for k in rest if k.startswith(("sasl.", "ssl.", "security."))]
    if lost:
        raise ConfigError(f"broker.kafka: {lost[0]} cannot be handed to Spark's Kafka client; see its security guide")
    return found
