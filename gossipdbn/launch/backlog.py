"""How far training is behind the feed: what an endless feed slows down for."""

from __future__ import annotations

from gossipdbn.core.topics import run_names
from gossipdbn.core.values import Manifest, Sealed, Update
from gossipdbn.ports import Log
from gossipdbn.wire.envelope import NO_KEYS, Keyring
from gossipdbn.wire.messages import RunWire

__all__ = ["Backlog"]


class Backlog:
    """Rows fed and not trained, counted from the moment it is made.

    Only the back-pressure of a feed depends on it, so updates are counted as they are read, without verdicts.
    """

    def __init__(self, log: Log, manifest: Manifest, keys: Keyring = NO_KEYS, prefix: str = "") -> None:
        self._fed = self._trained = 0
        self._wire = RunWire(0, keys)
        self._reader = log.reader()
        topic = run_names(manifest.run, prefix).updates
        for partition in range(manifest.slots):
            self._reader.add(topic, partition, log.offsets(topic, partition)[1])

    def fed(self, rows: int) -> None:
        """So many rows have come since the feed began."""
        self._fed = rows

    def rows(self) -> int:
        """Rows that wait to be trained."""
        while records := self._reader.poll(0.0):
            for record in records:
                decoded = self._wire.decode(record.value)
                if isinstance(decoded, Sealed) and isinstance(decoded.message, Update):
                    self._trained += decoded.message.rows.count
        return max(0, self._fed - self._trained)

    def close(self) -> None:
        """Stop reading."""
        self._reader.close()
