"""The birthday method's sockets at its hard end (`paths.birthday`), and what goes through one that was met.

    WireGuard -> a port of the peer's loopback address -> that socket -> the peer
    the peer -> that socket -> sealed messages: path_prober; all else: WireGuard, from the same loopback port

For WireGuard and for the pathfinder the loopback port is the peer's endpoint. It stands beside the proxy's
port at the same address, so that an agent which finds it in WireGuard after a restart knows it for one of its
own that leads nowhere any more. A datagram costs as much CPU as by the relay; what is saved is the way there.
"""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address

from relayd.agent.shared_port import mark_if_allowed
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.netio.datagrams import LOOPBACK_DEVICE
from relayd.netio.poller import Poller
from relayd.netio.raw_udp import Datagram, Mark, open_marked
from relayd.observe import log
from relayd.paths.birthday import SOCKETS, Attempt
from relayd.paths.pathfinder import Pathfinder
from relayd.wire.port_messages import SEALED_MAGIC

READS_AT_ONCE = 64
"""Datagrams of one socket, before others get their turn."""

MOST_BYTES = 65535

BUFFER_BYTES = 1 << 20
"""Of the socket that was met and of its loopback port: some 10 ms at 1 Gbit/s."""


@dataclass(slots=True)
class _Attempt:
    """A peer's sockets of which none was met yet."""

    attempt: Attempt
    sockets: list[socket.socket]


class _Carrier:
    """The socket that was met, and the loopback port that stands for it."""

    def __init__(self, outer: socket.socket, inner: socket.socket, key: PublicKey) -> None:
        self.outer, self.inner, self.key = outer, inner, key
        self.endpoint = Endpoint.of_socket(inner.getsockname())


