"""A WireGuard interface as values: what it is, what it should be, and the difference between the two.

Nothing here touches the host. `netlink` and `uapi` read an interface into `Interface` and write `Changes`;
both get their changes from `plan`, so that kernel and userspace WireGuard are treated alike.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Literal, Protocol

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.keys import KEY_BYTES, PrivateKey, PublicKey
from relayd.marks import HANDSHAKE_FRESH_S

Network = IPv4Network | IPv6Network

NO_KEY = PublicKey(bytes(KEY_BYTES))
"""Stands for "no private key is set", as in `wg show` (which prints it as "(none)")."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A peer as the interface has it now.

    `endpoint` is None until one was set or heard from. `handshake_at` is in seconds of the Unix epoch, None
    when there never was one. `keepalive_s` is 0 when off.
    """

    key: PublicKey
    endpoint: Endpoint | None
    allowed_ips: tuple[Network, ...]
    handshake_at: float | None
    rx_bytes: int
    tx_bytes: int
    keepalive_s: int

    def has_live_session(self, now: float) -> bool:
        """Whether the last handshake is fresh at `now` (seconds of the Unix epoch)."""
        return self.handshake_at is not None and now - self.handshake_at < HANDSHAKE_FRESH_S


@dataclass(frozen=True, slots=True)
class Interface:
    """A WireGuard interface as it is now. `fwmark` is 0 when off."""

    name: str
    public_key: PublicKey
    listen_port: int
    fwmark: int
    peers: Mapping[PublicKey, Peer]
    private_key: PrivateKey | None = field(default=None, compare=False)
    """What the agent proves to be with. None: there is none, or it isn't shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """A peer as it should be. `endpoint` None: whatever it has. `keepalive_s` 0: off."""

    key: PublicKey
    allowed_ips: tuple[Network, ...]
    endpoint: Endpoint | None = None
    keepalive_s: int = 0


class WireGuard(Protocol):
    """One WireGuard interface of this host, wherever its implementation lives.

    Every call is bounded in time. All raise HostError, whose text says what is missing (a capability, the
    interface, the userspace process) and how to mend it.
    """

    @property
    def name(self) -> str:
        """The interface's name."""
        ...

    @property
    def engine(self) -> Literal["kernel", "userspace"]:
        """Who runs it."""
        ...

    async def dump(self) -> Interface:
        """The interface as it is now, with NO_KEY as public key while it has no private one."""
        ...

    async def read(self) -> Interface:
        """The interface as it is now. Raises HostError also while it has no private key."""
        ...

    async def set_endpoint(self, key: PublicKey, endpoint: Endpoint) -> None:
        """Send `key`'s packets to `endpoint`. Nothing else changes; a peer that isn't there is not made."""
        ...

    async def set_endpoints(self, endpoints: Mapping[PublicKey, Endpoint]) -> Mapping[PublicKey, HostError]:
        """Likewise for all of these. -> those that were refused, and why; raises nothing of its own."""
        ...

    async def configure(
        self, private_key: PrivateKey, *, listen_port: int, fwmark: int, peers: Sequence[PeerSettings]
    ) -> bool:
        """Make the interface have this key, this port (0: any), this mark (0: none) and exactly these peers.

        -> was anything written? Only what differs is. A peer with a live session keeps the endpoint it has.
        """
        ...

    def close(self) -> None:
        """Let go of what is held. The interface itself stays as it is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerChange:
    """What to write about one peer. None: leave as is. `new`: the peer is not there yet."""

    key: PublicKey
    new: bool = False
    endpoint: Endpoint | None = None
    allowed_ips: tuple[Network, ...] | None = None
    keepalive_s: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What to write to an interface, in this order. None or empty: leave as is."""

    private_key: PrivateKey | None = None
    listen_port: int | None = None
    fwmark: int | None = None
    remove: tuple[PublicKey, ...] = ()
    peers: tuple[PeerChange, ...] = ()


def plan(
    current: Interface,
    private_key: PrivateKey,
    *,
    listen_port: int,
    fwmark: int,
    peers: Sequence[PeerSettings],
    now: float,
) -> Changes:
    """What must be written to turn `current` into the rest; `now` in seconds of the Unix epoch."""
    wanted = {settings.key for settings in peers}
    own_key = private_key.public()
    # Port 0 asks for any port: the one that the interface already has is as good as another.
    wrong_port = listen_port != current.listen_port and not (listen_port == 0 and current.listen_port)
    changes = (_peer_change(current.peers.get(settings.key), settings, now) for settings in peers)
    return Changes(
        private_key=private_key if own_key != current.public_key else None,
        listen_port=listen_port if wrong_port else None,
        fwmark=fwmark if fwmark != current.fwmark else None,
        remove=tuple(key for key in current.peers if key not in wanted),
        peers=tuple(change for change in changes if change is not None),
    )


def _peer_change(current: Peer | None, settings: PeerSettings, now: float) -> PeerChange | None:
    """What must be written about one peer, None when all of it is right."""
    if current is None:
        return PeerChange(
            key=settings.key,
            new=True,
            endpoint=settings.endpoint,
            allowed_ips=settings.allowed_ips,
            keepalive_s=settings.keepalive_s or None,
        )
    # The endpoint of a live session is where the peer was last heard: true, whatever the configuration says.
    keep_endpoint = settings.endpoint in (None, current.endpoint) or current.has_live_session(now)
    same_ips = set(settings.allowed_ips) == set(current.allowed_ips)
    same_keepalive = settings.keepalive_s == current.keepalive_s
    if keep_endpoint and same_ips and same_keepalive:
        return None
    return PeerChange(
        key=settings.key,
        endpoint=None if keep_endpoint else settings.endpoint,
        allowed_ips=None if same_ips else settings.allowed_ips,
        keepalive_s=None if same_keepalive else settings.keepalive_s,
    )
