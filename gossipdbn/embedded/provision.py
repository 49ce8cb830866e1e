"""A broker for tests and trials: the user's own, else from a container image at hand, else the embedded one."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gossipdbn.embedded.broker import Broker
from gossipdbn.errors import EmbeddedError

__all__ = ["Provided", "image_present", "provide_broker"]

_CONTAINER_SECONDS = 180  # a broker's first seconds on a busy machine with two cores are long ones


@dataclass(frozen=True, slots=True)
class Provided:
    """A broker to use: its address, and where it came from (``given``, ``container``, ``embedded``)."""

    bootstrap: str
    source: str


@contextlib.contextmanager
def provide_broker(
    data_dir: Path | str,
    *,
    address: str = "",
    image: str = "",
    on_progress: Callable[[str], None] | None = None,
) -> Iterator[Provided]:
    """A broker for as long as the block runs.

    Parameters
    ----------
    data_dir
        Folder of the embedded broker, should it come to that.
    address
        A broker that is running already; it is used and left alone.
    image
        A container image that is on this machine; used when there is no address. One that is absent is passed over.

    Raises
    ------
    EmbeddedError
        When the container or the embedded broker does not start.
    """
    if address:
        yield Provided(address, "given")
    elif image and image_present(image):
        with _container(image) as bootstrap:
            yield Provided(bootstrap, "container")
    else:
        with Broker(data_dir, die_with_parent=True, on_progress=on_progress) as broker:
            yield Provided(broker.bootstrap, "embedded")


def image_present(image: str) -> bool:
    """Whether a container engine answers and has this image; nothing is fetched."""
    if shutil.which("docker") is None:
        return False
    try:
        done = subprocess.run(
            ["docker", "image", "inspect", image],
            capture_output=True,
            timeout=20,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


@contextlib.contextmanager
def _container(image: str) -> Iterator[str]:
    try:
        from testcontainers.community.kafka import KafkaContainer
    except ImportError:
        from testcontainers.kafka import KafkaContainer  # before 4.15
    from testcontainers.core.config import testcontainers_config

    testcontainers_config.ryuk_disabled = True  # its helper image would have to be fetched; we stop what we start
    container = KafkaContainer(image).with_kraft()
    try:
        try:
            container.start(timeout=_CONTAINER_SECONDS)
        except Exception as error:
            raise EmbeddedError(f"the container of {image} did not start: {error}") from error
        yield container.get_bootstrap_server()
    finally:
        container.stop()
