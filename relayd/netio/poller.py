"""One epoll for all sockets of a data plane, owned by one trio task.

A trio task per connection costs a round of the scheduler a frame. Here one task waits for the epoll
itself (an epoll is readable when one of its sockets is), then serves whole batches of events without
trio. While traffic flows it stays in that loop with a short blocking poll, so that a lone frame doesn't
pay for the scheduler either, and lets trio's other tasks run every few milliseconds. Idle, it waits in
trio and costs nothing.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable

import trio

BLOCK_S = 0.004
"""How long one poll blocks the thread while traffic flows. Other tasks wait for that long at the most."""

LINGER_POLLS = 2
"""Empty polls in a row after which the traffic has stopped, and the task goes back to waiting in trio."""

CHECKPOINT_S = 0.010
"""How long the loop goes on before it lets trio run. A round of trio takes 4 us when its code is in the
cache and 40 us when it isn't, as between the frames of a slow flow: every 4 ms it would cost such a flow
a quarter of its frames per CPU-second."""

BATCH = 256
"""Events taken from the kernel at a time; more of them come with the next poll."""

ONCE = select.EPOLLIN | select.EPOLLONESHOT
"""Readable, once, until it is asked for again."""

Handler = Callable[[int], None]


class Poller:
    """File descriptors and their handlers. Use it from one trio thread only.

    A handler is called with the epoll event mask. It never blocks and never awaits, it tolerates a
    spurious call (the descriptor may have been replaced within one batch), and an exception that it
    raises is a bug, which ends `run`.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self.after_batch: list[Callable[[], None]] = []
        """Called after each batch of events, an empty one at a pause of the traffic too, in order: whoever
        gathers within a batch sends here."""
        self._yield = False
        self.now = time.monotonic()
        """The monotonic clock, read once a batch, in seconds."""

    def add(self, fd: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """Call `handler` for `events` of `fd` from now on, until `remove`. Level-triggered."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def modify(self, fd: int, events: int) -> None:
        """Wait for other events of `fd`."""
        self._epoll.modify(fd, events)

    def handle(self, fd: int, handler: Handler) -> None:
        """Call another handler for `fd`, for the same events."""
        self._handlers[fd] = handler

    def nudge(self, fd: int) -> None:
        """Call its handler, as for an event that is none (mask 0)."""
        self._handlers[fd](0)

    def remove(self, fd: int) -> None:
        """Forget `fd`, before it is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def discard(self, fd: int) -> None:
        """`remove`, if it is known."""
        if fd in self._handlers:
            self.remove(fd)

    def __contains__(self, fd: int) -> bool:
        """Whether somebody waits for `fd`."""
        return fd in self._handlers

    def yield_when_readable(self, fd: int) -> None:
        """Let trio run at once when `fd` is readable, which a trio task waits for: once, and again after each
        `expect`.

        Not for as long as it is readable: a task that has something else to wait for leaves it so, for half a
        minute where an agent doesn't read, and this loop would go round and round."""
        self.add(fd, self.yield_soon, ONCE)

    def expect(self, fd: int) -> None:
        """The task of `fd` is about to wait for it again: see yield_when_readable."""
        self._epoll.modify(fd, ONCE)

    def yield_soon(self, _mask: int = 0) -> None:
        """Let trio run after this batch: for handlers that gave a trio task something to do, and for a task
        that takes several turns."""
        self._yield = True

    def refresh(self) -> None:
        """Read the clock: for whoever works outside a batch, where `now` stands still."""
        self.now = time.monotonic()

    def close(self) -> None:
        """Give the epoll back. The descriptors in it belong to those who added them."""
        self._handlers.clear()
        self._epoll.close()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve events for ever. Cancellation is seen every CHECKPOINT_S at the latest."""
        task_status.started()
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            await self._serve_traffic()

    async def _serve_traffic(self) -> None:
        poll = self._epoll.poll
        handlers = self._handlers
        clock = time.monotonic
        empty_polls = 0
        checkpoint_at = clock() + CHECKPOINT_S
        once_more = False
        while empty_polls < LINGER_POLLS:
            # Tasks that have had their turn may have asked for another.
            wait_s = 0.0 if once_more or self._yield else BLOCK_S
            events = poll(wait_s, BATCH)
            now = self.now = clock()
            if events:
                empty_polls = 0
                for fd, mask in events:
                    handler = handlers.get(fd)
                    if handler is not None:  # None: removed by a handler earlier in this batch
                        handler(mask)
            elif wait_s:
                empty_polls += 1
            for hook in self.after_batch:
                hook()
            if now >= checkpoint_at or self._yield or once_more:
                # A round finds whose sockets are ready, and this task may be the first to go on in it: what
                # was asked for has had its turn after the next.
                once_more, self._yield = self._yield, False
                await trio.lowlevel.checkpoint()
                checkpoint_at = clock() + CHECKPOINT_S
