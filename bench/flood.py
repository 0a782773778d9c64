"""Open-loop load at rates near the limit: one sendmmsg for the writes of a pair that have become due.

Each message of it is a write of its own on the TCP connection. Frames are checked by sample, and the
latency of the sample follows from the schedule.
"""

from __future__ import annotations

import gc
import select
import time
from array import array
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
from bench.messages import Messages
from bench.model import BenchError, Measurement, Spec
from bench.paced import LEAD_NS
from bench.schedule import Schedule, even_order
from bench.tally import Tally

MOST_AT_ONCE = 64
"""Writes of one pair before it is the next one's turn."""


class _Source:
    """A sender and the place that it has reached in its ring."""

    __slots__ = ("done", "fd", "link", "messages", "rest", "step", "waits")

    def __init__(self, link: Link, burst: int) -> None:
        self.link = link
        self.fd = link.sock.fileno()
        self.step = burst * link.ring.size
        self.messages = Messages(link.ring.buffer, range(0, len(link.ring.buffer) + 1, self.step))
        self.done = 0
        self.rest = b""
        self.waits = False

    def write(self, count: int) -> bool:
        """Make `count` writes; False when the socket took less."""
        if self.rest:
            try:
                self.rest = self.rest[self.link.sock.send(self.rest) :]
            except BlockingIOError:
                return False
            if self.rest:
                return False
        if count <= 0:
            return True
        messages = self.messages
        slot = self.done % messages.count
        wanted = min(count, messages.count - slot)
        taken = messages.send(self.fd, slot, wanted)
        if taken:
            part = messages.taken(slot + taken - 1)
            if part < self.step:
                end = (slot + taken) * self.step
                self.rest = bytes(self.link.ring.view[end - self.step + part : end])
            self.done += taken
            if slot + taken == messages.count:
                self.link.ring.advance()
        return taken == wanted and not self.rest

    def finish(self) -> None:
        """Send the rest of a write that was cut short. Raises BenchError when that takes over 1 s."""
        if self.rest:
            self.link.sock.settimeout(1.0)
            try:
                self.link.sock.sendall(self.rest)
            except TimeoutError as error:
                raise BenchError("a sender could not finish a write within 1 s of the end") from error
            self.rest = b""


def run_flood(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Run the load; raises BenchError when a connection fails or a frame isn't as sent."""
    with connected(spec) as (links, epoll):
        return _run(spec, pids, links, epoll)


def _run(spec: Spec, pids: tuple[int, ...], links: list[Link], epoll: select.epoll) -> Measurement:
    schedule = Schedule(spec.rate, spec.burst, even_order(spec.pairs))
    ordered = [links[number] for number in schedule.order]
    sources = [_Source(link, spec.burst) for link in ordered]
    senders = {source.fd: source for source in sources}
    receivers: dict[int, tuple[Receiver, int]] = {
        link.receivers[0].fd: (link.receivers[0], place) for place, link in enumerate(ordered)
    }
    buffer = bytearray(READ_BYTES)
    tally = Tally(spec, pids, partial(received_by, links))
    latencies: array[int] = array("q")
    interval, burst = schedule.interval_ns, spec.burst
    turns = len(sources)
    turn = interval * turns
    both = select.EPOLLIN | select.EPOLLOUT
    clock, poll = time.monotonic_ns, epoll.poll
    total = int((spec.warmup + spec.seconds) * 1e9 / turn)
    idle = refused = 0
    measuring = False
    gc.collect()
    gc.disable()
    start = clock() + LEAD_NS
    measure_at, stop_at = start + int(spec.warmup * 1e9), start + int((spec.warmup + spec.seconds) * 1e9)
    now = clock()
    while now < stop_at:
        busy = False
        ahead = now - start
        for place, source in enumerate(sources):
            due = min(int((ahead - place * interval) // turn) + 1, total) - source.done
            if (due > 0 or source.rest) and not source.waits:
                busy = True
                if not source.write(min(due, MOST_AT_ONCE)):
                    source.waits = True
                    refused += 1
                    epoll.modify(source.fd, both)
        for fd, events in poll(0):
            busy = True
            pair = receivers.get(fd)
            if pair is None:
                source = senders[fd]
                if events & ~select.EPOLLOUT:
                    raise explain_sender(source.link.sock)
                source.waits = False
                epoll.modify(fd, select.EPOLLIN)
                continue
            receiver, place = pair
            receiver.skim(buffer)
            if receiver.fresh and measuring:
                arrived = clock() - start
                for number in receiver.fresh:
                    latencies.append(arrived - int((number // burst * turns + place) * interval))
        then, now = now, clock()
        if not busy:
            idle += now - then
        if not measuring and now >= measure_at:
            measuring = True
            idle = 0
            tally.start()
    tally.stop()
    for source in sources:
        source.finish()
    sent = sum(source.done for source in sources) * burst
    there = sum(receiver.total for receiver, _ in receivers.values())
    drained = drain(links, epoll, buffer, sent * links[0].ring.size - there)
    return tally.finish(
        checked=checked_by(links),
        sent=sent,
        unsent=sum(total - source.done for source in sources) * burst,
        backpressure=refused,
        drain_s=drained,
        latencies=latencies,
        idle_ns=idle,
    )
