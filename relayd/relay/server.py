"""`relayd serve`: the relay, put together. What it decides is in `switch`; what it moves, in `dataplane`."""

from __future__ import annotations

import contextlib
import errno
import socket
import time
from collections.abc import Iterator
from functools import partial

import trio

import relayd
from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.errors import HostError, RemoteProtocolError
from relayd.marks import set_mark
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.observe.control import serve_control
from relayd.relay.dataplane import Bounds, Connection, DataPlane, counts
from relayd.relay.doorway import DoorLimits, Doorway
from relayd.relay.udp import NatProber
from relayd.services import Service, supervise
from relayd.wire.frames import (
    BIMODAL_HINT,
    DATA,
    KEEPALIVE,
    NAT_PROBE,
    RELAY_PROBE,
    decode_nat_probe_untrusted,
)

BACKLOG = 1024
"""Connections that may wait for accept(): a relay that comes back meets all its agents at once."""

HOUSEKEEPING_S = 1.0
"""Between two looks for silent connections and stale frames."""


class Relay:
    """One running relay."""

    def __init__(self, config: RelayConfig, nursery: trio.Nursery, udp: list[socket.socket]) -> None:
        self._config = config
        self._started_at = time.monotonic()
        self.poller = Poller()
        bounds = Bounds(
            round_bytes=config.round_bytes,
            queue_bytes=config.queue_bytes,
            queue_age_s=config.queue_age_ms / 1000,
        )
        self.plane = DataPlane(self.poller, bounds, on_control=self._on_control, on_closed=self._on_closed)
        limits = DoorLimits(
            register_timeout_s=config.register_timeout_s,
            max_unregistered=config.max_unregistered,
            max_unregistered_per_address=config.max_unregistered_per_address,
        )
        self.doorway = Doorway(self.plane, limits, nursery)
        self.prober = NatProber(self.poller, udp)

    def _on_closed(self, connection: Connection, reason: str) -> None:
        self.doorway.on_closed(connection, reason)

    def _on_control(self, connection: Connection, kind: int, body: memoryview) -> None:
        """A frame without a destination, from a registered agent."""
        if kind == KEEPALIVE:
            return
        if kind == RELAY_PROBE:
            self.doorway.on_probe_answer(connection, bytes(body))
        elif kind == NAT_PROBE:
            try:
                request = decode_nat_probe_untrusted(bytes(body))
            except RemoteProtocolError:
                self.prober.counts["refused_malformed"] += 1
            else:
                self.prober.probe(request, connection.endpoint)
        elif kind in (DATA, BIMODAL_HINT):
            connection.dropped_short += 1
        else:
            connection.unknown_frames += 1

    async def keep_house(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Close who says nothing, drop what is stale. Nothing here is urgent."""
        task_status.started()
        while True:
            await trio.sleep(HOUSEKEEPING_S)
            self.plane.expire()
            silent_since = time.monotonic() - self._config.silence_s
            for connection in [one for one in self.plane.connections if one.heard_at < silent_since]:
                self.plane.close(connection, f"silent for {self._config.silence_s:g} s")

    def status(self) -> dict[str, object]:
        """What `relayd status` shows."""
        total = self.plane.count()
        now = time.monotonic()
        drops = {name.removeprefix("dropped_"): total[name] for name in total if "dropped_" in name}
        return {
            "role": "relay",
            "version": relayd.__version__,
            "uptime_s": round(now - self._started_at, 3),
            "listen": list(self._config.listen),
            "connections": len(self.plane.connections),
            "unregistered": self.doorway.unregistered,
            "accepted": self.doorway.accepted,
            "refused": dict(self.doorway.refused),
            "frames_in": total["frames_in"],
            "frames_out": total["frames_out"],
            "bytes_in": total["bytes_in"],
            "bytes_out": total["bytes_out"],
            "unknown_frames": total["unknown_frames"],
            "drops": drops,
            "nat_probes": dict(self.prober.counts),
            "peers": [_peer_status(one, now) for one in self.plane.connections],
        }

    def close(self) -> None:
        """Close every connection. Agents see an end of stream, and dial again."""
        for connection in list(self.plane.connections):
            self.plane.connections.discard(connection)
            connection.sock.close()
        self.prober.close()
        self.poller.close()


def _peer_status(connection: Connection, now: float) -> dict[str, object]:
    counted = counts(connection)
    drops = {name.removeprefix("dropped_"): counted.pop(name) for name in list(counted) if "dropped_" in name}
    return {
        "key": str(connection.key),
        "address": str(connection.endpoint),
        "connected_s": round(now - connection.since, 3),
        "silent_s": round(max(0.0, now - connection.heard_at), 3),
        "queued_bytes": connection.outbox.queued_bytes if connection.outbox is not None else 0,
        **counted,
        "drops": drops,
    }


async def serve(
    config: RelayConfig, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a relay until cancelled; `task_status.started()` when it takes agents in.

    Raises HostError when an address can't be listened on, or another relay answers on the control socket.
    """
    with contextlib.ExitStack() as stack:
        listeners, udp = _bind_all(config, stack)
        # The nursery in which connections are greeted and seen off. It ends with the services' one.
        async with trio.open_nursery() as nursery:
            relay = Relay(config, nursery, udp)
            stack.callback(relay.close)
            for listener in listeners:
                relay.poller.yield_when_readable(listener.fileno())
            services = [
                Service(name="data plane", run=relay.poller.run),
                Service(name="housekeeping", run=relay.keep_house),
                Service(
                    name="control socket",
                    run=partial(serve_control, config.control, {"status": relay.status}),
                ),
                *(
                    Service(name=f"listener {_name_of(one)}", run=partial(_accept, relay.doorway, one))
                    for one in listeners
                ),
            ]
            await nursery.start(supervise, services)
            listen = [_name_of(one) for one in listeners]
            log.get().info("relay.started", listen=listen, control=config.control)
            task_status.started()


async def _accept(
    doorway: Doorway,
    listener: socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    task_status.started()
    await doorway.serve(listener)


def _name_of(sock: socket.socket) -> str:
    return str(Endpoint.of_socket(sock.getsockname()))


def _bind_all(
    config: RelayConfig, stack: contextlib.ExitStack
) -> tuple[list[socket.socket], list[socket.socket]]:
    """A TCP listener and a UDP socket for each address, all of them or none."""
    listeners: list[socket.socket] = []
    udp: list[socket.socket] = []
    by_default = config.listen == RelayConfig().listen
    for text in config.listen:
        endpoint = Endpoint.parse(text)
        if by_default and endpoint.address.version == 6 and not _have_ipv6():
            log.get().warning("relay.ipv6_unavailable", listen=text)
            continue
        with _explained(text):
            listener = stack.enter_context(_socket(endpoint, socket.SOCK_STREAM))
            listener.listen(BACKLOG)
            # Port 0 means any free one; UDP then takes the same.
            bound = Endpoint(endpoint.address, listener.getsockname()[1])
            udp.append(stack.enter_context(_socket(bound, socket.SOCK_DGRAM)))
            listeners.append(listener)
    return listeners, udp


def _socket(endpoint: Endpoint, kind: socket.SocketKind) -> socket.socket:
    """A bound, non-blocking socket of `kind`. IPv6 ones take IPv6 alone: 0.0.0.0 has its own."""
    family = socket.AF_INET6 if endpoint.address.version == 6 else socket.AF_INET
    sock = socket.socket(family, kind)
    try:
        sock.setblocking(False)
        if kind == socket.SOCK_STREAM:
            # Connections of a relay that has just ended linger in TIME_WAIT; they are no reason to wait.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            # On a host that is itself in the mesh, answers must not go into the tunnel that they carry.
            # Accepted sockets inherit the mark.
            set_mark(sock)
        except PermissionError:
            log.get().debug("relay.unmarked", reason="no CAP_NET_ADMIN (a relay on a mesh node needs it)")
        sock.bind((str(endpoint.address), endpoint.port))
    except BaseException:
        sock.close()
        raise
    return sock


def _have_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as sock:
            sock.bind(("::1", 0))
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _explained(listen: str) -> Iterator[None]:
    """Turn a failed bind into an error that says what to do."""
    try:
        yield
    except OSError as error:
        what = {
            errno.EADDRINUSE: "another process listens there: stop it, or choose another --listen",
            errno.EACCES: "ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or choose another --listen",
            errno.EADDRNOTAVAIL: "this host has no such address: see `ip address`",
        }.get(error.errno or 0, "see --listen")
        raise HostError(f"cannot listen on {listen}: {error.strerror} ({what})") from error
