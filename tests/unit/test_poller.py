"""The epoll inside a trio task: it serves, it yields, it ends when told, and it forgets what was removed."""

from __future__ import annotations

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from relayd.netio.poller import Poller
from relayd.netio.watched_stream import WatchedStream

SOON_S = 20.0


@asynccontextmanager
async def running(poller: Poller) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(poller.run)
        with trio.fail_after(SOON_S):
            yield
        nursery.cancel_scope.cancel()
    poller.close()


def pair() -> tuple[socket.socket, socket.socket]:
    left, right = socket.socketpair()
    left.setblocking(False)
    right.setblocking(False)
    return left, right


async def test_handler_gets_what_arrives_until_it_is_removed() -> None:
    poller = Poller()
    left, right = pair()
    got: list[bytes] = []
    heard = trio.Event()

    def read(_mask: int) -> None:
        got.append(left.recv(100))
        heard.set()

    with left, right:
        poller.add(left.fileno(), read)
        async with running(poller):
            right.send(b"one")
            await heard.wait()
            poller.remove(left.fileno())
            right.send(b"two")
            await trio.testing.wait_all_tasks_blocked()
    assert got == [b"one"]


async def test_handler_removed_earlier_in_the_batch_is_not_called() -> None:
    poller = Poller()
    pairs = [pair(), pair()]
    called: list[int] = []
    done = trio.Event()

    def handler(index: int) -> None:
        called.append(index)
        for own, _ in pairs:
            poller.remove(own.fileno())
        done.set()

    for index, (own, other) in enumerate(pairs):
        other.send(b"x")
        poller.add(own.fileno(), lambda _mask, index=index: handler(index))  # type: ignore[misc]
    async with running(poller):
        await done.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert len(called) == 1
    for own, other in pairs:
        own.close()
        other.close()


async def test_hooks_run_once_after_each_batch() -> None:
    poller = Poller()
    pairs = [pair(), pair()]
    log: list[str] = []
    done = trio.Event()
    poller.after_batch.append(lambda: log.append("batch"))

    def read(sock: socket.socket) -> None:
        sock.recv(10)
        log.append("event")
        done.set()

    for own, other in pairs:
        other.send(b"x")
        poller.add(own.fileno(), lambda _mask, own=own: read(own))  # type: ignore[misc]
    async with running(poller):
        await done.wait()
        await trio.testing.wait_all_tasks_blocked()
    assert log[:3] == ["event", "event", "batch"]
    assert "event" not in log[3:]
    for own, other in pairs:
        own.close()
        other.close()


async def test_other_tasks_run_and_cancellation_is_seen_under_endless_traffic() -> None:
    poller = Poller()
    left, right = pair()
    with left, right:
        right.send(b"x")
        poller.add(left.fileno(), lambda _mask: None)  # never read: always readable
        turns = 0
        with trio.move_on_after(SOON_S) as scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(poller.run)
                for _ in range(10):
                    await trio.lowlevel.checkpoint()
                    turns += 1
                nursery.cancel_scope.cancel()
        assert not scope.cancelled_caught
        assert turns == 10
    poller.close()


async def test_exception_of_a_handler_ends_it() -> None:
    poller = Poller()
    left, right = pair()

    def broken(_mask: int) -> None:
        raise ZeroDivisionError

    with left, right:
        right.send(b"x")
        poller.add(left.fileno(), broken)
        with pytest.raises(ZeroDivisionError):
            await poller.run()
    poller.close()


async def test_what_a_busy_task_leaves_unread_does_not_keep_it_busy() -> None:
    """As a task does that waits to send: the loop must not go round and round meanwhile."""
    poller = Poller()
    left, right = pair()
    with left, right:
        poller.yield_when_readable(left.fileno())
        right.send(b"x")
        async with running(poller):
            await trio.testing.wait_all_tasks_blocked()
            for _ in range(2):
                poller.expect(left.fileno())
                await trio.testing.wait_all_tasks_blocked()
        assert left.recv(10) == b"x"


class PatientPolls:
    """An epoll that notes how long its polls might have waited."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self.waits_s: list[float] = []

    def poll(self, timeout: float, maxevents: int) -> list[tuple[int, int]]:
        self.waits_s.append(timeout)
        return self._epoll.poll(timeout, maxevents)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


async def test_a_task_that_takes_several_turns_has_them_at_once() -> None:
    """A stream of trio's hands over what is there already in the next round only: waiting for traffic between
    them made 9 ms of a round trip by TLS."""
    poller = Poller()
    polls = PatientPolls(poller._epoll)
    poller._epoll = polls  # type: ignore[assignment]
    left, right = pair()
    turns = 20
    with left, right:
        stream = WatchedStream(left, poller)
        stream.watch()
        async with running(poller):
            right.send(b"x" * turns)
            for _ in range(turns):
                await stream.receive_some(1)
                await stream.send_all(b"y")
            # The first found the traffic; none has waited for any since.
            assert not any(polls.waits_s[1:])
            stream.unwatch()
    assert len(polls.waits_s) > 1