class Carriers:
    """All peers'. For the poller's thread; nothing here waits."""

    def __init__(
        self,
        poller: Poller,
        *,
        wireguard_port: Callable[[], int],
        on_sealed: Callable[[Datagram], None],
        mark: Mark = mark_if_allowed,
    ) -> None:
        """`on_sealed` gets the peers' messages, as coming from the loopback port."""
        self._poller, self._mark = poller, mark
        self._wireguard_port, self._on_sealed = wireguard_port, on_sealed
        self._attempts: dict[PublicKey, _Attempt] = {}
        self._carriers: dict[Endpoint, _Carrier] = {}
        self.counts: Counter[str] = Counter()
        """Attempts, sockets that were met, datagrams carried either way, and those lost, by reason."""

    @property
    def endpoints(self) -> Collection[Endpoint]:
        """The loopback ports that lead to a peer."""
        return self._carriers.keys()

    @property
    def open(self) -> int:
        """Sockets that are open."""
        return sum(len(one.sockets) for one in self._attempts.values()) + len(self._carriers)

    def follow(
        self, finder: Pathfinder, *, loopback: Callable[[], IPv4Address], greeting: Callable[[], bytes]
    ) -> int | None:
        """Open what the peer's attempt wants and close what is of no use to it any more. How many sockets
        have sent `greeting`, if the attempt is new; None: it isn't.

        `loopback` is the peer's address on `lo`.
        """
        key, wanted = finder.peer, finder.birthday.attempt
        present = finder.selector.endpoint if finder.direct else None
        for endpoint, carrier in list(self._carriers.items()):
            # A second one that was met is of no use once the first is the path.
            useless = endpoint not in finder.checklist.pairs or (present is not None and endpoint != present)
            if carrier.key == key and useless:
                self._drop(endpoint)
        known = self._attempts.get(key)
        if known is not None and known.attempt is not wanted:
            self._close_attempt(key)
            known = None
        if wanted is None or known is not None:
            return None
        return self._open(key, wanted, loopback(), greeting())

    def keep(self, peers: Collection[PublicKey]) -> None:
        """These are the peers: what others had is closed."""
        for key in [one for one in self._attempts if one not in peers]:
            self._close_attempt(key)
        for endpoint, carrier in list(self._carriers.items()):
            if carrier.key not in peers:
                self._drop(endpoint)

    def send(self, payload: bytes, to: Endpoint) -> None:
        """A message to the peer behind one of `endpoints`. Raises OSError."""
        self._carriers[to].outer.send(payload)

    def close(self) -> None:
        """Close everything. Twice is no error."""
        self.keep(())

    # Attempts -----------------------------------------------------------------------------------------------

    def _open(self, key: PublicKey, attempt: Attempt, loopback: IPv4Address, greeting: bytes) -> int:
        sockets: list[socket.socket] = []
        self._attempts[key] = _Attempt(attempt, sockets)
        self.counts["attempts"] += 1
        sent, problem = 0, ""
        try:
            for _ in range(SOCKETS):
                sock = open_marked(socket.AF_INET, socket.SOCK_DGRAM, self._mark)
                sockets.append(sock)
                sock.connect((str(attempt.to.address), attempt.to.port))  # others are not heard
                self._poller.add(sock.fileno(), partial(self._on_met, key, loopback, sock))
                sock.send(greeting)
                sent += 1
        except OSError as error:  # too many descriptors, no route, a full buffer: what there is has to do
            problem = error.strerror or str(error)
        if not sent:
            self._close_attempt(key)
        log.get().info(
            "birthday.begun" if sent else "birthday.impossible",
            peer=key, to=str(attempt.to), sockets=sent, problem=problem,
        )  # fmt: skip
        return sent

    def _close_attempt(self, key: PublicKey) -> None:
        for sock in self._attempts.pop(key).sockets:
            self._remove(sock)

    def _remove(self, sock: socket.socket) -> None:
        if sock.fileno() in self._poller:
            self._poller.remove(sock.fileno())
        sock.close()

    def _on_met(self, key: PublicKey, loopback: IPv4Address, sock: socket.socket, _mask: int) -> None:
        """Something came in where nobody could know that there is a way: the peer's Ping, if it is sealed."""
        try:
            payload = sock.recv(MOST_BYTES)
        except BlockingIOError:  # another socket had this descriptor when the batch began
            return
        except OSError as error:  # ICMP errors for the greeting
            self.counts[f"receive: {error.strerror}"] += 1
            return
        attempt = self._attempts.get(key)
        if attempt is None or sock not in attempt.sockets or not payload.startswith(SEALED_MAGIC):
            return
        try:
            carrier = _Carrier(sock, self._inner(loopback), key)
        except OSError as error:
            self.counts[f"loopback: {error.strerror}"] += 1
            return
        attempt.sockets.remove(sock)
        self._poller.remove(sock.fileno())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
        self._carriers[carrier.endpoint] = carrier
        self._poller.add(sock.fileno(), partial(self._on_outer, carrier))
        self._poller.add(carrier.inner.fileno(), partial(self._on_inner, carrier))
        self.counts["met"] += 1
        log.get().info("birthday.met", peer=key, by=str(carrier.endpoint))
        self._heard(carrier, payload)

    def _inner(self, loopback: IPv4Address) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, LOOPBACK_DEVICE)
            self._mark(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            sock.bind((str(loopback), 0))
        except BaseException:
            sock.close()
            raise
        return sock

    # What is carried ----------------------------------------------------------------------------------------

    def _on_outer(self, carrier: _Carrier, _mask: int) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                payload = carrier.outer.recv(MOST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.counts[f"receive: {error.strerror}"] += 1
                return
            self._heard(carrier, payload)
            if carrier.outer.fileno() < 0:  # what was heard had it closed
                return

    def _heard(self, carrier: _Carrier, payload: bytes) -> None:
        if payload.startswith(SEALED_MAGIC):
            self._on_sealed(
                Datagram(payload=payload, source=carrier.endpoint, local=IPv4Address("127.0.0.1"))
            )
            return
        try:
            carrier.inner.sendto(payload, ("127.0.0.1", self._wireguard_port()))
            self.counts["to WireGuard"] += 1
        except OSError as error:
            self.counts[f"to WireGuard: {error.strerror}"] += 1

    def _on_inner(self, carrier: _Carrier, _mask: int) -> None:
        for _ in range(READS_AT_ONCE):
            try:
                payload, source = carrier.inner.recvfrom(MOST_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                self.counts[f"receive: {error.strerror}"] += 1
                return
            if source[1] != self._wireguard_port():
                self.counts["stranger"] += 1
                continue
            try:
                carrier.outer.send(payload)
                self.counts["to peers"] += 1
            except OSError as error:
                self.counts[f"to peers: {error.strerror}"] += 1

    def _drop(self, endpoint: Endpoint) -> None:
        carrier = self._carriers.pop(endpoint)
        self._remove(carrier.outer)
        self._remove(carrier.inner)
