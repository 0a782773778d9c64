"""One relay of several, and the link to it."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from relayd.agent.relay_choice import Condition, LinkSeen
from relayd.agent.relay_link import RelayLink
from relayd.join import JoinString


@dataclass(slots=True)
class Member:
    """What `relay_pool` knows of it."""

    relay: JoinString
    link: RelayLink | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    runs: bool = False
    used: bool = False
    """Whether anything has moved since it was looked at last."""
    used_at: float = 0.0
    seen: LinkSeen = field(default_factory=lambda: LinkSeen(Condition.IDLE, 0.0))

    @property
    def condition(self) -> Condition:
        """What its link is like now."""
        link = self.link
        if link is None:
            return Condition.IDLE
        if link.leaves_at is not None:
            return Condition.DRAINING
        if link.connected:
            return Condition.UP
        return Condition.DOWN if link.failing else Condition.CONNECTING


async def run_link(link: RelayLink, scope: trio.CancelScope) -> None:
    """Run it until `scope` is cancelled."""
    with scope:
        await link.run()
