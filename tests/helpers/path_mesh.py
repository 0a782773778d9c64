"""Two nodes in the internet of NATs, with WireGuard, a relay and an agent each."""

from __future__ import annotations

import os
import re
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Interface
from itertools import pairwise
from typing import Any, Protocol

from relayd.demo.lab import Node
from relayd.demo.tunnel import Tunnel, join
from relayd.endpoints import Endpoint
from relayd.marks import RELAY_PORT
from tests.helpers.natlab import Internet, Nat, Site
from tests.helpers.netns import START_S, status_of, wait_until

INTERFACE = "wg0"
CONTROL = f"/run/relayd/agent-{INTERFACE}.sock"
RELAY_CONTROL = "/run/relayd/relay.sock"
TUNNEL = {"a": IPv4Interface("198.18.0.1/24"), "b": IPv4Interface("198.18.0.2/24")}
PORTS = {"a": 51820, "b": 51821}
"""Two, as hosts behind one NAT must have."""

PING_S = 0.01

RELAY_START_S = 90.0
"""In the emulated machine of the kernel tier an interpreter takes its time."""


class Program(Protocol):
    """A process that runs relayd."""

    def output(self) -> str:
        """What it has said."""

    def kill(self) -> object:
        """SIGKILL."""

    def wait(self) -> object:
        """Until it has ended."""


class Pings:
    """A `ping` every 10 ms from one end to the other, and what became of each."""

    def __init__(self, mesh: PathMesh, source: str = "a", seconds: float = 120.0) -> None:
        other = "b" if source == "a" else "a"
        self._mesh = mesh
        argv = ["ping", "-n", "-D", "-i", f"{PING_S:g}", "-w", f"{seconds:.0f}", str(TUNNEL[other].ip)]
        self.started_at = time.time()
        self.process = mesh.nodes[source].start(*argv)

    def answers(self) -> list[tuple[int, float, float]]:
        """(number, when the answer came in time.time(), round trip in seconds), as they came."""
        found = re.findall(
            r"^\[(\d+\.\d+)\] .*icmp_seq=(\d+) .*time=([\d.]+) ms", self.process.output(), re.M
        )
        return [(int(number), float(at), float(ms) / 1e3) for at, number, ms in found]

    def first_at(self) -> float | None:
        """When the first answer came; None: none has."""
        answers = self.answers()
        return answers[0][1] if answers else None

    def last_at(self) -> float | None:
        """When the last answer so far came; None: none has."""
        answers = self.answers()
        return answers[-1][1] if answers else None

    def stop(self) -> Result:
        """End it, and give what was on its way the time to arrive."""
        os.kill(self.process.pid, signal.SIGINT)  # which makes it print its summary
        self.process.wait()
        answers = self.answers()
        summary = re.search(r"(\d+) packets transmitted, (\d+) received", self.process.output())
        self._mesh.internet.lab.discard(self.process)
        assert summary is not None, "ping says no summary"
        return Result(int(summary[1]), answers, self.started_at)


@dataclass(frozen=True)
class Result:
    """What a run of pings came to. Times are of time.time()."""

    sent: int
    answers: list[tuple[int, float, float]]
    started_at: float

    def lost_at(self) -> list[float]:
        """About when each of the lost ones was sent: as the answered ones around it were."""
        sent = {number: at - trip_s for number, at, trip_s in self.answers}
        found, last = [], self.started_at
        lost = set(self.lost())
        for number in range(1, self.sent + 1):
            last = sent.get(number, last)
            if number in lost:
                found.append(last)
        return found

    def lost(self) -> list[int]:
        """Numbers without an answer. The last few may have been on their way when it ended."""
        heard = {number for number, _, _ in self.answers}
        return [number for number in range(1, self.sent - 100) if number not in heard]

    def most_copies(self) -> int:
        """How often the most often answered one was answered."""
        return max(Counter(number for number, _, _ in self.answers).values(), default=0)

    def silences(self, at_least_s: float = 0.5) -> list[tuple[float, float]]:
        """(when it began, seconds) of each time without an answer."""
        times = sorted(at for _, at, _ in self.answers)
        return [(a, b - a) for a, b in pairwise(times) if b - a >= at_least_s]


