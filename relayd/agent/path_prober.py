"""Finds the peers' direct paths: the sockets and the clock around `paths.pathfinder`.

    link (Data that begins with the magic) | shared port (datagrams) -> inbox -> a peer's Pathfinder
    Pathfinder -> Ping, Pong, Candidates ... -> link | shared port
               -> Verdict -> reconciler (sets the endpoint) and proxy (hands late packets over)

Peers come and go with the interface: each read says who there is.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from math import inf
from typing import Protocol

import trio

from relayd import marks
from relayd.agent.carriers import Carriers
from relayd.endpoints import Endpoint
from relayd.errors import RemoteProtocolError
from relayd.kernel.wireguard import Interface, Peer
from relayd.keys import PublicKey
from relayd.netio.raw_udp import Address, Datagram
from relayd.observe import log
from relayd.paths.acquaintance import Local
from relayd.paths.announcement import Send
from relayd.paths.birthday import Turn
from relayd.paths.counters import KernelView
from relayd.paths.pathfinder import Pathfinder
from relayd.paths.patience import USUAL, Patience
from relayd.paths.verdict import Verdict
from relayd.wire.frames import encode_data
from relayd.wire.sealed_inbox import SealedInbox
from relayd.wire.sealed_messages import SESSION_BYTES, TXID_BYTES, Ping

REPEAT_S = 60.0
"""Between two log lines about Pings to one peer that can't be sent for one and the same reason."""

SOON_S = 0.5
"""Between reads of the interface while a direct path is in doubt: what the kernel received tells."""

LINK_EVERY_S = 0.25
"""Between looks at whether the link is connected: it tells nobody."""

AT_ONCE = 50
"""Peers that act before others have their turn, the data plane above all: some 10 ms. A thousand have
something to say when an address changes, or when the relay is back."""

MIN_WAIT_S = 0.005
"""Between two acts for one peer, if nothing happens: a clock that has just struck must not spin."""


class Port(Protocol):
    """WireGuard's port (`shared_port.SharedPort`)."""

    @property
    def estimated(self) -> bool:
        """Whether it is another one."""

    def send(self, payload: bytes, to: Endpoint, *, source: Address | None = None) -> None:
        """Send one datagram, without waiting. Raises OSError."""

    def set_port(self, port: int) -> None:
        """WireGuard listens on another one now. Raises OSError."""


class Link(Protocol):
    """The relay (`relay_link.RelayLink`)."""

    @property
    def connected(self) -> bool:
        """Whether frames reach a relay."""

    def send(self, runs: Sequence[bytes | memoryview], total: int) -> None:
        """Frames, without waiting."""


class Proxied(Protocol):
    """One peer as the proxy counts it."""

    @property
    def address(self) -> IPv4Address:
        """Its own on `lo`."""

    @property
    def rx_bytes(self) -> int:
        """Payload bytes that came through the relay."""


class Proxy(Protocol):
    """The proxy (`wg_proxy.WgProxy`)."""

    @property
    def peers(self) -> Mapping[PublicKey, Proxied]:
        """By key."""

    def set_direct(self, key: PublicKey, endpoint: Endpoint | None) -> None:
        """The peer is direct now, or (None) on the relay."""


