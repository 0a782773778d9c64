"""What relayd adds to a host: one list that start-up adds from, the agent repairs by, cleanup removes by.

    policy rules   marked packets to the main table, before all packets look into table 22347; IPv4 and IPv6
    routes         the peers' allowed IPs, into the interface, in table 22347, with the node's own address
    sysctls        rp_filter=2 on the interface, accept_local=1 on lo
    firewall       the rules that keep marked packets from kubelet's KUBE-FIREWALL and kube-proxy's
                   KUBE-POSTROUTING, where those exist

The rest of an interface that relayd made (key, port, mark, addresses, peers) is `ownership`'s; what lies in
the state directory is `state_dir`'s. `Inventory` is the list, `plan` compares it with what there is, and
`HostRules.apply` writes the difference: what is right isn't written again.

Why two rules. A peer's allowed IPs may contain the very address that its packets are sent to, or the relay's.
So what carries our mark (WireGuard's own packets, the relay's connection) looks into the main table first,
and only what is left into 22347.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Interface, IPv6Interface

from relayd import marks
from relayd.errors import HostError
from relayd.kernel.device import Network
from relayd.kernel.firewall import Firewall, put_right
from relayd.kernel.routing import (
    LOCAL,
    MAIN,
    TO_TABLE,
    WHOLE_MARK,
    Address,
    Hop,
    RefusedRoutesError,
    Route,
    Routing,
    RoutingChanges,
    RoutingState,
    Rule,
)
from relayd.kernel.sysctls import Sysctl, Sysctls

InterfaceAddress = IPv4Interface | IPv6Interface


class LoopError(HostError):
    """The relay is reached through the tunnel that it is to carry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """What relayd adds to the host for one interface."""

    interface: str
    routes: tuple[Route, ...] = ()
    table_rule: bool = False
    mark_rule: bool = False
    sysctls: tuple[Sysctl, ...] = ()
    firewall: bool = True


def owned(interface: str, addresses: Sequence[InterfaceAddress], allowed_ips: Iterable[Network]) -> Inventory:
    """For an interface that relayd made: `addresses` are its own, `allowed_ips` those of all peers."""
    return Inventory(
        interface=interface,
        routes=tuple(
            Route(destination=network, device=interface, source=source_for(network, addresses))
            for network in dict.fromkeys(allowed_ips)
        ),
        table_rule=True,
        mark_rule=True,
        sysctls=(
            # Loose: a reply may come in by another way than the tunnel's routes say (RFC 3704, section 2.4).
            Sysctl(f"net/ipv4/conf/{interface}/rp_filter", "2"),
            # Packets between WireGuard and the proxy that a CNI's hook sends through routing a second time.
            Sysctl("net/ipv4/conf/lo/accept_local", "1"),
        ),
    )


def adopted(interface: str, *, mark_rule: bool) -> Inventory:
    """For an interface that somebody else made: its routes and rules are not ours."""
    return Inventory(interface=interface, mark_rule=mark_rule)


def source_for(network: Network, addresses: Sequence[InterfaceAddress]) -> Address | None:
    """The node's own address for packets to `network`: one of the same network, else the first of the family.

    None when there is none: the kernel then takes another interface's.
    """
    ours = [one for one in addresses if one.version == network.version]
    near = [one for one in ours if network.network_address in one.network]
    chosen = max(near, key=lambda one: one.network.prefixlen) if near else next(iter(ours), None)
    return None if chosen is None else chosen.ip


# --- which rules are ours ---


def table_rule(version: int) -> Rule:
    """All packets look into our table."""
    return Rule(version=version, priority=marks.TABLE_PRIORITY, table=marks.TABLE)


def mark_rule(state: RoutingState, version: int) -> Rule:
    """Marked packets look into the main table: after the local one, wherever a CNI has moved that."""
    local = [
        rule.priority
        for rule in state.rules
        if rule.version == version and rule.table == LOCAL and rule.mark is None and not rule.selectors
    ]
    priority = max(max(local, default=0) + 10, marks.MARK_PRIORITY_MIN)
    return Rule(
        version=version,
        priority=min(priority, marks.MARK_PRIORITY_MAX),
        table=MAIN,
        mark=marks.FWMARK,
    )


def is_table_rule(rule: Rule) -> bool:
    """Whether it is a rule of that shape, at whatever priority."""
    return replace(rule, priority=marks.TABLE_PRIORITY) == table_rule(rule.version)


def is_mark_rule(rule: Rule) -> bool:
    """Likewise."""
    return (
        rule.table == MAIN
        and rule.action == TO_TABLE
        and (rule.mark, rule.mask) == (marks.FWMARK, WHOLE_MARK)
        and not rule.selectors
    )


# --- what is to be written ---


def plan(wanted: Inventory, state: RoutingState) -> RoutingChanges:
    """What must be written. Rules that `wanted` doesn't ask for may be another agent's, and are left alone;
    likewise routes into other interfaces."""
    right: list[Rule] = []
    wrong: list[Rule] = []
    for version in state.versions:
        here = [rule for rule in state.rules if rule.version == version]
        if wanted.mark_rule:
            right.append(mark_rule(state, version))
            wrong += [rule for rule in here if is_mark_rule(rule) and rule != right[-1]]
        if wanted.table_rule:
            right.append(table_rule(version))
            wrong += [rule for rule in here if is_table_rule(rule) and rule != right[-1]]
    routes = {
        (route.destination, route.metric): route
        for route in wanted.routes
        if route.destination.version in state.versions
    }
    return RoutingChanges(
        add_rules=tuple(rule for rule in right if rule not in state.rules),
        remove_rules=tuple(wrong),
        remove_routes=tuple(
            route
            for route in state.routes
            if route.device == wanted.interface and (route.destination, route.metric) not in routes
        ),
        set_routes=tuple(route for route in routes.values() if route not in state.routes),
    )


