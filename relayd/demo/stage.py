"""The demonstration's laboratory: two nodes, the relay's host between them, WireGuard, relay and agents.

    node a  192.0.2.2 ---- 192.0.2.1  relay  198.51.100.1 ---- 198.51.100.2  node b

The relay's host forwards nothing, so nothing but what the relay itself carries gets from a to b. The
addresses are of the blocks for documentation (RFC 5737), the tunnel's of the one for benchmarks (RFC 2544).
"""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from relayd.config import RelayConfig
from relayd.demo.lab import Lab, Node
from relayd.demo.plan import Stage
from relayd.demo.process import Process
from relayd.demo.tunnel import Tunnel
from relayd.demo.tunnel import join as connect
from relayd.errors import HostError
from relayd.marks import RELAY_PORT
from relayd.relay.credentials import join_string, load_credentials

INTERFACE = "wg0"
STATE_DIR = "/run/wirekube"
CONTROL_AGENT = f"/run/relayd/agent-{INTERFACE}.sock"
CONTROL_RELAY = "/run/relayd/relay.sock"


class Theatre:
    """Everything up but the relay and the agents; those are started, killed and started again."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.relay_host, self.a, self.b = lab.node("relay"), lab.node("a"), lab.node("b")
        networks = (IPv4Network("192.0.2.0/24"), IPv4Network("198.51.100.0/24"))
        for node, network in zip((self.a, self.b), networks, strict=True):
            lab.wire(self.relay_host, node, network)
            # A default route, so that it is the relay's host that refuses, not a node without a route.
            node.ip(f"route add default via {self.relay_host.addresses[node.name]}")
        self.tunnel_a = Tunnel(self.a, IPv4Interface("198.18.0.1/24"), name=INTERFACE)
        self.tunnel_b = Tunnel(self.b, IPv4Interface("198.18.0.2/24"), name=INTERFACE)
        connect(self.tunnel_a, self.tunnel_b)
        # The relay would make them at its first start: but relay and agents start at once here.
        config = RelayConfig(state_dir=str(self.relay_host.path(STATE_DIR)), host="relay.invalid")
        self.join = join_string(config, load_credentials(config), RELAY_PORT)
        """What agents need to know of the relay; each reaches it by an address of its own."""

    def describe(self) -> Stage:
        """Who stands where."""
        return Stage(
            relay_addresses=(self.relay_host.addresses["a"], self.relay_host.addresses["b"]),
            node_addresses=(self.a.addresses["relay"], self.b.addresses["relay"]),
            tunnel_addresses=(self.tunnel_a.address.ip, self.tunnel_b.address.ip),
            wireguard=self.tunnel_a.kind,
        )

    def can_reach_directly(self) -> bool:
        """Whether b answers a by its own address: then the demonstration would show nothing."""
        to: IPv4Address = self.b.addresses["relay"]
        try:
            self.a.run("ping", "-n", "-c", "1", "-W", "0.5", str(to))
        except HostError:
            return False
        return True

    def start_relay(self, *more: str) -> Process:
        """`relayd serve`, with `more` flags."""
        return self.relay_host.relayd(
            "serve", "--listen", f"0.0.0.0:{RELAY_PORT}", "--control", CONTROL_RELAY,
            "--state", STATE_DIR, *more,
        )  # fmt: skip

    def start_agent(self, node: Node, *more: str) -> Process:
        """`relayd agent` beside the node's WireGuard, with `more` flags."""
        relay = replace(self.join, host=str(self.relay_host.addresses[node.name])).format()
        places = ["--interface", INTERFACE, "--state", STATE_DIR, "--control", CONTROL_AGENT]
        return node.relayd("agent", "--relay", relay, *places, *more)
