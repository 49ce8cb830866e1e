"""The workers of one ``train`` call on Spark executors: a Spark application of their own, and its end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gossipdbn.spark.placement import PLACEMENT_SETTINGS, Placement, WorkerOrder, package_zip, place_workers
from gossipdbn.spark.session import close_session, open_session

__all__ = ["PlacedWorkers", "PlacementOptions"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class PlacementOptions:
    """Where workers are placed: ``master`` of Spark, more Spark ``settings``, and whether the package is shipped.

    ``ship``: give the executors this package as a zip; their interpreter needs the packages it depends on either way.
    """

    master: str
    settings: tuple[tuple[str, str], ...] = ()
    ship: bool = False


class PlacedWorkers:
    """Open a Spark application of ``workers`` cores and place workers on it; ``close`` ends both."""

    def __init__(
        self, options: PlacementOptions, order: WorkerOrder, workers: int, folder: Path, say: Callable[[str], None]
    ) -> None:
        say(f"Spark starts at {options.master} for {workers} workers")
        settings = {**PLACEMENT_SETTINGS, "spark.cores.max": str(workers), "spark.ui.showConsoleProgress": "false"}
        if urlsplit(options.master).hostname in LOOPBACK:
            settings |= {"spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
        settings |= dict(options.settings)
        self._spark: Any = open_session(f"gossipdbn {order.run}", options.master, folder / "logs", settings)
        try:
            if options.ship:
                self._spark.sparkContext.addPyFile(str(package_zip(folder)))
            self._placement: Placement = place_workers(self._spark, order, workers)
        except BaseException:
            close_session(self._spark)
            raise

    @property
    def done(self) -> bool:
        """All workers have left, or the job failed."""
        return self._placement.done

    @property
    def failure(self) -> str:
        """Why the job failed, or ""."""
        return self._placement.failure

    def wait(self, timeout_s: float) -> bool:
        """Wait for the workers to leave; False at the timeout."""
        return self._placement.wait(timeout_s)

    def close(self) -> None:
        """End workers that are still there, and the application."""
        self._placement.cancel()
        close_session(self._spark)
