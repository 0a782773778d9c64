"""What the resources mean for one node: its own part, and the mesh as `coordination.model` has it. Pure.

Whatever stands in a resource was written by somebody: another node that may have been taken over, an operator
who mistyped. What can't be used is left out and said (`Meaning.problems`), and the rest goes on. What two
resources want is one's by the rules of `claims`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface, ip_network

from relayd import marks
from relayd.config.net_values import MAX_MTU, MIN_MTU, interface_name, server_url, stun_server
from relayd.config.values import WrongError
from relayd.coordination.kubernetes import addresses, claims, resources
from relayd.coordination.kubernetes.addresses import Address, Network
from relayd.coordination.model import AskedPatience, Mesh, MeshPeer, OwnedInterface, RelayMode
from relayd.endpoints import Endpoint, is_host_name, split_host_port
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey

MANAGED_RELAY = "wirekube-relay-headless.wirekube-system.svc"
"""The Service in config/relay that has all replicas' addresses: they share nothing, so each is a relay of its
own to the agents."""

TRANSPORTS = ("", "tcp")
"""Of WireKube's ways to a relay, those that agents here know."""

INTERNAL_IP = "internal-ip"
"""How an endpoint is known that only the Node's InternalIP stands for."""

MAX_PROBLEMS = 20
MAX_PROBLEM = 300
"""Characters. What is quoted in one, whoever wrote it may have made a million long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """What is known of the cluster at one moment."""

    mesh: resources.Mesh | None
    peers: Mapping[str, resources.Peer]
    node: resources.Node | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Self:
    """This node."""

    name: str
    private_key: PrivateKey
    interface: str = ""
    """From its own configuration; "": the mesh says it."""

    relays: tuple[JoinString, ...] = ()
    """Likewise."""


@dataclass(frozen=True, slots=True)
class Meaning:
    """What came of it."""

    mesh: Mesh
    names: Mapping[PublicKey, str]
    """Of the peers' resources."""

    problems: tuple[str, ...] = ()


# --- this node's own part ---


def mesh_network(spec: resources.MeshSpec) -> Network | None:
    """Of the nodes' addresses; None: the mesh gives none. Raises ValueError."""
    return ip_network(spec.meshCIDR, strict=False) if spec.meshCIDR else None


def own_address(view: View, name: str) -> Address | None:
    """This node's address in the mesh. None: there is no mesh, or it gives none. Raises ValueError."""
    if view.mesh is None:
        return None
    network = mesh_network(view.mesh.spec)
    if network is None:
        return None
    own = view.peers.get(name)
    has = addresses.hosts_in(own.spec.allowedIPs, network) if own is not None else []
    taken: list[Address] = []
    for other in view.peers.values():
        if other.metadata.name == name:
            continue
        # Without a resource of its own, this node comes after all others.
        taken += [
            one
            for one in addresses.hosts_in(other.spec.allowedIPs, network)
            if own is None or one not in has or claims.comes_before(other, own, one, network)
        ]
    return addresses.choose(name, network, has=has[0] if has else None, taken=taken)


def internal_addresses(node: resources.Node | None) -> list[Address]:
    """The node's InternalIPs."""
    found: list[Address] = []
    for one in node.status.addresses if node is not None else ():
        if one.type == "InternalIP":
            try:
                found.append(ip_address(one.address))
            except ValueError:
                continue
    return found


def own_allowed_ips(view: View, name: str) -> tuple[str, ...]:
    """Those of this node's allowed IPs that its agent adds. Raises ValueError."""
    address = own_address(view, name)
    networks = [] if address is None else [ip_network(address)]
    return tuple(dict.fromkeys(map(str, (*networks, *_besides_address(view)))))


def _besides_address(view: View) -> list[Network]:
    if view.mesh is None:
        return []
    spec, networks = view.mesh.spec, list[Network]()
    auto = spec.autoAllowedIPs
    if auto is not None and (auto.includeNodeInternalIP or auto.strategy == "node-internal-ip"):
        networks += [ip_network(one) for one in internal_addresses(view.node)]
    if spec.podCIDRRouting is not None and spec.podCIDRRouting.enabled and view.node is not None:
        pods = view.node.spec
        networks += [ip_network(one) for one in pods.podCIDRs or (pods.podCIDR,) if one]
    return networks


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovered:
    """What discovery says is this node's endpoint. By default: nothing."""

    endpoint: str = ""
    method: str = ""
    sure: bool = True
    """Whether others reach the node there, as far as can be known. If not, it is better than nothing,
    and than nothing else."""


def annotated_endpoint(view: View) -> tuple[str, str]:
    """-> the endpoint that the node's annotation names, "" where it names none; and what is wrong with it

    One that the resource can't have would keep the rest out of it, too: its definition refuses the whole.
    """
    written = view.node.metadata.annotations.get(resources.ENDPOINT_ANNOTATION, "") if view.node else ""
    text = written.strip()
    try:
        host, port = split_host_port(text) if text else ("", 1)
        if port and (not text or is_host_name(host) or ip_address(host)):
            return text, ""
        raise ValueError(f"{text!r}: nobody is reached at port 0")
    except ValueError as error:
        return "", f"the node's annotation {resources.ENDPOINT_ANNOTATION}: {error}"


