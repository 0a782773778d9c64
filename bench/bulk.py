"""Closed-loop load: as much as gets through, with a bounded number of bytes in flight per sender.

The window stands for the congestion window of the flows inside a tunnel. Without it, a relay that
rightly drops when its receivers can't keep up would be made to drop by design.
"""

from __future__ import annotations

import gc
import select
import time
from collections.abc import Callable
from functools import partial

from bench.connections import (
    READ_BYTES,
    Link,
    Receiver,
    checked_by,
    connected,
    drain,
    explain_sender,
    received_by,
)
from bench.model import Measurement, Spec
from bench.tally import Tally

STALLED_AFTER_S = 0.2
"""What is in flight counts as lost, for the window, when nothing came for so long."""


class _Flow:
    """A sender, the credit that its receivers give it, and what it still has to send."""

    __slots__ = (
        "chunk",
        "credit",
        "fd",
        "idle_since",
        "link",
        "position",
        "progress",
        "sent",
        "waits",
        "window",
    )

    def __init__(self, link: Link, window: int) -> None:
        self.link = link
        self.fd = link.sock.fileno()
        self.window = max(window, 2 * link.ring.size)
        # Refilled by quarters: one round trip per frame would measure wake-ups.
        self.chunk = max(self.window // 4, link.ring.size)
        self.credit = self.window
        self.position = 0
        self.sent = 0  # bytes
        self.progress = 0
        self.waits = False  # for the socket to take more
        self.idle_since = 0.0

    def pump(self) -> bool:
        """Send whole frames as far as the credit goes; False when the socket took less."""
        ring = self.link.ring
        budget = self.credit - self.credit % ring.size + -self.sent % ring.size
        total = len(ring.buffer)
        while budget > 0:
            wanted = min(budget, total - self.position)
            try:
                count = self.link.sock.send(ring.view[self.position : self.position + wanted])
            except BlockingIOError:
                return False
            self.position += count
            self.sent += count
            self.credit -= count
            budget -= count
            if self.position == total:
                self.position = 0
                ring.advance()
            if count < wanted:
                return False
        return True


def run_bulk(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Run the load; raises BenchError when a connection fails or a frame isn't as sent."""
    with connected(spec) as (links, epoll):
        return _run(spec, pids, links, epoll)


def _run(spec: Spec, pids: tuple[int, ...], links: list[Link], epoll: select.epoll) -> Measurement:
    flows = [_Flow(link, spec.window) for link in links]
    senders = {flow.fd: flow for flow in flows}
    receivers: dict[int, tuple[Receiver, _Flow]] = {
        receiver.fd: (receiver, flow) for flow in flows for receiver in flow.link.receivers
    }
    buffer = bytearray(READ_BYTES)
    tally = Tally(spec, pids, partial(received_by, links))
    both = select.EPOLLIN | select.EPOLLOUT
    monotonic = time.monotonic
    refused = 0
    gc.collect()
    gc.disable()

    def pump(flow: _Flow) -> None:
        nonlocal refused
        if not flow.pump() and not flow.waits:
            flow.waits = True
            refused += 1
            epoll.modify(flow.fd, both)

    for flow in flows:
        pump(flow)
    start = looked = monotonic()
    measure_at, stop_at = start + spec.warmup, start + spec.warmup + spec.seconds
    measuring = False
    while True:
        for fd, events in epoll.poll(0.05):
            pair = receivers.get(fd)
            if pair is None:
                flow = senders[fd]
                if events & ~select.EPOLLOUT:
                    raise explain_sender(flow.link.sock)
                flow.waits = False
                epoll.modify(fd, select.EPOLLIN)
                pump(flow)
                continue
            receiver, flow = pair
            before = receiver.lost
            flow.credit += receiver.skim(buffer) + (receiver.lost - before) * receiver.size
            if flow.credit >= flow.chunk and not flow.waits:
                pump(flow)
        now = monotonic()
        if now - looked > 0.05:
            looked = now
            _forgive(flows, now, pump)
        if now >= measure_at and not measuring:
            measuring = True
            tally.start()
        if now >= stop_at:
            tally.stop()
            break
    for flow in flows:  # the rest of a frame that was cut short
        flow.credit = 0
        if not flow.pump():
            flow.link.sock.settimeout(1.0)
            flow.link.sock.sendall(flow.link.ring.view[flow.position :][: -flow.sent % flow.link.ring.size])
            flow.sent += -flow.sent % flow.link.ring.size
    sent = sum(flow.sent for flow in flows)
    there = sum(receiver.total for receiver, _ in receivers.values())
    drained = drain(links, epoll, buffer, sent - there)
    return tally.finish(
        sent=sent // links[0].ring.size,
        backpressure=refused,
        drain_s=drained,
        checked=checked_by(links),
    )


def _forgive(flows: list[_Flow], now: float, pump: Callable[[_Flow], None]) -> None:
    """Open the window again of flows from which nothing has come back for long: it was lost."""
    for flow in flows:
        progress = sum(receiver.total for receiver in flow.link.receivers)
        if progress != flow.progress or flow.credit >= flow.chunk:
            flow.progress, flow.idle_since = progress, now
        elif now - flow.idle_since > STALLED_AFTER_S and not flow.waits:
            flow.idle_since = now
            flow.credit = flow.window
            pump(flow)
