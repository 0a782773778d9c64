"""WireGuard's port, shared with wireguard-go, which holds it: both families, while a tunnel ping goes on."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv4Network, ip_address

import pytest
import trio

from relayd.agent.shared_port import READS_AT_ONCE, SharedPort
from relayd.demo.lab import Lab, Node
from relayd.demo.tunnel import Tunnel, join
from relayd.endpoints import Endpoint
from relayd.netio.raw_udp import Datagram, source_for
from relayd.wire.port_messages import SEALED_MAGIC
from tests.helpers.inside import inside
from tests.helpers.netns import Pings, wait_until

PORT = 51820
STUN = bytes.fromhex("000100002112a442") + b"twelve bytes"
WAIT_S = 5.0
HERE, THERE = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}


opened: list[SharedPort] = []


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    for port in opened:
        port.close()
    opened.clear()


@dataclass
class Heard:
    """What a shared port has handed on."""

    stun: list[Datagram] = field(default_factory=list)
    sealed: list[Datagram] = field(default_factory=list)

    def open(self, port: int = PORT, *, raw: bool = True, tunnel: str = "") -> SharedPort:
        made = SharedPort(
            port, on_stun=self.stun.append, on_sealed=self.sealed.append, raw=raw, tunnel=tunnel
        )
        opened.append(made)
        return made


@pytest.fixture(scope="module")
def nodes(lab: Lab) -> tuple[Node, Node]:
    here, there = lab.node("here"), lab.node("there")
    lab.wire(here, there, IPv4Network("192.0.2.0/24"))
    for node, other, addresses in ((here, there, HERE), (there, here, THERE)):
        node.ip(f"addr add {addresses[6]}/64 dev to-{other.name} nodad")
    return here, there


@pytest.fixture(scope="module")
def tunnels(nodes: tuple[Node, Node]) -> tuple[Tunnel, Tunnel]:
    """Both ends are wireguard-go, on PORT, and know where the other is."""
    left = Tunnel(nodes[0], IPv4Interface("10.99.0.1/24"), port=PORT, userspace=True)
    right = Tunnel(nodes[1], IPv4Interface("10.99.0.2/24"), port=PORT, userspace=True)
    join(left, right)
    for tunnel, other, address in ((left, right, THERE[4]), (right, left, HERE[4])):
        tunnel.wg("set", "wg0", "peer", str(other.public_key), "endpoint", f"{address}:{PORT}")
    return left, right


@pytest.fixture
def here(nodes: tuple[Node, Node]) -> Iterator[Node]:
    with inside(nodes[0]):
        yield nodes[0]


@pytest.fixture(params=[4, 6], ids=["v4", "v6"])
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def stranger(nodes: tuple[Node, Node], version: int) -> Iterator[socket.socket]:
    """A socket of the other node."""
    with inside(nodes[1]):
        sock = socket.socket(socket.AF_INET6 if version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((THERE[version], 0))
    sock.settimeout(WAIT_S)
    with sock:
        yield sock


def at(version: int, sock: socket.socket) -> Endpoint:
    return Endpoint(ip_address(THERE[version]), sock.getsockname()[1])


def reads(port: SharedPort, wanted: Callable[[], object]) -> bool:
    """Read until `wanted` is true."""

    async def go() -> bool:
        with trio.move_on_after(WAIT_S):
            async with trio.open_nursery() as nursery:
                await nursery.start(port.run)
                while not wanted():  # noqa: ASYNC110 (handlers only append)
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
        return bool(wanted())

    return trio.run(go)


def test_a_datagram_leaves_from_wireguards_port_and_its_answer_is_heard_while_the_tunnel_goes_on(
    lab: Lab, tunnels: tuple[Tunnel, Tunnel], here: Node, version: int, stranger: socket.socket
) -> None:
    pings = Pings(lab, here, tunnels[1].address.ip)
    heard = Heard()
    port = heard.open()
    assert port.versions == (4, 6)
    assert not port.estimated
    pings.wait_back()
    for number in range(20):
        question = STUN[:-1] + bytes([number])
        port.send(question, at(version, stranger))
        data, sender = stranger.recvfrom(2000)
        assert (data, sender[:2]) == (question, (HERE[version], PORT))
        stranger.sendto(question, sender)
        assert reads(port, lambda count=number: len(heard.stun) > count)  # type: ignore[misc]
        answer = heard.stun[-1]
        assert answer.payload == question
        assert answer.source == at(version, stranger)
        assert str(answer.local) == HERE[version]
    pings.wait_back()
    assert port.counts["malformed"] == 0, "WireGuard's own datagrams don't pass the filter"
    assert pings.stop().gaps() == [], "no ping was lost"


def test_a_sealed_message_of_full_size_and_one_that_is_fragmented_arrive_whole(
    here: Node, version: int, stranger: socket.socket
) -> None:
    heard = Heard()
    port = heard.open()
    for length in (33, 1420, 4000):
        message = SEALED_MAGIC + os.urandom(length - len(SEALED_MAGIC))
        port.send(message, at(version, stranger))
        data, sender = stranger.recvfrom(5000)
        assert data == message
        stranger.sendto(message, sender)
        assert reads(port, lambda size=length: heard.sealed and len(heard.sealed[-1].payload) == size)  # type: ignore[misc]
        assert heard.sealed[-1].payload == message


def test_the_source_can_be_chosen_among_the_hosts_own_addresses(
    here: Node, version: int, stranger: socket.socket
) -> None:
    second = {4: "192.0.2.77", 6: "2001:db8::77"}[version]
    here.ip(f"addr add {second}/{32 if version == 4 else 128} dev to-there" + " nodad" * (version == 6))
    port = Heard().open()
    port.send(STUN, at(version, stranger), source=ip_address(second))
    assert stranger.recvfrom(2000)[1][:2] == (second, PORT)
    here.ip(f"addr del {second}/{32 if version == 4 else 128} dev to-there")
    with pytest.raises(OSError, match=r".") as raised:
        port.send(STUN, at(version, stranger), source=ip_address(second))
    assert raised.value.errno in (errno.ENETUNREACH, errno.EINVAL, errno.EADDRNOTAVAIL)


def test_where_there_is_no_route_the_error_says_so(here: Node) -> None:
    port = Heard().open()
    for text in ("198.51.100.1:1", "[2001:db8:5::1]:1"):
        with pytest.raises(OSError, match=r".") as raised:
            port.send(STUN, Endpoint.parse(text))
        assert raised.value.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH)
    with pytest.raises(OSError, match="no IPv6"):
        port.send(STUN, Endpoint.parse("[2001:db8::2]:1"), source=ip_address("192.0.2.1"))


def test_another_port_is_heard_after_set_port_and_the_old_one_no_more(
    here: Node, version: int, stranger: socket.socket
) -> None:
    heard = Heard()
    port = heard.open()
    stranger.sendto(STUN, (HERE[version], PORT))
    assert reads(port, lambda: heard.stun)
    changes: list[int] = []
    port.after_change.append(lambda: changes.append(port.wireguard_port))
    port.set_port(PORT)
    port.set_port(PORT + 7)
    assert changes == [PORT + 7], "told once, and only of a change"
    stranger.sendto(STUN + b"old", (HERE[version], PORT))
    stranger.sendto(STUN + b"new", (HERE[version], PORT + 7))
    assert reads(port, lambda: heard.stun[-1].payload.endswith(b"new"))
    assert [one.payload for one in heard.stun] == [STUN, STUN + b"new"]
    port.send(STUN, at(version, stranger))
    assert stranger.recvfrom(2000)[1][1] == PORT + 7


def test_what_came_before_the_filter_is_not_handed_on(
    here: Node, version: int, stranger: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window between a raw socket's making and its filter's is real: here it is made wide."""
    from relayd.netio import bpf

    attach = bpf.attach

    def late(sock: socket.socket, program: list[bpf.Instruction]) -> None:
        if sock.family == stranger.family:
            stranger.sendto(b"not for us at all", (HERE[version], PORT))
            stranger.sendto(STUN + b"early", (HERE[version], PORT))
            assert select.select([sock], [], [], WAIT_S)[0]
        attach(sock, program)

    monkeypatch.setattr(bpf, "attach", late)
    heard = Heard()
    port = heard.open()
    monkeypatch.undo()
    stranger.sendto(STUN + b"after", (HERE[version], PORT))
    assert reads(port, lambda: heard.stun)
    assert [one.payload for one in heard.stun] == [STUN + b"after"]
    assert port.counts["malformed"] == 0


