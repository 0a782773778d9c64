"""What a link has lost and received, over all the connections that it has had."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

from relayd.agent.relay_leg import RelayLeg
from relayd.netio.outbox import Outbox


class LinkTally:
    """Keeps what ended connections counted; those that live count for themselves."""

    def __init__(self) -> None:
        self._drops: Counter[str] = Counter()
        self._received: Counter[str] = Counter()

    def settle(self, leg: RelayLeg) -> None:
        """Count what an ended connection had to do with."""
        self._drops.update(_drops_of(leg))
        self._drops["link_lost"] += leg.connection.lost_frames
        self._received.update(leg.session.received)

    def drops(self, legs: Iterable[RelayLeg], waiting: Outbox) -> dict[str, int]:
        """Frames lost, by reason, with those of the connections that live and those that wait for one."""
        total = Counter(self._drops)
        waiting.expire(time.monotonic())
        total["not_connected"] += waiting.dropped_full + waiting.dropped_old
        for leg in legs:
            total.update(_drops_of(leg))
        return {reason: count for reason, count in total.items() if count}

    def received(self, legs: Iterable[RelayLeg]) -> dict[str, int]:
        """Frames from the relay itself, by kind, with those of the connections that live."""
        return dict(sum((one.session.received for one in legs), Counter(self._received)))


def _drops_of(leg: RelayLeg) -> Counter[str]:
    outbox = leg.connection.outbox
    outbox.expire(time.monotonic())
    drops = Counter(leg.drops())
    drops.update(queue_full=outbox.dropped_full, queue_old=outbox.dropped_old)
    return drops
