"""The relay's STUN server: on each UDP socket, and on a second port beside it (RFC 8489, RFC 5780).

A self-hosted network needs nobody else's STUN server. Whoever asks is unverified, so an answer says no more
than STUN needs, and an address gets so many a second and no more: the relay is no way to flood somebody else.

A plain request, the only one that a client sends in quantity, is answered by a few slices (`_Socket._fast`);
all others go through `wire.stun`.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.netio import mmsg
from relayd.netio.answer_slots import AnswerSlots
from relayd.netio.poller import Poller
from relayd.netio.raw_udp import own_source, scoped
from relayd.observe import log
from relayd.wire import stun
from relayd.wire.port_messages import STUN_COOKIE

ANSWERS_PER_S: Final = 100
"""To one IPv4 address, or one IPv6 network of 64 bits: an agent asks some five times a minute, so that is
enough for a thousand of them behind one NAT, and as a flood of somebody else it is 5 kB/s."""

WINDOW_S: Final = 1.0
"""Over which answers are counted."""

MAX_ADDRESSES: Final = 1 << 17
"""Counted in one window (some 10 MB); past that the window ends early, which only loosens the limit."""

RECEIVE_BUFFER_BYTES: Final = 4 << 20
"""Some 50 ms of requests at 50,000 a second, as the kernel counts them: while the data plane has its turn."""

MAX_OWN_ADDRESSES: Final = 256
"""For which something is kept ready: a host may answer at all of a network of 2^64 (ip-route(8), type local),
and whoever asks chooses at which."""

_PLAIN = struct.pack("!HHI", stun.BINDING_REQUEST, 0, STUN_COOKIE)
"""How a request without any attribute begins."""

_LINK_LOCAL = IPv6Address("fe80::").packed[:8]
_MAPPED = IPv6Address("::ffff:0:0").packed[:12]


@dataclass(frozen=True, slots=True)
class Pair:
    """A UDP socket, and the one on the second port of the same address, if there is one."""

    first: socket.socket
    second: socket.socket | None = None
    elsewhere: tuple[socket.socket, socket.socket] | None = None
    """The same two ports of a second address, which has a pair of its own."""


@dataclass(frozen=True, slots=True)
class _Others:
    """From where else than the socket that was asked an answer can come (RFC 5780, section 6.1)."""

    port: socket.socket | None
    address: socket.socket | None = None
    both: socket.socket | None = None


class StunServer:
    """Reads the relay's UDP sockets, and answers. They stay the caller's."""

    def __init__(self, poller: Poller, pairs: Sequence[Pair], *, per_s: int = ANSWERS_PER_S) -> None:
        """The sockets are bound and non-blocking. `per_s`: see ANSWERS_PER_S."""
        self._poller = poller
        self._per_s = per_s
        self._answered: dict[bytes, int] = {}
        self._window_ends = poller.now + WINDOW_S
        self.counts: Counter[str] = Counter()
        """Answers sent, and datagrams that were not answered, by reason."""
        self._sockets: list[_Socket] = []
        for pair in pairs:
            first, second = pair.elsewhere if pair.elsewhere is not None else (None, None)
            self._sockets.append(_Socket(self, pair.first, _Others(pair.second, first, second)))
            if pair.second is not None:
                self._sockets.append(_Socket(self, pair.second, _Others(pair.first, second, first)))
        for one in self._sockets:
            poller.add(one.sock.fileno(), one.on_event)

    @property
    def ports(self) -> list[int]:
        """The UDP ports that answer, the relay's own first."""
        return list(dict.fromkeys(one.port for one in self._sockets))

    def close(self) -> None:
        """Stop reading the sockets."""
        for one in self._sockets:
            self._poller.remove(one.sock.fileno())
        self._sockets.clear()

    def allowances(self) -> dict[bytes, int]:
        """Answers of this window by address. Callers count theirs in it."""
        now = self._poller.now
        if now >= self._window_ends or len(self._answered) >= MAX_ADDRESSES:
            self._answered = {}
            self._window_ends = now + WINDOW_S
        return self._answered

    @property
    def per_s(self) -> int:
        """Answers that one address gets in a window."""
        return self._per_s


