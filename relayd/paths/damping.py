"""How long a direct path that failed has to wait for its next chance: flapping costs more than the relay."""

from __future__ import annotations

FIRST_S = 5.0
CAP_S = 600.0
HELD_S = 300.0
"""A direct path that held for so long wasn't flapping: what failed before is forgotten."""


class Damping:
    """One peer's failures. Each within HELD_S of the promotion doubles the wait before the next one."""

    def __init__(self) -> None:
        self.failures = 0
        """In a row, each soon after a promotion."""
        self.until = float("-inf")
        """No promotion before this time (monotonic seconds)."""

    def failed(self, held_s: float, now: float) -> None:
        """A direct path that had held for so long failed."""
        self.failures = self.failures + 1 if held_s < HELD_S else 1
        self.until = now + min(CAP_S, FIRST_S * 2.0 ** min(self.failures - 1, 16))

    def forgive(self) -> None:
        """An address changed: what failed were paths from or to another place."""
        self.failures, self.until = 0, float("-inf")
