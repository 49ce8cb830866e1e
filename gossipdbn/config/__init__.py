"""Configuration: TOML to frozen values, and where runs live. No sockets, no environment."""

from __future__ import annotations

from gossipdbn.config.home import Home, RunFolder, default_home
from gossipdbn.config.keys import read_keys
from gossipdbn.config.load import RunConfig, explain_all, load, loads
from gossipdbn.config.parts import (
    BrokerPart,
    ExchangePart,
    ModelPart,
    RunPart,
    SecurityPart,
    SnapshotPart,
    TrainPart,
    WorkerPart,
)

__all__ = [
    "BrokerPart",
    "ExchangePart",
    "Home",
    "ModelPart",
    "RunConfig",
    "RunFolder",
    "RunPart",
    "SecurityPart",
    "SnapshotPart",
    "TrainPart",
    "WorkerPart",
    "default_home",
    "explain_all",
    "load",
    "loads",
    "read_keys",
]
