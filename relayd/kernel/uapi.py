"""A userspace WireGuard (wireguard-go, boringtun, ...), by the text protocol of its Unix socket.

The protocol: https://www.wireguard.com/xplatform/. A request is `get=1` or `set=1` and lines of
`key=value`, ended by an empty line; so is the answer, whose last line is `errno=N`. Keys are in hex. One
connection a request, as `wg` does it: a process that was restarted in between is not even noticed.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from ipaddress import IPv6Address, ip_network
from pathlib import Path
from typing import Literal

import trio

from relayd.endpoints import Endpoint
from relayd.errors import HostError, RemoteProtocolError
from relayd.kernel import hints
from relayd.kernel.device import NO_KEY, Changes, Interface, Network, Peer
from relayd.kernel.planned import PlannedWireGuard
from relayd.keys import PrivateKey, PublicKey

SOCKETS = Path("/var/run/wireguard")

DEADLINE_S = 5.0
"""For one request: these processes answer in milliseconds, also for thousands of peers."""

MAX_ANSWER_BYTES = 32 << 20
"""Ten thousand peers with ten allowed IPs each make 6 MiB."""

MAX_LINE_BYTES = 1024
"""The longest that there are, keys in hex, have 78. What comes in one piece is bounded by _READ_BYTES."""

_READ_BYTES = 64 << 10


def socket_path(name: str) -> Path:
    """Where a userspace WireGuard that runs the interface `name` listens."""
    return SOCKETS / f"{name}.sock"


class UserspaceWireGuard(PlannedWireGuard):
    """An interface that a process of this host runs."""

    engine: Literal["userspace"] = "userspace"

    def __init__(self, name: str, path: Path | None = None) -> None:
        super().__init__(name)
        self._path = path or socket_path(name)

    async def dump(self) -> Interface:
        """See relayd.kernel.device.WireGuard."""
        attempt = f"read {self.name}"
        answer = await self._ask(attempt, "get=1\n\n")
        if answer.errno:
            raise hints.refused(attempt, answer.errno)
        try:
            return interface_of(self.name, answer.pairs)
        except RemoteProtocolError as error:
            raise HostError(f"cannot {attempt}: {error} (from {self._path})") from error

    async def _write(self, attempt: str, changes: Changes) -> None:
        answer = await self._ask(attempt, set_request(changes))
        if answer.errno == errno.EADDRINUSE:
            raise hints.port_in_use(self.name, changes.listen_port or 0)
        if answer.errno:
            raise hints.refused(attempt, answer.errno)

    async def _ask(self, attempt: str, request: str) -> Answer:
        answer = Answer()
        try:
            with trio.fail_after(DEADLINE_S):
                async with await trio.open_unix_socket(self._path) as stream:
                    await stream.send_all(request.encode())
                    while not answer.is_complete:
                        data = await stream.receive_some(_READ_BYTES)
                        if not data:
                            raise HostError(f"cannot {attempt}: {self._path} closed before its answer ended")
                        answer.feed(data)
        except trio.TooSlowError as error:
            raise hints.no_answer(attempt, str(self._path), DEADLINE_S) from error
        except PermissionError as error:
            raise hints.socket_refused(attempt, self._path) from error
        except (FileNotFoundError, ConnectionRefusedError) as error:
            raise hints.nobody_answers(self._path) from error
        except trio.BrokenResourceError as error:
            raise HostError(f"cannot {attempt}: {self._path} broke the connection") from error
        except RemoteProtocolError as error:
            raise HostError(f"cannot {attempt}: {error} (from {self._path})") from error
        except OSError as error:
            raise hints.refused(attempt, error.errno or errno.EIO) from error
        return answer


# Bytes to values -------------------------------------------------------------------------------------------


class Answer:
    """An answer that arrives in pieces. `feed` it until it `is_complete`; then `pairs` and `errno` are it."""

    def __init__(self, max_bytes: int = MAX_ANSWER_BYTES) -> None:
        self.pairs: list[tuple[str, str]] = []
        self.errno = 0  # positive, 0: success
        self.is_complete = False
        self._left = max_bytes
        self._rest = b""
        self._has_errno = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises RemoteProtocolError for what is no answer, or too long a one."""
        self._left -= len(data)
        if self._left < 0:
            raise RemoteProtocolError("the answer is longer than any interface can be")
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if self.is_complete:
                raise RemoteProtocolError("the answer goes on after its end")
            self._line(line)
        if len(self._rest) > MAX_LINE_BYTES:
            raise RemoteProtocolError("a line of the answer is longer than any can be")
        if self.is_complete and self._rest:
            raise RemoteProtocolError("the answer goes on after its end")

    def _line(self, line: bytes) -> None:
        if not line:
            if not self._has_errno:
                raise RemoteProtocolError("the answer ended without an errno")
            self.is_complete = True
            return
        name, equals, value = line.decode("ascii", "backslashreplace").partition("=")
        if not equals:
            raise RemoteProtocolError(f"{name[:40]!r} is not a line of the WireGuard protocol")
        if name == "errno":
            self._has_errno = True
            self.errno = abs(_number(name, value, low=-(1 << 31), high=1 << 31))
        else:
            self.pairs.append((name, value))