def loop(interface: str, state: RoutingState, hop: Hop | None, version: int) -> str:
    """Why packets of the relay's connection would go into the tunnel; empty: they don't.

    `hop` is where a marked packet would go by `state`, before routes are there that could lead it astray.
    That marked packets for which the main table has no route go on into ours is no loop: WireGuard drops
    them (ELOOP), and they would go nowhere without the tunnel either.
    """
    marked = [rule.priority for rule in state.rules if rule.version == version and is_mark_rule(rule)]
    ahead = [
        rule
        for rule in state.rules
        if rule.version == version
        and rule.table == marks.TABLE
        and (not marked or rule.priority < min(marked))
    ]
    if ahead and marked:
        return f"a rule stands before the one that keeps marked packets out ({ahead[0]})"
    if hop is not None and hop.device == interface and not (hop.table == marks.TABLE and marked):
        return str(hop)
    return ""


# --- doing it ---


@dataclass(slots=True)
class Applied:
    """What was written, and what of the lesser things couldn't be: a line each."""

    written: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def add(self, more: Applied) -> None:
        """What was done after that."""
        self.written += more.written
        self.problems += more.problems


class HostRules:
    """The host's rules, kept as the inventory has them."""

    def __init__(self, routing: Routing, sysctls: Sysctls, firewall: Firewall) -> None:
        self.routing, self.sysctls, self.firewall = routing, sysctls, firewall

    async def has_mark_rule(self) -> bool:
        """Whether there is a rule for marked packets, in any family. Raises HostError."""
        return any(is_mark_rule(rule) for rule in (await self.routing.read()).rules)

    async def apply(self, wanted: Inventory, relay: Sequence[Address]) -> Applied:
        """Write what differs.

        `relay` are the relay's addresses, as far as they are known: before a route is added, a look-up proves
        that none is reached through the tunnel. Raises LoopError, at a start with nothing added, and
        HostError.
        Sysctls and firewall that can't be written (a container) are problems, and not the end: most hosts
        work without. So are single routes: peers say where they lead.
        """
        done = Applied()
        state = await self.routing.read()
        changes = plan(wanted, state)
        first = RoutingChanges(
            add_rules=tuple(rule for rule in changes.add_rules if is_mark_rule(rule)),
            remove_rules=tuple(rule for rule in changes.remove_rules if is_mark_rule(rule)),
        )
        if first:
            await self.routing.write(first)
            state = await self.routing.read()
        try:
            await self.prove(wanted.interface, relay, state=state)
        except LoopError:
            # With the other rule there, a start is long over, and WireGuard's own packets need this one.
            # What a name server says of the relay costs no direct tunnel, and keeps no peer that was deleted.
            is_start = not any(is_table_rule(rule) for rule in state.rules)
            undone = first.add_rules if is_start else ()
            await self.routing.write(RoutingChanges(remove_rules=undone, remove_routes=changes.remove_routes))
            raise
        rest = replace(
            changes,
            add_rules=tuple(rule for rule in changes.add_rules if rule not in first.add_rules),
            remove_rules=tuple(rule for rule in changes.remove_rules if rule not in first.remove_rules),
        )
        refused: frozenset[Route] = frozenset()
        try:
            await self.routing.write(rest)
        except RefusedRoutesError as error:  # a peer's IPv6 on a host that has none, say
            refused = error.routes
            done.problems.append(str(error))
        taken = tuple(route for route in changes.set_routes if route not in refused)
        done.written += list(_lines(replace(changes, set_routes=taken)))
        for sysctl in wanted.sysctls:
            try:
                if self.sysctls.wrong([sysctl]):
                    self.sysctls.set(sysctl)
                    done.written.append(f"set {sysctl}")
            except HostError as error:
                done.problems.append(str(error))
        if wanted.firewall:
            done.add(await self.apply_firewall())
        return done

    async def apply_firewall(self) -> Applied:
        """The firewall's part alone: iptables may wait for its lock, and take seconds."""
        done = Applied()
        try:
            for chain in await self.firewall.chains():
                if not chain.is_right:
                    await put_right(self.firewall, chain)
                    done.written.append(f"added {chain}")
        except HostError as error:
            done.problems.append(str(error))
        return done

    async def prove(
        self, interface: str, relay: Sequence[Address], *, state: RoutingState | None = None
    ) -> None:
        """Raise LoopError if marked packets to one of `relay` would go into `interface`, or HostError."""
        if not relay:
            return
        state = state or await self.routing.read()
        hops = await self.routing.look_up(relay, mark=marks.FWMARK)
        for address, hop in zip(relay, hops, strict=True):
            if why := loop(interface, state, hop, address.version):
                raise LoopError(
                    f"the relay {address} would be reached through {interface} itself, which it is to carry: "
                    f"{why} (`ip route get {address} mark {marks.FWMARK:#x}` shows it). Take its address out "
                    f"of {interface}'s own network and routes, or name the relay by one outside of them"
                )


def _lines(changes: RoutingChanges) -> Iterator[str]:
    for rule in changes.add_rules:
        yield f"added {rule}"
    for rule in changes.remove_rules:
        yield f"removed {rule}"
    for route in changes.remove_routes:
        yield f"removed {route}"
    for route in changes.set_routes:
        yield f"added {route}"
