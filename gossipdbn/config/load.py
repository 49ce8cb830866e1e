"""TOML to :class:`RunConfig`: every problem of a file is found at once and told with its key's path."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from gossipdbn.config.parts import (
    PHASE_SETTINGS,
    BrokerPart,
    ExchangePart,
    ModelPart,
    RunPart,
    SecurityPart,
    SnapshotPart,
    TrainPart,
    WorkerPart,
)
from gossipdbn.config.settings import Explained, explain, read_table, resolve_path, unknown_key
from gossipdbn.errors import ConfigError
from gossipdbn.models.spec import Learner, Optimizer, PhaseSpec
from gossipdbn.schema import SchemaConfig
from gossipdbn.source import SourceConfig, schema_config, source_config

ROWS_IN_FLIGHT = 1600
"""Above this many rows trained between merges of all slots (slots x batch), learning suffers measurably."""

_PARTS: dict[str, type] = {
    "run": RunPart,
    "model": ModelPart,
    "train": TrainPart,
    "exchange": ExchangePart,
    "snapshots": SnapshotPart,
    "broker": BrokerPart,
    "security": SecurityPart,
    "worker": WorkerPart,
}
_TABLES = (
    "run",
    "source",
    "schema",
    "test",
    "model",
    "train",
    "phases",
    "exchange",
    "snapshots",
    "broker",
    "security",
    "worker",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A whole run as its configuration file describes it.

    Attributes
    ----------
    source : the rows that are trained on. schema : what their columns mean. test : held-out rows, or None.
    phases : the plan, expanded from ``[train]`` or as ``[[phases]]`` spells it out.
    text : the file itself, kept beside the run. Other attributes are the tables of the same name.
    """

    run: RunPart
    source: SourceConfig
    schema: SchemaConfig
    test: SourceConfig | None
    model: ModelPart
    phases: tuple[PhaseSpec, ...]
    exchange: ExchangePart
    snapshots: SnapshotPart
    broker: BrokerPart
    security: SecurityPart
    worker: WorkerPart
    text: str = ""

    def warnings(self) -> tuple[str, ...]:
        """What is allowed but known to learn badly."""
        found = []
        for i, phase in enumerate(self.phases):
            rows = self.run.slots * phase.batch
            if rows > ROWS_IN_FLIGHT:
                found.append(
                    f"phases[{i}] ({phase.learner}): slots x batch = {self.run.slots} x {phase.batch} = {rows} rows; "
                    f"above about {ROWS_IN_FLIGHT} learning gets worse. Use a smaller batch or fewer slots"
                )
        return tuple(found)


def load(path: Path | str) -> RunConfig:
    """Read a configuration file; raises ConfigError that names the file and every problem in it."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"there is no configuration file {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    return loads(text, folder=path.absolute().parent, name=str(path))


def loads(text: str, *, folder: Path | None = None, name: str = "configuration") -> RunConfig:
    """Read a configuration from TOML text; relative paths start at ``folder`` (None: they stay as they are)."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{name}: not valid TOML: {error}") from error
    problems: list[str] = []
    config = _run_config(tables, folder, problems)
    if problems or config is None:
        raise ConfigError(f"{name}:\n  " + "\n  ".join(problems))
    return dataclasses.replace(config, text=text)


def _run_config(tables: Mapping[str, Any], folder: Path | None, problems: list[str]) -> RunConfig | None:
    problems += [unknown_key(key, key, _TABLES) for key in tables if key not in _TABLES]
    parts: dict[str, Any] = {
        name: read_table(cls, tables.get(name, {}), name, problems, folder=folder) for name, cls in _PARTS.items()
    }
    source = _source("source", tables.get("source"), folder, problems)
    test = _source("test", tables["test"], folder, problems) if "test" in tables else None
    schema = _schema(tables.get("schema", {}), problems)
    explicit = _phases(tables["phases"], problems) if "phases" in tables else None
    if explicit is not None and "train" in tables:
        problems.append("phases: [train] and [[phases]] describe the same plan; keep one of them")
    if problems or source is None or schema is None:
        return None
    train = parts.pop("train")
    phases = explicit if explicit is not None else expand(parts["model"], train, endless=source.endless)
    problems += _check_plan(parts["run"], parts["model"], phases, endless=source.endless)
    problems += _check_security(parts["security"])
    return RunConfig(source=source, schema=schema, test=test, phases=phases, **parts)


