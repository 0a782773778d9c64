"""The host's routing and firewall in memory, for tests of what uses them; held to the same claims as the real
ones (tests/helpers/host_contract.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import TypeVar

from relayd.errors import HostError
from relayd.kernel import links
from relayd.kernel.cleanup import InterfaceDevice
from relayd.kernel.device import Interface, Network
from relayd.kernel.firewall import KUBE_PROXY, Chain
from relayd.kernel.routing import (
    LOCAL,
    MAIN,
    WHOLE_MARK,
    Address,
    Hop,
    RefusedRoutesError,
    Route,
    RoutingChanges,
    RoutingState,
    Rule,
)

DEFAULT = 253
Word = TypeVar("Word", bool, str)


def default_rules() -> list[Rule]:
    """The rules that a network namespace begins with."""
    rules = [Rule(version=version, priority=0, table=LOCAL) for version in (4, 6)]
    rules += [Rule(version=version, priority=32766, table=MAIN) for version in (4, 6)]
    rules.append(Rule(version=4, priority=32767, table=DEFAULT))
    return sorted(rules, key=lambda one: (one.version, one.priority))


class FakeRouting:
    """Rules, relayd's table, and a main table that the test fills. `writes` lists what was written."""

    def __init__(self) -> None:
        self.rules = default_rules()
        self.routes: list[Route] = []
        self.main: dict[Network, str] = {}
        """Destination -> device."""
        self.writes: list[RoutingChanges] = []
        self.failure: HostError | None = None
        self.without: set[int] = set()
        """Versions of which no route can be set."""

    async def read(self) -> RoutingState:
        self._check()
        return RoutingState(versions=(4, 6), rules=tuple(self.rules), routes=tuple(self.routes))

    async def write(self, changes: RoutingChanges) -> None:
        self._check()
        if not changes:
            return
        self.writes.append(changes)
        for rule in changes.add_rules:
            if rule not in self.rules:
                self.rules.append(rule)
                self.rules.sort(key=lambda one: (one.version, one.priority))
        for rule in changes.remove_rules:
            if rule in self.rules:
                self.rules.remove(rule)
        for gone in changes.remove_routes:
            self.routes = [route for route in self.routes if not _same_place(route, gone)]
        refused = [route for route in changes.set_routes if route.destination.version in self.without]
        for new in (route for route in changes.set_routes if route not in refused):
            self.routes = [route for route in self.routes if not _same_place(route, new)] + [new]
        if refused:
            raise RefusedRoutesError({route: HostError(f"cannot set {route}") for route in refused})

    async def look_up(self, addresses: Sequence[Address], *, mark: int) -> list[Hop | None]:
        self._check()
        return [self._hop(address, mark) for address in addresses]

    def _hop(self, address: Address, mark: int) -> Hop | None:
        for rule in self.rules:
            matches = rule.mark is None or rule.mark == mark & rule.mask
            if rule.version == address.version and matches and not rule.selectors:
                if rule.table == LOCAL and address == ip_address("127.0.0.1"):
                    return Hop(device="lo", table=LOCAL)
                ours = [(route.destination, route.device) for route in self.routes]
                table = {LOCAL: [], MAIN: list(self.main.items())}.get(rule.table, ours)
                fitting = [(net.prefixlen, device) for net, device in table if address in net]
                if fitting and (rule.table in (LOCAL, MAIN) or ours):
                    return Hop(device=max(fitting)[1], table=rule.table)
        return None

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


def _same_place(one: Route, other: Route) -> bool:
    return (one.destination, one.metric) == (other.destination, other.metric)


class FakeFirewall:
    """KUBE-FIREWALL in the variants that `chains_of` has: a list of rules each, ours being True.

    `nat` is POSTROUTING by (variant, version), of "ours", "jump" (to KUBE-POSTROUTING) and other words.
    """

    def __init__(self, **chains_of: list[bool]) -> None:
        self.chains_of = chains_of
        self.nat: dict[tuple[str, int], list[str]] = {}
        self.calls: list[str] = []
        self.failure: HostError | None = None

    async def chains(self) -> list[Chain]:
        self._check()
        found = [
            Chain(variant, len(rules), _numbers(rules, True)) for variant, rules in self.chains_of.items()
        ]
        for (variant, version), rules in self.nat.items():
            ours, jump = _numbers(rules, "ours"), next(iter(_numbers(rules, "jump")), 0)
            if ours or jump:
                found.append(Chain(variant, len(rules), ours, KUBE_PROXY, version, jump))
        return found

    async def insert(self, chain: Chain) -> None:
        self._check()
        self.calls.append(f"insert {chain.variant}")
        if chain.exemption is KUBE_PROXY:
            self.nat[chain.variant, chain.version].insert(chain.place - 1, "ours")
        else:
            self.chains_of[chain.variant].insert(chain.place - 1, True)

    async def delete(self, chain: Chain) -> None:
        self._check()
        self.calls.append(f"delete {chain.variant}")
        if chain.exemption is KUBE_PROXY:
            rules = self.nat[chain.variant, chain.version]
            self.nat[chain.variant, chain.version] = _without_first(rules, "ours")
        else:
            self.chains_of[chain.variant] = _without_first(self.chains_of[chain.variant], True)

    def _check(self) -> None:
        if self.failure is not None:
            raise self.failure


def _numbers(rules: Sequence[object], wanted: object) -> tuple[int, ...]:
    return tuple(number for number, rule in enumerate(rules, 1) if rule == wanted)


def _without_first(rules: list[Word], word: Word) -> list[Word]:
    if word not in rules:
        return rules
    at = rules.index(word)
    return rules[:at] + rules[at + 1 :]


class FakeDevice(InterfaceDevice):
    """The interfaces that cleanup sees."""

    def __init__(self, link: links.Link | None = None, interface: Interface | None = None) -> None:
        self.link, self.interface = link, interface
        self.more: dict[str, tuple[links.Link, Interface]] = {}
        """Interfaces beside it, by name."""
        self.removed: list[str] = []

    async def look(self, name: str) -> tuple[links.Link | None, Interface | None]:
        found = self.link is not None and self.link.name == name
        return (self.link, self.interface) if found else self.more.get(name, (None, None))

    async def remove(self, name: str) -> None:
        self.removed.append(name)
        if self.more.pop(name, None) is None:
            self.link = self.interface = None


def proc_sys(root: Path, **values: str) -> Path:
    """A directory like /proc/sys. `values`: paths with __ for / -> content."""
    for name, value in values.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
    root.mkdir(parents=True, exist_ok=True)
    return root


__all__ = [
    "WHOLE_MARK",
    "FakeDevice",
    "FakeFirewall",
    "FakeRouting",
    "default_rules",
    "proc_sys",
]