def own_endpoint(view: View, name: str, found: Discovered, *, unsure: str = "") -> tuple[str, str]:
    """-> the endpoint to publish ("": leave what there is), and how it is known ("": likewise)

    `unsure`: the endpoint that this agent itself has published for want of a better one.
    """
    annotated, _ = annotated_endpoint(view)
    if annotated:
        return annotated, "manual"
    own = view.peers.get(name)
    has = own.spec.endpoint if own is not None else ""
    if found.endpoint and (found.sure or has in ("", unsure)):
        return found.endpoint, found.method
    if has:
        return "", ""
    if view.mesh is not None and (internal := internal_addresses(view.node)):
        return str(Endpoint(internal[0], view.mesh.spec.listenPort)), INTERNAL_IP
    return "", ""


# --- the mesh's settings ---


def api_server(spec: resources.MeshSpec) -> tuple[str, str]:
    """-> the URL of the API server that the mesh names, "" where it names none; and what is wrong with it"""
    try:
        return (server_url(spec.apiServerURL) if spec.apiServerURL.strip() else ""), ""
    except WrongError as error:
        return "", f"WireKubeMesh: apiServerURL: {error}"


def _check(spec: resources.MeshSpec, own: Self) -> None:
    """Raise ValueError for an interface that can't be made: other programs' definitions let anything pass."""
    try:
        interface_name(own.interface or spec.interfaceName)
    except WrongError as error:
        raise ValueError(f"WireKubeMesh: interfaceName: {error}") from error
    for name, value, least, most in (
        ("listenPort", spec.listenPort, 1, 65535),
        ("mtu", spec.mtu, MIN_MTU, MAX_MTU),
    ):
        if not least <= value <= most:
            raise ValueError(f"WireKubeMesh: {name}: {value} is not in {least} to {most}")


# --- the others ---


def meaning(view: View, own: Self, *, removed: bool = False) -> Meaning:
    """The mesh for this node. `removed`: its resource was deleted, it has no part in the mesh any more.

    Raises ValueError when the mesh itself can't be used.
    """
    if view.mesh is None:
        raise ValueError("there is no WireKubeMesh")
    spec = view.mesh.spec
    _check(spec, own)
    problems = [problem for _, problem in (api_server(spec), annotated_endpoint(view)) if problem]
    address = own_address(view, own.name)
    mine = view.peers.get(own.name)
    interface = OwnedInterface(
        name=own.interface or spec.interfaceName,
        private_key=own.private_key,
        listen_port=spec.listenPort,
        addresses=() if address is None else (ip_interface(address),),
        mtu=spec.mtu,
    )
    peers: dict[PublicKey, MeshPeer] = {}
    names: dict[PublicKey, str] = {}
    if not removed and (mine is None or mine.spec.allowedIPs or own_allowed_ips(view, own.name)):
        peers, names = _peers(view, own, interface, problems)
    elif not removed:
        problems.append(f"WireKubePeer {own.name} has no allowedIPs: nothing is routed to it or from it")
    relays, relay_sets = _relays(view.mesh, own, problems)
    return Meaning(
        mesh=Mesh(
            interface=interface,
            peers=tuple(peers.values()),
            relays=relays,
            relay_sets=relay_sets,
            relay_mode=_mode(spec),
            stun=_stun_servers(spec, problems),
            patience=_patience(spec),
            birthday=_birthday(view),
            bypass_local=spec.routing is not None and spec.routing.localSubnetPolicy == "bypass",
        ),
        names=names,
        problems=_shortened(problems),
    )


def _peers(
    view: View, own: Self, interface: OwnedInterface, problems: list[str]
) -> tuple[dict[PublicKey, MeshPeer], dict[PublicKey, str]]:
    assert view.mesh is not None
    spec, mine = view.mesh.spec, view.peers.get(own.name)
    excluded = claims.networks(
        spec.routing.excludeCIDRs if spec.routing else (), "WireKubeMesh: routing.excludeCIDRs", problems
    )
    overlay = mesh_network(spec)
    added = mine.spec.allowedIPs if mine is not None else ()
    own_networks = [
        *(ip_network(one.ip) for one in interface.addresses),
        *_besides_address(view),
        *(
            one
            for one in claims.networks(added, f"WireKubePeer {own.name}: allowedIPs", problems)
            # Which address this node has is settled already; it may have had another before.
            if overlay is None or one.num_addresses > 1 or not _within(one, overlay)
        ),
    ]
    claimed = claims.Claims(view.peers, own.name, own.private_key.public(), own_networks, overlay, problems)
    peers, names = claimed.peers()
    for key, peer in peers.items() if excluded else ():
        unrouted = tuple(one for one in peer.allowed_ips if _is_excluded(one, excluded, overlay))
        peers[key] = replace(peer, unrouted=unrouted)
    return peers, names


