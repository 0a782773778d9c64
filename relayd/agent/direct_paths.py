"""The part of an agent that looks for direct paths, put together: WireGuard's port shared, own addresses,
prober.

shared_port -> path_prober -> shared_port | link          own_addresses (STUN) -> discovery -> path_prober
path_prober -> reconciler (verdicts), proxy (late packets, by the reinjector)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from math import inf
from typing import Protocol

from relayd.agent.carriers import Carriers
from relayd.agent.discovery.keeper import Discovery
from relayd.agent.discovery.relay_probes import RelayProbes
from relayd.agent.discovery.stun_client import StunClient
from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.agent.discovery.survey import Sources
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
from relayd.paths.acquaintance import Local
from relayd.paths.candidates import Candidate, make
from relayd.paths.findings import Method
from relayd.services import Service
from relayd.wire.frames import NatProbe


class ProbingLink(Link, Protocol):
    """A link to a relay that may be asked for NAT probes."""

    @property
    def relay_endpoint(self) -> Endpoint | None:
        """Where the connection goes to; None: there is none."""


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
        link: ProbingLink,
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
            patience=config.patience,
        )
        # Port and client know each other by one function each; nothing is asked before they run.
        try:
            self.port = SharedPort(
                interface.listen_port,
                on_stun=self._on_stun,
                on_sealed=self.prober.on_datagram,
                tunnel=interface.name,
            )
        except OSError as error:
            raise HostError(f"no socket to look for direct paths with: {error.strerror}") from error
        stack.callback(self.port.close)
        self._client = StunClient(self.port)
        texts = [*(relay.address for relay in config.relays), *config.stun]
        servers = tuple(dict.fromkeys(StunServer.parse(text) for text in texts))
        self._link = link
        self.discovery = Discovery(
            self.port,
            Sources(
                servers=servers,
                manual=config.endpoints,
                measure_lifetime=config.measure_nat_lifetime,
                port_mapping=config.port_mapping,
                aws=config.aws_metadata,
                probes=RelayProbes(lambda: link.relay_endpoint, self._ask_to_be_probed),
            ),
            changed=self._found,
        )
        self.addresses = OwnAddresses(
            interface.name,
            client=self._client,
            servers=servers,
            publish=self._localize,
            port=lambda: self.port.wireguard_port,
            connected=lambda: link.connected,
            only=config.candidate_interfaces,
            hold_s=config.nat_hold_s,
            birthday=config.birthday,
            demanded_s=self.discovery.hold_s,
            wanted=self.prober.is_searching,
            resolver=Resolver(),
            more=self._more,
            moved=self.discovery.look_again,
            asked=self.discovery.heard,
            versions=self.port.versions,
        )
        self.port.after_change += [self.discovery.look_again, self.addresses.look_again]
        self.port.join(poller)
        self.carriers = Carriers(
            poller, wireguard_port=lambda: self.port.wireguard_port, on_sealed=self.prober.on_datagram
        )
        stack.callback(self.carriers.close)
        self.prober.use(self.port, self.carriers)

    def use(self, config: AgentConfig) -> None:
        """What can change while it runs, but for the servers, which are the mesh's too."""
        self.discovery.ask(
            manual=config.endpoints,
            port_mapping=config.port_mapping,
            aws=config.aws_metadata,
            measure_lifetime=config.measure_nat_lifetime,
        )
        self.addresses.take(
            only=config.candidate_interfaces, hold_s=config.nat_hold_s, birthday=config.birthday
        )

    def use_servers(self, texts: Iterable[str]) -> None:
        """These are the STUN servers from now on, HOST:PORT each."""
        servers = tuple(dict.fromkeys(StunServer.parse(text) for text in texts))
        self.discovery.use_servers(servers)
        self.addresses.use_servers(servers)

    def services(self) -> list[Service]:
        """What runs."""
        return [
            Service(name="own addresses", run=self.addresses.run),
            Service(name="path prober", run=self.prober.run),
            Service(name="discovery", run=self.discovery.run),
        ]

    def summary(self) -> dict[str, object]:
        """What is known of this end, for `relayd status`."""
        local = self.addresses.local
        prediction = local.prediction
        return {
            "lacks": self.port.lacks,
            "symmetric": self.addresses.symmetric,
            "candidates": [
                {
                    "endpoint": str(one.endpoint),
                    "type": one.type,
                    "priority": one.priority,
                    "found": one.method,
                }
                for one in local.candidates
            ],
            "prediction": None
            if prediction is None
            else {
                "endpoint": str(prediction.first),
                "step": prediction.step,
                "count": prediction.count,
            },
            "hold_s": None if local.hold_s == inf else local.hold_s,
            "messages": dict(self.prober.counts),
            "late_packets": dict(self.reinjector.counts),
            "birthday": {"sockets": self.carriers.open, **self.carriers.counts},
        }

    def _localize(self, local: Local, *, moved: bool) -> None:
        if moved:
            self.reinjector.forget_routes()
        self.prober.localize(local, moved=moved)

    def drops(self) -> Mapping[str, int]:
        """Messages that nobody got to see, by reason."""
        return self.prober.drops()

    def _found(self) -> None:
        self.addresses.tell()

    def _more(self) -> list[Candidate]:
        """What STUN and the interfaces don't tell; those, `own_addresses` has itself, and fresher."""
        return [
            make(
                "srflx",
                one.endpoint,
                base=one.base,
                server=one.source,
                found_at=one.found_at,
                method=one.method.value,
            )
            for one in self.discovery.findings
            if one.method in (Method.MANUAL, Method.UPNP, Method.AWS_METADATA)
        ]

    def _ask_to_be_probed(self, request: NatProbe) -> None:
        frame = request.encode()
        self._link.send([frame], len(frame))

    def _on_stun(self, datagram: Datagram) -> None:
        self._client.on_datagram(datagram)
