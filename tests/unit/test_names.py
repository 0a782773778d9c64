"""Look-ups that hang, and look-ups that can't even be made."""

from __future__ import annotations

import errno
import socket
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock

from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.netio.names import Names


@pytest.fixture
def dead(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The name servers."""
    over = threading.Event()

    def getaddrinfo(*arguments: object) -> list[object]:
        *_, flags = arguments
        assert isinstance(flags, int)
        if not flags & socket.AI_NUMERICHOST:
            over.wait(60)
        raise socket.gaierror(socket.EAI_NONAME, "not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    yield
    over.set()


async def test_g15_names_that_nobody_answers_for_leave_threads_to_others(
    dead: None, autojump_clock: MockClock
) -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    for _ in range(100):
        with trio.move_on_after(3) as given_up:
            await trio.socket.getaddrinfo("relay.example.net", 3478)
        assert given_up.cancelled_caught
    with trio.fail_after(1):
        assert await trio.to_thread.run_sync(lambda: "written") == "written"


async def test_a_name_is_looked_up() -> None:
    trio.socket.set_custom_hostname_resolver(Names())
    found = await trio.socket.getaddrinfo("localhost", 3478, type=socket.SOCK_STREAM)
    assert ("127.0.0.1", 3478) in [entry[4] for entry in found]


async def test_g15_a_resolver_that_cannot_even_ask_takes_the_last_good_address_not_away() -> None:
    refused: OSError | None = None

    async def look(host: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        if refused is not None:
            raise refused
        return [(2, 2, 17, "", ("192.0.2.1", port))]

    resolver, server = Resolver(look), StunServer.parse("stun.example.net")
    good = await resolver.resolve(server)
    refused = OSError(errno.EMFILE, "Too many open files")  # EAI_SYSTEM: it is no gaierror then
    assert await resolver.resolve(server) == good
    with pytest.raises(OSError, match="Too many open files"):
        await resolver.resolve(StunServer.parse("other.example.net"))
