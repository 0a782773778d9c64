"""What happens to two simulated nodes, drawn from a seed, and what must hold whatever happens.

never direct without proof    while something is sent and the relay would answer, a direct pair's last
                              answered Ping (or its last received packet) is not older than PROOF_S
proof when it begins          a full-size Ping was answered on that very pair, within ANSWER_S; likewise of a
                              pair that takes the place of another, unless WireGuard was heard from there
never against theory          no direct path where NATs, a dead direction or a small MTU forbid one
never stuck on the relay      once nothing happens any more, a pair that works is in use in the end, at both
                              ends
no oscillation                at most 2 changes of path in 5 minutes, and 2 more for each thing that happened
both ends agree               in the end
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import inf

from relayd.endpoints import Endpoint
from relayd.paths.checklist import ANSWER_S
from relayd.paths.selector import SILENT_S
from tests.helpers.path_nats import NATS, SEQUENTIAL, can_punch, may_punch
from tests.helpers.path_network import READ_EVERY_S, Network, Node

PROOF_S = SILENT_S + 2 * READ_EVERY_S
LOOK_EVERY_S = 0.25
FOUND = "WireGuard's endpoint answers Pings"
"""Not a promotion: the endpoint was there before, and works."""

LAST_S = 140.0
"""Longer than ROUND_EVERY_S: after that, what works was found."""
LOSSY_LAST_S = 4 * LAST_S
"""At 30 % loss a round of checks comes to nothing 7 times in 100, at either end."""


@dataclass
class Scenario:
    """One run: who stands where, and what happens when."""

    seed: int
    nat_a: str
    nat_b: str
    steady: str
    events: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    """Invariants that didn't hold."""

    def __str__(self) -> str:
        events = ", ".join(self.events) or "calm"
        return f"seed {self.seed}: {self.nat_a} and {self.nat_b}, {self.steady}, {events}"


STEADY = ("clean", "clean", "loss", "one way", "slow", "double", "small mtu", "jitter")
HAPPENINGS = ("cut", "one-way cut", "move", "relay away", "quiet")


def run(seed: int) -> Scenario:
    """Run one scenario to its end; `broken` says what didn't hold."""
    return Run(seed).to_the_end()


