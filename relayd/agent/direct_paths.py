"""The part of an agent that looks for direct paths, put together: WireGuard's port shared, own addresses,
prober.

shared_port -> path_prober -> shared_port | link          own_addresses -> path_prober
path_prober -> reconciler (verdicts), proxy (late packets, by the reinjector)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack

from relayd.agent.discovery.stun_client import StunClient
from relayd.agent.discovery.stun_servers import StunServer
from relayd.agent.own_addresses import OwnAddresses
from relayd.agent.path_prober import Link, PathProber, Proxy
from relayd.agent.reinjector import Reinjector
from relayd.agent.shared_port import SharedPort
from relayd.config import AgentConfig
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.wireguard import Interface
from relayd.keys import PublicKey
from relayd.netio.poller import Poller
from relayd.netio.raw_udp import Datagram
from relayd.services import Service


class DirectPaths:
    """Everything about direct paths that has a socket."""

    def __init__(
        self,
        config: AgentConfig,
        interface: Interface,
        poller: Poller,
        reinjector: Reinjector,
        stack: ExitStack,
        *,
        link: Link,
        proxy: Proxy,
        nudge: Callable[[], None],
        known: Callable[[PublicKey], Iterable[Endpoint]],
    ) -> None:
        """`stack` closes what is opened here. Raises HostError when not even an ordinary socket can be
        had."""
        self.reinjector = reinjector
        self.prober = PathProber(
            interface,
            link=link,
            proxy=proxy,
            nudge=nudge,
            known=known,
            wall_clock=time.time,
            fresh_handshake_s=config.fresh_handshake_s,
        )
        # Port and client know each other by one function each; nothing is asked before they run.
        try:
            self.port = SharedPort(
                interface.listen_port, on_stun=self._on_stun, on_sealed=self.prober.on_datagram
            )
        except OSError as error:
            raise HostError(f"no socket to look for direct paths with: {error.strerror}") from error
        stack.callback(self.port.close)
        self._client = StunClient(self.port)
        texts = [*(relay.address for relay in config.relays), *config.stun]
        self.addresses = OwnAddresses(
            interface.name,
            client=self._client,
            servers=[StunServer.parse(text) for text in texts],
            publish=self.prober.localize,
            port=lambda: self.port.wireguard_port,
            connected=lambda: link.connected,
            only=config.candidate_interfaces,
            hold_s=config.nat_hold_s,
        )
        self.port.join(poller)
        self.prober.use(self.port)

    def services(self) -> list[Service]:
        """What runs."""
        return [
            Service(name="own addresses", run=self.addresses.run),
            Service(name="path prober", run=self.prober.run),
        ]

    def drops(self) -> Mapping[str, int]:
        """Messages that nobody got to see, by reason."""
        return self.prober.drops()

    def _on_stun(self, datagram: Datagram) -> None:
        self._client.on_datagram(datagram)
