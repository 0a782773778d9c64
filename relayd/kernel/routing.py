"""Policy rules of this host, the routes of relayd's own table, and where a packet would go: as values.

`host_rules` decides what there should be. Here it is read and written, by netlink, each call in a worker
thread with a deadline (see `rtnl`).
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Protocol

from pyroute2 import AsyncIPRoute
from pyroute2.netlink.exceptions import NetlinkError

from relayd import marks
from relayd.errors import HostError
from relayd.kernel import hints, rtnl
from relayd.kernel.device import Network

Address = IPv4Address | IPv6Address

MAIN, LOCAL = 254, 255
"""linux/rtnetlink.h: RT_TABLE_MAIN, RT_TABLE_LOCAL."""

TO_TABLE = 1
"""linux/fib_rules.h: FR_ACT_TO_TBL, the action of a rule that names a table."""

WHOLE_MARK = 0xFFFF_FFFF

METRIC = {4: 0, 6: 1024}
"""What the kernel gives a route without one, by family (IP6_RT_PRIO_USER)."""

_FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
_INVERT = 2  # linux/fib_rules.h: FIB_RULE_INVERT, "not" in `ip rule`
_SCOPE_LINK = 253
_UNICAST = 1  # linux/rtnetlink.h: RTN_UNICAST
_LOOKUP_TABLE = 0x1000  # linux/rtnetlink.h: RTM_F_LOOKUP_TABLE, the answer names the table
_NONE = 0xFFFF_FFFF  # FRA_SUPPRESS_PREFIXLEN of a rule that suppresses nothing
_NEUTRAL = {"FRA_UNSPEC", "FRA_TABLE", "FRA_PRIORITY", "FRA_FWMARK", "FRA_FWMASK", "FRA_PROTOCOL", "FRA_PAD"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """A policy rule. `version` is 4 or 6; `mark` None: it looks at no mark."""

    version: int
    priority: int
    table: int
    mark: int | None = None
    mask: int = WHOLE_MARK
    action: int = TO_TABLE
    selectors: tuple[str, ...] = ()
    """What else it looks at, by the kernel's names (FRA_SRC ...). Rules of ours look at nothing else."""

    def __str__(self) -> str:
        marked = "" if self.mark is None else f" fwmark {self.mark:#x}"
        masked = "" if self.mark is None or self.mask == WHOLE_MARK else f"/{self.mask:#x}"
        table = {MAIN: "main", LOCAL: "local"}.get(self.table, str(self.table))
        return f"-{self.version} rule {self.priority}: from all{marked}{masked} lookup {table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A route in marks.TABLE, into the interface `device`, from `source` (None: the kernel chooses)."""

    destination: Network
    device: str
    source: Address | None = None
    metric: int = -1
    """-1: what the kernel gives one that names none."""

    plain: bool = True
    """Whether it is an ordinary route to a device, as ours are: no gateway, not "unreachable"."""

    def __post_init__(self) -> None:
        if self.metric < 0:
            object.__setattr__(self, "metric", METRIC[self.destination.version])

    def __str__(self) -> str:
        source = "" if self.source is None else f" src {self.source}"
        device = f" dev {self.device}" if self.device else ""
        return f"route {self.destination}{device} table {marks.TABLE}{source}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingState:
    """What there is now: all policy rules of the host, and all routes of marks.TABLE."""

    versions: tuple[int, ...]
    """Families that this kernel has: 4, and as a rule 6."""

    rules: tuple[Rule, ...]
    routes: tuple[Route, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RoutingChanges:
    """What to write, in this order. A route that is set takes the place of one to the same destination."""

    add_rules: tuple[Rule, ...] = ()
    remove_rules: tuple[Rule, ...] = ()
    remove_routes: tuple[Route, ...] = ()
    set_routes: tuple[Route, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.add_rules or self.remove_rules or self.remove_routes or self.set_routes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """Where a packet would leave."""

    device: str
    table: int
    gateway: Address | None = None
    source: Address | None = None

    def __str__(self) -> str:
        via = "" if self.gateway is None else f"via {self.gateway} "
        source = "" if self.source is None else f" src {self.source}"
        table = {MAIN: "main", LOCAL: "local"}.get(self.table, str(self.table))
        return f"{via}dev {self.device} table {table}{source}"


class Routing(Protocol):
    """The host's routing. Every call is bounded in time and raises HostError."""

    async def read(self) -> RoutingState:
        """What there is now."""
        ...

    async def write(self, changes: RoutingChanges) -> None:
        """Carry out `changes`. What is there (or gone) already is no error."""
        ...

    async def look_up(self, addresses: Sequence[Address], *, mark: int) -> list[Hop | None]:
        """Where packets with this mark (0: none) would go, an answer an address. None: nowhere."""
        ...


class NetlinkRouting:
    """The routing of the network namespace that this process is in. Holds no socket between calls."""

    async def read(self) -> RoutingState:
        """See Routing."""

        async def dump() -> RoutingState:
            # strict_check: the kernel picks out the table. A router's main table can have a million routes.
            async with AsyncIPRoute(strict_check=True) as kernel:
                versions, rules, routes = [], [], []
                for version, family in _FAMILY.items():
                    try:
                        found = [message async for message in await kernel.rule("dump", family=family)]
                    except NetlinkError as error:
                        if version == 6 and error.code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                            continue  # a kernel without IPv6, or started with ipv6.disable=1
                        raise
                    versions.append(version)
                    rules += [_rule(version, message) for message in found]
                    routes += await _routes(kernel, family)
                return RoutingState(versions=tuple(versions), rules=tuple(rules), routes=tuple(routes))

        return await rtnl.call("read rules and routes", dump)

    async def write(self, changes: RoutingChanges) -> None:
        """See Routing."""
        if not changes:
            return

        async def go() -> None:
            async with AsyncIPRoute() as kernel:
                for rule in changes.add_rules:
                    await _tolerant(kernel.rule("add", **_rule_fields(rule)), errno.EEXIST)
                for rule in changes.remove_rules:
                    await _tolerant(kernel.rule("del", **_rule_fields(rule)), errno.ENOENT)
                for route in changes.remove_routes:
                    await _tolerant(kernel.route("del", **_removal_fields(route)), errno.ESRCH, errno.ENODEV)
                for route in changes.set_routes:
                    await _set(kernel, route)

        await rtnl.call("write rules and routes", go)

    async def look_up(self, addresses: Sequence[Address], *, mark: int) -> list[Hop | None]:
        """See Routing."""

        async def look() -> list[Hop | None]:
            async with AsyncIPRoute() as kernel:
                return [await _look_up(kernel, address, mark) for address in addresses]

        return await rtnl.call("look routes up", look) if addresses else []


async def _tolerant(request: Any, *codes: int) -> None:
    try:
        await request
    except NetlinkError as error:
        if error.code not in codes:
            raise


# Messages to values ----------------------------------------------------------------------------------------


def _rule(version: int, message: Any) -> Rule:
    attributes = dict(message["attrs"])
    selectors = [name for name in attributes if name not in _NEUTRAL]
    if attributes.get("FRA_SUPPRESS_PREFIXLEN") == _NONE:
        selectors.remove("FRA_SUPPRESS_PREFIXLEN")
    selectors += [name for name in ("src_len", "dst_len", "tos") if message[name]]
    if message["flags"] & _INVERT:
        selectors.append("not")
    marked = "FRA_FWMARK" in attributes or "FRA_FWMASK" in attributes
    return Rule(
        version=version,
        priority=attributes.get("FRA_PRIORITY", 0),
        table=attributes.get("FRA_TABLE", message["table"]),
        mark=attributes.get("FRA_FWMARK", 0) if marked else None,
        mask=attributes.get("FRA_FWMASK", WHOLE_MARK),
        action=message["action"],
        selectors=tuple(selectors),
    )


async def _routes(kernel: Any, family: int) -> list[Route]:
    try:
        answer = await kernel.route("dump", family=family, table=marks.TABLE)
        return [_route(message) async for message in answer]
    except NetlinkError as error:
        if error.code == errno.ENOENT:  # nothing was ever in that table
            return []
        raise


def _route(message: Any) -> Route:
    attributes = dict(message["attrs"])
    bits = {socket.AF_INET: 32, socket.AF_INET6: 128}[message["family"]]
    anywhere = "0.0.0.0" if bits == 32 else "::"
    source = attributes.get("RTA_PREFSRC")
    special = {"RTA_GATEWAY", "RTA_VIA", "RTA_MULTIPATH", "RTA_NH_ID", "RTA_ENCAP"} & attributes.keys()
    return Route(
        destination=ip_network(f"{attributes.get('RTA_DST', anywhere)}/{message['dst_len']}"),
        device=_name(attributes.get("RTA_OIF", 0)),
        source=None if source is None else ip_address(source),
        metric=attributes.get("RTA_PRIORITY", 0),
        plain=message["type"] == _UNICAST and not special,
    )


def _name(index: int) -> str:
    """ "" for an interface that is gone, or that a route doesn't name."""
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""


async def _look_up(kernel: Any, address: Address, mark: int) -> Hop | None:
    fields = {"mark": mark} if mark else {}
    if isinstance(address, IPv6Address) and address.scope_id is not None:
        return None  # link-local with a zone: the sender names the device, no table is asked
    try:
        answers = await kernel.route(
            "get", dst=str(address), family=_FAMILY[address.version], flags=_LOOKUP_TABLE, **fields
        )
    except NetlinkError as error:
        if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
            return None  # no route, "unreachable", "blackhole", "prohibit"
        raise
    attributes = dict(answers[0]["attrs"])
    gateway, source = attributes.get("RTA_GATEWAY"), attributes.get("RTA_PREFSRC")
    return Hop(
        device=_name(attributes.get("RTA_OIF", 0)),
        table=attributes.get("RTA_TABLE", answers[0]["table"]),
        gateway=None if gateway is None else ip_address(gateway),
        source=None if source is None else ip_address(source),
    )


# Values to messages ----------------------------------------------------------------------------------------


def _rule_fields(rule: Rule) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "family": _FAMILY[rule.version],
        "priority": rule.priority,
        "table": rule.table,
        "action": rule.action,
    }
    if rule.mark is not None:
        fields |= {"fwmark": rule.mark, "fwmask": rule.mask}
    return fields


def _removal_fields(route: Route) -> dict[str, Any]:
    """By destination and metric, in our table, whatever kind of route it is."""
    return {
        "family": _FAMILY[route.destination.version],
        "dst": str(route.destination),
        "table": marks.TABLE,
        "priority": route.metric,
        "scope": 255,  # RT_SCOPE_NOWHERE: of any scope (fib_table_delete), as `ip route flush` has it
        "type": 0,
        "proto": 0,
    }


async def _set(kernel: Any, route: Route) -> None:
    index = socket.if_nametoindex(route.device)
    fields: dict[str, Any] = {
        "family": _FAMILY[route.destination.version],
        "dst": str(route.destination),
        "table": marks.TABLE,
        "oif": index,
        "priority": route.metric,
        # RTPROT_STATIC: routing daemons take the default, "boot", for something to be replaced.
        "proto": 4,
        "type": _UNICAST,
    }
    if route.destination.version == 4:
        fields["scope"] = _SCOPE_LINK
    if route.source is not None:
        fields["prefsrc"] = str(route.source)
    try:
        await kernel.route("replace", **fields)
    except NetlinkError as error:
        if route.destination.version == 6 and error.code == errno.EACCES:
            raise HostError(
                f"cannot set {route}: IPv6 is disabled on {route.device} "
                f"(sysctl -w net.ipv6.conf.{route.device}.disable_ipv6=0, or no IPv6 among the allowed IPs)"
            ) from error
        if error.code == errno.EINVAL and route.source is not None:
            raise HostError(
                f"cannot set {route}: {route.source} is no address of this host (ip address show)"
            ) from error
        if error.code in (errno.EPERM, errno.EACCES):
            raise hints.lacks_capability(f"set {route}") from error
        raise HostError(f"cannot set {route}: {error}") from error
