"""A network that isn't there: two nodes behind NATs of every kind, a relay between them, a clock that jumps.

Each node has a `Pathfinder` and a WireGuard that does what the kernel does (it sends where its endpoint says,
and roams to where authenticated packets come from). Packets are lost, delayed, doubled, cut off; addresses
change. All of it is drawn from one seed, so a run that fails can be run again."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, ip_address
from itertools import count
from math import inf

from relayd.endpoints import Endpoint
from relayd.keys import PrivateKey
from relayd.paths.acquaintance import Local
from relayd.paths.announcement import Send
from relayd.paths.birthday import SOCKETS, Attempt
from relayd.paths.candidates import Candidate, make
from relayd.paths.counters import KernelView
from relayd.paths.nat_class import Prediction
from relayd.paths.pathfinder import Pathfinder
from relayd.paths.selector import State
from relayd.wire.sealed_messages import Message, Ping, Pong
from tests.helpers.identities import drawn
from tests.helpers.path_nats import SEQUENTIAL, Nat
from tests.helpers.path_ways import Packet, Traffic, Way

WIREGUARD_PORT = 51820
CARRIERS = 60000
"""The first own port of the birthday method's sockets."""
CARRIED_AT = ip_address("127.64.0.1")
COUNT_EVERY_S = 5.0
READ_EVERY_S = 1.0
SESSION_S = 180.0
HEADER_BYTES = 81
"""What a sealed message has besides its body."""


class Node:
    """One end: its WireGuard, its agent's half of the path, its NAT."""

    def __init__(
        self, network: Network, name: str, nat: Nat, *, has_agent: bool = True, birthday: bool = False
    ) -> None:
        self.network, self.name, self.nat, self.has_agent = network, name, nat, has_agent
        self.key = PrivateKey(drawn(f"{network.seed} {name}"))
        self.endpoint: Endpoint | None = None
        """WireGuard's; None: the proxy's."""
        self.rx = self.tx = self.relayed = 0
        self.handshake_at = -inf
        self.traffic = Traffic()
        self.every_s = inf
        """Between two packets that the node sends through the tunnel."""
        self.path: Pathfinder | None = None
        self.changes: list[tuple[float, bool]] = []
        """When the path became direct (True) or relayed."""
        self.hold_s: float | None = None
        """As measured; None: by custom."""
        self.birthday = birthday
        self.carriers: dict[int, Endpoint] = {}
        """Open sockets of the birthday method, by own port, and where they send to."""
        self.attempt: Attempt | None = None
        self.inner = Endpoint(ip_address(f"10.0.0.{len(network.nodes) + 1}"), WIREGUARD_PORT)

    def local(self) -> Local:
        """What the agent knows of its own end: STUN has answered, unless UDP is blocked."""
        candidates: list[Candidate] = [make("host", self.inner)]
        mapped = self.nat.outside(WIREGUARD_PORT, self.network.stun, self.network.now)
        if mapped is not None and self.nat.kind != "none":
            candidates.append(make("srflx", mapped, base=self.inner.address))
        if self.nat.kind == "none":
            candidates = [make("host", Endpoint(self.nat.public, WIREGUARD_PORT))]
        prediction = None
        if self.nat.kind == SEQUENTIAL and mapped is not None:
            now = self.network.now
            other = self.nat.outside(WIREGUARD_PORT + 1, Endpoint(self.network.stun.address, int(now)), now)
            assert other is not None
            prediction = Prediction(mapped, 1).following(other)
        return Local(
            candidates=tuple(candidates),
            hold_s=self.hold_s if self.hold_s is not None else inf if self.nat.kind == "none" else 10.0,
            prediction=prediction,
            symmetric=self.nat.kind in ("symmetric", SEQUENTIAL),
            birthday=self.birthday,
        )

    def begin(self, peer: Node) -> None:
        """Start the agent's half."""
        network = self.network
        self.path = Pathfinder(
            self.key.public(),
            peer.key.public(),
            session=network.draw(8),
            local=self.local(),
            draw=network.draw,
            now=network.now,
        )