def interface_of(name: str, pairs: Iterable[tuple[str, str]]) -> Interface:
    """The interface that an answer to `get=1` describes. Lines with unknown keys are skipped.

    Raises RemoteProtocolError.
    """
    public_key, listen_port, fwmark = NO_KEY, 0, 0
    private_key: PrivateKey | None = None
    peers: dict[PublicKey, Peer] = {}
    draft: _PeerDraft | None = None
    for key, value in pairs:
        if key == "public_key":
            if draft is not None:
                peers[draft.key] = draft.peer()
            draft = _PeerDraft(PublicKey(_hex_key(key, value)))
        elif draft is not None:
            draft.take(key, value)
        elif key == "private_key":
            raw = _hex_key(key, value)
            private_key = PrivateKey(raw) if any(raw) else None
            public_key = private_key.public() if private_key is not None else NO_KEY
        elif key == "listen_port":
            listen_port = _number(key, value, high=0xFFFF)
        elif key == "fwmark":
            fwmark = _number(key, value, high=0xFFFF_FFFF)
    if draft is not None:
        peers[draft.key] = draft.peer()
    return Interface(name, public_key, listen_port, fwmark, peers, private_key)


class _PeerDraft:
    """A peer of whose lines some are still to come."""

    def __init__(self, key: PublicKey) -> None:
        self.key = key
        self._endpoint: Endpoint | None = None
        self._allowed_ips: list[Network] = []
        self._numbers: dict[str, int] = {}

    def take(self, key: str, value: str) -> None:
        """One line of it."""
        try:
            if key == "endpoint":
                self._endpoint = _unmapped(Endpoint.parse(value))
            elif key == "allowed_ip":
                self._allowed_ips.append(ip_network(value, strict=False))
            elif key in _PEER_NUMBERS:
                self._numbers[key] = _number(key, value, high=_PEER_NUMBERS[key])
        except ValueError as error:
            raise RemoteProtocolError(f"{key}={value[:80]!r}: {error}") from error

    def peer(self) -> Peer:
        """The peer, once all its lines are there."""
        got = self._numbers.get
        handshake_at = got("last_handshake_time_sec", 0) + got("last_handshake_time_nsec", 0) / 1e9
        return Peer(
            key=self.key,
            endpoint=self._endpoint,
            allowed_ips=tuple(self._allowed_ips),
            handshake_at=handshake_at or None,
            rx_bytes=got("rx_bytes", 0),
            tx_bytes=got("tx_bytes", 0),
            keepalive_s=got("persistent_keepalive_interval", 0),
        )


_U64 = (1 << 64) - 1
_PEER_NUMBERS = {
    "last_handshake_time_sec": _U64 >> 1,
    "last_handshake_time_nsec": 999_999_999,
    "rx_bytes": _U64,
    "tx_bytes": _U64,
    "persistent_keepalive_interval": 0xFFFF,
}
"""What is read of a peer as a number, and the most it can be."""


def _unmapped(endpoint: Endpoint) -> Endpoint:
    """::ffff:192.0.2.1 is 192.0.2.1, as a process with one socket for both families sees it."""
    address = endpoint.address
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return Endpoint(address.ipv4_mapped, endpoint.port)
    return endpoint


def _number(key: str, value: str, *, low: int = 0, high: int) -> int:
    digits = value.removeprefix("-")
    # int() alone would take "1_0", " 1" and the digits of every script.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 20 and low <= int(value) <= high):
        raise RemoteProtocolError(f"{key}={value[:40]!r} is not a number from {low} to {high}")
    return int(value)


def _hex_key(key: str, value: str) -> bytes:
    """Never quotes the value: it may be a private key."""
    try:
        raw = bytes.fromhex(value)
    except ValueError as error:
        raise RemoteProtocolError(f"the {key} is not hexadecimal") from error
    if len(raw) != 32 or len(value) != 64:
        raise RemoteProtocolError(f"the {key} is {len(value)} characters long, not 64")
    return raw


# Values to bytes -------------------------------------------------------------------------------------------


def set_request(changes: Changes) -> str:
    """The request that writes `changes`."""
    return "".join(f"{line}\n" for line in _set_lines(changes)) + "\n"


def _set_lines(changes: Changes) -> Iterator[str]:
    yield "set=1"
    if changes.private_key is not None:
        yield f"private_key={changes.private_key.raw.hex()}"
    if changes.listen_port is not None:
        yield f"listen_port={changes.listen_port}"
    if changes.fwmark is not None:
        yield f"fwmark={changes.fwmark}"
    for key in changes.remove:
        yield f"public_key={key.raw.hex()}"
        yield "remove=true"
    for change in changes.peers:
        yield f"public_key={change.key.raw.hex()}"
        if not change.new:
            yield "update_only=true"
        if change.endpoint is not None:
            yield f"endpoint={change.endpoint}"
        if change.keepalive_s is not None:
            yield f"persistent_keepalive_interval={change.keepalive_s}"
        if change.allowed_ips is not None:
            yield "replace_allowed_ips=true"
            for network in change.allowed_ips:
                yield f"allowed_ip={network}"