def expand(model: ModelPart, train: TrainPart, *, endless: bool) -> tuple[PhaseSpec, ...]:
    """The plan that ``[train]`` stands for: each layer in turn, then backprop; one joint phase on an endless source."""
    layers = {
        "batch": train.batch,
        "tau": train.tau,
        "lr": train.lr,
        "lr_final": train.lr if train.lr_final is None else train.lr_final,
        "momentum": train.momentum,
        "k": train.k,
        "weight_decay": train.weight_decay,
        "l1": train.l1,
        "sparsity_target": train.sparsity_target,
        "sparsity_cost": train.sparsity_cost,
        "max_norm": train.max_norm,
        "weight_bits": train.weight_bits,
    }
    if endless:
        return (PhaseSpec("joint", epochs=None, **cast(Any, layers)),)
    phases = [
        PhaseSpec(train.learner, layer=i, epochs=train.epochs, **cast(Any, layers))
        for i in range(len(model.hidden))
        if train.epochs
    ]
    if model.classes and train.fine_tune_epochs:
        phases.append(
            PhaseSpec(
                "backprop",
                epochs=train.fine_tune_epochs,
                batch=train.fine_tune_batch,
                tau=train.fine_tune_tau,
                lr=train.fine_tune_lr,
                lr_final=train.fine_tune_lr_final,
                optimizer=train.fine_tune_optimizer,
                momentum=train.fine_tune_momentum,
                dropout=train.dropout,
            )
        )
    return tuple(phases)


@dataclass(frozen=True, slots=True, kw_only=True)
class _PhaseTable:
    """``[[phases]]`` as TOML has it: TOML knows no null, so an endless phase says so."""

    learner: Learner
    layer: int = 0
    epochs: int = 1
    batch: int = 100
    tau: int = 10
    lr: float = 0.05
    lr_final: float | None = None
    optimizer: Optimizer = "sgd"
    momentum: float = 0.5
    weight_decay: float = 0.0
    l1: float = 0.0
    sparsity_target: float = 0.0
    sparsity_cost: float = 0.0
    max_norm: float = 0.0
    k: int = 1
    dropout: float = 0.0
    weight_bits: Literal[8, 16] = 16


def _phases(tables: object, problems: list[str]) -> tuple[PhaseSpec, ...]:
    if not isinstance(tables, list) or not tables:
        problems.append("phases: allowed: one or more tables [[phases]]")
        return ()
    phases = []
    for i, given in enumerate(tables):
        table = dict(given) if isinstance(given, Mapping) else given
        endless = isinstance(table, dict) and table.get("epochs") == "endless"
        if endless:
            del table["epochs"]
        read = read_table(_PhaseTable, table, f"phases[{i}]", problems, extra=PHASE_SETTINGS)
        if read is None:
            continue
        values = dataclasses.asdict(read)
        values["lr_final"] = read.lr if read.lr_final is None else read.lr_final
        values["epochs"] = None if endless else read.epochs
        phases.append(PhaseSpec(**values))
    return tuple(phases)


def _source(path: str, table: object, folder: Path | None, problems: list[str]) -> SourceConfig | None:
    if not isinstance(table, Mapping):
        problems.append(f"{path}: missing; a table [{path}] says where rows come from (kind = ...)")
        return None
    known = [f.name for f in dataclasses.fields(SourceConfig)]
    unknown = [unknown_key(f"{path}.{key}", key, known) for key in table if key not in known]
    problems += unknown
    rest = {key: value for key, value in table.items() if key in known}
    for key in ("path", "labels"):
        if isinstance(rest.get(key), str) and rest[key]:
            rest[key] = resolve_path(rest[key], folder)
    try:
        return source_config(rest)
    except ConfigError as error:
        problems.append(str(error).replace("source.", f"{path}.", 1))
        return None