def _is_excluded(network: Network, excluded: Iterable[Network], overlay: Network | None) -> bool:
    """The nodes' own addresses never are: they are nowhere else."""
    if overlay is not None and _within(network, overlay):
        return False
    return any(_within(network, one) for one in excluded)


def _within(network: Network, other: Network) -> bool:
    return (
        network.version == other.version
        and network.network_address in other
        and network.prefixlen >= other.prefixlen
    )


Relays = tuple[JoinString, ...]


def _relays(mesh: resources.Mesh, own: Self, problems: list[str]) -> tuple[Relays, Relays]:
    """-> the relays that count for this node, and the names that stand for several each"""
    spec, relay = mesh.spec, mesh.spec.relay
    if relay is None or _mode(spec) is RelayMode.NEVER:
        return () if _mode(spec) is RelayMode.NEVER else own.relays, ()
    if own.relays:
        return own.relays, ()
    external, managed = relay.external or resources.ExternalRelay(), relay.managed or resources.ManagedRelay()
    if relay.provider == "external" or external.endpoint or external.controlEndpoint:
        where = "relay.external.controlEndpoint" if external.controlEndpoint else "relay.external.endpoint"
        return _fixed_relay(
            external.controlEndpoint or external.endpoint, external.transport, where, problems
        )
    if managed.controlEndpoint or managed.transport not in TRANSPORTS:
        return _fixed_relay(
            managed.controlEndpoint, managed.transport, "relay.managed.controlEndpoint", problems
        )
    if mesh.status.relayEndpoint:
        return _fixed_relay(mesh.status.relayEndpoint, "", "status.relayEndpoint", problems)
    try:
        return (), (JoinString(host=MANAGED_RELAY, port=managed.port),)
    except ValueError as error:  # WireKube's own definition of the resource allows any number
        problems.append(f"WireKubeMesh: relay.managed.port: {error}")
        return (), ()


def _fixed_relay(text: str, transport: str, where: str, problems: list[str]) -> tuple[Relays, Relays]:
    """One relay, at an address that the mesh gives."""
    try:
        if transport not in TRANSPORTS:
            raise ValueError(f"agents of relayd reach a relay by TCP, not by {transport}")
        return (relay_at(text),), ()
    except ValueError as error:
        problems.append(f"WireKubeMesh: {where}: {error}")
        return (), ()


def _stun_servers(spec: resources.MeshSpec, problems: list[str]) -> tuple[str, ...]:
    found: list[str] = []
    for text in spec.stunServers:
        server = text.removeprefix("stun:")
        try:
            split_host_port(server)  # with its port, as the field's own agents want it
            found.append(stun_server(server))
        except (ValueError, WrongError) as error:
            problems.append(f"WireKubeMesh: stunServers: {error}")
    return tuple(dict.fromkeys(found))


def _patience(spec: resources.MeshSpec) -> AskedPatience:
    """The times that the mesh gives. A session isn't called stale before WireGuard itself refuses its keys:
    one that carries packets makes new ones only every two minutes."""
    relay, nat = spec.relay or resources.RelaySpec(), spec.natTraversal or resources.NATTraversal()
    window_s = nat.handshakeValidWindowSeconds
    return AskedPatience(
        silent_s=_seconds(nat.healthProbeTimeoutSeconds),
        recheck_cap_s=_seconds(relay.directRetryIntervalSeconds),
        try_s=_seconds(relay.handshakeTimeoutSeconds),
        fresh_handshake_s=max(float(window_s), marks.HANDSHAKE_FRESH_S) if window_s > 0 else None,
    )


def _birthday(view: View) -> bool | None:
    annotations = view.node.metadata.annotations if view.node is not None else {}
    nat = view.mesh.spec.natTraversal if view.mesh is not None else None
    said = (annotations.get(resources.BIRTHDAY_ANNOTATION), nat.birthdayAttack if nat is not None else "")
    words = {"enabled": True, "disabled": False}
    return next((words[one] for one in said if one in words), None)


def _seconds(said: int) -> float | None:
    return float(said) if said > 0 else None


def relay_at(text: str) -> JoinString:
    """A join string, or HOST:PORT. Raises ValueError."""
    return JoinString.parse(text) if "://" in text else JoinString(*split_host_port(text))


def _mode(spec: resources.MeshSpec) -> RelayMode:
    mode = spec.relay.mode if spec.relay is not None else "auto"
    return RelayMode(mode) if mode in [one.value for one in RelayMode] else RelayMode.AUTO


def _shortened(problems: Sequence[str]) -> tuple[str, ...]:
    problems = [one if len(one) <= MAX_PROBLEM else f"{one[:MAX_PROBLEM]} ..." for one in problems]
    if len(problems) <= MAX_PROBLEMS:
        return tuple(problems)
    return (*problems[: MAX_PROBLEMS - 1], f"... and {len(problems) - MAX_PROBLEMS + 1} more")
