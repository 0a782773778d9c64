"""What the proxy needs of others: a poller, a way to the relay, and somebody who hands late packets over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from relayd.endpoints import Endpoint

SendFrames = Callable[[Sequence[memoryview], int], None]
"""`send_frames(runs, total)`: each of `runs` is whole frames of one size, `total` bytes together. The
buffers are valid during the call only. Never waits."""


class Watcher(Protocol):
    """What the proxy needs of a poller (`netio.poller.Poller`)."""

    after_batch: list[Callable[[], None]]
    """What is called after each batch of events, and at a pause of the traffic."""

    @property
    def now(self) -> float:
        """Monotonic seconds, as of this batch of events."""

    def add(self, fd: int, handler: Callable[[int], None], /) -> None:
        """Call `handler` whenever `fd` is readable."""

    def modify(self, fd: int, events: int, /) -> None:
        """Wait for other events of `fd`: EPOLLIN, or 0 for none."""

    def remove(self, fd: int, /) -> None:
        """Forget `fd`, before it is closed."""


class HandOver(Protocol):
    """Gives WireGuard packets as from another source (`reinjector.Reinjector`)."""

    port: int
    """WireGuard's."""

    def can(self, source: Endpoint, /) -> bool:
        """Whether it can for this source."""

    def hand_over(self, payload: memoryview, source: Endpoint, /) -> bool:
        """One packet. Whether the kernel took it."""
