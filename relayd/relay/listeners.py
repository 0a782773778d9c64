"""The sockets that a relay is reached by: made as `listen` says, or passed by the service manager.

Passed ones (systemd's `relayd.socket`) stand in the place of all that `listen` names. They outlive the
process: who dials during a restart waits in the kernel's backlog instead of being refused, and the relay
needs no right to open them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.manager.passed import Passed
from relayd.marks import set_mark
from relayd.observe import log
from relayd.relay.stun_server import Pair

BACKLOG = 4096
"""Connections that may wait for accept(), of which the kernel gives as many as net.core.somaxconn says: a
relay that comes back meets all its agents at once, and one that finds no room tries again a whole second
later."""


class Listeners(NamedTuple):
    """Non-blocking sockets: listening ones, and bound UDP ones."""

    tcp: list[socket.socket]
    udp: list[socket.socket]


def open_listeners(config: RelayConfig, passed: Sequence[Passed], stack: contextlib.ExitStack) -> Listeners:
    """All of them or none; `stack` closes them. Raises HostError for what can't be had or used."""
    if passed:
        if config.listen != RelayConfig().listen:
            log.get().warning(
                "relay.listen_ignored", listen=list(config.listen), reason="sockets were passed"
            )
        return _adopt(passed, stack)
    return _bind_all(config, stack)


def pair_udp(
    udp: Sequence[socket.socket], second_port: int | None, stack: contextlib.ExitStack
) -> list[Pair]:
    """Give each UDP socket one on a second port of the same address, for RFC 5780, and where there are two
    addresses those of the other one; `stack` closes those made.

    `second_port` 0: the next one; None: none. One that was passed is taken. That it can't be had is told, and
    no reason not to run: plain STUN goes on without.
    """
    by_address: dict[str, list[socket.socket]] = {}
    for sock in udp:
        by_address.setdefault(sock.getsockname()[0], []).append(sock)
    pairs = []
    for first, *more in by_address.values():
        second = more[0] if more else _second(first, second_port, stack)
        pairs += [Pair(first, second), *(Pair(sock) for sock in more[1:])]
    return _with_second_addresses(pairs)


def _with_second_addresses(pairs: Sequence[Pair]) -> list[Pair]:
    """Tell pairs of two addresses with the same two ports of each other: the first two of each IP version.

    Not where a socket is bound to all addresses: which of them others reach, nobody has said."""
    found = list(pairs)
    by_ports: dict[tuple[int, ...], list[int]] = {}
    for at, pair in enumerate(pairs):
        one = Endpoint.of_socket(pair.first.getsockname())
        if pair.second is not None and not one.address.is_unspecified:
            ports = (one.address.version, one.port, pair.second.getsockname()[1])
            by_ports.setdefault(ports, []).append(at)
    for first, *more in by_ports.values():
        for here, there in ((first, more[0]), (more[0], first)) if more else ():
            other = pairs[there]
            if other.second is not None:
                found[here] = replace(found[here], elsewhere=(other.first, other.second))
    return found


def _second(first: socket.socket, wanted: int | None, stack: contextlib.ExitStack) -> socket.socket | None:
    bound = Endpoint.of_socket(first.getsockname())
    port = wanted or bound.port + 1
    if wanted is None or port > 65535 or port == bound.port:
        return None
    try:
        return stack.enter_context(_socket(Endpoint(bound.address, port), socket.SOCK_DGRAM))
    except OSError as error:
        log.get().warning(
            "relay.stun_port_unavailable", port=port, error=error.strerror, without="NAT behaviour discovery"
        )
        return None


def name_of(sock: socket.socket) -> str:
    """Where it is bound, as `listen` would have it."""
    return str(Endpoint.of_socket(sock.getsockname()))


def _adopt(passed: Sequence[Passed], stack: contextlib.ExitStack) -> Listeners:
    found = Listeners([], [])
    for one in passed:
        try:
            sock = stack.enter_context(socket.socket(fileno=one.fd))
        except OSError as error:
            with contextlib.suppress(OSError):  # not even open
                os.close(one.fd)
            raise HostError(f"passed descriptor {one.name!r} is no socket: {error.strerror}") from error
        sock.setblocking(False)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            raise HostError(f"passed socket {one.name!r} is neither IPv4 nor IPv6")
        if sock.type == socket.SOCK_STREAM and listens:
            found.tcp.append(sock)
        elif sock.type == socket.SOCK_DGRAM:
            found.udp.append(sock)
        else:
            raise HostError(
                f"passed socket {one.name!r} neither listens for TCP nor is UDP: in the socket unit, "
                "ListenStream= and ListenDatagram= with Accept=no"
            )
    if not found.tcp:
        raise HostError(
            "sockets were passed, but none that listens for TCP: ListenStream= in the socket unit"
        )
    if not found.udp:
        log.get().warning(
            "relay.udp_missing", reason="no UDP socket was passed", without="NAT probes and STUN"
        )
    return found


def _bind_all(config: RelayConfig, stack: contextlib.ExitStack) -> Listeners:
    """A TCP listener and a UDP socket for each address."""
    found = Listeners([], [])
    by_default = config.listen == RelayConfig().listen
    for text in config.listen:
        endpoint = Endpoint.parse(text)
        if by_default and endpoint.address.version == 6 and not _have_ipv6():
            log.get().warning("relay.ipv6_unavailable", listen=text)
            continue
        with _explained(text):
            listener = stack.enter_context(_socket(endpoint, socket.SOCK_STREAM))
            listener.listen(BACKLOG)
            # Port 0 means any free one; UDP then takes the same.
            bound = Endpoint(endpoint.address, listener.getsockname()[1])
            found.udp.append(stack.enter_context(_socket(bound, socket.SOCK_DGRAM)))
            found.tcp.append(listener)
    return found


def _socket(endpoint: Endpoint, kind: socket.SocketKind) -> socket.socket:
    """A bound, non-blocking socket of `kind`. IPv6 ones take IPv6 alone: 0.0.0.0 has its own."""
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            # Connections of a relay that has just ended linger in TIME_WAIT; they are no reason to wait.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            # On a host that is itself in the mesh, answers must not go into the tunnel that they carry.
            # Accepted sockets inherit the mark.
            set_mark(sock)
        except PermissionError:
            log.get().debug("relay.unmarked", reason="no CAP_NET_ADMIN (a relay on a mesh node needs it)")
        except OSError as error:
            if error.errno != errno.ENOPROTOOPT:
                raise
            # A kernel in user space (gVisor, qemu-user) may have no marks; then there is no mesh beside it.
            log.get().debug("relay.unmarked", reason="this kernel has no marks on sockets")
        sock.bind((str(endpoint.address), endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _have_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _explained(listen: str) -> Iterator[None]:
    """Turn a failed bind into an error that says what to do."""
    try:
        yield
    except OSError as error:
        what = {
            errno.EADDRINUSE: "another process listens there: stop it, or choose another --listen",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or choose another --listen",
            errno.EADDRNOTAVAIL: "this host has no such address: see `ip address`",
        }.get(error.errno or 0, "see --listen")
        raise HostError(f"cannot listen on {listen}: {error.strerror} ({what})") from error
