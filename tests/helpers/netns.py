"""For tests with real processes in namespaces: waiting, asking, pinging, and what a node looks like."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, TypeVar

import trio

from relayd.demo.lab import RELAYD, Lab, Node
from relayd.demo.process import Process
from relayd.demo.stage import CONTROL_AGENT, CONTROL_RELAY, Theatre
from relayd.demo.timeline import Timeline
from relayd.demo.traffic import parse_ping_line, ping_argv
from relayd.endpoints import Endpoint
from relayd.keys import PublicKey
from relayd.observe import control

START_S = 20.0
"""For an interpreter to start, and an agent to connect, on a machine that is busy with other things."""

BACK_S = 40.0
"""For traffic to be back: a wait and a dial of the backoff, and WireGuard's own handshake retries (5 s)."""

T = TypeVar("T")


def wait_until(ask: Callable[[], T | None], what: str, timeout_s: float = START_S) -> T:
    """The first true answer. Raises TimeoutError that says what did not happen, and the last answer."""
    deadline = time.monotonic() + timeout_s
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s (last: {answer!r})")
        time.sleep(0.05)
    return answer


def status_of(node: Node, path: str) -> dict[str, Any] | None:
    """What the process at the control socket `path` of the node answers; None: nobody does."""
    try:
        return trio.run(control.ask, str(node.path(path)), "status")
    except control.NobodyAnswersError:
        return None


def agent_status(node: Node) -> dict[str, Any]:
    """The agent's own words, once it answers."""
    return wait_until(lambda: status_of(node, CONTROL_AGENT), f"an agent on {node.name} answers")


def relay_status(node: Node) -> dict[str, Any]:
    """The relay's own words, once it answers."""
    return wait_until(lambda: status_of(node, CONTROL_RELAY), "a relay answers")


def shown_status(node: Node) -> str:
    """What `relayd status` prints there, on a wide terminal, in one line."""
    return " ".join(node.run("env", "COLUMNS=1000", *RELAYD, "status").split())


def is_registered(node: Node) -> bool:
    """Whether the node's agent is connected to its relay."""
    status = status_of(node, CONTROL_AGENT)
    return status is not None and status["relay"]["state"] == "connected"


def is_connected(node: Node) -> bool:
    """Whether the node's agent is connected to its relay, and all its peers are on it."""
    status = status_of(node, CONTROL_AGENT)
    return (
        status is not None
        and status["relay"]["state"] == "connected"
        and all(peer["path"] == "relay" for peer in status["peers"])
    )


def wait_connected(node: Node, timeout_s: float = START_S) -> None:
    """Wait until the node's agent carries."""
    wait_until(lambda: is_connected(node), f"the agent on {node.name} is connected", timeout_s)


class Pings:
    """A ping that runs beside the test."""

    def __init__(self, lab: Lab, node: Node, to: IPv4Address, *, seconds: float = 120.0) -> None:
        self._lab, self.started_at = lab, time.time()
        self.process = node.start(*ping_argv(to, seconds=seconds))

    def timeline(self) -> Timeline:
        """What it has told so far."""
        timeline = Timeline(self.started_at)
        for line in self.process.output().splitlines():
            if (heard := parse_ping_line(line)) is not None:
                timeline.add(heard)
        return timeline

    def wait_back(self, since: float | None = None, timeout_s: float = BACK_S) -> None:
        """Wait until pings sent after `since` (time.time(); None: now) are answered steadily."""
        at = time.time() if since is None else since
        wait_until(lambda: self.timeline().back_after(at) is not None, "pings are answered", timeout_s)

    def wait_silent(self, timeout_s: float = START_S) -> None:
        """Wait until the latest ping is one that nobody answered."""
        wait_until(
            lambda: (gaps := self.timeline().gaps()) and gaps[-1].end_s is None, "pings are lost", timeout_s
        )

    def stop(self) -> Timeline:
        """End it. All that it has told."""
        self.process.kill()
        self.process.wait()
        timeline = self.timeline()
        self._lab.discard(self.process)
        return timeline


DIRECT_NETWORK = IPv4Network("203.0.113.0/24")


