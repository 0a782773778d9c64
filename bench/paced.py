"""Open-loop load on an exact schedule: every frame is checked, and every frame's latency is counted.

The load polls without sleeping, so that the latency it reports has no wake-up of its own in it.
"""

from __future__ import annotations

import gc
import select
import time
from array import array
from dataclasses import dataclass, field
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
from bench.model import BenchError, Measurement, Spec
from bench.schedule import Schedule, even_order, weighted_order
from bench.tally import Tally

LEAD_NS = 20_000_000
"""From building the schedule to its first write."""
AT_ONCE = 8
"""Writes that are made up for before receivers are looked at again."""


@dataclass(slots=True)
class _Source:
    """A sender: its writes, how many are due and how many are done."""

    link: Link
    writes: list[memoryview]
    due: int = 0
    done: int = 0
    rest: memoryview | None = None
    waits: bool = False
    positions: tuple[int, ...] = field(default=())

    def catch_up(self) -> bool:
        """Make the writes that are due; False when the socket doesn't take them."""
        ring, writes = self.link.ring, self.writes
        send = self.link.sock.send
        while self.rest is not None or self.done < self.due:
            if self.rest is None:
                wanted = writes[self.done % len(writes)]
            else:
                wanted = self.rest
            try:
                count = send(wanted)
            except BlockingIOError:
                return False
            if count < len(wanted):
                self.rest = wanted[count:]
                return False
            self.rest = None
            self.done += 1
            if self.done % len(writes) == 0:
                ring.advance()
        return True


def schedule_of(spec: Spec) -> Schedule:
    """The spec's schedule; the extra pair, where there is one, has the last number."""
    if not spec.extra_rate:
        return Schedule(spec.rate, spec.burst, even_order(spec.pairs))
    weight = spec.extra_rate * spec.pairs / spec.rate
    return Schedule(spec.rate + spec.extra_rate, spec.burst, weighted_order(spec.pairs, spec.pairs, weight))


def run_paced(spec: Spec, pids: tuple[int, ...]) -> Measurement:
    """Run the load; raises BenchError when a connection fails or a frame isn't as sent."""
    with connected(spec) as (links, epoll):
        return _run(spec, pids, links, epoll)


def _run(spec: Spec, pids: tuple[int, ...], links: list[Link], epoll: select.epoll) -> Measurement:
    schedule = schedule_of(spec)
    sources: list[_Source] = []
    for number, link in enumerate(links):
        step = spec.burst * link.ring.size
        writes = [link.ring.view[at : at + step] for at in range(0, len(link.ring.buffer), step)]
        sources.append(_Source(link, writes, positions=schedule.positions(number)))
    senders = {source.link.sock.fileno(): source for source in sources}
    receivers: dict[int, tuple[Receiver, _Source]] = {
        receiver.fd: (receiver, source) for source in sources for receiver in source.link.receivers
    }
    if spec.stalled:
        epoll.unregister(links[-1].receivers[0].fd)
    order = tuple(sources[number] for number in schedule.order)
    round_length = len(order)
    buffer = bytearray(READ_BYTES)
    view = memoryview(buffer)
    tally = Tally(spec, pids, partial(received_by, links))
    latencies: array[int] = array("q")
    late: array[int] = array("q")
    interval, burst = schedule.interval_ns, spec.burst
    first_measured = schedule.writes_in(spec.warmup)
    last_write = first_measured + schedule.writes_in(spec.seconds)
    both = select.EPOLLIN | select.EPOLLOUT
    clock, poll = time.monotonic_ns, epoll.poll
    write = idle = refused = 0
    gc.collect()
    gc.disable()
    start = clock() + LEAD_NS
    next_due = float(start)
    now = clock()
    while True:
        busy = False
        budget = AT_ONCE
        while next_due <= now and budget:
            if write == first_measured:
                tally.start()
                idle = 0
            if write == last_write:
                break
            source = order[write % round_length]
            source.due += 1
            if write >= first_measured:
                late.append(now - int(next_due))
            write += 1
            next_due = start + write * interval
            budget -= 1
            busy = True
            if not source.waits and not source.catch_up():
                source.waits = True
                refused += 1
                epoll.modify(source.link.sock.fileno(), both)
            now = clock()
        if write == last_write and next_due <= now:
            break
        for fd, events in poll(0):
            busy = True
            pair = receivers.get(fd)
            if pair is None:
                source = senders[fd]
                if events & ~select.EPOLLOUT:
                    raise explain_sender(source.link.sock)
                source.waits = not source.catch_up()
                if not source.waits:
                    epoll.modify(fd, select.EPOLLIN)
                continue
            receiver, source = pair
            numbers = receiver.read(buffer, view)
            if not receiver.measured:
                continue
            arrived = clock() - start
            for number in numbers:
                which = schedule.write_of(source.positions, number)
                if which >= first_measured:
                    latencies.append(arrived - int(which * interval))
        then, now = now, clock()
        if not busy:
            idle += now - then
    tally.stop()
    return _settle(spec, links, sources, epoll, tally, latencies, late, idle, refused, burst)


def _settle(
    spec: Spec,
    links: list[Link],
    sources: list[_Source],
    epoll: select.epoll,
    tally: Tally,
    latencies: array[int],
    late: array[int],
    idle_ns: int,
    refused: int,
    burst: int,
) -> Measurement:
    """Finish what is half sent, wait for what is on its way, and count."""
    measured = [source for source in sources if source.link.measured]
    for source in measured:
        if source.rest is not None:
            source.link.sock.settimeout(1.0)
            try:
                source.link.sock.sendall(source.rest)
            except TimeoutError as error:
                raise BenchError("a sender could not finish a write within 1 s of the end") from error
            source.done += 1
    sent = sum(source.done for source in measured) * burst
    unsent = sum(source.due - source.done for source in measured) * burst
    size = links[0].ring.size
    there = sum(r.total for source in measured for r in source.link.receivers)
    drained = drain(links, epoll, bytearray(READ_BYTES), sent * size - there)
    return tally.finish(
        checked=checked_by(links),
        sent=sent,
        unsent=unsent,
        backpressure=refused,
        drain_s=drained,
        latencies=latencies,
        late=late,
        idle_ns=idle_ns,
    )