class Run:
    """One scenario under way."""

    def __init__(self, seed: int) -> None:
        network = self.network = Network(seed, "none", "none")
        rng = self.rng = network.rng
        kinds = [rng.choice(NATS[:5] * 3 + ("blocked",)) for _ in network.nodes]
        # Not drawn, so that seeds which once broke something stay what they were.
        if seed % 5 == 4:
            kinds = [SEQUENTIAL if kind == "symmetric" else kind for kind in kinds]
        self.birthday = seed % 4 == 3
        for node, kind in zip(network.nodes, kinds, strict=True):
            node.nat.kind = kind
            node.birthday = self.birthday
        network.same_lan = rng.random() < 0.1
        network.relay_delay_s = rng.uniform(0.001, 0.15)
        self.scenario = Scenario(seed, kinds[0], kinds[1], rng.choice(STEADY))
        self._impair(self.scenario.steady)
        self.cuts = 0
        """Ways that are cut now."""
        self.happened = 0
        self.direct_since = {"a": inf, "b": inf}
        self.direct_by: dict[str, Endpoint | None] = {"a": None, "b": None}
        """On which pair."""

    def _impair(self, steady: str) -> None:
        rng, ways = self.rng, self.network.ways
        for way in ways.values():
            way.delay_s = rng.uniform(0.0005, 0.1)
            if steady == "loss":
                way.loss = 0.3
            elif steady == "slow":
                way.delay_s = 0.2
            elif steady == "double":
                way.duplicate = 0.5
            elif steady == "jitter":
                way.jitter_s = 0.1
            elif steady == "small mtu":
                way.max_bytes = 1400
        if steady == "one way":
            ways[rng.choice("ab")].loss = 1.0

    def works(self) -> bool:
        """Whether a direct pair would carry everything, both ways, as things are."""
        network, scenario = self.network, self.scenario
        if self.cuts or scenario.steady in ("one way", "small mtu"):
            return False
        return network.same_lan or can_punch(scenario.nat_a, scenario.nat_b)

    def to_the_end(self) -> Scenario:
        """Start, let things happen, look all the while, and see where it ends."""
        network, rng = self.network, self.rng
        network.start()
        self._traffic()
        network.at(network.now + LOOK_EVERY_S, self._look)
        at = network.now
        for _ in range(rng.choice((0, 0, 1, 1, 2))):
            at += rng.uniform(2.0, 40.0)
            self._plan(rng.choice(HAPPENINGS), at)
        network.run(at - network.now + 60.0)
        last_s = LOSSY_LAST_S if self.scenario.steady == "loss" else LAST_S
        waits = [node.path.selector.damping.until - network.now for node in network.nodes if node.path]
        network.run(max(0.0, *waits) + last_s if self.works() and not network.both_direct() else 20.0)
        self._judge()
        return self.scenario

    def _traffic(self) -> None:
        network, rng = self.network, self.rng
        for node in network.nodes:
            every_s = rng.choice((0.1, 0.3, 1.0, inf))
            if every_s < inf:
                network.at(
                    network.now + rng.uniform(0.0, 10.0),
                    partial(network.send_traffic, node, every_s),
                )

    def _plan(self, what: str, at: float) -> None:
        network, rng = self.network, self.rng
        self.scenario.events.append(f"{what} at {at - 1000:.1f}")
        lasts_s = rng.uniform(0.5, 30.0)

        def later(when: float, do: Callable[[], None]) -> None:
            network.at(when, do)

        if what in ("cut", "one-way cut"):
            names = "ab" if what == "cut" else rng.choice("ab")
            later(at, lambda: self._cut(names, cut=True))
            later(at + lasts_s, lambda: self._cut(names, cut=False))
        elif what == "move":
            node = rng.choice(network.nodes)
            later(at, lambda: self._move(node))
        elif what == "relay away":
            later(at, lambda: self._relay(up=False))
            later(at + lasts_s, lambda: self._relay(up=True))
        else:
            later(at, self._fall_silent)

    def _fall_silent(self) -> None:
        for node in self.network.nodes:
            self.network.send_traffic(node, inf)

    def _cut(self, names: str, *, cut: bool) -> None:
        self.happened += 1
        self.cuts += len(names) if cut else -len(names)
        for name in names:
            self.network.ways[name].cut = cut

    def _move(self, node: Node) -> None:
        self.happened += 1
        self.network.move(node)

    def _relay(self, *, up: bool) -> None:
        self.happened += 1
        self.network.cut_relay(up)

    # What must hold -----------------------------------------------------------------------------------------

    def _look(self) -> None:
        network = self.network
        network.at(network.now + LOOK_EVERY_S, self._look)
        for node in network.nodes:
            self._look_at(node)

    def _look_at(self, node: Node) -> None:
        path, now, network = node.path, self.network.now, self.network
        if path is None:
            return
        if not path.direct:
            self.direct_since[node.name], self.direct_by[node.name] = inf, None
            return
        before, self.direct_by[node.name] = self.direct_by[node.name], path.selector.endpoint
        if before not in (None, path.selector.endpoint):
            self.direct_since[node.name] = now  # of this pair: its last proof may be ANSWER_S old
            pair = path.checklist.pairs.get(path.selector.endpoint)  # type: ignore[arg-type]
            proved_at = max(-inf if pair is None else pair.valid_at, path.counters.heard_at)
            if now - proved_at > ANSWER_S + LOOK_EVERY_S:
                self._broke(f"{node.name} went to another pair without proof")
        if self.direct_since[node.name] == inf:
            self.direct_since[node.name] = now
            pair = path.checklist.pairs.get(path.selector.endpoint)  # type: ignore[arg-type]
            found = any(change.reason == FOUND for change in list(path.selector.history)[-2:])
            proved_at = -inf if pair is None else pair.answered_at if found else pair.valid_at
            if now - proved_at > ANSWER_S + LOOK_EVERY_S:
                self._broke(f"{node.name} is direct without a full-size Ping answered")
        if not network.relay_up or node.every_s > 1.0 or not network.other(node).path:
            self.direct_since[node.name] = now  # nothing is sent, or nothing better is there
            return
        proved_at = max(path.beat.answered_at, path.counters.heard_at, self.direct_since[node.name])
        if now - proved_at > PROOF_S:
            self._broke(f"{node.name} is direct, and the last proof is {now - proved_at:.1f} s old")

    def _judge(self) -> None:
        network, scenario = self.network, self.scenario
        direct = [bool(node.path and node.path.direct) for node in network.nodes]
        if direct[0] is not direct[1]:
            self._broke(f"the ends don't agree: {direct}")
        if self.works() and not all(direct):
            self._broke("stuck on the relay")
        theory = network.same_lan or may_punch(scenario.nat_a, scenario.nat_b, birthday=self.birthday)
        if any(direct) and (not theory or scenario.steady in ("one way", "small mtu")):
            self._broke("direct against theory")
        for node in network.nodes:
            allowed = 2 + 2 * self.happened
            if len(node.changes) > allowed:
                self._broke(f"{node.name} changed {len(node.changes)} times, {allowed} are allowed")

    def _broke(self, what: str) -> None:
        if len(self.scenario.broken) < 5:
            self.scenario.broken.append(f"{self.network.now - 1000:.2f}: {what}")
