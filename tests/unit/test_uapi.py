"""A userspace WireGuard's text protocol: answers whole, in pieces, as garbage; requests to the letter."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from ipaddress import ip_network
from itertools import pairwise
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from relayd.endpoints import Endpoint
from relayd.errors import HostError, RemoteProtocolError
from relayd.kernel.device import Changes, Interface, Peer, PeerChange
from relayd.kernel.uapi import (
    DEADLINE_S,
    MAX_LINE_BYTES,
    Answer,
    UserspaceWireGuard,
    interface_of,
    set_request,
)
from relayd.keys import PrivateKey, PublicKey
from tests.helpers.wireguard_contract import networks

OWN = PrivateKey(bytes.fromhex("e84b5a6d2717c1003a13b431570353dbaca9146cf150c5f8575680feba52027a"))
ONE = PublicKey(bytes.fromhex("b85996fecc9c7f1fc6d2572a76eda11d59bcd20be8e543b15ce4bd85a8e75a33"))
TWO = PublicKey(bytes.fromhex("58402e695ba1772b1cc9309755f043251ea77fdcf10fbe63989ceb7e19321376"))

# The example of https://www.wireguard.com/xplatform/, with the lines that wireguard-go adds.
ANSWER = f"""\
private_key={OWN.raw.hex()}
listen_port=12912
fwmark=22347
public_key={ONE.raw.hex()}
preshared_key=188515093e952f5f22e865cef3012e72f8b5f0b598ac0309d5dacce3b70fcf52
protocol_version=1
endpoint=[abcd:23::33%2]:51820
last_handshake_time_sec=1700000000
last_handshake_time_nsec=500000000
tx_bytes=38333
rx_bytes=2224
persistent_keepalive_interval=111
allowed_ip=192.168.4.4/32
allowed_ip=fd00::/64
public_key={TWO.raw.hex()}
protocol_version=1
endpoint=182.122.22.19:3233
last_handshake_time_sec=0
last_handshake_time_nsec=0
tx_bytes=0
rx_bytes=0
persistent_keepalive_interval=0
colour=blue
errno=0

