"""A WireGuard interface in a node of the laboratory: the kernel's where it has one, else wireguard-go's."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from ipaddress import IPv4Interface
from typing import Literal

from relayd.demo.host import check_programs, check_tun, program
from relayd.demo.lab import Node
from relayd.demo.process import Process
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.keys import KEY_BYTES, PrivateKey, PublicKey
from relayd.marks import DEFAULT_LISTEN_PORT, DEFAULT_MTU

SOCKET_S = 5.0
"""wireguard-go opens its socket within some 50 ms."""


class Tunnel:
    """Made with a key and a port, without peers, and with its address up."""

    def __init__(
        self,
        node: Node,
        address: IPv4Interface,
        *,
        name: str = "wg0",
        port: int = DEFAULT_LISTEN_PORT,
        userspace: bool = False,
    ) -> None:
        """With `userspace` wireguard-go is taken even where the kernel could. Raises HostError."""
        check_programs(["wg"])
        self.node, self.name, self.address, self.port = node, name, address, port
        self.private_key = PrivateKey(os.urandom(KEY_BYTES))
        self.public_key = self.private_key.public()
        self.process: Process | None = None
        self.kind: Literal["kernel", "wireguard-go"] = "kernel"
        if userspace or not add_kernel_link(node, name):
            self.kind, self.process = "wireguard-go", start_wireguard_go(node, name)
        secret = self.private_key.to_base64()
        self.wg("set", name, "private-key", "/dev/stdin", "listen-port", str(port), stdin=secret)
        node.ip(f"addr add {address} dev {name}", f"link set {name} mtu {DEFAULT_MTU} up")

    def wg(self, *arguments: str, stdin: str = "") -> str:
        """`wg` in the node."""
        return self.node.run("wg", *arguments, stdin=stdin)

    def add_peer(
        self,
        key: PublicKey,
        allowed_ips: Iterable[str],
        *,
        endpoint: Endpoint | None = None,
        keepalive_s: int = 0,
    ) -> None:
        """A peer as an operator would give it, with or without an endpoint."""
        more = ["endpoint", str(endpoint)] if endpoint is not None else []
        more += ["persistent-keepalive", str(keepalive_s)] if keepalive_s else []
        self.wg("set", self.name, "peer", str(key), "allowed-ips", ",".join(allowed_ips), *more)

    def endpoints(self) -> dict[PublicKey, Endpoint | None]:
        """What WireGuard itself holds: peer -> endpoint, None where it has none."""
        pairs = (line.split() for line in self.wg("show", self.name, "endpoints").splitlines())
        return {
            PublicKey.from_base64(key): None if said == "(none)" else Endpoint.parse(said)
            for key, said in pairs
        }

    def handshakes(self) -> dict[PublicKey, float]:
        """Peer -> when the last handshake was, in seconds of time.time(); 0 for never."""
        pairs = (line.split() for line in self.wg("show", self.name, "latest-handshakes").splitlines())
        return {PublicKey.from_base64(key): float(when) for key, when in pairs}


def join(left: Tunnel, right: Tunnel, *, keepalive_s: int = 0) -> None:
    """Make two tunnels each other's peer, without an endpoint: nobody has told them where the other is."""
    for here, there in ((left, right), (right, left)):
        here.add_peer(there.public_key, [f"{there.address.ip}/32"], keepalive_s=keepalive_s)


def add_kernel_link(node: Node, name: str) -> bool:
    """Whether the kernel knows WireGuard links; if so there is one called `name` in the node now."""
    try:
        node.run("ip", "link", "add", name, "type", "wireguard")
    except HostError as error:
        if "Unknown device type" in str(error) or "not supported" in str(error):
            return False
        raise
    return True


def start_wireguard_go(node: Node, name: str) -> Process:
    """wireguard-go on a new interface, ready to be configured. Raises HostError naming what is missing."""
    try:
        wireguard_go = program("wireguard-go")
    except HostError as error:
        raise HostError(
            f"this kernel has no WireGuard (modprobe wireguard, if it has the module), and {error}"
        ) from error
    check_tun()
    environment = {"LOG_LEVEL": "error", "WG_PROCESS_FOREGROUND": "1"}
    process = node.start(wireguard_go, "-f", name, environment=environment)
    socket_path = node.path(f"/run/wireguard/{name}.sock")
    deadline = time.monotonic() + SOCKET_S
    while not socket_path.exists():
        if process.returncode() is not None or time.monotonic() > deadline:
            raise HostError(f"wireguard-go did not start: {process.last_words() or 'it says nothing'}")
        time.sleep(0.01)
    return process
