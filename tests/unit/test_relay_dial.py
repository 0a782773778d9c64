"""relay_dial: every address of a name, marked sockets, one deadline for all of it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from relayd import marks
from relayd.agent.relay_dial import MAX_ADDRESSES, RESOLVE_S, STAGGER_S, connect_first, dial, interleave
from relayd.coordination.model import RelayAddress
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from tests.helpers.tiny_relay import TinyRelay, settle

V4, V6 = int(socket.AF_INET), int(socket.AF_INET6)


class Resolver(trio.abc.HostnameResolver):
    """Answers with the given IPv4 ports of 127.0.0.1, or never."""

    def __init__(self, ports: list[int] | None) -> None:
        self._ports = ports

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        if self._ports is None:
            await trio.sleep_forever()
        assert self._ports is not None
        await trio.lowlevel.checkpoint()
        return [
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", one_port)) for one_port in self._ports
        ]

    async def getnameinfo(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("nobody asks for names")


@contextmanager
def silent_port() -> Iterator[int]:
    """A port whose SYNs go unanswered: its backlog is full, and the kernel drops what comes then."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        fillers = []
        for _ in range(3):
            filler = socket.socket()
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            fillers.append(filler)
        yield listener.getsockname()[1]
        for filler in fillers:
            filler.close()


def closed_port() -> int:
    """A port that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


async def test_socket_is_marked_and_tuned() -> None:
    with TinyRelay() as relay:
        sock = await dial(relay.address, timeout_s=10)
        with sock:
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_MARK) == marks.FWMARK
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == 128 << 10
            assert not sock.getblocking()


async def test_socket_is_marked_before_it_connects(monkeypatch: pytest.MonkeyPatch) -> None:
    mark = marks.set_mark
    connected: list[bool] = []

    def noting(sock: socket.socket) -> None:
        try:
            sock.getpeername()
        except OSError:
            connected.append(False)
        else:
            connected.append(True)
        mark(sock)

    monkeypatch.setattr(marks, "set_mark", noting)
    with TinyRelay() as relay:
        (await dial(relay.address, timeout_s=10)).close()
    assert connected == [False]


async def test_missing_capability_is_told_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(sock: socket.socket) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(marks, "set_mark", refused)
    with TinyRelay() as relay:
        with pytest.raises(HostError, match="CAP_NET_ADMIN is missing"):
            await dial(relay.address, timeout_s=10)
        assert relay.waiting() == 0


async def test_refused_address_gives_way_to_the_next_at_once(mock_clock: MockClock) -> None:
    with TinyRelay() as relay:
        trio.socket.set_custom_hostname_resolver(Resolver([closed_port(), relay.address.port]))
        sock = await dial(RelayAddress("relay.example", 1), timeout_s=10)
        with sock:
            assert sock.getpeername()[1] == relay.address.port
    assert mock_clock.current_time() == 0.0


async def test_silent_address_gives_way_to_the_next_after_its_head_start(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, silent_port() as silent:
        trio.socket.set_custom_hostname_resolver(Resolver([silent, relay.address.port]))
        dialled: list[socket.socket] = []

        async def dial_it() -> None:
            dialled.append(await dial(RelayAddress("relay.example", 1), timeout_s=10))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial_it)
            await settle()
            assert not dialled
            mock_clock.jump(STAGGER_S)
        with dialled[0] as sock:
            assert sock.getpeername()[1] == relay.address.port


async def test_all_refused_says_what_each_said() -> None:
    ports = [closed_port(), closed_port()]
    with pytest.raises(
        OSError, match=r"^127.0.0.1:\d+: Connection refused; 127.0.0.1:\d+: Connection refused$"
    ) as caught:
        await connect_first([(V4, ("127.0.0.1", port)) for port in ports])
    for port in ports:
        assert f"127.0.0.1:{port}" in str(caught.value)


async def test_name_without_addresses_says_so() -> None:
    with pytest.raises(OSError, match="no address"):
        await connect_first([])


async def test_silent_relay_ends_the_dial_at_its_deadline(mock_clock: MockClock) -> None:
    with silent_port() as silent:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_timeout, RelayAddress("127.0.0.1", silent))
            await settle()
            mock_clock.jump(10.0)


async def test_resolver_that_hangs_ends_the_dial_at_its_deadline(mock_clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(None))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_timeout, RelayAddress("relay.example", 3478))
        await settle()
        mock_clock.jump(10.0)


async def expect_timeout(relay: RelayAddress) -> None:
    with pytest.raises(TimeoutError, match="no answer within 10 s"):
        await dial(relay, timeout_s=10.0)


async def test_what_can_be_no_host_name_is_an_ordinary_failure() -> None:
    with pytest.raises(OSError, match="not a host name"):
        await dial(RelayAddress("a" * 70 + "é.example", 3478), timeout_s=10.0)


def test_families_take_turns_and_the_first_choice_stays_first() -> None:
    a, b, c, d = (V6, ("::1", 1)), (V6, ("::1", 2)), (V4, ("127.0.0.1", 1)), (V6, ("::1", 3))
    assert interleave([a, b, c, d, a]) == [a, c, b, d]
    assert interleave([]) == []
    assert len(interleave([(V4, ("127.0.0.1", port)) for port in range(100)])) == MAX_ADDRESSES


class DeadResolver(Resolver):
    """A name server that is away."""

    async def getaddrinfo(self, host: Any, port: Any, *args: Any, **kwargs: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")


async def test_a_dead_resolver_does_not_keep_us_from_where_the_relay_was(mock_clock: MockClock) -> None:
    """G15: the last good address is used, at once when the resolver says that it fails."""
    trio.socket.set_custom_hostname_resolver(DeadResolver(None))
    with TinyRelay() as relay:
        spare = Endpoint.parse(str(relay.address))
        with await dial(RelayAddress("relay.example", 3478), timeout_s=10.0, spare=spare) as sock:
            assert sock.getpeername()[1] == relay.address.port
        with pytest.raises(OSError, match=r"^relay\.example: Temporary failure"):
            await dial(RelayAddress("relay.example", 3478), timeout_s=10.0)


async def test_a_silent_resolver_is_not_waited_for_where_an_address_is_known(mock_clock: MockClock) -> None:
    trio.socket.set_custom_hostname_resolver(Resolver(None))
    dialled: list[socket.socket] = []
    with TinyRelay() as relay:
        spare = Endpoint.parse(str(relay.address))

        async def dial_it() -> None:
            dialled.append(await dial(RelayAddress("relay.example", 3478), timeout_s=10.0, spare=spare))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(dial_it)
            await settle()
            mock_clock.jump(RESOLVE_S)
        with dialled[0] as sock:
            assert sock.getpeername()[1] == relay.address.port


async def test_a_lying_resolver_is_passed_over_when_asked_to(mock_clock: MockClock) -> None:
    with TinyRelay() as relay, TinyRelay() as liar:
        trio.socket.set_custom_hostname_resolver(Resolver([liar.address.port]))
        spare = Endpoint.parse(str(relay.address))
        for spare_first, expected in ((False, liar), (True, relay)):
            with await dial(
                RelayAddress("relay.example", 1), timeout_s=10.0, spare=spare, spare_first=spare_first
            ) as sock:
                assert sock.getpeername()[1] == expected.address.port