def test_malformed_udp_headers_are_counted(here: Node, nodes: tuple[Node, Node]) -> None:
    heard = Heard()
    port = heard.open()
    with inside(nodes[1]):
        liar = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)
    for source, length in ((0, 8 + len(STUN)), (1, 7), (1, 9000), (1, 0), (1, 8)):
        liar.sendto(struct.pack("!HHHH", source, PORT, length, 0) + STUN, (HERE[4], 0))
    liar.sendto(struct.pack("!HHHH", 9, PORT, 8 + len(STUN), 0) + STUN, (HERE[4], 0))
    liar.close()
    assert reads(port, lambda: heard.stun)
    assert [one.source.port for one in heard.stun] == [9]
    assert port.counts["malformed"] == 5


def test_a_flood_is_read_in_rounds(here: Node, version: int, stranger: socket.socket) -> None:
    heard = Heard()
    port = heard.open()
    for _ in range(READS_AT_ONCE + 10):
        stranger.sendto(STUN, (HERE[version], PORT))
    port.read()
    assert 0 < len(heard.stun) <= READS_AT_ONCE
    assert reads(port, lambda: len(heard.stun) == READS_AT_ONCE + 10)


def link_local(node: Node, interface: str) -> str:
    # While it is looked for duplicates of, the address is no source yet.
    wait_until(
        lambda: "tentative" not in node.run("ip", "-6", "address", "show", "dev", interface),
        "the link-local address is ready",
    )
    shown = json.loads(node.run("ip", "-j", "-6", "address", "show", "dev", interface, "scope", "link"))
    return next(str(one["local"]) for link in shown if link for one in link["addr_info"] if one)


