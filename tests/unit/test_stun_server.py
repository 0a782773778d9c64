"""The relay's STUN server on real sockets of the loopback interface, both families."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import trio

from relayd.endpoints import Endpoint
from relayd.netio.answer_slots import SLOTS
from relayd.netio.poller import Poller
from relayd.relay.listeners import pair_udp
from relayd.relay.stun_server import MAX_OWN_ADDRESSES, Pair, StunServer
from relayd.wire import stun

WAIT_S = 5.0


@dataclass
class Rig:
    poller: Poller
    server: StunServer
    client: socket.socket
    first: tuple[str, int]
    second: tuple[str, int]

    async def served(self, *datagrams: bytes) -> list[tuple[bytes, int]]:
        """Send to the first port; what has come back once all is served: (answer, from port)."""
        for datagram in datagrams:
            self.client.sendto(datagram, self.first)
        return await self.back()

    async def back(self) -> list[tuple[bytes, int]]:
        """All answers to what was sent."""
        last = os.urandom(12)
        end = stun.encode(stun.BINDING_REQUEST, last, ((0x7777, b""),), fingerprint=False)
        self.client.sendto(end, self.first)
        got = []
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(self.poller.run)
                while True:
                    await trio.lowlevel.wait_readable(self.client)
                    data, name = self.client.recvfrom(2000)
                    if data[8:20] == last:
                        break
                    got.append((data, name[1]))
                nursery.cancel_scope.cancel()
        return got


def bound(family: socket.AddressFamily, host: str) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((host, 0))
    return sock


@pytest.fixture(params=["127.0.0.1", "::1"])
def host(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def per_s() -> int:
    return 1_000_000


@pytest.fixture
def second() -> bool:
    return True


@pytest.fixture
def rig(host: str, per_s: int, second: bool) -> Iterator[Rig]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    everywhere = "::" if ":" in host else ""
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(bound(family, everywhere)) for _ in range(2))
        client = stack.enter_context(bound(family, host))
        poller = Poller()
        stack.callback(poller.close)
        server = StunServer(poller, [Pair(one, two if second else None)], per_s=per_s)
        stack.callback(server.close)
        ports = [sock.getsockname()[1] for sock in (one, two)]
        assert server.ports == (ports if second else ports[:1])
        yield Rig(poller, server, client, (host, ports[0]), (host, ports[1]))


def here(rig: Rig) -> Endpoint:
    return Endpoint.of_socket(rig.client.getsockname())


def transaction(number: int) -> bytes:
    return number.to_bytes(12, "big")


async def test_many_requests_get_an_answer_each_with_the_address_that_they_came_from(rig: Rig) -> None:
    wanted = {transaction(number) for number in range(3 * SLOTS + 7)}
    got = await rig.served(*(stun.encode_request(one) for one in sorted(wanted)))
    answers = [stun.decode_answer_untrusted(data) for data, _ in got]
    assert {one.transaction for one in answers} == wanted
    assert len(answers) == len(wanted)
    assert {one.mapped for one in answers} == {here(rig)}
    assert {one.other for one in answers} == {Endpoint.of_socket(rig.second)}
    assert {port for _, port in got} == {rig.first[1]}
    assert rig.server.counts == {"answered": len(wanted) + 1}


async def test_the_quick_answer_is_byte_for_byte_the_thorough_one(rig: Rig) -> None:
    for _ in range(50):
        request = stun.encode_request(os.urandom(12))
        [(data, _)] = await rig.served(request)
        local, other = (Endpoint.of_socket(name) for name in (rig.first, rig.second))
        thorough = stun.answer_untrusted(request, here(rig), local=local, other=other)
        assert thorough is not None
        assert data == thorough.data


@pytest.mark.parametrize("second", [False])
async def test_without_a_second_port_the_answer_is_the_shortest_there_is(rig: Rig) -> None:
    [(data, _)] = await rig.served(stun.encode_request(transaction(1)))
    assert len(data) == 20 + (24 if ":" in rig.first[0] else 12)
    assert stun.decode_answer_untrusted(data).mapped == here(rig)
    [(refused, _)] = await rig.served(stun.encode_request(transaction(2), change_port=True))
    assert stun.decode_answer_untrusted(refused).error == 420


async def test_the_answer_comes_from_the_other_port_when_that_is_asked_for(rig: Rig) -> None:
    got = await rig.served(
        stun.encode_request(transaction(1), change_port=True), stun.encode_request(transaction(2))
    )
    assert {stun.decode_answer_untrusted(data).transaction[-1]: port for data, port in got} == {
        1: rig.second[1],
        2: rig.first[1],
    }


async def test_both_ports_answer_and_each_names_the_other(rig: Rig) -> None:
    rig.client.sendto(stun.encode_request(transaction(1)), rig.second)
    [(data, port)] = await rig.back()
    assert port == rig.second[1]
    assert stun.decode_answer_untrusted(data).other == Endpoint.of_socket(rig.first)


async def test_garbage_between_requests_is_ignored_and_counted_by_reason(rig: Rig) -> None:
    wrong_print = stun.encode(stun.BINDING_REQUEST, transaction(9), (), fingerprint=True)[:-1] + b"!"
    got = await rig.served(
        b"",
        b"WIREKUBE_NAT_OPEN",
        stun.encode_request(transaction(1)),
        bytes(3000),
        os.urandom(20),
        b"\x01\0\0\0" + bytes(144),
        stun.encode(stun.BINDING_SUCCESS, transaction(9), (), fingerprint=False),
        stun.encode(stun.BINDING_INDICATION, transaction(9), (), fingerprint=False),
        wrong_print,
        stun.encode_request(transaction(9))[:19],
        stun.encode_request(transaction(9)) + b"more",
        stun.encode(stun.BINDING_REQUEST, transaction(2), (), fingerprint=True),
    )
    assert [stun.decode_answer_untrusted(data).transaction[-1] for data, _ in got] == [1, 2]
    assert rig.server.counts == {
        "answered": 3,
        "not_stun": 5,
        "malformed": 4,
        "indications": 1,
    }


@pytest.mark.parametrize("per_s", [20])
async def test_an_address_gets_so_many_answers_a_second_and_another_one_its_own(rig: Rig) -> None:
    got = await rig.served(*(stun.encode_request(transaction(n)) for n in range(19)))
    assert len(got) == 19  # and the one that ends served()
    for number in range(1000, 1100):
        rig.client.sendto(stun.encode_request(transaction(number)), rig.first)
    with pytest.raises(trio.TooSlowError):
        with trio.fail_after(0.3):
            await rig.poller.run()
    with pytest.raises(BlockingIOError):
        rig.client.recv(100)
    assert rig.server.counts["limited"] == 100
    rig.poller.now += 1.0
    rig.server.allowances()
    assert rig.server.allowances() == {}
    if ":" not in rig.first[0]:
        with bound(socket.AF_INET, "127.0.0.9") as other:
            other.sendto(stun.encode_request(transaction(1)), rig.first)
            async with trio.open_nursery() as nursery:
                await nursery.start(rig.poller.run)
                await trio.lowlevel.wait_readable(other)
                nursery.cancel_scope.cancel()


async def test_an_answer_leaves_from_the_address_that_was_asked() -> None:
    with contextlib.ExitStack() as stack:
        one, client = (stack.enter_context(bound(socket.AF_INET, name)) for name in ("0.0.0.0", "127.0.0.5"))
        poller = Poller()
        stack.callback(poller.close)
        server = StunServer(poller, [Pair(one)])
        stack.callback(server.close)
        to = ("127.0.0.77", one.getsockname()[1])
        client.sendto(stun.encode_request(transaction(1)), to)
        async with trio.open_nursery() as nursery:
            await nursery.start(poller.run)
            await trio.lowlevel.wait_readable(client)
            nursery.cancel_scope.cancel()
        data, sender = client.recvfrom(100)
        assert sender == to
        assert stun.decode_answer_untrusted(data).mapped == Endpoint.of_socket(client.getsockname())


async def test_what_is_kept_for_own_addresses_is_bounded_however_many_are_asked_at() -> None:
    """All of 127.0.0.0/8 is this host's own."""
    poller = Poller()
    one = bound(socket.AF_INET, "0.0.0.0")
    client = bound(socket.AF_INET, "127.0.0.1")
    with contextlib.closing(poller), one, client:
        server = StunServer(poller, [Pair(one)], per_s=10_000)
        port = one.getsockname()[1]
        with trio.fail_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(poller.run)
                for some in range(3 * MAX_OWN_ADDRESSES // SLOTS):
                    for number in range(SLOTS):
                        to = (f"127.1.{some}.{number}", port)
                        client.sendto(stun.encode_request(transaction(number)), to)
                    answered: set[tuple[str, int]] = set()
                    while len(answered) < SLOTS:
                        await trio.lowlevel.wait_readable(client)
                        answered.add(client.recvfrom(2000)[1])
                nursery.cancel_scope.cancel()
        assert len(server._sockets[0]._tails) <= MAX_OWN_ADDRESSES
        server.close()


async def test_ipv4_that_comes_through_an_ipv6_socket_is_told_as_ipv4() -> None:
    with contextlib.ExitStack() as stack:
        both = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
        both.setblocking(False)
        both.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        both.bind(("::", 0))
        client = stack.enter_context(bound(socket.AF_INET, "127.0.0.1"))
        poller = Poller()
        stack.callback(poller.close)
        server = StunServer(poller, [Pair(both)])
        stack.callback(server.close)
        client.sendto(stun.encode_request(transaction(1)), ("127.0.0.1", both.getsockname()[1]))
        async with trio.open_nursery() as nursery:
            await nursery.start(poller.run)
            await trio.lowlevel.wait_readable(client)
            nursery.cancel_scope.cancel()
        mapped = stun.decode_answer_untrusted(client.recv(100)).mapped
        assert mapped == Endpoint.of_socket(client.getsockname())


async def test_the_answer_goes_to_another_port_of_the_same_address_when_that_is_asked_for(rig: Rig) -> None:
    with bound(rig.client.family, rig.first[0]) as other:
        port = other.getsockname()[1]
        assert await rig.served(stun.encode_request(transaction(1), response_port=port)) == []
        answer = stun.decode_answer_untrusted(other.recv(200))
        assert (answer.transaction, answer.mapped) == (transaction(1), here(rig))


async def test_a_relay_that_listens_on_two_addresses_answers_from_each_of_the_four_ends() -> None:
    with contextlib.ExitStack() as stack:
        first, client = (stack.enter_context(bound(socket.AF_INET, name)) for name in ("127.0.0.2", ""))
        port = first.getsockname()[1]
        second = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        second.setblocking(False)
        second.bind(("127.0.0.3", port))
        everywhere = stack.enter_context(bound(socket.AF_INET, "0.0.0.0"))
        pairs = pair_udp([first, second, everywhere], 0, stack)
        assert [pair.elsewhere is not None for pair in pairs] == [True, True, False]
        poller = Poller()
        stack.callback(poller.close)
        server = StunServer(poller, pairs)
        stack.callback(server.close)
        came: dict[int, tuple[str, int]] = {}
        for number, (ip, other_port) in enumerate(
            [(False, False), (True, False), (False, True), (True, True)]
        ):
            request = stun.encode_request(transaction(number), change_ip=ip, change_port=other_port)
            client.sendto(request, ("127.0.0.2", port))
            async with trio.open_nursery() as nursery:
                await nursery.start(poller.run)
                with trio.fail_after(5):
                    await trio.lowlevel.wait_readable(client)
                nursery.cancel_scope.cancel()
            data, came[number] = client.recvfrom(200)
            answer = stun.decode_answer_untrusted(data)
            assert answer.transaction == transaction(number)
            assert answer.other == Endpoint.parse(f"127.0.0.3:{port + 1}")
        assert list(came.values()) == [
            ("127.0.0.2", port), ("127.0.0.3", port), ("127.0.0.2", port + 1), ("127.0.0.3", port + 1),
        ]  # fmt: skip
