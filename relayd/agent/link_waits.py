"""How long an agent stays away from a relay that died, or that another has put it out of."""

from __future__ import annotations

from relayd.backoff import CAP_S, FIRST_S

DISPLACED_S = 30.0
"""How long an agent stays away whose key another connection has taken over: the two would chase each other
out of the relay otherwise (PROTOCOL.md, part 2)."""

EARLY_TRIES = 3
"""Before waits grow: a relay that is restarted is back within some seconds, and two agents are to be, too."""

DIALS_PER_S = 33.0
"""How many agents at a time come back to a relay that died. An agent knows only how many peers it has, and
takes it that there are as many agents: of a thousand, each waits up to 30 s before it dials."""


def first_wait_s(agents: int) -> float:
    """The longest first wait, in seconds, of an agent whose relay has that many of them."""
    return min(CAP_S, max(FIRST_S, agents / DIALS_PER_S))


def least_wait_s(agents: int) -> float:
    """The shortest wait after a try that came to nothing, in seconds. None for two agents, which are to be
    back as soon as can be; of a thousand whose relay stays away 45 dial in a second, and 74 in the worst."""
    return (first_wait_s(agents) - FIRST_S) / 2
