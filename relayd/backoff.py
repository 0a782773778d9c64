"""How long to wait before the next try: exponential, with full jitter, reset by useful life alone.

Full jitter (a uniform draw from the whole interval) spreads ten thousand agents that lost one relay at
one moment: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/. Where they are that
many, `least_s` keeps those that drew a short wait from trying again among those that are still at their
first: near the end of the first interval there would be half as many tries again as on average.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_S = 1.0
CAP_S = 30.0
USEFUL_S = 30.0
"""A connection that lived less than this does not reset the backoff: connect-then-die is a fault too."""


class Backoff:
    """One per thing that is retried. `uniform(low, high)` is `random.uniform` or a test's stand-in."""

    def __init__(
        self,
        uniform: Callable[[float, float], float],
        *,
        first_s: float = FIRST_S,
        cap_s: float = CAP_S,
        useful_s: float = USEFUL_S,
        early_tries: int = 1,
    ) -> None:
        """The first `early_tries` waits are drawn from the first interval: what is mostly back at once, as
        something that is restarted, needn't be waited for twice as long each time."""
        self._uniform = uniform
        self.first_s = first_s
        """The longest that the first wait can be, in seconds."""
        self.least_s = 0.0
        """The shortest that any wait but the first can be, in seconds; at most half the longest."""
        self._cap_s, self._useful_s = cap_s, useful_s
        self._early_tries = early_tries
        self.failures = 0

    def ceiling_s(self) -> float:
        """The longest that the next wait can be, in seconds."""
        doubled = min(max(0, self.failures - self._early_tries + 1), 32)
        return float(min(self._cap_s, self.first_s * 2.0**doubled))

    def failed(self, useful_for_s: float) -> float:
        """A try ended after `useful_for_s` seconds of useful life (0: none). Returns the wait in seconds."""
        if useful_for_s >= self._useful_s:
            self.failures = 0
        ceiling_s = self.ceiling_s()
        least_s = min(self.least_s, ceiling_s / 2) if self.failures else 0.0
        delay_s = self._uniform(least_s, ceiling_s)
        self.failures += 1
        return delay_s
