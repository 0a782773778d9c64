"""`relayd serve`: the relay, put together. What it decides is in `switch`; what it moves, in `dataplane`."""

from __future__ import annotations

import contextlib
import heapq
import socket
import time
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

import relayd
from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.join import JoinString
from relayd.manager.handover import PREFIX, ended_in_order
from relayd.manager.manager import Manager
from relayd.manager.status_line import status_services
from relayd.manager.watchdog import watchdog_services
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.observe.control import serve_control
from relayd.observe.http_place import HttpPlace
from relayd.observe.http_site import serve_http
from relayd.observe.loop_lag import LoopLag
from relayd.observe.output import give_up_stdout
from relayd.observe.telling import Telling
from relayd.relay.claims import Claims
from relayd.relay.connection import Connection
from relayd.relay.control import Control
from relayd.relay.counters import counts
from relayd.relay.credentials import AdmissionFiles, Credentials, join_string, load_credentials
from relayd.relay.dataplane import DataPlane
from relayd.relay.door_limits import DoorLimits
from relayd.relay.doorway import Doorway
from relayd.relay.guard import Greeter, Guard
from relayd.relay.handover import open_handover, resume, save
from relayd.relay.housekeeping import Housekeeping
from relayd.relay.listeners import name_of, open_listeners, pair_udp
from relayd.relay.memory import memory_limit
from relayd.relay.reload import Reloader
from relayd.relay.stun_server import Pair, StunServer
from relayd.relay.tls import load_tls, tls_paths
from relayd.relay.tls_door import TlsDoor
from relayd.relay.told import bounds_of, gate_of, greeting_of, tls_of
from relayd.relay.udp import NatProber
from relayd.services import Service, supervise
from relayd.signals import Signals

if TYPE_CHECKING:
    from relayd.relay.cluster_admission import ClusterAdmission


