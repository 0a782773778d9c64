"""Follows a WireGuard interface: reads it every second or so, and does what `reconcile.plan` says.

It writes endpoints and nothing else, and none that is right already. It undoes nothing when it ends: the
kernel goes on with what it has. An interface that goes away is waited for.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from ipaddress import IPv4Address
from typing import Protocol

import trio

from relayd.agent.direct_endpoints import DirectEndpoints
from relayd.agent.reconcile import Path, PeerPath, Surroundings, plan
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.wireguard import Interface, WireGuard
from relayd.keys import PrivateKey, PublicKey
from relayd.observe import log
from relayd.paths.patience import Patience
from relayd.paths.verdict import Verdict

ALWAYS = Verdict(False, None, "the mesh's relay mode is always")
"""Of every peer, where that is so."""

GAP_S = 0.05
"""Between two looks at least: a peer whose packets come from two places in turn has roamed at each look,
which is another verdict, and a reason to look again. With a thousand peers a look takes some 10 ms."""

REPEAT_S = 60.0
"""Between two log lines about one peer's endpoint that can't be set for one and the same reason."""


class Proxy(Protocol):
    """What the reconciler tells the proxy (`wg_proxy.WgProxy`)."""

    def set_peers(self, peers: Mapping[PublicKey, IPv4Address]) -> None:
        """All peers, each with its loopback address."""

    def set_wireguard_port(self, port: int) -> None:
        """The UDP port that WireGuard listens on."""


class Link(Protocol):
    """What it asks and tells the link (`relay_link.RelayLink`)."""

    @property
    def connected(self) -> bool:
        """Whether frames reach a relay."""

    def register_as(self, key: PrivateKey) -> None:
        """The interface has this key now."""


class Deciders(Protocol):
    """Who has verdicts on peers (`path_prober.PathProber`)."""

    def saw(self, interface: Interface, now: float) -> None:
        """The interface was read. `now`: monotonic seconds, trio's."""

    def verdicts(self, now: float) -> Mapping[PublicKey, Verdict]:
        """By peer. One that isn't in there is nobody's but WireGuard's."""

    def was_set(self, key: PublicKey, endpoint: Endpoint | None) -> None:
        """WireGuard has this direct endpoint for the peer now, or (None) the proxy's."""


