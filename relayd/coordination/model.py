"""What a source says of the mesh, as seen from this node: one immutable snapshot."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import Enum
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network
from typing import Self

from relayd.endpoints import Endpoint, split_host_port
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.paths.patience import Patience


@dataclass(frozen=True, slots=True)
class RelayAddress:
    """Where to connect to: `host` is a DNS name or an address, to be looked up at each dial."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """`relay.example.net:3478` or `[2001:db8::1]:3478`. Raises ValueError saying what is wrong."""
        return cls(*split_host_port(text))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class OwnedInterface:
    """An interface that is ours to make, and to keep like this."""

    name: str
    private_key: PrivateKey
    listen_port: int
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    mtu: int


@dataclass(frozen=True, slots=True)
class AdoptedInterface:
    """An interface that somebody else made: its key, port, peers and allowed IPs are not ours to change."""

    name: str


@dataclass(frozen=True, slots=True)
class MeshPeer:
    """A node that this one talks to."""

    key: PublicKey
    allowed_ips: tuple[IPv4Network | IPv6Network, ...]
    endpoint: Endpoint | None = None
    """A direct address worth trying first. What a live session knows better is never overwritten by it."""

    keepalive_s: int = 0
    """WireGuard's persistent keepalive; 0: off."""

    name: str = ""
    """What people call it; "": nothing but its key."""

    unrouted: tuple[IPv4Network | IPv6Network, ...] = ()
    """Of its allowed IPs, those that packets may come from, and that no route leads to."""

    @property
    def routed(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The others."""
        return tuple(one for one in self.allowed_ips if one not in self.unrouted)


class RelayMode(Enum):
    """When the relays are used."""

    AUTO = "auto"
    """By peers that have no better way."""

    ALWAYS = "always"
    """By all."""

    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class AskedPatience:
    """What a mesh says of `Patience`, for all its agents. None: nothing, an agent's own counts."""

    silent_s: float | None = None
    recheck_cap_s: float | None = None
    try_s: float | None = None
    fresh_handshake_s: float | None = None

    def over(self, own: Patience) -> Patience:
        """The times that count for an agent whose own are these."""
        said = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(own, **{name: value for name, value in said.items() if value is not None})


@dataclass(frozen=True, slots=True)
class Mesh:
    """All of it at one moment. Two that are equal ask for the same state of the host."""

    interface: OwnedInterface | AdoptedInterface
    peers: tuple[MeshPeer, ...]
    """Of an adopted interface: those that it has, as AdoptedSource reads them; StaticFile knows none."""

    relays: tuple[JoinString, ...]
    """Where the relays are, and what the agent and they know each other by; the order means nothing."""
    relay_sets: tuple[JoinString, ...] = ()
    """Names that stand for several relays each: every address of a name is one, and they share a key. All
    agents look them up, and so name the relays alike."""

    relay_mode: RelayMode = RelayMode.AUTO

    stun: tuple[str, ...] = ()
    """STUN servers, HOST:PORT each, besides the relays and those of the agent's own configuration."""

    patience: AskedPatience = AskedPatience()
    bypass_local: bool = False
    """Whether what is sent to a peer's own address on a common wire stays out of the tunnel
    (`agent.local_bypass`)."""

    birthday: bool | None = None
    """Whether the birthday method is used (`paths.birthday`). None: as the agent's own configuration says."""