class Relay:
    """One running relay."""

    def __init__(
        self,
        config: RelayConfig,
        credentials: Credentials,
        nursery: trio.Nursery,
        udp: list[Pair],
        listen: list[str],
        *,
        http: HttpPlace,
        manager: Manager,
    ) -> None:
        """`listen` names what it is reached by, for the status.

        Connections that `manager` has kept of an earlier process are served from the start."""
        self._config, self._listen = config, listen
        self.draining = False
        """Whether it was asked to stop, and its agents are asked to go."""
        self._started_at = time.monotonic()
        self.poller = Poller()
        self.plane = DataPlane(
            self.poller,
            bounds_of(config, available_bytes=memory_limit()),
            open_handover(manager),
            on_control=self._on_control,
            on_closed=self._on_closed,
        )
        self.stun = StunServer(self.poller, udp)
        self.guard = Guard(credentials.gate)
        self.admission = _cluster_admission(config, self.guard)
        self.guard.on_change.append(self._turn_out)
        self._greeter = Greeter(
            identity=credentials.identity,
            guard=self.guard,
            stun=tuple(self.stun.ports),
            **greeting_of(config),
        )
        self.claims = Claims(self.plane, nursery)
        tls = credentials.tls
        self._tls_door = TlsDoor(tls, self.poller, nursery, user_timeout_s=config.stalled_s)
        self.housekeeping = Housekeeping(self.plane, self.claims, silence_s=config.silence_s)
        self.doorway = Doorway(
            self.claims,
            self._greeter,
            self.poller,
            nursery,
            DoorLimits.of(config),
            self._tls_door,
        )
        self.prober = NatProber(self.poller, [pair.first for pair in udp])
        self.loop_lag = LoopLag()
        self._http = http
        self._control = Control(self.plane, self.claims, self.prober)
        self._resumed = resume(
            self.plane,
            proved=self.claims.proved_before,
            still_admits=self.guard.gate.still_admits,
            proof_required=config.auth == "required",
        )
        for connection in self.plane.connections:
            self.doorway.resumed(connection)
        files = credentials.files
        self.admission_files = Reloader(
            "admission", files.paths, partial(files.read, make=False), self.guard.replace
        )
        self.tls_files = Reloader(
            "tls", tls.files.paths if tls is not None else (), partial(load_tls, config), self._tls_door.use
        )
        self.reloaders: list[Reloader[Any]] = [self.admission_files, self.tls_files]

    def use(self, config: RelayConfig) -> None:
        """Take over what can change while it runs: the settings that are `live`."""
        if gate_of(config) != gate_of(self._config):
            files = AdmissionFiles.of(config)
            self.admission_files.turn_to(files.paths, partial(files.read, make=True))
        if tls_of(config) != tls_of(self._config):
            self.tls_files.turn_to(tls_paths(config), partial(load_tls, config))
        self._config = config
        self._greeter = replace(self._greeter, **greeting_of(config))
        self.doorway.change(self._greeter, DoorLimits.of(config))
        self._turn_out()
        self.housekeeping.silence_s = config.silence_s
        self.plane.change(bounds_of(config, available_bytes=memory_limit()))
        self._http.use(config.http, config.http_names)

    def _on_closed(self, connection: Connection, reason: str, say: str) -> None:
        self.claims.on_closed(connection)
        self.housekeeping.on_closed()
        self.doorway.on_closed(connection, reason, say)

    def _on_control(self, connection: Connection, kind: int, body: memoryview) -> None:
        self._control.on_frame(connection, kind, body)

    def _turn_out(self) -> None:
        """Who is let in has changed: close the connections of those who aren't any more."""
        admits = self._greeter.still_admits
        for connection in list(self.plane.connections):
            if reason := admits(connection.key, proved=connection.proved):
                self.plane.close(connection, reason, say=reason)

    def summary(self) -> dict[str, object]:
        """What `relayd status` shows, all but the connections."""
        total = self.plane.count()
        now = time.monotonic()
        drops = {name.removeprefix("dropped_"): total[name] for name in total if "dropped_" in name}
        return {
            "role": "relay",
            "version": relayd.__version__,
            "uptime_s": round(now - self._started_at, 3),
            "listen": self._listen,
            "http": self._http.address,
            "connections": len(self.plane.connections),
            "backlogged": len(self.plane.backlogged),
            "queued_bytes": self.plane.queued_bytes,
            "queue_delay": self.plane.delays.status(),
            "draining": self.draining,
            "unregistered": self.doorway.unregistered,
            "accepted": self.doorway.accepted,
            "resumed": self._resumed,
            "not_resumed": dict(self.plane.handover.closed),
            "admitted": dict(self.doorway.admitted),
            "refused": dict(self.doorway.refused),
            "admission_problem": self.admission.problem if self.admission is not None else "",
            "admission_awaited": self.admission.awaited if self.admission is not None else "",
            "pauses": self.plane.throttle.pauses,
            "frames_in": total["frames_in"],
            "frames_out": total["frames_out"],
            "bytes_in": total["bytes_in"],
            "bytes_out": total["bytes_out"],
            "unknown_frames": total["unknown_frames"],
            "drops": drops,
            "nat_probes": dict(self.prober.counts),
            "stun": {"ports": self.stun.ports, **self.stun.counts},
            "loop_lag_ms_max": round(self.loop_lag.max_s() * 1e3, 3),
        }

    def status_line(self) -> str:
        """For `systemctl status`."""
        return f"serving {len(self.plane.connections)} agents, {self.doorway.unregistered} more at the door"

    def peers(self, limit: int | None = None) -> Iterator[dict[str, object]]:
        """The connections one by one; with `limit` so many of them, those first that have carried most."""
        connections: Collection[Connection] = self.plane.connections
        if limit is None:
            connections = list(connections)
        else:
            connections = heapq.nlargest(limit, connections, key=lambda one: one.bytes_in + one.bytes_out)
        now = time.monotonic()
        return (_peer_status(one, now) for one in connections)

    def close(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        """Close every connection. After an end in order (cancelled, that is) the manager goes on holding
        those that it has; of the others agents see an end of stream, and dial again."""
        if ended_in_order(error):
            handed_over = save(self.plane)
            if handed_over:
                log.get().info("relay.handed_over", connections=handed_over)
        for connection in list(self.plane.connections):
            self.plane.connections.discard(connection)
            connection.sock.close()
        self.doorway.close()
        self.stun.close()
        self.plane.turns.close()
        self.plane.handover.close()
        self.poller.close()


def _cluster_admission(config: RelayConfig, guard: Guard) -> ClusterAdmission | None:
    if not config.admit:
        return None
    # 4 MiB and 20 ms, for those who use it.
    from relayd.relay.cluster_admission import ClusterAdmission

    return ClusterAdmission(config, guard)


def _peer_status(connection: Connection, now: float) -> dict[str, object]:
    counted = counts(connection)
    drops = {name.removeprefix("dropped_"): counted.pop(name) for name in list(counted) if "dropped_" in name}
    return {
        "key": str(connection.key),
        "address": str(connection.endpoint),
        "proved": connection.proved,
        "connected_s": round(now - connection.since, 3),
        "silent_s": round(max(0.0, now - connection.heard_at), 3),
        "queued_bytes": connection.outbox.queued_bytes if connection.outbox is not None else 0,
        **counted,
        "drops": drops,
    }


async def serve(
    config: RelayConfig,
    manager: Manager | None = None,
    signals: Signals | None = None,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run a relay until cancelled; `task_status.started()` when it takes agents in.

    `manager` is the service manager that started this process, if one did. Raises ConfigError for what is
    wrong in a file of keys or tokens, HostError when one can't be read or made, when an address can't be
    listened on, or another relay answers on the control socket.
    """
    if config.admit:
        from relayd.relay.cluster_key import share_key

        await share_key(config)
    credentials = load_credentials(config)
    manager = manager if manager is not None else Manager.none()
    signals = signals if signals is not None else Signals()
    with contextlib.ExitStack() as stack:
        listeners, udp = open_listeners(config, manager.take(without=PREFIX), stack)
        listen = [name_of(one) for one in listeners]
        http = HttpPlace(config.http, config.http_names)
        stack.callback(http.close)
        # The nursery in which connections are greeted and seen off. It ends with the services' one.
        async with trio.open_nursery() as nursery:
            pairs = pair_udp(udp, config.stun_port, stack)
            relay = Relay(
                config,
                credentials,
                nursery,
                pairs,
                listen,
                http=http,
                manager=manager,
            )
            stack.push(relay.close)
            signals.on_reload += [one.ask for one in relay.reloaders]
            signals.on_config.append(relay.use)
            signals.on_config.append(partial(_use_drain_s, signals))
            signals.drain_s = config.drain_s
            trio.lowlevel.add_instrument(relay.loop_lag)
            stack.callback(trio.lowlevel.remove_instrument, relay.loop_lag)
            for listener in listeners:
                relay.poller.yield_when_readable(listener.fileno())
            telling = Telling(relay)
            accepting = [
                Service(name=f"listener {name_of(one)}", run=partial(_accept, relay.doorway, one))
                for one in listeners
            ]
            # The data plane comes last: while it carries what has waited for it, it lets the others run every
            # 10 ms, and each takes some turns to start. (Last but for what may take for ever.)
            plane = Service(name="data plane", run=relay.poller.run)
            services = [
                *(Service(name=f"{one.what} files", run=one.run) for one in relay.reloaders),
                Service(name="doorway", run=relay.doorway.run),
                Service(name="throttle", run=relay.plane.throttle.run),
                Service(name="housekeeping", run=relay.housekeeping.run),
                Service(
                    name="control socket",
                    run=partial(serve_control, config.control, telling.answers()),
                ),
                Service(name="drain", run=partial(_drain, relay, listeners, signals)),
                *watchdog_services(manager, relay.poller, stack),
                *status_services(manager, relay.status_line),
                Service(name="http", run=partial(serve_http, http, relay, telling)),
                *(
                    [plane, relay.admission.service, *accepting]
                    if relay.admission is not None
                    else [*accepting, plane]
                ),
            ]
            await nursery.start(supervise, services)
            _say_who_may_enter(config, credentials)
            log.get().info(
                "relay.started",
                listen=listen,
                control=config.control,
                http=http.address,
            )
            # On standard output, and nowhere else: it carries the token.
            port = Endpoint.of_socket(listeners[0].getsockname()).port
            _say_join(join_string(config, credentials, port))
            task_status.started()


def _say_join(join: JoinString) -> None:
    """Nobody may be there to read it, as when the terminal has just gone: a relay runs all the same."""
    try:
        print(join.format(), flush=True)
    except OSError as error:
        log.get().warning("relay.join_string_unread", reason=error.strerror)
        give_up_stdout()


def _say_who_may_enter(config: RelayConfig, credentials: Credentials) -> None:
    if config.auth == "optional":
        log.get().warning(
            "relay.auth_optional", meaning="a key that nobody has proved is anybody's who registers it"
        )
    if credentials.gate.open:
        log.get().warning("relay.open", meaning="any agent that proves its own key is let in")


def _use_drain_s(signals: Signals, config: RelayConfig) -> None:
    signals.drain_s = config.drain_s


async def _drain(
    relay: Relay,
    listeners: list[socket.socket],
    signals: Signals,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """When the process was asked to stop: take nobody in any more, let agents move, and say that it is
    done."""
    task_status.started()
    await signals.draining.wait()
    relay.draining = True
    await relay.doorway.shut()
    for listener in listeners:
        # Closed, so that who dials is refused at once and tries elsewhere.
        relay.poller.remove(listener.fileno())
        listener.close()
    await relay.housekeeping.drain(signals.drain_s)
    signals.drained.set()
    await trio.sleep_forever()


async def _accept(
    doorway: Doorway,
    listener: socket.socket,
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    task_status.started()
    await doorway.serve(listener)