class Reconciler:
    """One interface, its peers and their paths."""

    def __init__(
        self,
        interface: Interface,
        wireguard: WireGuard,
        *,
        reopen: Callable[[], Awaitable[WireGuard]],
        proxy: Proxy,
        link: Link,
        address_of: Callable[[PublicKey], IPv4Address],
        direct: DirectEndpoints,
        configured: Mapping[PublicKey, Endpoint],
        proxy_port: int,
        patience: Patience,
        every_s: float,
        deciders: Deciders | None = None,
        wall_clock: Callable[[], float] = time.time,
        on_read: Callable[[Interface], None] = lambda interface: None,
    ) -> None:
        """`interface` is what `wireguard` read last. `reopen` finds the interface again, under the same name,
        after it went away: it may be the kernel's then and not a process's. `wireguard` is closed by `close`.
        `direct` remembers the endpoints that the relay takes the place of; `configured` are those that the
        configuration gives. `on_read` is told of the interface at each read. `deciders` None: all peers are
        plain WireGuard's.
        """
        self._wireguard, self._reopen = wireguard, reopen
        self._proxy, self._link, self._address_of = proxy, link, address_of
        self._proxy_port, self.patience, self._every_s = proxy_port, patience, every_s
        self._direct, self._configured = direct, configured
        self._deciders, self._wall_clock, self._on_read = deciders, wall_clock, on_read
        self._nudged = trio.Event()
        self._loopbacks: dict[PublicKey, IPv4Address] = {}
        self._always = False
        self._log = log.get(interface=interface.name)
        self._refused = log.Throttle(
            self._log, every_s=REPEAT_S, by=("peer", "error"), clock=trio.current_time
        )
        self.interface = interface
        """As it was read last."""
        self.problem = ""
        """Why it can't be read now; empty: it can."""
        self.paths: dict[PublicKey, PeerPath] = {}
        self._follow(interface)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the peers' endpoints as planned, until cancelled. Ready when they are for the first time."""
        await self._apply(self.interface)
        task_status.started()
        while True:
            looked_at = trio.current_time()
            with trio.move_on_after(self._every_s):
                await self._nudged.wait()
            await trio.sleep_until(looked_at + GAP_S)
            self._nudged = trio.Event()
            await self.look()

    def look_every(self, seconds: float) -> None:
        """Look so often from now on."""
        self._every_s = seconds
        self.nudge()

    @property
    def engine(self) -> str:
        """Who runs WireGuard: "kernel" or "userspace"."""
        return self._wireguard.engine

    def nudge(self) -> None:
        """Look at once: a verdict changed."""
        self._nudged.set()

    def configure(self, endpoints: Mapping[PublicKey, Endpoint]) -> None:
        """These are the endpoints that the configuration gives, from now on."""
        self._configured = endpoints

    def be_patient(self, patience: Patience) -> None:
        """These times count from now on."""
        self.patience = patience

    def relay_always(self, always: bool) -> None:
        """Whether all peers are relayed from now on, whatever else there is."""
        self._always = always

    async def look(self) -> None:
        """Read the interface once and act on it. That it is away is said once, and again when it is back."""
        try:
            if self.problem:
                await self._open_again()
            interface = await self._wireguard.read()
        except HostError as error:
            if not self.problem:
                self._log.warning("interface.lost", reason=str(error))
            self.problem = str(error)
            return
        if self.problem:
            self.problem = ""
            self._log.info("interface.found")
        self._on_read(interface)
        self._follow(interface)
        await self._apply(interface)

    def close(self) -> None:
        """Let go of the interface, which stays as it is."""
        self._wireguard.close()

    async def _open_again(self) -> None:
        found = await self._reopen()
        self._wireguard.close()
        self._wireguard = found

    def _follow(self, interface: Interface) -> None:
        """Bring proxy and link in line with the interface, before any packet is sent their way."""
        self.interface = interface
        if interface.private_key is not None:
            self._link.register_as(interface.private_key)
        if interface.listen_port:  # 0: it is down, and will have one
            self._proxy.set_wireguard_port(interface.listen_port)
        loopbacks = {key: self._loopbacks.get(key) or self._address_of(key) for key in interface.peers}
        if loopbacks != self._loopbacks:
            self._proxy.set_peers(loopbacks)
        self._loopbacks = loopbacks

    async def _apply(self, interface: Interface) -> None:
        now = trio.current_time()
        verdicts: Mapping[PublicKey, Verdict] = {}
        if self._deciders is not None:
            self._deciders.saw(interface, now)
            verdicts = self._deciders.verdicts(now)
        if self._always:
            verdicts = dict.fromkeys(interface.peers, ALWAYS)
        around = Surroundings(
            loopbacks=self._loopbacks,
            proxy_port=self._proxy_port,
            relay_connected=self._link.connected,
            direct={**self._direct.endpoints, **self._configured},
            patience=self.patience,
            verdicts=verdicts,
            now=now,
            wall_now=self._wall_clock(),
        )
        before, self.paths = self.paths, plan(interface, self.paths, around)
        for key in before.keys() - self.paths.keys():
            self._log.info("peer.removed", peer=key)
        for decided in self.paths.values():
            if decided.path is Path.RELAY and (decided.set_endpoint or decided.given_up):
                self._direct.note(decided.peer, decided.given_up)
        await self._direct.save(interface.peers)
        refused = await self._wireguard.set_endpoints(
            {key: one.set_endpoint for key, one in self.paths.items() if one.set_endpoint is not None}
        )
        for key, decided in list(self.paths.items()):
            known = before.get(key)
            if key in refused:  # the next look tries again, or finds peer or interface gone
                self._refused.warning("peer.endpoint_refused", peer=key, error=str(refused[key]))
                if known is None:
                    del self.paths[key]
                else:
                    self.paths[key] = known
                continue
            if decided.set_endpoint is not None and self._deciders is not None:
                direct = decided.set_endpoint if decided.path is Path.DIRECT else None
                self._deciders.was_set(key, direct)
            if known is None or known.path is not decided.path:
                self._say(key, decided)

    def _say(self, key: PublicKey, decided: PeerPath) -> None:
        endpoint = decided.set_endpoint or decided.peer.endpoint
        event = "peer.relayed" if decided.path is Path.RELAY else "peer.direct"
        self._log.info(event, peer=key, reason=decided.reason, endpoint=endpoint)
