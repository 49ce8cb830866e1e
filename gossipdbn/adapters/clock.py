"""The machine's clocks."""

from __future__ import annotations

import time

__all__ = ["SystemClock"]


class SystemClock:
    """Real time: what drivers use outside the simulator."""

    def monotonic_s(self) -> float:
        return time.monotonic()

    def background_s(self) -> float:
        return time.process_time() - time.thread_time()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
