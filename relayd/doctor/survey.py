"""Gathers the facts of this host. Reads only: nothing is set, loaded or made; sockets last for a moment.

Each source may be missing (a container without /lib/modules, a host without nft, a process without
capabilities): what could not be seen is a fact too, and no error.
"""

from __future__ import annotations

import gzip
import os
import shutil
import socket
import stat
from ipaddress import ip_address
from pathlib import Path

import trio

from relayd import marks
from relayd.agent.known_relays import KnownRelays
from relayd.config import KEY_FILE, AgentConfig
from relayd.doctor import relay_probe, udp_ports
from relayd.doctor.facts import (
    NO_ROUTING,
    Buffers,
    Capabilities,
    FirewallDump,
    HostFacts,
    RelayFacts,
    RouteProof,
    StateFacts,
    UnreadFirewall,
    WireGuardFacts,
)
from relayd.doctor.relay_probe import Asked
from relayd.errors import HostError, RelaydError
from relayd.join import JoinString
from relayd.kernel import discover, links
from relayd.kernel.firewall import Chain, Iptables
from relayd.kernel.routing import NetlinkRouting
from relayd.kernel.state_dir import RELAYS
from relayd.kernel.wireguard import open_wireguard
from relayd.netio import mmsg
from relayd.netio.datagrams import RECEIVE_BUFFER_BYTES
from relayd.observe import control

COMMAND_S = 10.0
"""For a firewall's dump: seconds, on a host with ten thousand services."""

RESOLVE_S = 5.0
SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])

_CAP_NET_ADMIN, _CAP_NET_RAW = 12, 13  # linux/capability.h


async def survey(config: AgentConfig) -> HostFacts:
    """Everything about this host that an agent with `config` would meet. There may be no relay."""
    found = WireGuardFacts(in_kernel=None)
    firewalls: list[FirewallDump] = []
    unread: list[UnreadFirewall] = []
    chains: list[Chain] = []
    relays: dict[int, RelayFacts] = {}
    agent_runs, stale = False, ""

    async def look_at_interface() -> None:
        nonlocal found
        found = await _wireguard(config.interface)

    async def ask_agent() -> None:
        nonlocal agent_runs, stale
        agent_runs, stale = await _agent(config.control_path)

    known = _known_relays(Path(config.state_dir) / RELAYS)

    async def try_relay(number: int, join: JoinString) -> None:
        asked = Asked(join, known.key_of(join.address), config.insecure_relay)
        relays[number] = await _relay(asked, may_mark=capabilities.may_mark)

    capabilities = _capabilities()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(look_at_interface)
        nursery.start_soon(ask_agent)
        for number, join in enumerate(config.relays):
            nursery.start_soon(try_relay, number, join)
        nursery.start_soon(_read_firewalls, firewalls, unread)
        nursery.start_soon(_read_kube_chains, chains, unread)
    routing, routing_problem = NO_ROUTING, ""
    try:
        routing = await NetlinkRouting().read()
    except HostError as error:
        routing_problem = str(error)
    listen_port = config.owned.listen_port if config.owned is not None else marks.DEFAULT_LISTEN_PORT
    proofs = [proof for relay in relays.values() for proof in relay.proofs]
    devices = {proof.marked.device for proof in proofs if proof.marked is not None and proof.marked.device}
    return HostFacts(
        interface=config.interface,
        listen_port=listen_port,
        proxy_port=config.proxy_port,
        capabilities=capabilities,
        wireguard=found,
        buffers=_buffers(),
        state=_state(Path(config.state_dir)),
        routing=routing,
        routing_problem=routing_problem,
        kube_chains=tuple(chains),
        firewalls=tuple(sorted(firewalls, key=lambda dump: dump.program)),
        unread_firewalls=tuple(unread),
        sysctls=_sysctls({"all", "lo", config.interface, *devices}),
        ports=udp_ports.holders({found.listen_port or listen_port, config.proxy_port}),
        relays=tuple(relays[number] for number in sorted(relays)),
        agent_runs=agent_runs,
        stale_socket=stale,
    )