class PathMesh:
    """The internet, the relay, both tunnels; agents when they are started."""

    def __init__(
        self,
        a: tuple[Nat, ...] | Site = (),
        b: tuple[Nat, ...] | Site = (),
        *,
        agent: str = "",
        one_site: bool = False,
        **more: Any,
    ) -> None:
        """Each end's NATs, or its site as a whole. `agent`: lines for the agents' [agent] table. `one_site`:
        both hosts behind a's NAT. `more`: of all sites that are given by their NATs."""
        ends = {"a": a} if one_site else {"a": a, "b": b}
        if one_site:
            more["hosts"] = 2
        sites = [end if isinstance(end, Site) else Site(name, end, **more) for name, end in ends.items()]
        self.internet = Internet(sites, public=("relay",))
        try:
            self.relay_host = self.internet.host("relay")
            self.nodes = {"a": self.internet.host("a"), "b": self.internet.host("a2" if one_site else "b")}
            self.tunnels = {
                name: Tunnel(node, TUNNEL[name], name=INTERFACE, port=PORTS[name])
                for name, node in self.nodes.items()
            }
            join(self.tunnels["a"], self.tunnels["b"])
            self._agent = agent
            self.relay = self.run_relayd(
                self.relay_host, "serve", "--listen", f"0.0.0.0:{RELAY_PORT}", "--control", RELAY_CONTROL,
                "--state", "/run/relay", "--open", "--http", "off",
            )  # fmt: skip
            wait_until(lambda: status_of(self.relay_host, RELAY_CONTROL), "a relay answers", RELAY_START_S)
            self.join = self.relay_host.path("/run/relay").joinpath("relay.token")
            self.agents: dict[str, Program] = {}
            self.started_at = 0.0
        except BaseException:
            self.internet.lab.close()
            raise

    def __enter__(self) -> PathMesh:
        return self

    def __exit__(self, *_: object) -> None:
        self.internet.lab.close()

    def run_relayd(self, node: Node, *arguments: str) -> Program:
        """Start `relayd ARGUMENTS` there."""
        return node.relayd(*arguments)

    def start_agents(self, *names: str) -> None:
        """Start both agents, or those named."""
        self.started_at = time.time()
        for name in names or ("a", "b"):
            node = self.nodes[name]
            if not node.path("/run/agent.toml").exists():
                self.write_config(name, self._agent)
            self.agents[name] = self.run_relayd(
                node, "agent", "--config", "/run/agent.toml", "--insecure-relay", "--interface", INTERFACE,
                "--relay", f"{self.internet.address('relay')}:{RELAY_PORT}", "--state", "/run/wirekube",
                "--control", CONTROL, "--http", "off",
            )  # fmt: skip

    def write_config(self, name: str, lines: str) -> None:
        """What the agent's [agent] table says."""
        self.nodes[name].path("/run/agent.toml").write_text(f'[agent]\nlog = "json"\n{lines}\n')

    def status(self, name: str) -> Mapping[str, Any] | None:
        """The agent's only peer, as `relayd status` has it; None: no agent answers, or it hasn't looked
        yet."""
        status = status_of(self.nodes[name], CONTROL)
        return None if status is None or not status["peers"] else status["peers"][0]

    def wait_up(self, timeout_s: float = START_S) -> float:
        """Wait until the agents (all that were started) are connected to the relay and have given WireGuard
        an endpoint. time.time() then. A packet that comes before that has wireguard-go wait for 5 s."""
        for name in self.agents:
            wait_until(partial(self._is_up, name), f"the agent on {name} is connected", timeout_s)
        return time.time()

    def _is_up(self, name: str) -> bool:
        status = status_of(self.nodes[name], CONTROL)
        if status is None or status["relay"]["state"] != "connected":
            return False
        return self.endpoint(name) is not None

    def path(self, name: str) -> str:
        """The path of the agent's only peer; "" when nobody answers."""
        peer = self.status(name)
        return "" if peer is None else str(peer["path"])

    def late_packets(self, name: str) -> int:
        """Relayed packets that the agent handed to WireGuard as from the direct endpoint."""
        status = status_of(self.nodes[name], CONTROL)
        assert status is not None
        return int(status["direct_paths"]["late_packets"].get("handed over", 0))

    def wait_path(self, path: str, *names: str, timeout_s: float = START_S) -> float:
        """Wait until these (or both) ends have this path. time.time() then."""
        for name in names or ("a", "b"):
            wait_until(partial(self._has_path, name, path), f"{name} is {path}", timeout_s)
        return time.time()

    def _has_path(self, name: str, path: str) -> bool:
        return self.path(name) == path

    def endpoint(self, name: str) -> Endpoint | None:
        """What WireGuard holds."""
        return next(iter(self.tunnels[name].endpoints().values()))
