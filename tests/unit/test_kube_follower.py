"""Following a collection: what a follower does after 410 Gone."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from relayd.coordination.kubernetes import resources
from relayd.coordination.kubernetes.api_error import ApiError, UnreachableError
from relayd.coordination.kubernetes.follower import AWAY_CAP_S, RELIST_S, Follower

LIST = b'{"metadata": {"resourceVersion": "7"}, "items": []}'


class Server:
    """An API server that is away, then knows nothing of old versions, then works; or never gets over 410."""

    def __init__(self, *, away: int, gone: int) -> None:
        self.away, self.gone, self.refuses = away, gone, 0
        self.lists: list[float] = []
        self.told_gone: list[float] = []
        self.said_410 = trio.Event()
        self.is_back = trio.Event()

    async def back(self) -> None:
        await self.is_back.wait()

    async def request(self, *_: object, **__: object) -> bytes:
        await trio.lowlevel.checkpoint()
        self.lists.append(trio.current_time())
        return LIST

    @asynccontextmanager
    async def watch(self, *_: Mapping[str, str] | object) -> AsyncIterator[AsyncIterator[bytes]]:
        await trio.lowlevel.checkpoint()
        if self.away:
            self.away -= 1
            raise UnreachableError("nobody there")
        if self.refuses:
            self.refuses -= 1
            raise ApiError(403, "Forbidden", "its rights aren't known yet")
        yield self._lines()

    async def _lines(self) -> AsyncIterator[bytes]:
        if self.gone:
            self.gone -= 1
            self.told_gone.append(trio.current_time())
            self.said_410.set()
            raise ApiError(410, "Expired", "too old resource version")
        await trio.Event().wait()
        yield b""


def follower(server: Any) -> Follower[resources.Peer]:
    return Follower(
        server,
        resources.PEERS,
        resources.Peer,
        changed=lambda: None,
        uniform=lambda _low, high: high,
    )


async def test_after_410_a_list_comes_soon_however_long_the_server_was_away(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    server = Server(away=20, gone=1)
    followed = follower(server)
    await nursery.start(followed.run)
    await server.said_410.wait()
    await trio.sleep(0.1)
    assert "410" in followed.problem, "it isn't followed now, and that is said"
    await trio.sleep(RELIST_S)
    assert followed.problem == ""
    assert server.told_gone[0] - server.lists[0] > 60.0
    nursery.cancel_scope.cancel()


async def test_a_server_that_says_410_for_ever_is_not_asked_all_the_time(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    server = Server(away=0, gone=10_000)
    await nursery.start(follower(server).run)
    await trio.sleep(3600.0)
    assert 100 < len(server.told_gone) < 400
    nursery.cancel_scope.cancel()


async def after_an_hour(nursery: trio.Nursery) -> tuple[Server, Follower[resources.Peer]]:
    """A server that has been away for that long, and who follows it."""
    server = Server(away=10**9, gone=0)
    followed = follower(server)
    await nursery.start(followed.run)
    await trio.sleep(3600.0)
    assert followed.problem
    server.away = 0
    return server, followed


async def test_one_that_is_back_is_found_within_five_seconds_however_long_it_was_away(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    _, followed = await after_an_hour(nursery)
    await trio.sleep(AWAY_CAP_S + 0.1)
    assert followed.problem == ""
    nursery.cancel_scope.cancel()


async def test_whoever_finds_it_back_tells_the_others(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    server, followed = await after_an_hour(nursery)
    server.is_back.set()
    await trio.sleep(0.001)
    assert followed.problem == ""
    nursery.cancel_scope.cancel()


async def test_a_server_that_starts_says_no_for_a_while_and_is_asked_again_soon(
    autojump_clock: trio.testing.MockClock, nursery: trio.Nursery
) -> None:
    """Its rights and its kinds of resources come after it does."""
    server, followed = await after_an_hour(nursery)
    server.refuses = 1
    await trio.sleep(AWAY_CAP_S + 1.0 + 0.1)
    assert followed.problem == ""
    nursery.cancel_scope.cancel()