class _Socket:
    """One socket's requests."""

    def __init__(self, server: StunServer, sock: socket.socket, others: _Others) -> None:
        self.sock, self._server, self._others = sock, server, others
        self.port: int = sock.getsockname()[1]
        other = others.port
        self._other_port: int | None = other.getsockname()[1] if other is not None else None
        self._elsewhere = Endpoint.of_socket(others.both.getsockname()) if others.both is not None else None
        """Second address and port; None: there is one address."""
        self._v6 = sock.family == socket.AF_INET6
        if self._v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, mmsg.IP_PKTINFO, 1)
        try:
            sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except PermissionError:  # no CAP_NET_ADMIN: as much as net.core.rmem_max allows
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self._slots = AnswerSlots(sock.family, stun.MAX_BYTES)
        address_bytes = 16 if self._v6 else 4
        other_bytes = 8 + address_bytes if other is not None else 0
        length = 8 + address_bytes + other_bytes
        self._answer_bytes = stun.HEADER_BYTES + length
        self._head = struct.pack("!HH", stun.BINDING_SUCCESS, length)
        self._mapped = struct.pack(
            "!HHBB", stun.XOR_MAPPED_ADDRESS, 4 + address_bytes, 0, 2 if self._v6 else 1
        )
        self._tails: dict[bytes, bytes] = {}
        """Own address -> OTHER-ADDRESS, ready-made."""
        self._xor = int.from_bytes(stun.COOKIE[:2] + stun.COOKIE, "big")

    def on_event(self, _mask: int) -> None:
        """One batch: what is left comes with the poller's next, so that frames have their turn between."""
        try:
            count = self._slots.receive(self.sock.fileno())
        except OSError as error:  # an ICMP error for something that was sent
            self._server.counts["receive_errors"] += 1
            log.get().debug("relay.udp_failed", reason=error.strerror)
            return
        if not count:
            return
        counts, slots = self._server.counts, self._slots
        allowances, most = self._server.allowances(), self._server.per_s
        buffer, infos, info_bytes = slots.buffer, slots.infos, slots.info_bytes
        address_at, stride = slots.address_at, slots.stride
        key_bytes = 8 if self._v6 else 4
        sizes, fast = slots.sizes, 0
        for slot in range(count):
            at, info = slot * stride, slot * info_bytes
            key = bytes(infos[info + address_at : info + address_at + key_bytes])
            answered = allowances.get(key, 0)
            if answered >= most:
                counts["limited"] += 1
            elif sizes[slot] == stun.HEADER_BYTES and buffer.startswith(_PLAIN, at) and self._fast(at, info):
                allowances[key] = answered + 1
                slots.answer(slot, self._answer_bytes)
                fast += 1
            elif self._slow(slot):
                allowances[key] = answered + 1
        failed = slots.flush(self.sock.fileno())
        counts["answered"] += fast - failed
        if failed:
            counts["unsent"] += failed

    def _fast(self, at: int, info: int) -> bool:
        """Answer a plain request at `at`, if nothing about its addresses is unusual."""
        slots = self._slots
        buffer, infos = slots.buffer, slots.infos
        local = bytes(infos[info + slots.local_at : info + slots.local_at + slots.address_bytes])
        tail = self._tails.get(local)
        if tail is None:
            tail = self._make_tail(local)
        if self._v6:
            address = infos[info + 8 : info + 24]
            if address.startswith((_LINK_LOCAL, _MAPPED)):
                return False
            port = int.from_bytes(infos[info + 2 : info + 4], "big") ^ (STUN_COOKIE >> 16)
            key = int.from_bytes(buffer[at + 4 : at + 20], "big")
            xored = port.to_bytes(2, "big") + (int.from_bytes(address, "big") ^ key).to_bytes(16, "big")
        else:
            xored = (int.from_bytes(infos[info + 2 : info + 8], "big") ^ self._xor).to_bytes(6, "big")
        buffer[at : at + 4] = self._head
        buffer[at + stun.HEADER_BYTES : at + self._answer_bytes] = self._mapped + xored + tail
        return True

    def _make_tail(self, local: bytes) -> bytes:
        other = self._other_for(_address(local))
        if other is None:
            tail = b""
        else:
            value = stun.encode_address(other)
            tail = struct.pack("!HH", stun.OTHER_ADDRESS, len(value)) + value
        if len(self._tails) >= MAX_OWN_ADDRESSES:
            self._tails.clear()
        self._tails[local] = tail
        return tail

    def _other_for(self, local: IPv4Address | IPv6Address) -> Endpoint | None:
        """OTHER-ADDRESS for who asked at `local`."""
        if self._elsewhere is not None or self._other_port is None:
            return self._elsewhere
        return Endpoint(local, self._other_port)

    def _slow(self, slot: int) -> bool:
        """Answer any other datagram. Whether there is an answer."""
        slots, counts = self._slots, self._server.counts
        at = slot * slots.stride
        if slots.flags[slot] & socket.MSG_TRUNC:
            counts["not_stun"] += 1
            return False
        local_at = slot * slots.info_bytes + slots.local_at
        local = Endpoint(_address(bytes(slots.infos[local_at : local_at + slots.address_bytes])), self.port)
        source = self._source(slot)
        other = self._other_for(local.address)
        request = bytes(slots.buffer[at : at + slots.sizes[slot]])
        try:
            reply = stun.answer_untrusted(request, source, local=local, other=other)
        except RemoteProtocolError:
            # Agents open their NAT by sending any datagram; strangers send what they like.
            counts["malformed" if request[4:8] == stun.COOKIE else "not_stun"] += 1
            return False
        if reply is None:
            counts["indications"] += 1
            return False
        link_local = bool(source.address.is_link_local)
        if reply.from_other_port or reply.from_other_address or reply.to_port:
            return self._send_apart(reply, slot, local, link_local=link_local)
        # No answer is longer than a slot: a refusal has two bytes for each four of its request. But the
        # memory would move with the kernel's pointers into it, so it is looked at all the same.
        if len(reply.data) > slots.stride:
            counts["malformed"] += 1
            return False
        slots.buffer[at : at + len(reply.data)] = reply.data
        slots.answer(slot, len(reply.data), by_same_interface=link_local)
        counts["answered"] += 1
        return True

    def _source(self, slot: int) -> Endpoint:
        name = self._slots.name(slot)
        port = int.from_bytes(name[2:4], "big")
        if not self._v6:
            return Endpoint(IPv4Address(name[4:8]), port)
        scope: int = struct.unpack("=I", name[24:28])[0]
        address = scoped(str(IPv6Address(name[8:24])), scope)
        return Endpoint(address.ipv4_mapped or address, port)

    def _send_apart(self, reply: stun.Reply, slot: int, local: Endpoint, *, link_local: bool) -> bool:
        """From the other port or address, or to another port, as RFC 5780's tests ask for: rare, so one call
        each."""
        others = self._others
        wanted = {
            (True, False): others.port,
            (False, True): others.address,
            (True, True): others.both,
        }.get((reply.from_other_port, reply.from_other_address))
        sock = wanted if wanted is not None else self.sock
        origin = local.address
        if reply.from_other_address and self._elsewhere is not None:
            origin = self._elsewhere.address
        name = self._slots.name(slot)
        port = reply.to_port or int.from_bytes(name[2:4], "big")
        try:
            if self._v6:
                scope = struct.unpack("=I", name[24:28])[0] if link_local else 0
                to: tuple[str, int] | tuple[str, int, int, int] = (
                    str(IPv6Address(name[8:24])),
                    port,
                    0,
                    scope,
                )
            else:
                to = (str(IPv4Address(name[4:8])), port)
            sock.sendmsg([reply.data], [own_source(origin)], 0, to)
        except OSError as error:
            self._server.counts["unsent"] += 1
            log.get().debug("relay.udp_failed", reason=error.strerror)
            return False
        self._server.counts["answered"] += 1
        return True


def _address(packed: bytes) -> IPv4Address | IPv6Address:
    if len(packed) == 4:
        return IPv4Address(packed)
    address = IPv6Address(packed)
    return address.ipv4_mapped or address