class PathProber:
    """All peers' pathfinders. All calls belong to the agent's thread."""

    def __init__(
        self,
        interface: Interface,
        *,
        link: Link,
        proxy: Proxy,
        nudge: Callable[[], None],
        known: Callable[[PublicKey], Iterable[Endpoint]] = lambda _key: (),
        draw: Callable[[int], bytes] = os.urandom,
        wall_clock: Callable[[], float],
        patience: Patience = USUAL,
    ) -> None:
        """`nudge` has the reconciler look at once. `known`: endpoints of a peer that were written down."""
        self._link, self._proxy, self._nudge = link, proxy, nudge
        self._known, self._draw, self._wall_clock = known, draw, wall_clock
        self._patience = patience
        self._port: Port | None = None
        self._carriers: Carriers | None = None
        self._turn = Turn()
        self._local = Local(shares_port=False)
        self._session = draw(SESSION_BYTES)
        self._private_key = interface.private_key
        self._inbox = self._new_inbox()
        self._listen_port = interface.listen_port
        self._finders: dict[PublicKey, Pathfinder] = {}
        self._due: dict[PublicKey, float] = {}
        self._connected = False
        self._searches = True
        self._wake = trio.Event()
        self._wakes_at = -inf
        self._nudged_at = -inf
        self._log = log.get(interface=interface.name)
        self._unsent = log.Throttle(
            self._log, every_s=REPEAT_S, by=("peer", "error"), clock=trio.current_time
        )
        self.counts: Counter[str] = Counter()
        """Messages sent and not sent, by reason."""

    def use(self, port: Port, carriers: Carriers | None = None) -> None:
        """From which WireGuard's own port is shared, and what opens more, where that is wanted."""
        self._port, self._carriers = port, carriers
        self.localize(replace(self._local, shares_port=not port.estimated), moved=False)

    @property
    def finders(self) -> Mapping[PublicKey, Pathfinder]:
        """By peer."""
        return self._finders

    def is_searching(self) -> bool:
        """Whether there is a peer that could be direct and isn't."""
        return any(finder.able and not finder.direct for finder in self._finders.values())

    def drops(self) -> dict[str, int]:
        """Sealed messages that nobody got to see, by reason."""
        return {f"sealed_{reason}": count for reason, count in self._inbox.drops.items()}

    # What happens -------------------------------------------------------------------------------------------

    def localize(self, local: Local, *, moved: bool) -> None:
        """What is known of this end; `moved`: its addresses changed."""
        if self._port is not None:
            local = replace(local, shares_port=self._searches and not self._port.estimated)
        if not moved and local.is_like(self._local):
            return
        self._local = local
        for finder in self._finders.values():
            finder.localize(local, trio.current_time(), moved=moved)
        self._all_act()

    def search(self, on: bool) -> None:
        """Whether direct paths are wanted. If not, peers are told what they'd be told by an agent that can't:
        they don't look for any either."""
        self._searches = on
        self.localize(self._local, moved=False)

    def be_patient(self, patience: Patience) -> None:
        """These times count from now on."""
        if patience == self._patience:
            return  # each mesh says it again, and a thousand peers are a tenth of a second
        self._patience = patience
        for finder in self._finders.values():
            finder.be_patient(patience)
        self._all_act()

    def on_relayed(self, _key: bytes, payload: bytes, _now: float) -> None:
        """A sealed message came through the relay."""
        self._open(payload, None)

    def on_datagram(self, datagram: Datagram) -> None:
        """One came to WireGuard's port."""
        self._open(datagram.payload, datagram.source)

    def _open(self, payload: bytes, source: Endpoint | None) -> None:
        now = trio.current_time()
        opened = self._inbox.open_untrusted(payload, now, relayed=source is None)
        finder = self._finders.get(opened.peer) if opened is not None else None
        if opened is None or finder is None:
            return
        for send in finder.heard(opened.message, source, now):
            self._say(finder, send)
        self._act(finder, now)

    # The reconciler's side ----------------------------------------------------------------------------------

    def saw(self, interface: Interface, now: float) -> None:
        """The interface was read."""
        if interface.private_key is not None and interface.private_key != self._private_key:
            self._private_key = interface.private_key
            self._forget(self._finders)  # what is known of peers, they told to another
            self._inbox = self._new_inbox()
        if interface.listen_port and interface.listen_port != self._listen_port:
            self._listen_port = interface.listen_port
            self._move_port(interface.listen_port)
        if interface.peers.keys() != self._finders.keys():
            self._set_peers(interface, now)
        proxied = self._proxy.peers
        for key, peer in interface.peers.items():
            if self._finders[key].saw(self._view(peer, proxied.get(key)), now):
                self._act(self._finders[key], now)

    def verdicts(self, now: float) -> Mapping[PublicKey, Verdict]:
        """By peer, of those that there is one of."""
        found = ((key, self._verdict(finder, now)) for key, finder in self._finders.items())
        return {key: verdict for key, verdict in found if verdict is not None}

    def _verdict(self, finder: Pathfinder, now: float) -> Verdict | None:
        verdict, endpoint = finder.verdict(now), finder.selector.endpoint
        if verdict is None and endpoint is not None and self._carries(endpoint):
            # A way of the peer's that only we know of: nobody else may judge the loopback port by its looks.
            return Verdict(True, endpoint, finder.selector.reason)
        return verdict

    def _carries(self, endpoint: Endpoint) -> bool:
        return self._carriers is not None and endpoint in self._carriers.endpoints

    def was_set(self, key: PublicKey, endpoint: Endpoint | None) -> None:
        """WireGuard has this direct endpoint for the peer now, or (None) the proxy's."""
        finder = self._finders.get(key)
        if finder is not None:
            finder.was_set(endpoint)

    def _set_peers(self, interface: Interface, now: float) -> None:
        self._inbox.set_peers(interface.peers)
        self._forget(self._finders.keys() - interface.peers.keys())
        for key in interface.peers.keys() - self._finders.keys():
            finder = self._finders[key] = Pathfinder(
                interface.public_key,
                key,
                session=self._session,
                local=self._local,
                draw=self._draw,
                now=now,
                known=self._known(key),
                patience=self._patience,
                turn=self._turn,
            )
            finder.relay_is(self._connected, now)

    def _forget(self, peers: Iterable[PublicKey]) -> None:
        for key in list(peers):
            del self._finders[key]
            self._due.pop(key, None)  # there may be none: it hasn't acted yet
            self._proxy.set_direct(key, None)
        if self._carriers is not None:
            self._carriers.keep(self._finders.keys())

    def _view(self, peer: Peer, proxied: Proxied | None) -> KernelView:
        endpoint = peer.endpoint
        if endpoint is not None and endpoint.address in marks.PROXY_NETWORK and not self._carries(endpoint):
            endpoint = None
        age_s = inf if peer.handshake_at is None else self._wall_clock() - peer.handshake_at
        return KernelView(
            endpoint=endpoint,
            session=age_s < self._patience.fresh_handshake_s,
            rx_bytes=peer.rx_bytes,
            tx_bytes=peer.tx_bytes,
            relayed_bytes=proxied.rx_bytes if proxied is not None else 0,
        )

    def _move_port(self, port: int) -> None:
        if self._port is None:
            return
        try:
            self._port.set_port(port)
        except OSError as error:
            self._log.warning("paths.port_unavailable", port=port, error=error.strerror)

    def _new_inbox(self) -> SealedInbox:
        assert self._private_key is not None, "who has no key has no agent"
        return SealedInbox(self._private_key, draw=self._draw)

    # The clock ----------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Act when it is time, until cancelled."""
        task_status.started()
        while True:
            self._wake, now = trio.Event(), trio.current_time()
            if self._link.connected is not self._connected:
                self._connected = self._link.connected
                for finder in self._finders.values():
                    finder.relay_is(self._connected, now)
                self._all_act()
            for number, key in enumerate([key for key, at in self._due.items() if at <= now], 1):
                if (due := self._finders.get(key)) is not None:
                    self._act(due, trio.current_time())
                if number % AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()
            self._wakes_at = min(min(self._due.values(), default=inf), trio.current_time() + LINK_EVERY_S)
            with trio.move_on_at(self._wakes_at):
                await self._wake.wait()

    def _all_act(self) -> None:
        """Soon, and not all at once."""
        self._due.update(dict.fromkeys(self._finders, trio.current_time()))
        self._wake.set()

    def _act(self, finder: Pathfinder, now: float) -> None:
        before = finder.verdict(now), finder.selector.changes
        for send in finder.act(now):
            self._say(finder, send)
        self._follow_attempt(finder, now)
        after = finder.verdict(now), finder.selector.changes
        if before != after:
            self._proxy.set_direct(finder.peer, finder.selector.endpoint if finder.direct else None)
            self._nudge()
        elif finder.doubtful(now) and now - self._nudged_at >= SOON_S:
            self._nudged_at = now
            self._nudge()
        at = self._due[finder.peer] = max(finder.next_at(now), now + MIN_WAIT_S)
        if at < self._wakes_at:
            self._wake.set()

    def _follow_attempt(self, finder: Pathfinder, now: float) -> None:
        if self._carriers is None:
            return
        opened = self._carriers.follow(
            finder,
            loopback=lambda: self._proxy.peers[finder.peer].address,
            greeting=lambda: self._inbox.seal(finder.peer, Ping(self._draw(TXID_BYTES))),
        )
        for send in finder.opened(opened, now) if opened is not None else ():
            self._say(finder, send)

    def _say(self, finder: Pathfinder, send: Send) -> None:
        try:
            datagram = self._inbox.seal(finder.peer, send.message)
        except RemoteProtocolError as error:  # a key that nobody can hold: its peer never answers either
            self._unsent.warning("paths.unsealable", peer=finder.peer, error=str(error))
            return
        if send.to is None:
            frame = encode_data(finder.peer, datagram)
            self._link.send([frame], len(frame))
            self.counts["by relay"] += 1
            return
        if self._port is None:
            return
        try:
            if self._carriers is not None and self._carries(send.to):
                self._carriers.send(datagram, send.to)
            elif send.to.address in marks.PROXY_NETWORK:
                self.counts["unsent: its socket is closed"] += 1
                return
            else:
                self._port.send(datagram, send.to)
            self.counts["directly"] += 1
        except OSError as error:  # no route, no such IP version, a firewall: that pair fails, others don't
            self.counts[f"unsent: {error.strerror}"] += 1
            self._log.debug("paths.unsent", peer=finder.peer, to=str(send.to), error=error.strerror)