# --- this process ---


def _capabilities() -> Capabilities:
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:")
    )
    held = int(line.split()[1], 16)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            marks.set_mark(sock)
        except PermissionError:
            may_mark = False
        else:
            may_mark = True
    return Capabilities(
        net_admin=bool(held >> _CAP_NET_ADMIN & 1), net_raw=bool(held >> _CAP_NET_RAW & 1), may_mark=may_mark
    )


def _buffers() -> Buffers:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        forced = True
        try:
            sock.setsockopt(socket.SOL_SOCKET, mmsg.SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
        except PermissionError:
            forced = False
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        # The kernel tells twice what it was asked for: half is for its own accounts (socket(7)).
        granted = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
    limit = _number(Path("/proc/sys/net/core/rmem_max"))
    return Buffers(wanted=RECEIVE_BUFFER_BYTES, granted=granted, forced=forced, rmem_max=limit)


def _sysctls(devices: set[str]) -> dict[str, int | None]:
    found = {}
    for device in sorted(devices):
        for knob in ("rp_filter", "accept_local"):
            # (A dot in a device's name, as in eth0.5, is a slash in `sysctl`'s words.)
            name = f"net.ipv4.conf.{device.replace('.', '/')}.{knob}"
            found[name] = _number(Path("/proc/sys/net/ipv4/conf") / device / knob)
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except OSError:  # no such interface, or a sandbox without /proc/sys
        return None


# --- WireGuard, the agent, its state ---


async def _wireguard(name: str) -> WireGuardFacts:
    in_kernel = _in_kernel()
    program = shutil.which("wireguard-go", path=SEARCH_PATH) or ""
    others = tuple(other for other in await discover.wireguard_names() if other != name)
    kind: str | None = None
    is_up = False
    try:
        link = await links.find(name)
        if link is not None:
            kind, is_up = link.kind, link.is_up
        if kind not in ("wireguard", "tun"):
            return WireGuardFacts(
                in_kernel=in_kernel, userspace_program=program, link_kind=kind, others=others
            )
        wireguard = await open_wireguard(name)
        try:
            interface = await wireguard.read()
        finally:
            wireguard.close()
    except HostError as error:
        return WireGuardFacts(
            in_kernel=in_kernel, userspace_program=program, link_kind=kind, is_up=is_up,
            problem=str(error), others=others,
        )  # fmt: skip
    return WireGuardFacts(
        in_kernel=in_kernel, userspace_program=program, link_kind=kind, is_up=is_up, others=others,
        listen_port=interface.listen_port, fwmark=interface.fwmark, peers=len(interface.peers),
    )  # fmt: skip


def _in_kernel() -> bool | None:
    """Without asking netlink for it: that would load the module."""
    if Path("/sys/module/wireguard").exists():
        return True
    if (compiled := _compiled_in()) is not None:
        return compiled
    modules = Path("/lib/modules") / os.uname().release
    try:
        lists = [(modules / name).read_text() for name in ("modules.dep", "modules.builtin")]
    except OSError:  # a container
        return None
    return any("/wireguard.ko" in text for text in lists)


def _compiled_in() -> bool | None:
    """What a kernel that keeps its configuration says; None: it doesn't, or has a module."""
    try:
        with gzip.open("/proc/config.gz", "rt") as lines:
            said = {line.strip() for line in lines if "CONFIG_WIREGUARD" in line}
    except OSError:
        return None
    if "CONFIG_WIREGUARD=m" in said:
        return None
    return "CONFIG_WIREGUARD=y" in said


async def _agent(path: str) -> tuple[bool, str]:
    """(whether an agent answers, a stale socket's path)."""
    try:
        if not await trio.Path(path).exists():
            return False, ""
        await control.ask(path, "status")
    except PermissionError:  # its directory is closed to us: nobody knows
        return False, ""
    except control.NobodyAnswersError:
        return False, path
    except RelaydError:  # not for us to ask: somebody has it
        return True, ""
    return True, ""


def _state(directory: Path) -> StateFacts:
    try:
        modes = [_mode(directory), _mode(directory / KEY_FILE)]
    except OSError as error:
        return StateFacts(path=str(directory), problem=os.strerror(error.errno or 0))
    return StateFacts(path=str(directory), directory_mode=modes[0], key_mode=modes[1])


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


# --- the firewall ---


async def _read_firewalls(dumps: list[FirewallDump], unread: list[UnreadFirewall]) -> None:
    for program, argv in _firewall_programs():
        done = None
        try:
            with trio.move_on_after(COMMAND_S):
                done = await trio.run_process(
                    argv,
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=os.environ | {"LC_ALL": "C"},
                )
        except OSError as error:
            unread.append(UnreadFirewall(program, os.strerror(error.errno or 0)))
            continue
        if done is None:
            unread.append(UnreadFirewall(program, f"no answer within {COMMAND_S:g} s"))
        elif done.returncode:
            said = done.stderr.decode(errors="replace").strip().splitlines()
            unread.append(UnreadFirewall(program, said[0] if said else f"exit status {done.returncode}"))
        else:
            dumps.append(FirewallDump(program, done.stdout.decode(errors="replace")))


async def _read_kube_chains(chains: list[Chain], unread: list[UnreadFirewall]) -> None:
    try:
        chains += await Iptables().chains()
    except HostError as error:
        unread.append(UnreadFirewall("iptables", str(error)))


def _firewall_programs() -> list[tuple[str, list[str]]]:
    """Name -> command line, of those that are here and have something to tell."""
    found = []
    for family, names in (("iptables", "ip"), ("ip6tables", "ip6")):
        variants = [f"{family}-nft", f"{family}-legacy"]
        # The legacy one would load a module to say that there is nothing.
        if not _has_lines(Path(f"/proc/net/{names}_tables_names")):
            variants.pop()
        paths = {name: shutil.which(f"{name}-save", path=SEARCH_PATH) for name in variants}
        if not any(paths.values()):  # a system with one variant only, by the plain name
            paths = {family: shutil.which(f"{family}-save", path=SEARCH_PATH)}
        found += [(name, [path]) for name, path in paths.items() if path is not None]
    nft = shutil.which("nft", path=SEARCH_PATH)
    if nft is not None:
        found.append(("nft", [nft, "list", "ruleset"]))
    return found


def _has_lines(path: Path) -> bool:
    try:
        return bool(path.read_text().strip())
    except OSError:  # not loaded; or not for us to read, and then the program's dump isn't either
        return False


# --- the relay ---


def _known_relays(path: Path) -> KnownRelays:
    """What the agent remembers of its relays, where that may be read."""
    return KnownRelays(path if os.access(path, os.R_OK) else None)


async def _relay(asked: Asked, *, may_mark: bool) -> RelayFacts:
    address, written = asked.address, asked.join.address
    try:
        with trio.fail_after(RESOLVE_S):
            entries = await trio.socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except trio.TooSlowError:
        return RelayFacts(address=written, problem=f"no answer about the name within {RESOLVE_S:g} s")
    except (OSError, UnicodeError) as error:
        return RelayFacts(address=written, problem=str(getattr(error, "strerror", None) or error))
    addresses = dict.fromkeys(ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries)
    found = list(addresses)
    try:
        hops = [await NetlinkRouting().look_up(found, mark=mark) for mark in (marks.FWMARK, 0)]
    except HostError as error:
        return RelayFacts(address=written, problem=str(error))
    proofs = [
        RouteProof(address=one, marked=marked, unmarked=unmarked)
        for one, marked, unmarked in zip(found, *hops, strict=True)
    ]
    with_mark = await relay_probe.try_marked(asked) if may_mark else None
    without = await relay_probe.try_unmarked(asked, echo=with_mark is None or not with_mark.peer)
    return RelayFacts(
        address=written,
        pinned=asked.join.key is not None,
        insecure=asked.insecure,
        proofs=tuple(proofs),
        marked=with_mark,
        unmarked=without,
    )
