"""Every error that gossipdbn raises on purpose.

::

    GossipDbnError
    ├── ConfigError              a setting is wrong: names the key's path and what is allowed
    │   └── RunMissing           there is no such run on this log, or not yet
    ├── DataError                a row or source is wrong: names column, row, what was expected
    ├── LocalProtocolError       our own bug or broken state: stop, never go on
    ├── RemoteProtocolError      a peer's bytes are wrong: reject, count, go on
    ├── SnapshotError
    │   ├── SnapshotMissing      the named object is not in the store
    │   ├── SnapshotCorrupt      its bytes are not what its name says
    │   └── SnapshotIncompatible made by other numerics or another format
    ├── LogError                 the log (Kafka) could not do what was asked; ``retryable`` says if later helps
    │   └── RetentionError       the log no longer holds records that are needed
    ├── StoreError               the snapshot store could not do what was asked; ``retryable`` likewise
    ├── EmbeddedError            a broker or file system that we start ourselves did not start
    └── ReplayDivergence         a recomputed update differs from the logged one

Messages say what happened, to which object, and what to do next.
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DataError",
    "EmbeddedError",
    "GossipDbnError",
    "LocalProtocolError",
    "LogError",
    "RemoteProtocolError",
    "ReplayDivergence",
    "RetentionError",
    "RunMissing",
    "SnapshotCorrupt",
    "SnapshotError",
    "SnapshotIncompatible",
    "SnapshotMissing",
    "StoreError",
]


class GossipDbnError(Exception):
    """Base of all errors raised on purpose; the command line prints them without a traceback."""


class ConfigError(GossipDbnError):
    """A setting is missing, unknown or out of range."""


class RunMissing(ConfigError):
    """The log holds no such run: a wrong name, or one that is not created yet."""


class DataError(GossipDbnError):
    """A row, column or source does not fit the schema."""


class LocalProtocolError(GossipDbnError):
    """This process broke a rule of the protocol: a bug, never something to survive."""


class RemoteProtocolError(GossipDbnError):
    """Bytes from elsewhere break a rule of the protocol: they are void, the reader goes on."""


class SnapshotError(GossipDbnError):
    """A snapshot cannot be used."""


class SnapshotMissing(SnapshotError):
    """The store holds no object of that name."""


class SnapshotCorrupt(SnapshotError):
    """The object's bytes do not match its announced sha256, or cannot be parsed."""


class SnapshotIncompatible(SnapshotError):
    """The snapshot was made by another numerics version or format."""


class LogError(GossipDbnError):
    """The log could not do what was asked."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class RetentionError(LogError):
    """Records that are needed have been dropped by the log's retention."""


class StoreError(GossipDbnError):
    """The snapshot store could not do what was asked."""

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class EmbeddedError(GossipDbnError):
    """An embedded broker or file system did not start or stop as it should."""


class ReplayDivergence(GossipDbnError):
    """A recomputed update differs from the logged one."""