class Network:
    """Two nodes, everything between them, and the clock."""

    def __init__(
        self,
        seed: int,
        nat_a: str,
        nat_b: str,
        *,
        agents: tuple[bool, bool] = (True, True),
        birthday: bool = False,
    ) -> None:
        self.seed, self.rng, self.now = seed, random.Random(seed), 1000.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = count()
        self.stun = Endpoint(ip_address("192.0.2.1"), 3478)
        self.nodes: list[Node] = []
        self.relay_up = True
        self.relay_delay_s = 0.03
        self.same_lan = False
        self.log: list[str] = []
        for name, kind, agent in (("a", nat_a, agents[0]), ("b", nat_b, agents[1])):
            public = IPv4Address(f"203.0.113.{len(self.nodes) + 1}")
            nat = Nat(kind, public, self.rng)
            self.nodes.append(Node(self, name, nat, has_agent=agent, birthday=birthday))
        self.a, self.b = self.nodes
        self.ways = {"a": Way(), "b": Way()}
        """By the sender."""
        self._fresh = count(10)
        self._wakes: dict[str, float] = {"a": inf, "b": inf}

    def draw(self, size: int) -> bytes:
        """Random bytes of this run."""
        return self.rng.randbytes(size)

    def other(self, node: Node) -> Node:
        """The other end."""
        return self.b if node is self.a else self.a

    # The clock ----------------------------------------------------------------------------------------------

    def at(self, when: float, what: Callable[[], None]) -> None:
        """Do something later."""
        heapq.heappush(self._events, (when, next(self._numbers), what))

    def run(self, seconds: float) -> None:
        """Let time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            when, _, what = heapq.heappop(self._events)
            self.now = max(self.now, when)
            what()
        self.now = end

    def start(self) -> None:
        """Both agents start, at about the same time."""
        for node in self.nodes:
            if node.has_agent:
                self.at(self.now + self.rng.uniform(0, 0.5), partial(self._start, node))

    def _start(self, node: Node) -> None:
        node.begin(self.other(node))
        self._read(node)
        self.set_relay(node, self.relay_up)
        if node.nat.kind == SEQUENTIAL:
            self.at(self.now + COUNT_EVERY_S, partial(self._count, node))

    def _count(self, node: Node) -> None:
        """What `own_addresses` does: where a NAT that counts is by now is looked at while it is of use."""
        self.at(self.now + COUNT_EVERY_S, partial(self._count, node))
        if node.path is not None and not node.path.direct:
            node.path.localize(node.local(), self.now)
            self._act(node)

    def set_relay(self, node: Node, up: bool) -> None:
        """The node's link to the relay comes or goes."""
        if node.path is not None:
            node.path.relay_is(up, self.now)
            self._act(node)

    def cut_relay(self, up: bool) -> None:
        """The relay itself comes or goes."""
        self.relay_up = up
        for node in self.nodes:
            self.set_relay(node, up)

    # The agent ----------------------------------------------------------------------------------------------

    def _read(self, node: Node) -> None:
        self._look(node)
        self.at(self.now + READ_EVERY_S, lambda: self._read(node))

    def _look(self, node: Node) -> None:
        path = node.path
        if path is None:
            return
        view = KernelView(
            endpoint=node.endpoint,
            session=self.now - node.handshake_at < SESSION_S,
            rx_bytes=node.rx,
            tx_bytes=node.tx,
            relayed_bytes=node.relayed,
        )
        path.saw(view, self.now)
        self._act(node)

    def _act(self, node: Node) -> None:
        path = node.path
        if path is None:
            return
        before = path.direct
        for send in path.act(self.now):
            self._say(node, send)
        self._follow_attempt(node, path)
        if path.direct is not before:
            self.changes_of(node, path.direct)
        verdict = path.verdict(self.now)
        if verdict is not None:
            wanted = verdict.endpoint
            if node.endpoint != wanted:
                node.endpoint = wanted
                path.was_set(wanted)
        self._wake_at(node, max(path.next_at(self.now), self.now + 0.001))

    def _follow_attempt(self, node: Node, path: Pathfinder) -> None:
        """What `agent.carriers` does."""
        attempt = path.birthday.attempt
        present = path.selector.endpoint if path.direct else None
        if present is not None:
            node.carriers = {port: to for port, to in node.carriers.items() if port == present.port}
        if attempt is not node.attempt:
            node.attempt = attempt
            known = path.checklist.pairs
            node.carriers = {
                port: to for port, to in node.carriers.items() if Endpoint(CARRIED_AT, port) in known
            }
            if attempt is not None:
                first = max((CARRIERS, *node.carriers)) + 1
                for port in range(first, first + SOCKETS):
                    node.carriers[port] = attempt.to
                    self._directly(node, Endpoint(CARRIED_AT, port), Ping(self.draw(12)), HEADER_BYTES + 31)
                for send in path.opened(SOCKETS, self.now):
                    self._say(node, send)

    def changes_of(self, node: Node, direct: bool) -> None:
        """Note a change of path."""
        node.changes.append((self.now, direct))
        path = node.path
        assert path is not None
        selector = path.selector
        self.log.append(f"{self.now - 1000:8.3f} {node.name} {selector.state.value}: {selector.reason}")

    def _wake_at(self, node: Node, when: float) -> None:
        if when == inf or self.now < self._wakes[node.name] <= when:
            return
        self._wakes[node.name] = when

        def wake() -> None:
            if self._wakes[node.name] == when:
                self._wakes[node.name] = inf
                self._act(node)

        self.at(when, wake)

    def _say(self, node: Node, send: Send) -> None:
        message = send.message
        size = HEADER_BYTES + (message.body_bytes if isinstance(message, Ping | Pong) else 300)
        if send.to is None:
            self._by_relay(node, message, size)
        else:
            self._directly(node, send.to, message, size)

    def _hear(self, node: Node, message: Message, source: Endpoint | None) -> None:
        if node.path is None:
            return
        for send in node.path.heard(message, source, self.now):
            self._say(node, send)
        self._act(node)

    # Ways ---------------------------------------------------------------------------------------------------

    def _by_relay(self, node: Node, what: Message | Packet, size: int) -> None:
        if not self.relay_up:
            return
        to = self.other(node)

        def arrive() -> None:
            if not self.relay_up:
                return
            if isinstance(what, Packet):
                if to.path is None:
                    return
                to.relayed += what.size
                spoofed = to.path.selector.endpoint if to.path.direct else None
                self._receive(to, what, spoofed)  # a switched peer's: handed over as if it had come directly
            else:
                self._hear(to, what, None)

        self.at(self.now + self.relay_delay_s, arrive)

    def _directly(self, node: Node, to: Endpoint, what: Message | Packet, size: int) -> None:
        other, way = self.other(node), self.ways[node.name]
        if way.cut or size > way.max_bytes:
            return
        own_port = WIREGUARD_PORT
        if to.is_loopback():
            own_port = to.port
            if own_port not in node.carriers:
                return
            to = node.carriers[own_port]
        if self.same_lan and to == other.inner:
            source, lan = node.inner, True
        else:
            outside = node.nat.outside(own_port, to, self.now)
            if outside is None:
                return
            source, lan = outside, False
        copies = 2 if self.rng.random() < way.duplicate else 1
        for _ in range(copies):
            if self.rng.random() < way.loss:
                continue
            delay = way.delay_s + self.rng.uniform(0, way.jitter_s)
            self.at(self.now + delay, lambda: self._arrive(other, source, to, what, lan=lan))

    def _arrive(
        self, node: Node, source: Endpoint, to: Endpoint, what: Message | Packet, *, lan: bool
    ) -> None:
        if not lan:
            own_port = node.nat.lets_in(source, to, self.now) if to.address == node.nat.public else None
            if own_port is None:
                return
            if own_port != WIREGUARD_PORT and node.nat.kind != "none":
                if own_port not in node.carriers:
                    return
                source = Endpoint(CARRIED_AT, own_port)
        if isinstance(what, Packet):
            self._receive(node, what, source)
        else:
            self._hear(node, what, source)

    # WireGuard ----------------------------------------------------------------------------------------------

    def _receive(self, node: Node, packet: Packet, source: Endpoint | None) -> None:
        received = node.traffic.received
        received[packet.number] = received.get(packet.number, 0) + 1
        if received[packet.number] > 1:
            return  # WireGuard's own window drops it, and it moves nothing
        node.rx += packet.size
        node.handshake_at = self.now
        node.endpoint = source  # it roams

    def send_traffic(self, node: Node, every_s: float) -> None:
        """The node sends a packet through the tunnel every so often, from now on; inf: no more."""
        begins = node.every_s == inf
        node.every_s = every_s
        if begins and every_s < inf:
            self._send_packet(node)

    def _send_packet(self, node: Node) -> None:
        if node.every_s == inf:
            return
        packet = Packet(next(self._numbers))
        node.traffic.sent[packet.number] = self.now
        node.tx += packet.size
        if node.endpoint is None:
            self._by_relay(node, packet, packet.size)
        else:
            self._directly(node, node.endpoint, packet, packet.size)
        self.at(self.now + node.every_s, lambda: self._send_packet(node))

    # What happens to it -------------------------------------------------------------------------------------

    def move(self, node: Node) -> None:
        """The node gets another public address; its agent hears of it, and asks STUN again."""
        node.nat.renumber(IPv4Address(f"203.0.113.{next(self._fresh)}"))
        if node.path is not None:
            node.path.localize(node.local(), self.now, moved=True)
            self._act(node)

    # What is looked at --------------------------------------------------------------------------------------

    def both_direct(self) -> bool:
        """Whether both ends have a direct path, by their own decision."""
        return all(node.path is not None and node.path.direct for node in self.nodes)

    def both_relayed(self) -> bool:
        """Whether both ends send by the relay."""
        return all(
            node.path is not None and node.path.selector.state is not State.DIRECT and node.endpoint is None
            for node in self.nodes
        )

    def lost(self, sender: Node, since: float, until: float) -> int:
        """Packets of `sender`, sent within these times, that never arrived."""
        received = self.other(sender).traffic.received
        sent = sender.traffic.sent
        return sum(since <= at < until and number not in received for number, at in sent.items())
