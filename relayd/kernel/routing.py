"""Policy rules of this host, the routes of relayd's own table, and where a packet would go: as values.

`host_rules` decides what there should be. Here it is read and written, by netlink: rules by pyroute2, each
call in a worker thread with a deadline (see `rtnl`), routes by `route_messages`: there are as many as peers.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Protocol

import trio

from relayd import marks
from relayd.errors import HostError
from relayd.kernel import hints, route_messages, rtnl
from relayd.kernel.device import Network
from relayd.kernel.nlmsg import KernelError
from relayd.kernel.pyroute import AsyncIPRoute, NetlinkError
from relayd.kernel.route_messages import DefaultRoute, KernelRoute

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


class RefusedRoutesError(HostError):
    """The kernel didn't take these routes. All else that was to be written is."""

    def __init__(self, refused: Mapping[Route, HostError]) -> None:
        first, *others = map(str, refused.values())
        super().__init__(first + (f" (and {len(others)} routes more)" if others else ""))
        self.routes = frozenset(refused)


class Routing(Protocol):
    """The host's routing. Every call is bounded in time and raises HostError."""

    async def read(self) -> RoutingState:
        """What there is now."""
        ...

    async def write(self, changes: RoutingChanges) -> None:
        """Carry out `changes`. What is there (or gone) already is no error.

        Raises RefusedRoutesError, at the end, for routes that can't be on this host.
        """
        ...

    async def look_up(self, addresses: Sequence[Address], *, mark: int) -> list[Hop | None]:
        """Where packets with this mark (0: none) would go, an answer an address. None: nowhere."""
        ...


class NetlinkRouting:
    """The routing of the network namespace that this process is in. Holds no socket between calls."""

    async def read(self) -> RoutingState:
        """See Routing."""

        async def dump() -> dict[int, list[Rule]]:
            async with AsyncIPRoute() as kernel:
                found: dict[int, list[Rule]] = {}
                for version, family in _FAMILY.items():
                    try:
                        answer = await kernel.rule("dump", family=family)
                        found[version] = [_rule(version, message) async for message in answer]
                    except NetlinkError as error:
                        if version == 6 and error.code in (errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
                            continue  # a kernel without IPv6, or started with ipv6.disable=1
                        raise
                return found

        rules = await rtnl.call("read rules", dump)
        names: dict[int, str] = {}
        routes = [_route(one, names) for version in rules for one in await _read_routes(version)]
        return RoutingState(
            versions=tuple(rules),
            rules=tuple(rule for found in rules.values() for rule in found),
            routes=tuple(routes),
        )

    async def write(self, changes: RoutingChanges) -> None:
        """See Routing."""
        if changes.add_rules or changes.remove_rules:
            await rtnl.call("write rules", partial(_write_rules, changes))
        if changes.remove_routes or changes.set_routes:
            await _write_routes(changes)

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


async def _write_rules(changes: RoutingChanges) -> None:
    async with AsyncIPRoute() as kernel:
        for rule in changes.add_rules:
            await _tolerant(kernel.rule("add", **_rule_fields(rule)), errno.EEXIST)
        for rule in changes.remove_rules:
            await _tolerant(kernel.rule("del", **_rule_fields(rule)), errno.ENOENT)


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


def _route(one: KernelRoute, names: dict[int, str]) -> Route:
    """`names`: of interfaces, by index, as far as they have been asked for."""
    if one.device not in names:
        names[one.device] = _name(one.device)
    return Route(
        destination=one.destination,
        device=names[one.device],
        source=one.source,
        metric=one.metric,
        plain=one.plain,
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


# Routes: many of them --------------------------------------------------------------------------------------


async def _read_routes(version: int) -> list[KernelRoute]:
    with _talking("read routes"):
        try:
            return await route_messages.read_table(version, marks.TABLE)
        except KernelError as error:
            if error.code == errno.ENOENT:  # nothing was ever in that table
                return []
            raise
    raise hints.no_answer("read routes", "the kernel", rtnl.DEADLINE_S)


async def default_routes(version: int) -> list[DefaultRoute]:
    """Those of the main table, of one IP version: some, of maybe a million others. Raises HostError."""
    with _talking("read the default routes"):
        try:
            return await route_messages.read_defaults(version, MAIN)
        except KernelError as error:
            if error.code in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):  # no IPv6 here
                return []
            raise
    raise hints.no_answer("read the default routes", "the kernel", rtnl.DEADLINE_S)


async def _write_routes(changes: RoutingChanges) -> None:
    with _talking("write routes"):
        index = {name: socket.if_nametoindex(name) for name in {one.device for one in changes.set_routes}}
        wanted = [
            KernelRoute(one.destination, index[one.device], one.source, one.metric, plain=True)
            for one in changes.set_routes
        ]
        gone = changes.remove_routes
        codes = await route_messages.carry_out(
            [
                *(
                    route_messages.remove(one.destination, one.metric, marks.TABLE, number)
                    for number, one in enumerate(gone, 1)
                ),
                *(
                    route_messages.put(one, marks.TABLE, number)
                    for number, one in enumerate(wanted, len(gone) + 1)
                ),
            ]
        )
        for code in codes[: len(gone)]:
            if code not in (0, errno.ESRCH, errno.ENODEV):
                raise rtnl.failure("remove a route", code)
        refused = {
            route: _refusal(route, code)
            for route, code in zip(changes.set_routes, codes[len(gone) :], strict=True)
            if code
        }
        if refused:
            raise RefusedRoutesError(refused)
        return
    raise hints.no_answer("write routes", "the kernel", rtnl.DEADLINE_S)


@contextmanager
def _talking(attempt: str) -> Iterator[None]:
    """Bounds an exchange with the kernel, and tells what goes wrong with it as HostError."""
    try:
        with trio.move_on_after(rtnl.DEADLINE_S):
            yield
    except KernelError as error:
        raise rtnl.failure(attempt, error.code) from error
    except OSError as error:  # no netlink in a sandbox, no descriptors left
        raise rtnl.failure(attempt, error.errno or errno.EIO) from error
    except (ValueError, struct.error) as error:
        raise HostError(f"cannot {attempt}: the kernel's answer can't be understood ({error})") from error


def _refusal(route: Route, code: int) -> HostError:
    if route.destination.version == 6 and code == errno.EACCES:
        return HostError(
            f"cannot set {route}: IPv6 is disabled on {route.device} "
            f"(sysctl -w net.ipv6.conf.{route.device}.disable_ipv6=0, or no IPv6 among the allowed IPs)"
        )
    if code == errno.EINVAL and route.source is not None:
        return HostError(f"cannot set {route}: {route.source} is no address of this host (ip address show)")
    if code in (errno.EPERM, errno.EACCES):
        return hints.lacks_capability(f"set {route}")
    return HostError(f"cannot set {route}: {os.strerror(code)}")