def test_link_local_addresses_have_their_scope(here: Node, nodes: tuple[Node, Node]) -> None:
    local, there = link_local(here, "to-there"), link_local(nodes[1], "to-here")
    heard, other = Heard(), Heard()
    port = heard.open()
    with inside(nodes[1]):
        far = other.open()
        far.send(STUN, Endpoint.parse(f"[{local}%to-here]:{PORT}"))
    assert reads(port, lambda: heard.stun)
    assert heard.stun[0].source == Endpoint.parse(f"[{there}%to-there]:{PORT}")
    assert str(source_for(heard.stun[0].source, lambda _sock: None)) == f"{local}%to-there"
    port.send(STUN, heard.stun[0].source)
    assert reads(far, lambda: other.stun)


# Without the capability -------------------------------------------------------------------------------------

CAP_NET_RAW = 13


def without_net_raw(body: Callable[[], None]) -> None:
    """Run `body` in a thread that has no CAP_NET_RAW: capabilities are a thread's own (capabilities(7))."""

    def drop_and_run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread
        data = ctypes.create_string_buffer(24)
        assert libc.capget(header, data) == 0
        words = list(struct.unpack("=6I", data.raw))
        words[0] &= ~(1 << CAP_NET_RAW)  # effective, of the first 32
        assert libc.capset(header, ctypes.create_string_buffer(struct.pack("=6I", *words))) == 0
        body()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(drop_and_run).result()


def test_without_cap_net_raw_another_port_is_used_and_said_to_be_an_estimate(
    nodes: tuple[Node, Node], version: int, stranger: socket.socket
) -> None:
    def body() -> None:
        with inside(nodes[0]):
            heard = Heard()
            port = heard.open()
            assert port.estimated
            assert "CAP_NET_RAW is missing" in port.lacks
            assert port.port_of(version) != PORT
            port.send(STUN, at(version, stranger))
            data, sender = stranger.recvfrom(2000)
            assert (data, sender[1]) == (STUN, port.port_of(version))
            stranger.sendto(STUN, sender)
            stranger.sendto(b"not for us", sender)
            assert reads(port, lambda: heard.stun)
            assert str(heard.stun[0].local) == HERE[version]
            port.set_port(PORT + 1)
            assert port.port_of(version) == sender[1]

    without_net_raw(body)


@pytest.mark.parametrize("raw", [True, False])
def test_what_comes_through_the_tunnel_itself_is_not_heard(
    nodes: tuple[Node, Node], tunnels: tuple[Tunnel, Tunnel], here: Node, raw: bool
) -> None:
    """A Ping that took the tunnel would prove a path of the tunnel's packets through the tunnel."""
    heard = Heard()
    port = heard.open(raw=raw, tunnel=tunnels[0].name)
    with inside(nodes[1]):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        for address in (str(tunnels[0].address.ip), HERE[4]):  # through the tunnel, then past it
            sock.sendto(SEALED_MAGIC + address.encode(), (address, port.port_of(4)))
            wanted = (
                (lambda: port.counts["through_the_tunnel"]) if address != HERE[4] else lambda: heard.sealed
            )
            assert reads(port, wanted), address
    assert [one.payload for one in heard.sealed] == [SEALED_MAGIC + HERE[4].encode()]
