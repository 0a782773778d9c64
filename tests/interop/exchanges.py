"""Exchanges with a relay, one for each type of frame: what is sent, and what a relay in the field said.

An exchange is a list of steps over a few connections. `recorded.json` has what a WireKube relay answered
to each; playing them again (`python -m tests.interop.record HOST:PORT`) against such a relay gives the
same file. HOST must not be a loopback address there: that relay refuses to probe one.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from relayd.keys import PublicKey
from relayd.wire import frames
from relayd.wire.identity_frames import CHALLENGE

RECORDED = Path(__file__).with_name("recorded.json")
A, B, ABSENT = (PublicKey(bytes([number]) * 32) for number in (0xA1, 0xB2, 0xC3))
WAIT_S = 5.0
QUIET_S = 0.3
"""Nothing came for this long: nothing will."""

NAT_PORT = 40_001
"""Where the agent of the NAT probe's exchange listens."""


@dataclass
class Exchange:
    """`sent`: (connection, bytes), in order. After each, all answers are read."""

    name: str
    sent: list[tuple[str, bytes]]
    udp: bool = False
    """Whether the relay answers by UDP as well."""
    registered: list[tuple[str, PublicKey]] = field(default_factory=lambda: [("a", A), ("b", B)])
    """Connections that are registered beforehand, without being part of the record."""


ON = ("a", frames.encode_data(A, b"on"))
"""An echo: what came before it has been dealt with, and the connection lives."""

EXCHANGES = [
    Exchange("register", [("a", frames.encode_register(A)), ON], registered=[]),
    Exchange(
        "data",
        [("a", frames.encode_data(B, b"\4\0\0\0" + b"x" * 44)), ("b", frames.encode_data(A, b"back"))],
    ),
    Exchange("data without payload", [("a", frames.encode_data(B, b""))]),
    Exchange("data to oneself", [ON]),
    Exchange("data to nobody", [("a", frames.encode_data(ABSENT, b"x")), ON]),
    Exchange("data too short for a key", [("a", frames.encode(frames.DATA, b"x" * 31)), ON]),
    Exchange("keepalive", [("a", frames.KEEPALIVE_FRAME), ON]),
    Exchange("bimodal hint", [("a", frames.encode_hint(B))]),
    Exchange("bimodal hint to nobody", [("a", frames.encode_hint(ABSENT)), ON]),
    Exchange("relay probe nobody asked for", [("a", frames.encode_relay_probe(b"12345678")), ON]),
    Exchange("error from an agent", [("a", frames.encode_error("?")), ON]),
    Exchange("unknown type", [("a", frames.encode(0x7E, b"?" * 9)), ON]),
    Exchange("length zero", [("a", bytes(5))]),
    Exchange("length too large", [("a", bytes.fromhex("00010001 02"))]),
]


def nat_probe(host: str) -> Exchange:
    """A probe of the address that the agent's own connection comes from."""
    return Exchange("nat probe", [("a", frames.NatProbe(IPv4Address(host), NAT_PORT).encode())], udp=True)


def _read(sock: socket.socket) -> list[str]:
    """All frames that come until it is quiet, in hex; "closed" at the end of the stream.

    The text of an Error is the relay's own business, so only its type is kept. A Challenge
    is what agents in the field skip, as they do all types that they don't know.
    """
    data, said = b"", []
    sock.settimeout(QUIET_S)
    try:
        while part := sock.recv(65536):
            data += part
        closed = True
    except TimeoutError:
        closed = False
    except ConnectionResetError:
        closed = True
    while len(data) >= 5:
        size = 4 + int.from_bytes(data[:4], "big")
        frame, data = data[:size], data[size:]
        if frame[4] not in (frames.ERROR, CHALLENGE):
            said.append(frame.hex())
    return [*said, "closed"] if closed else said


def _datagrams(sock: socket.socket, port: int) -> list[str]:
    sock.settimeout(QUIET_S)
    got = []
    try:
        while True:
            data, (_, source) = sock.recvfrom(100)
            got.append(f"{data.decode()} from {'the bound port' if source == port else 'a fresh port'}")
    except TimeoutError:
        return sorted(got)


def _register(sock: socket.socket, key: PublicKey) -> None:
    """Register, and come back when the relay has seen it: only then does an echo return."""
    sock.settimeout(WAIT_S)
    echo = frames.encode_data(key, b"registered?")
    sock.sendall(frames.encode_register(key) + echo)
    got = b""
    while not got.endswith(echo):
        part = sock.recv(65536)
        assert part, "the relay has closed"
        got += part
    greeting = got.removesuffix(echo)
    assert not greeting or (
        greeting[4] == CHALLENGE and len(greeting) == 4 + int.from_bytes(greeting[:4], "big")
    )


def play(exchange: Exchange, host: str, port: int) -> list[dict[str, list[str]]]:
    """Play it against the relay at host:port. For each step: what each connection got."""
    names = sorted({name for name, _ in exchange.sent} | {name for name, _ in exchange.registered})
    said = []
    connections: dict[str, socket.socket] = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            if exchange.udp:
                udp.bind((host, NAT_PORT))
            for name in names:
                connections[name] = socket.create_connection((host, port), WAIT_S, source_address=(host, 0))
            for name, key in exchange.registered:
                _register(connections[name], key)
            for name, data in exchange.sent:
                connections[name].sendall(data)
                answers = {other: _read(sock) for other, sock in connections.items()}
                if exchange.udp:
                    answers["udp"] = _datagrams(udp, port)
                said.append({other: got for other, got in answers.items() if got})
        finally:
            for sock in connections.values():
                sock.close()
    time.sleep(QUIET_S)  # the relay must have seen them go, before the next exchange takes their keys
    return said
