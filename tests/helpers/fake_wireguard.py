"""A WireGuard interface in memory, for tests of what uses one; held to the same claims as the real ones
(tests/helpers/wireguard_contract.py).
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.device import NO_KEY, Changes, Interface, Peer, PeerSettings, plan
from relayd.keys import PrivateKey, PublicKey

ANY_PORT = 40_000
"""What a real interface picks when it is asked for port 0."""


class FakeWireGuard:
    """An interface whose peers, handshakes and failures the test decides.

    `endpoints_set` lists every call of `set_endpoint`, `written` every non-empty plan that `configure` wrote.
    Set `failure` to have every call raise it, as on a host whose interface went away.
    """

    def __init__(
        self,
        name: str = "wire_kube",
        private_key: PrivateKey | None = None,
        *,
        listen_port: int = 51820,
        fwmark: int = 0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = name
        self.engine: Literal["kernel", "userspace"] = "kernel"
        self.failure: HostError | None = None
        self.closed = False
        self.endpoints_set: list[tuple[PublicKey, Endpoint]] = []
        self.written: list[Changes] = []
        self._clock = clock
        self._interface = Interface(
            name=name,
            public_key=private_key.public() if private_key else NO_KEY,
            listen_port=listen_port,
            fwmark=fwmark,
            peers={},
            private_key=private_key,
        )

    # What a test does to it, as the kernel, `wg set` or a remote peer would ------------------------------

    def add_peer(self, key: PublicKey, **facts: object) -> Peer:
        """A peer appears, or an existing one is replaced; `facts` are fields of Peer. -> the peer"""
        empty = Peer(key, None, (), None, 0, 0, 0)
        return self._put(dataclasses.replace(empty, **facts))  # type: ignore[arg-type]  # fields by name

    def update_peer(self, key: PublicKey, **facts: object) -> Peer:
        """Some fields of an existing peer change: a handshake, traffic, a roamed endpoint. -> the peer"""
        return self._put(dataclasses.replace(self._interface.peers[key], **facts))  # type: ignore[arg-type]

    def remove_peer(self, key: PublicKey) -> None:
        """An existing peer goes."""
        peers = dict(self._interface.peers)
        del peers[key]
        self._replace(peers=peers)

    def set_listen_port(self, port: int) -> None:
        """Somebody moves the interface to another port."""
        self._replace(listen_port=port)

    # relayd.kernel.wireguard.WireGuard -------------------------------------------------------------------

    async def dump(self) -> Interface:
        self._check()
        return self._interface

    async def read(self) -> Interface:
        self._check()
        if self._interface.public_key == NO_KEY:
            raise HostError(f"{self.name} has no private key")
        return self._interface

    async def set_endpoint(self, key: PublicKey, endpoint: Endpoint) -> None:
        self._check()
        self.endpoints_set.append((key, endpoint))
        if key in self._interface.peers:
            self.update_peer(key, endpoint=endpoint)

    async def set_endpoints(self, endpoints: Mapping[PublicKey, Endpoint]) -> Mapping[PublicKey, HostError]:
        refused: dict[PublicKey, HostError] = {}
        for key, endpoint in endpoints.items():
            try:
                await self.set_endpoint(key, endpoint)
            except HostError as error:
                refused[key] = error
        return refused

    async def configure(
        self, private_key: PrivateKey, *, listen_port: int, fwmark: int, peers: Sequence[PeerSettings]
    ) -> bool:
        self._check()
        changes = plan(
            self._interface,
            private_key,
            listen_port=listen_port,
            fwmark=fwmark,
            peers=peers,
            now=self._clock(),
        )
        if changes == Changes():
            return False
        self.written.append(changes)
        self._apply(changes)
        return True

    def close(self) -> None:
        self.closed = True

    # -----------------------------------------------------------------------------------------------------

    def _check(self) -> None:
        if self.closed:
            raise HostError(f"{self.name} is closed")
        if self.failure is not None:
            raise self.failure

    def _put(self, peer: Peer) -> Peer:
        taken = set(peer.allowed_ips)  # cryptokey routing: an address belongs to the peer that got it last
        peers = {
            other.key: dataclasses.replace(
                other, allowed_ips=tuple(ip for ip in other.allowed_ips if ip not in taken)
            )
            for other in self._interface.peers.values()
            if other.key != peer.key
        }
        self._replace(peers={**peers, peer.key: peer})
        return peer

    def _replace(self, **facts: object) -> None:
        self._interface = dataclasses.replace(self._interface, **facts)  # type: ignore[arg-type]

    def _apply(self, changes: Changes) -> None:
        if changes.private_key is not None:
            own = changes.private_key.public()
            others = {key: peer for key, peer in self._interface.peers.items() if key != own}
            self._replace(
                public_key=own, private_key=changes.private_key, peers=others
            )  # an interface is never its own peer
        if changes.listen_port is not None:
            self.set_listen_port(changes.listen_port or ANY_PORT)
        if changes.fwmark is not None:
            self._replace(fwmark=changes.fwmark)
        for key in changes.remove:
            self.remove_peer(key)
        for change in changes.peers:
            if change.key == self._interface.public_key:
                continue
            if change.new:
                self.add_peer(change.key)
            facts: dict[str, object] = {
                "endpoint": change.endpoint,
                "allowed_ips": change.allowed_ips,
                "keepalive_s": change.keepalive_s,
            }
            self.update_peer(change.key, **{name: fact for name, fact in facts.items() if fact is not None})