def _schema(table: object, problems: list[str]) -> SchemaConfig | None:
    if not isinstance(table, Mapping):
        problems.append("schema: allowed: a table [schema]")
        return None
    try:
        return schema_config(table)
    except ConfigError as error:
        problems.append(str(error))
        return None


def _check_plan(run: RunPart, model: ModelPart, phases: tuple[PhaseSpec, ...], *, endless: bool) -> list[str]:
    """Rules that hold between phases, model and source."""
    found: list[str] = []
    if not model.hidden:
        found.append("model.hidden: found []; allowed: at least one layer, such as [500]")
    if model.loss == "squared" and not model.classes:
        found.append('model.loss: found "squared"; without model.classes there is no loss to choose')
    if not phases:
        found.append("train: nothing to train (no epochs of any phase); set train.epochs or train.fine_tune_epochs")
    for i, phase in enumerate(phases):
        at = f"phases[{i}]"
        if phase.learner in ("cd", "pcd") and phase.layer >= len(model.hidden):
            found.append(
                f"{at}.layer: found {phase.layer}; allowed: 0 to {len(model.hidden) - 1}, a layer of model.hidden"
            )
        if phase.learner == "backprop" and not model.classes:
            found.append(f"{at}.learner: backprop needs classes; set model.classes or leave this phase out")
        if phase.learner != "backprop" and model.hidden_units == "relu":
            found.append(
                f"{at}.learner: {phase.learner} cannot train ReLU units; set train.epochs = 0 (backprop alone), or "
                'model.hidden_units = "binary"'
            )
        if phase.epochs is None and phase.learner != "joint":
            found.append(f'{at}.epochs: "endless" is for the joint learner alone')
        if phase.epochs is None and i + 1 < len(phases):
            found.append(f"{at}.epochs: no phase can follow an endless one")
        if phase.epochs == 0:
            found.append(f"{at}.epochs: found 0; allowed: at least 1 (leave the phase out instead)")
    if endless and (len(phases) != 1 or phases[0].epochs is not None):
        found.append('phases: an endless source needs exactly one phase: learner = "joint", epochs = "endless"')
    if not endless and any(p.epochs is None for p in phases):
        found.append('phases: epochs = "endless" needs source.endless = true')
    if run.gate > run.slots:
        found.append(f"run.gate: found {run.gate}; allowed: 0 to run.slots = {run.slots}")
    return found


def _check_security(security: SecurityPart) -> list[str]:
    if security.key_id and not security.key_file:
        return ["security.key_file: missing; security.key_id names a key of that file"]
    if security.key_file and not security.key_id:
        return ["security.key_id: missing; it says which key of security.key_file signs"]
    return []


def explain_all() -> list[Explained]:
    """Every documented key of a configuration file."""
    rows: list[Explained] = []
    for name in _TABLES:
        if name in ("source", "schema"):
            rows += _explain_docstring(SourceConfig if name == "source" else SchemaConfig, name)
        elif name == "test":
            rows.append(Explained("test", "unset", "the keys of [source]", "Held-out rows for the score at the end."))
        elif name == "phases":
            rows += explain(_PhaseTable, "phases[]", PHASE_SETTINGS)
        else:
            rows += explain(_PARTS[name], name)
    return rows


def _explain_docstring(cls: type, path: str) -> list[Explained]:
    """Keys of a class that documents its attributes in a numpydoc section: ``a, b`` on a line, text indented below."""
    defaults = {f.name: f.default for f in dataclasses.fields(cls)}
    lines = (cls.__doc__ or "").partition("Attributes\n")[2].splitlines()[1:]
    rows: list[Explained] = []
    count = 0
    for line in lines:
        head, _, doc = line.strip().partition(" : ")
        names = [n.strip() for n in head.split(",")]
        if head and all(n in defaults for n in names):
            rows += [Explained(f"{path}.{n}", _default_text(defaults[n]), "", doc) for n in names]
            count = len(names)
        elif head and count:
            rows[-count:] = [dataclasses.replace(r, doc=f"{r.doc} {line.strip()}".strip()) for r in rows[-count:]]
    return rows


def _default_text(default: object) -> str:
    if default is dataclasses.MISSING:
        return "required"
    return "unset" if default in ("", (), None) else str(default).lower() if isinstance(default, bool) else str(default)