""".encode()

INTERFACE = Interface(
    name="wg0",
    public_key=OWN.public(),
    listen_port=12912,
    fwmark=22347,
    peers={
        ONE: Peer(
            key=ONE,
            endpoint=Endpoint.parse("[abcd:23::33%2]:51820"),
            allowed_ips=networks("192.168.4.4/32", "fd00::/64"),
            handshake_at=1700000000.5,
            rx_bytes=2224,
            tx_bytes=38333,
            keepalive_s=111,
        ),
        TWO: Peer(TWO, Endpoint.parse("182.122.22.19:3233"), (), None, 0, 0, 0),
    },
)


def fed(*pieces: bytes) -> Answer:
    answer = Answer()
    for piece in pieces:
        answer.feed(piece)
    return answer


def test_a_whole_answer_is_the_interface() -> None:
    answer = fed(ANSWER)
    assert answer.is_complete
    assert interface_of("wg0", answer.pairs) == INTERFACE


def test_an_answer_that_comes_byte_by_byte_is_the_same() -> None:
    answer = Answer()
    for at in range(len(ANSWER)):
        assert not answer.is_complete
        answer.feed(ANSWER[at : at + 1])
    assert answer.is_complete
    assert interface_of("wg0", answer.pairs) == INTERFACE


@given(st.lists(st.integers(0, len(ANSWER)), max_size=12))
def test_an_answer_in_any_pieces_is_the_same(cuts: list[int]) -> None:
    at = [0, *sorted(cuts), len(ANSWER)]
    answer = fed(*(ANSWER[start:end] for start, end in pairwise(at)))
    assert interface_of("wg0", answer.pairs) == INTERFACE


def test_an_interface_without_key_and_port_has_neither() -> None:
    interface = interface_of("wg0", fed(b"errno=0\n\n").pairs)
    assert (interface.public_key, interface.listen_port, interface.peers) == (PublicKey(bytes(32)), 0, {})


def test_an_address_mapped_into_ipv6_is_an_ipv4_one() -> None:
    pairs = [("public_key", ONE.raw.hex()), ("endpoint", "[::ffff:192.0.2.1]:5")]
    assert interface_of("wg0", pairs).peers[ONE].endpoint == Endpoint.parse("192.0.2.1:5")


@pytest.mark.parametrize(("text", "number"), [("0", 0), ("-98", 98), ("98", 98)])
def test_the_errno_counts_whatever_its_sign(text: str, number: int) -> None:
    assert fed(f"errno={text}\n\n".encode()).errno == number


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\n", "without an errno"),
        (b"errno=\n", "not a number"),
        (b"errno=one\n", "not a number"),
        (b"errno=1_0\n", "not a number"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not a line of the WireGuard protocol"),
        (ANSWER + b"x", "goes on after its end"),
        (ANSWER + b"errno=0\n", "goes on after its end"),
        (b"a" * (MAX_LINE_BYTES + 1), "longer than any can be"),
    ],
)
def test_what_is_no_answer_is_refused(data: bytes, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        fed(data)


def test_an_endless_answer_is_refused() -> None:
    answer, line = Answer(max_bytes=1000), b"allowed_ip=10.0.0.0/8\n"
    for _ in range(1000 // len(line)):
        answer.feed(line)
    with pytest.raises(RemoteProtocolError, match="longer than any interface"):
        answer.feed(line)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("listen_port=65536", "from 0 to 65535"),
        ("listen_port=-1", "from 0 to 65535"),
        ("fwmark=0x1", "not a number"),
        ("public_key=zz", "not hexadecimal"),
        ("public_key=b859", "4 characters long"),
        (f"public_key={ONE.raw.hex()}\nendpoint=192.0.2.1", "no port"),
        (f"public_key={ONE.raw.hex()}\nendpoint=example.net:1", "example.net"),
        (f"public_key={ONE.raw.hex()}\nallowed_ip=10.0.0.0/33", "10.0.0.0/33"),
        (f"public_key={ONE.raw.hex()}\nrx_bytes=99999999999999999999", "not a number"),
        (f"public_key={ONE.raw.hex()}\nlast_handshake_time_nsec=1000000000", "not a number"),
    ],
)
def test_a_wrong_value_is_told(line: str, problem: str) -> None:
    with pytest.raises(RemoteProtocolError, match=problem):
        interface_of("wg0", fed(f"{line}\nerrno=0\n\n".encode()).pairs)


def test_a_private_key_is_never_quoted() -> None:
    broken = OWN.raw.hex()[:-2] + "xx"
    with pytest.raises(RemoteProtocolError) as caught:
        interface_of("wg0", [("private_key", broken)])
    assert broken[:8] not in str(caught.value)


KEYS = st.sampled_from(
    ["private_key", "public_key", "listen_port", "fwmark", "endpoint", "allowed_ip", "rx_bytes", "errno", "x"]
)
VALUES = st.sampled_from([ONE.raw.hex(), "1", "-1", "10.0.0.0/8", "[::1]:5", "", "²"]) | st.text(max_size=80)
LINES = st.lists(st.tuples(KEYS, VALUES), max_size=20).map(
    lambda pairs: "".join(f"{key}={value}\n" for key, value in pairs).encode() + b"errno=0\n\n"
)


@given(st.binary(max_size=300) | LINES)
def test_garbage_gives_an_interface_or_a_protocol_error(data: bytes) -> None:
    try:
        interface = interface_of("wg0", fed(data).pairs)
    except RemoteProtocolError:
        return
    assert interface.name == "wg0"


def test_a_request_is_written_to_the_letter() -> None:
    changes = Changes(
        private_key=OWN,
        listen_port=51820,
        fwmark=0,
        remove=(TWO,),
        peers=(
            PeerChange(
                key=ONE,
                new=True,
                endpoint=Endpoint.parse("[2001:db8::1]:5"),
                allowed_ips=(ip_network("10.0.0.0/8"),),
                keepalive_s=25,
            ),
        ),
    )
    assert set_request(changes) == (
        f"set=1\nprivate_key={OWN.raw.hex()}\nlisten_port=51820\nfwmark=0\n"
        f"public_key={TWO.raw.hex()}\nremove=true\n"
        f"public_key={ONE.raw.hex()}\nendpoint=[2001:db8::1]:5\npersistent_keepalive_interval=25\n"
        "replace_allowed_ips=true\nallowed_ip=10.0.0.0/8\n\n"
    )


# The socket -------------------------------------------------------------------------------------------------

Behaviour = Callable[[trio.SocketStream], Awaitable[None]]
Serve = Callable[[Behaviour], Awaitable[UserspaceWireGuard]]


@pytest.fixture
async def serve(tmp_path: Path, nursery: trio.Nursery) -> AsyncIterator[Serve]:
    """Gives an interface whose process does to each connection what the test says."""
    path = tmp_path / "wg0.sock"

    async def start(behaviour: Behaviour) -> UserspaceWireGuard:
        listening = trio.socket.socket(trio.socket.AF_UNIX)
        await listening.bind(str(path))
        listening.listen()
        nursery.start_soon(partial(trio.serve_listeners, behaviour, [trio.SocketListener(listening)]))
        return UserspaceWireGuard("wg0", path)

    yield start
    nursery.cancel_scope.cancel()


async def test_the_socket_is_asked_and_understood(serve: Serve) -> None:
    asked: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        request = b""
        while not request.endswith(b"\n\n"):
            request += await stream.receive_some(7)
        asked.append(request)
        for start in range(0, len(ANSWER), 100):
            await stream.send_all(ANSWER[start : start + 100])

    wireguard = await serve(answer)
    assert await wireguard.read() == INTERFACE
    assert asked == [b"get=1\n\n"]


async def test_set_endpoint_asks_for_that_and_nothing_else(serve: Serve) -> None:
    asked: list[bytes] = []

    async def answer(stream: trio.SocketStream) -> None:
        asked.append(await stream.receive_some())
        await stream.send_all(b"errno=0\n\n")

    await (await serve(answer)).set_endpoint(ONE, Endpoint.parse("127.64.0.1:22347"))
    assert asked == [
        f"set=1\npublic_key={ONE.raw.hex()}\nupdate_only=true\nendpoint=127.64.0.1:22347\n\n".encode()
    ]


async def test_a_process_that_never_answers_is_given_up(serve: Serve, autojump_clock: MockClock) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    wireguard = await serve(answer)
    with pytest.raises(HostError, match=f"did not answer within {DEADLINE_S:g} s"):
        await wireguard.read()


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        (ANSWER[:200], "closed before its answer ended"),
        (b"", "closed before its answer ended"),
        (b"SSH-2.0-OpenSSH\n", "not a line of the WireGuard protocol"),
        (f"errno={errno.EIO}\n\n".encode(), "Input/output error"),
        (b"listen_port=x\nerrno=0\n\n", "cannot read wg0: listen_port='x' is not a number"),
    ],
)
async def test_a_wrong_answer_is_told(serve: Serve, said: bytes, problem: str) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(said)
        await stream.aclose()

    wireguard = await serve(answer)
    with pytest.raises(HostError, match=problem):
        await wireguard.read()


async def test_a_port_in_use_is_told_by_its_number(serve: Serve) -> None:
    async def answer(stream: trio.SocketStream) -> None:
        asks = await stream.receive_some()
        await stream.send_all(
            ANSWER if asks.startswith(b"get") else f"errno=-{errno.EADDRINUSE}\n\n".encode()
        )

    wireguard = await serve(answer)
    with pytest.raises(HostError, match="UDP port 4711: it is in use"):
        await wireguard.configure(OWN, listen_port=4711, fwmark=0, peers=[])


async def test_a_process_that_is_gone_is_told(tmp_path: Path) -> None:
    path = tmp_path / "wg0.sock"
    with pytest.raises(HostError, match="nothing answers at"):
        await UserspaceWireGuard("wg0", path).read()
    left_behind = trio.socket.socket(trio.socket.AF_UNIX)
    await left_behind.bind(str(path))
    left_behind.close()
    with pytest.raises(HostError, match="nothing answers at"):
        await UserspaceWireGuard("wg0", path).read()