class Mesh:
    """The demonstration's theatre with everything running: two nodes, the relay, two agents."""

    def __init__(
        self, lab: Lab, *, agent_config: str = "", direct: bool = False, relay_flags: tuple[str, ...] = ()
    ) -> None:
        """`relay_flags` are the relay's; `agent_config`: what the agents' `[agent]` table says. With `direct`
        there is a wire from a to b too, and WireGuard on both has the other's address on it as endpoint."""
        self.lab, self.theatre = lab, Theatre(lab)
        self.a, self.b, self.relay_host = self.theatre.a, self.theatre.b, self.theatre.relay_host
        self._config, self._relay_flags = agent_config, relay_flags
        if direct:
            self._wire_directly()
        self.relay = self.theatre.start_relay(*self._relay_flags)
        self.agents = {node.name: self.start_agent(node) for node in (self.a, self.b)}
        for node in (self.a, self.b):
            ready = partial(is_registered if direct else is_connected, node)
            wait_until(ready, f"the agent on {node.name} is connected")

    def _wire_directly(self) -> None:
        self.lab.wire(self.a, self.b, DIRECT_NETWORK)
        both = (self.a, self.theatre.tunnel_a), (self.b, self.theatre.tunnel_b)
        for (_, tunnel), (other, remote) in (both, both[::-1]):
            address = next(address for name, address in other.addresses.items() if name != "relay")
            tunnel.add_peer(
                remote.public_key,
                [f"{remote.address.ip}/32"],
                endpoint=Endpoint(address, remote.port),
                keepalive_s=1,
            )

    def start_agent(self, node: Node) -> Process:
        """A new agent on the node."""
        if not self._config:
            return self.theatre.start_agent(node)
        write(node, "/run/agent.toml", f"[agent]\n{self._config}\n")
        return self.theatre.start_agent(node, "--config", "/run/agent.toml")

    def restart_relay(self) -> None:
        """A new relay in place of one that ended."""
        self.lab.discard(self.relay)
        self.relay = self.theatre.start_relay(*self._relay_flags)

    def restart_agent(self, node: Node) -> None:
        """A new agent in place of one that ended."""
        self.lab.discard(self.agents[node.name])
        self.agents[node.name] = self.start_agent(node)

    def pings(self) -> Pings:
        """Ping from a to b, through the tunnel."""
        return Pings(self.lab, self.a, self.theatre.tunnel_b.address.ip)

    def endpoint_strings(self) -> dict[PublicKey, str]:
        """What WireGuard on both nodes holds: peer -> endpoint."""
        both = self.theatre.tunnel_a.endpoints() | self.theatre.tunnel_b.endpoints()
        return {key: str(endpoint) for key, endpoint in both.items()}


def write(node: Node, path: str, text: str, *, mode: int = 0o600) -> None:
    """A file in the node; below /run it is the node's alone."""
    place: Path = node.path(path)
    place.touch(mode)
    place.write_text(text)


def drop_packets(node: Node, *matches: str) -> None:
    """Let the node lose what matches, both ways, and nothing else any more.

    A match is nft's, on the sender as the packets come in (`tcp sport 1234`, `ip saddr 192.0.2.1`).
    """
    rules = ""
    for match in matches:
        outwards = match.replace("sport", "dport").replace("saddr", "daddr")
        rules += f"add rule inet test in {match} drop\nadd rule inet test out {outwards} drop\n"
    node.run(
        "nft", "-f", "-",
        stdin="add table inet test\ndelete table inet test\nadd table inet test\n"
        "add chain inet test in { type filter hook input priority 0; }\n"
        "add chain inet test out { type filter hook output priority 0; }\n" + rules,
    )  # fmt: skip


def snapshot(node: Node) -> dict[str, str]:
    """What a process could have changed of the node's network and of its files below /run and /var/lib."""
    commands = {
        "links": ["ip", "-o", "link"],
        "addresses": ["ip", "-o", "address"],
        "routes": ["ip", "route", "show", "table", "all"],
        "rules": ["ip", "rule"],
        "nftables": ["nft", "list", "ruleset"],
        "wireguard": ["wg", "show", "all", "dump"],
        "files": ["find", "/run", "/var/lib/wirekube"],
    }
    seen = {}
    for name, argv in commands.items():
        seen[name] = node.run("sh", "-c", '"$@" 2>&1 || true', "sh", *argv)
    return seen
