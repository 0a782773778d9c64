"""WireGuard's own UDP port, shared: STUN and sealed messages leave from it and come in on it.

WireGuard holds the port, in the kernel or in a process; raw sockets use it all the same (`netio.raw_udp`).
Where they can't be had (no CAP_NET_RAW), sockets on a port of their own take their place: what is learnt
through those is `estimated`, since a NAT maps another port differently, and must never replace what is known.
"""

from __future__ import annotations

import errno
import socket
from collections import Counter
from collections.abc import Callable
from functools import partial

import trio

from relayd import marks
from relayd.endpoints import Endpoint
from relayd.netio import bpf
from relayd.netio.poller import Poller
from relayd.netio.raw_udp import Address, Datagram, Mark, OwnUdp, RawUdp4, RawUdp6, UdpLeg
from relayd.observe import log
from relayd.wire.port_messages import SEALED_MAGIC, STUN_COOKIE, PortMessage, kind_of_untrusted

READS_AT_ONCE = 64
"""Datagrams read of one family before others get their turn: a flood of them must not stop the agent."""

PATTERNS = ((bpf.Word(4, STUN_COOKIE),), bpf.words_of(SEALED_MAGIC))
"""What the filter lets through. Both kinds are longer than the words looked at, so order doesn't matter."""

_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
"""A kernel without IPv6, or with it switched off."""

Handler = Callable[[Datagram], None]


def mark_if_allowed(sock: socket.socket) -> None:
    """Set the mark; without the capability an unmarked socket has to do."""
    try:
        marks.set_mark(sock)
    except PermissionError:
        log.get().debug("shared_port.unmarked", reason="no CAP_NET_ADMIN")


class SharedPort:
    """Send from WireGuard's port, and hear what comes to it for relayd. For one trio thread."""

    def __init__(
        self,
        port: int,
        *,
        on_stun: Handler,
        on_sealed: Handler,
        raw: bool = True,
        lacks: str = "",
        mark: Mark = mark_if_allowed,
        tunnel: str = "",
    ) -> None:
        """`port` is WireGuard's. The handlers must not block; what they raise is a bug, which ends the agent.
        What comes in by the interface `tunnel`, WireGuard's own, isn't heard: it would prove a path of the
        tunnel's packets that leads through the tunnel.

        Without `raw` (`lacks` says why), or where the host doesn't allow it, sockets of other ports are used,
        and `estimated` is true. Raises OSError when not even those can be had.
        """
        self.wireguard_port, self._tunnel = port, tunnel
        self._handlers = {PortMessage.STUN: on_stun, PortMessage.SEALED: on_sealed}
        self._poller: Poller | None = None
        self.counts: Counter[str] = Counter()
        """Datagrams received, those not for us, and errors, by reason."""
        self.after_change: list[Callable[[], None]] = []
        """Called when WireGuard has another port: what was found out about the old one says nothing of it."""
        self.lacks = "" if raw else lacks or "it wasn't asked for"
        """Why the port couldn't be shared, in words; empty when it is."""
        self._legs: dict[int, UdpLeg] = {}
        if raw:
            try:
                self._legs = _legs(
                    lambda: RawUdp4(port, PATTERNS, mark), lambda: RawUdp6(port, PATTERNS, mark)
                )
            except PermissionError:
                self.lacks = "raw sockets are not allowed: CAP_NET_RAW is missing"
                log.get().warning(
                    "shared_port.unavailable",
                    reason=self.lacks,
                    effect="addresses are found out from another port, as an estimate; no direct paths by it",
                )
        if self.lacks:
            self._legs = _legs(lambda: OwnUdp(4, PATTERNS, mark), lambda: OwnUdp(6, PATTERNS, mark))

    @property
    def estimated(self) -> bool:
        """Whether datagrams leave from another port than WireGuard's."""
        return bool(self.lacks)

    @property
    def versions(self) -> tuple[int, ...]:
        """IP versions that can be used: (4,) or (4, 6)."""
        return tuple(self._legs)

    def port_of(self, version: int) -> int:
        """What datagrams of this IP version leave from."""
        return self._legs[version].port

    def set_port(self, port: int) -> None:
        """WireGuard listens on another port now. Raises OSError."""
        if port == self.wireguard_port:
            return
        self.wireguard_port = port
        for leg in self._legs.values():
            leg.set_port(port)
        for hook in self.after_change:
            hook()

    def send(self, payload: bytes, to: Endpoint, *, source: Address | None = None) -> None:
        """Send one datagram, without waiting, from `source` (an own address) or the one that routing chooses.

        Raises OSError: no route, or `source` is no address of this host (ENETUNREACH, EHOSTUNREACH, EINVAL),
        a packet filter (EPERM), a full buffer (EAGAIN), no such IP version here (EAFNOSUPPORT).
        """
        leg = self._legs.get(to.address.version)
        if leg is None or (source is not None and source.version != to.address.version):
            raise OSError(errno.EAFNOSUPPORT, f"no IPv{to.address.version} to send with")
        leg.send(payload, to, source)

    def read(self, _mask: int = 0) -> None:
        """Hand what has come to the handlers: READS_AT_ONCE a family, the rest with the next call."""
        for leg in self._legs.values():
            self._read_leg(leg)

    def _read_leg(self, leg: UdpLeg) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                datagram = leg.receive()
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error for something sent, or the interface went
                self.counts["receive_errors"] += 1
                log.get().debug("shared_port.receive_failed", reason=error.strerror)
                return
            kind = kind_of_untrusted(datagram.payload) if datagram is not None else None
            if datagram is None or kind is None:
                self.counts["malformed"] += 1
                continue
            if datagram.interface and datagram.interface == _index_of(self._tunnel):
                self.counts["through_the_tunnel"] += 1
                continue
            self.counts[kind.name.lower()] += 1
            self._handlers[kind](datagram)

    def join(self, poller: Poller) -> None:
        """Read within the poller's task from now on, as the data plane does; instead of `run`."""
        for leg in self._legs.values():
            poller.add(leg.fileno(), partial(self._on_event, leg))
        self._poller = poller

    def _on_event(self, leg: UdpLeg, _mask: int) -> None:
        self._read_leg(leg)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled, where there is no poller."""
        async with trio.open_nursery() as nursery:
            for leg in self._legs.values():
                nursery.start_soon(self._wait, leg)
            task_status.started()

    async def _wait(self, leg: UdpLeg) -> None:
        while True:
            await trio.lowlevel.wait_readable(leg.fileno())
            self._read_leg(leg)

    def close(self) -> None:
        """Close the sockets. Twice is no error."""
        for leg in self._legs.values():
            if self._poller is not None:
                self._poller.remove(leg.fileno())
            leg.close()
        self._legs.clear()


def _index_of(interface: str) -> int:
    """0: there is no such interface. Asked each time: it may be made anew."""
    try:
        return socket.if_nametoindex(interface) if interface else 0
    except OSError:
        return 0


def _legs(four: Callable[[], UdpLeg], six: Callable[[], UdpLeg]) -> dict[int, UdpLeg]:
    """Both families' legs; IPv4's alone where there is no IPv6."""
    legs = {4: four()}
    try:
        legs[6] = six()
    except OSError as error:
        if error.errno not in _NO_IPV6:
            legs[4].close()
            raise
    return legs
