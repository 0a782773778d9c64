"""What was seen of a host: values only. `survey` gathers them, `checks` judges them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from relayd.kernel.firewall import Chain
from relayd.kernel.routing import Address, Hop, RoutingState
from relayd.keys import PublicKey
from relayd.wire.identity import Trust

NO_ROUTING = RoutingState(versions=(), rules=(), routes=())
"""Of a host whose routing could not be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What this process may do here. In a container a capability may be held and yet not count."""

    net_admin: bool
    net_raw: bool
    may_mark: bool
    """Whether SO_MARK was allowed: CAP_NET_ADMIN counts in the user namespace that owns this network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WireGuardFacts:
    """The interface, and what could make one."""

    in_kernel: bool | None
    """Loaded, built in, or a module that can be loaded. None: there is no list of this kernel's modules."""

    userspace_program: str = ""
    """Path of wireguard-go; "" when there is none."""

    link_kind: str | None = None
    """Of the interface, as the kernel calls it ("" for a plain device). None: there is no such interface."""

    is_up: bool = False
    listen_port: int | None = None
    """None: the interface could not be read; `problem` says why."""

    fwmark: int = 0
    peers: int = 0
    problem: str = ""
    others: tuple[str, ...] = ()
    """Other WireGuard interfaces of this host."""


@dataclass(frozen=True, slots=True)
class FirewallDump:
    """What one program printed of the firewall."""

    program: str
    """iptables-nft, ip6tables-legacy, nft ..."""

    text: str
    """As `PROGRAM-save` prints it; for nft, as `nft list ruleset` does."""


@dataclass(frozen=True, slots=True)
class UnreadFirewall:
    """A program that is here and refused to tell."""

    program: str
    reason: str


@dataclass(frozen=True, slots=True)
class PortHolder:
    """Who has a UDP port. `pid` is None for a socket of the kernel's own (WireGuard has such), or of a
    process that can't be seen from here."""

    port: int
    address: str
    pid: int | None = None
    name: str = ""
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """What the agent's UDP socket got when it asked for `wanted` bytes."""

    wanted: int
    granted: int
    forced: bool
    """By SO_RCVBUFFORCE, which no limit holds back."""

    rmem_max: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RouteProof:
    """Where packets to one address of the relay would go, with our mark and without; None: nowhere."""

    address: Address
    marked: Hop | None
    unmarked: Hop | None


Echo = Literal[
    "welcomed",
    "returned",
    "challenged",
    "wrong key",
    "unproved",
    "refused",
    "closed",
    "silent",
    "TLS failed",
    "not asked",
]
"""What came of asking, with a throwaway key.

welcomed    the relay has proved its key, and lets us in
returned    no Challenge, but a frame to ourselves came back: a relay that proves nothing
challenged  a good Challenge, and nothing behind it
wrong key   of its Challenge: not the pinned one, or none that anybody can own
unproved    what it sent is no proof of the key that it showed
refused     it says no, in `words`
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """One try to reach the relay."""

    peer: str = ""
    """The address that accepted; "" when none did, and `problem` says why."""

    problem: str = ""
    echo: Echo = "not asked"

    words: str = ""
    """Why not, as the relay or our own handshake says it."""

    key: PublicKey | None = None
    """The one that the relay showed, and that may be its: proved when it is `welcomed`."""

    trust: Trust | None = None
    """How that key is known, when it is proved."""

    previous: PublicKey | None = None
    """The key that this address had before, when it is another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelayFacts:
    """All about the way to one relay."""

    address: str
    pinned: bool = False
    """Whether its key is."""

    insecure: bool = False
    """Whether the agent takes one that proves nothing."""

    proofs: tuple[RouteProof, ...] = ()
    problem: str = ""
    """Why its name has no address."""

    marked: Reach | None = None
    """None: not tried, as this process may not mark."""

    unmarked: Reach | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFacts:
    """The state directory. Its modes are None when it, or the key, is not there."""

    path: str
    directory_mode: int | None = None
    key_mode: int | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """All that was seen."""

    interface: str
    listen_port: int
    """The one that the interface should have, as far as this process was told."""

    proxy_port: int
    capabilities: Capabilities
    wireguard: WireGuardFacts
    buffers: Buffers
    state: StateFacts
    routing: RoutingState = NO_ROUTING
    routing_problem: str = ""
    kube_chains: tuple[Chain, ...] = ()
    """KUBE-FIREWALL, in each variant of iptables that has it."""

    firewalls: tuple[FirewallDump, ...] = ()
    unread_firewalls: tuple[UnreadFirewall, ...] = ()
    sysctls: Mapping[str, int | None] = field(default_factory=dict)
    """By the names that `sysctl` has for them; None: this kernel or interface has no such."""

    ports: tuple[PortHolder, ...] = ()
    relays: tuple[RelayFacts, ...] = ()
    """All that the configuration names."""

    agent_runs: bool = False
    """Whether one answers for this interface."""

    stale_socket: str = ""
    """A control socket that nobody answers at."""
