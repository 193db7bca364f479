"""What one worker has done, counted by the parent: for operators, never for decisions. Pure bookkeeping."""

from __future__ import annotations

from collections import deque

from echo_rtc.counting import percentile
from echo_rtc.rendering import WorkerStatus

RECENT_CLIPS = 120
"""Number of latest clips that the quantiles are computed of: a minute of one stream."""


class WorkerMeter:
    """Counts for the place of one worker; its replacements go on counting."""

    def __init__(self) -> None:
        self.clips = 0
        self.lost = 0
        self.busy_s = 0.0
        self.rendering_s = 0.0
        self.restarts = 0
        self._recent: deque[float] = deque(maxlen=RECENT_CLIPS)

    def rendered(self, seconds: float, rendering_s: float = 0.0) -> None:
        self.clips += 1
        self.busy_s += seconds
        self.rendering_s += rendering_s
        self._recent.append(seconds)

    def failed(self, seconds: float) -> None:
        self.lost += 1
        self.busy_s += seconds

    def status(self, name: str, *, up: bool, pid: int | None = None, waiting: int = 0) -> WorkerStatus:
        p50_s, p95_s = self._quantile(0.5), self._quantile(0.95)
        return WorkerStatus(
            name,
            up,
            pid,
            self.clips,
            self.lost,
            self.busy_s,
            self.restarts,
            waiting,
            p50_s=p50_s,
            p95_s=p95_s,
            rendering_s=self.rendering_s,
        )

    def _quantile(self, share: float) -> float | None:
        return percentile(self._recent, 100 * share) if self._recent else None
