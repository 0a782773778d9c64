"""What the host itself must have: capabilities, WireGuard, ports, buffers, sysctls; what was left. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.config import KEY_FILE
from relayd.doctor.facts import HostFacts, PortHolder
from relayd.doctor.finding import Finding
from relayd.doctor.ours import our_rules, owns_interface

MAX_COMMAND = 80
"""Characters of a command line that are shown. Whose it is, is judged by all of it."""

# --- capabilities ---


def capabilities(facts: HostFacts) -> Iterator[Finding]:
    """CAP_NET_ADMIN, CAP_NET_RAW, and whether they count here."""
    held = facts.capabilities
    if not held.may_mark:
        how = "is held, and doesn't count in this user namespace" if held.net_admin else "is missing"
        yield Finding(
            "capabilities",
            "error",
            f"CAP_NET_ADMIN {how}",
            meaning="no marked socket, no change of WireGuard, routes or rules; much below is a guess",
            command="sudo relayd check\n"
            "# the agent's unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW; in a Pod: hostNetwork, "
            'and securityContext.capabilities.add: ["NET_ADMIN", "NET_RAW"]',
        )
    elif not held.net_raw:
        yield Finding(
            "capabilities",
            "warning",
            "CAP_NET_RAW is missing",
            meaning="iptables-legacy needs it (iptables-nft doesn't), and so the KUBE-FIREWALL rule may",
            command="# the agent's unit: AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW; in a Pod: "
            'securityContext.capabilities.add: ["NET_ADMIN", "NET_RAW"]',
        )
    else:
        yield Finding("capabilities", "ok", "CAP_NET_ADMIN and CAP_NET_RAW, and marking a socket works")


# --- WireGuard ---


def wireguard(facts: HostFacts) -> Iterator[Finding]:
    """The interface as it is, or what would make one."""
    seen, name = facts.wireguard, facts.interface
    if seen.link_kind is None:
        yield from _no_interface(facts)
    elif seen.link_kind not in ("wireguard", "tun"):
        what = f"a {seen.link_kind} interface" if seen.link_kind else "a network device"
        yield Finding(
            "wireguard",
            "error",
            f"{name} is {what}, not WireGuard",
            meaning="the agent leaves it alone and does not start",
            command=f"relayd check --interface {seen.others[0]}"
            if seen.others
            else f"ip -details link show {name}   # then choose another name: [interface] name",
        )
    elif seen.problem:
        yield Finding(
            "wireguard",
            "error",
            f"{name} can't be read: {seen.problem}",
            meaning="nor can the agent: it does not start, or does not see its peers",
            command=f"sudo wg show {name}",
        )
    elif not seen.is_up:
        yield Finding(
            "wireguard",
            "warning",
            f"{name} is down",
            meaning="WireGuard neither sends nor receives until it is up",
            command=f"ip link set {name} up",
        )
    else:
        kind = "the kernel's WireGuard" if seen.link_kind == "wireguard" else "a userspace WireGuard"
        peers = f"{seen.peers} peer{'' if seen.peers == 1 else 's'}"
        yield Finding("wireguard", "ok", f"{name} is {kind}, with {peers}, on UDP port {seen.listen_port}")


def _no_interface(facts: HostFacts) -> Iterator[Finding]:
    seen, name = facts.wireguard, facts.interface
    others = f"; there {'is' if len(seen.others) == 1 else 'are'} {', '.join(seen.others)}"
    missing = f"no interface {name} yet{others if seen.others else ''}"
    if seen.in_kernel:
        yield Finding(
            "wireguard",
            "ok",
            f"{missing}; the kernel has WireGuard",
            meaning="the agent makes the interface where its configuration has an [interface] section",
        )
    elif seen.in_kernel is None:
        yield Finding(
            "wireguard",
            "warning",
            f"{missing}; whether the kernel has WireGuard can't be seen from here",
            meaning="its module isn't loaded, and no list of modules is mounted (a container without "
            "/lib/modules)",
            command="modprobe wireguard   # on the host"
            + (f"\nwireguard-go {name}   # where the kernel has none" if seen.userspace_program else ""),
        )
    elif seen.userspace_program:
        yield Finding(
            "wireguard",
            "warning",
            f"{missing}; this kernel has no WireGuard, {seen.userspace_program} is here",
            meaning="a userspace WireGuard works, at a fraction of the speed; the agent doesn't start it",
            command=f"wireguard-go {name}",
        )
    else:
        yield Finding(
            "wireguard",
            "error",
            f"{missing}; this kernel has no WireGuard, and there is no wireguard-go",
            meaning="no tunnel can be made here",
            command=f"modprobe wireguard\n# or: apt-get install wireguard-go && wireguard-go {name}",
        )


# --- ports ---


def ports(facts: HostFacts) -> Iterator[Finding]:
    """The UDP ports of WireGuard and of the agent's proxy, and who has them."""
    seen = facts.wireguard
    if seen.link_kind is not None and seen.listen_port is None:
        pass  # which port it has could not be read: said already
    elif seen.link_kind is not None and seen.is_up:
        yield Finding("ports", "ok", f"{facts.interface} has UDP port {seen.listen_port}")
    else:
        port = seen.listen_port or facts.listen_port
        holder = _holder(facts, port)
        setting = "listen_port in [interface]"
        if holder is not None and seen.link_kind is not None and facts.interface in holder.command.split():
            # A userspace WireGuard keeps its port while its interface is down.
            yield Finding("ports", "ok", f"{facts.interface}'s own process has UDP port {port}")
        else:
            yield _port(port, "WireGuard", holder, f"{facts.interface} can't be brought up", setting)
    holder = _holder(facts, facts.proxy_port)
    setting = "proxy_port in [agent]"
    if holder is not None and facts.agent_runs and (holder.pid is None or _is_agent(holder)):
        yield Finding("ports", "ok", f"the agent has UDP port {facts.proxy_port} on lo")
    elif holder is not None and _is_agent(holder):
        yield Finding(
            "ports",
            "warning",
            f"UDP port {facts.proxy_port} is another agent's: {_named(holder)}",
            meaning=f"an agent for {facts.interface} needs one of its own (unless that one is it, with "
            "--control elsewhere)",
            command=f"# choose another: {setting}",
        )
    else:
        meaning = "the agent does not start: relayed peers have no way in or out"
        yield _port(facts.proxy_port, "the agent's proxy", holder, meaning, setting)


def _holder(facts: HostFacts, port: int) -> PortHolder | None:
    """Who has a port; one that has a process rather than one without."""
    found = sorted((one for one in facts.ports if one.port == port), key=lambda one: one.pid is None)
    return found[0] if found else None


def _port(port: int, purpose: str, holder: PortHolder | None, meaning: str, setting: str) -> Finding:
    if holder is None:
        return Finding("ports", "ok", f"UDP port {port}, for {purpose}, is free")
    stop = f"kill {holder.pid}" if holder.pid is not None else f"ss -ulpn 'sport = :{port}'"
    return Finding(
        "ports",
        "error",
        f"UDP port {port}, for {purpose}, is taken by {_named(holder)}",
        meaning=meaning,
        command=f"{stop}   # or choose another: {setting}",
    )


def _named(holder: PortHolder) -> str:
    if holder.pid is None:
        return "the kernel (another WireGuard interface?) or a process that can't be seen from here"
    command = holder.command
    if len(command) > MAX_COMMAND:
        command = command[: MAX_COMMAND - 3] + "..."
    return f"{holder.name} (pid {holder.pid}: {command})"


def _is_agent(holder: PortHolder) -> bool:
    words = holder.command.split()
    return any("relayd" in word and "agent" in words[at + 1 :] for at, word in enumerate(words))


# --- buffers ---


def buffers(facts: HostFacts) -> Iterator[Finding]:
    """How many bytes of datagrams the kernel holds for the agent."""
    seen = facts.buffers
    limit = "" if seen.rmem_max is None else f" (net.core.rmem_max is {seen.rmem_max})"
    if seen.granted >= seen.wanted:
        how = "by SO_RCVBUFFORCE, whatever the limit" if seen.forced else "within the limit"
        yield Finding("buffers", "ok", f"a UDP socket gets {_mib(seen.granted)}, {how}{limit}")
        return
    yield Finding(
        "buffers",
        "warning",
        f"a UDP socket gets {_mib(seen.granted)} instead of {_mib(seen.wanted)}{limit}",
        meaning="bursts towards relayed peers overflow it; with CAP_NET_ADMIN the limit doesn't count",
        command=f"sysctl -w net.core.rmem_max={seen.wanted}",
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


# --- sysctls ---


def reverse_path(facts: HostFacts) -> Iterator[Finding]:
    """rp_filter of the tunnel and of the way to the relay, accept_local of lo."""
    everywhere = facts.sysctls.get("net.ipv4.conf.all.rp_filter") or 0
    name = f"net.ipv4.conf.{facts.interface}.rp_filter"
    own = facts.sysctls.get(name)
    if own is not None and max(own, everywhere) == 1:
        yield Finding(
            "rp_filter",
            "warning",
            f"strict on {facts.interface} (its own is {own}, of all {everywhere}; the larger counts)",
            meaning="a peer's packet is dropped when the way back isn't by the tunnel",
            command=f"sysctl -w {name}=2",
        )
    elif own is not None:
        yield Finding("rp_filter", "ok", f"not strict on {facts.interface} ({max(own, everywhere)})")
    yield from _strict_underlay(facts, everywhere)
    yield from _accept_local(facts)


def _strict_underlay(facts: HostFacts, everywhere: int) -> Iterator[Finding]:
    """The relay's answers carry no mark: a strict filter looks up their way back without one."""
    for proof in (proof for relay in facts.relays for proof in relay.proofs):
        if proof.marked is None or proof.unmarked is None or proof.address.version != 4:
            continue
        device = proof.marked.device
        name = f"net.ipv4.conf.{device}.rp_filter"
        strict = max(facts.sysctls.get(name) or 0, everywhere) == 1
        if strict and proof.unmarked.device != device:
            yield Finding(
                "rp_filter",
                "error",
                f"strict on {device}, by which the relay answers; unmarked packets to it go by "
                f"{proof.unmarked.device}",
                meaning="the way back is looked up without the mark: what the relay sends is dropped",
                command=f"sysctl -w {name}=2",
            )


def _accept_local(facts: HostFacts) -> Iterator[Finding]:
    names = ("net.ipv4.conf.lo.accept_local", "net.ipv4.conf.all.accept_local")
    values = [facts.sysctls.get(name) for name in names]
    if any(values):
        yield Finding("accept_local", "ok", "on, for lo")
    elif owns_interface(facts):
        yield Finding(
            "accept_local",
            "warning",
            "off for lo, though the host is set up otherwise",
            meaning="where a CNI takes lo's packets through routing once more (Cilium does), those between "
            "WireGuard and the agent are dropped as martians",
            command=f"sysctl -w {names[0]}=1",
        )
    else:
        yield Finding("accept_local", "ok", "off for lo; an agent that owns its interface sets it")


# --- what is remembered, what was left ---


def state(facts: HostFacts) -> Iterator[Finding]:
    """The directory with the private key."""
    seen = facts.state
    if seen.problem:
        yield Finding(
            "state",
            "warning",
            f"{seen.path}: {seen.problem}",
            meaning="the agent keeps its key and its peers' loopback addresses there",
            command=f"sudo ls -la {seen.path}",
        )
        return
    if seen.directory_mode is None:
        yield Finding("state", "ok", f"{seen.path} is not there yet: the first start makes it")
        return
    key = f"{seen.path}/{KEY_FILE}"
    open_to_others = [
        f"chmod {wanted:o} {path}"
        for path, mode, wanted in ((seen.path, seen.directory_mode, 0o700), (key, seen.key_mode, 0o600))
        if mode is not None and mode & 0o077 & ~(0o055 if path == seen.path else 0)
    ]
    if open_to_others:
        yield Finding(
            "state",
            "warning",
            f"{seen.path} or its key is open to others (modes {_mode(seen.directory_mode)}, "
            f"{_mode(seen.key_mode)})",
            meaning="who reads the private key is this node to its peers",
            command="\n".join(open_to_others),
        )
    else:
        yield Finding("state", "ok", f"{seen.path} is as it should be")


def _mode(mode: int | None) -> str:
    return "-" if mode is None else f"{mode:04o}"


def leftovers(facts: HostFacts) -> Iterator[Finding]:
    """What stands here without what it was for. That an interface outlives its agent is meant."""
    clean = f"relayd cleanup --interface {facts.interface}"
    routes = len(facts.routing.routes)
    rules = our_rules(facts.routing.rules)
    if facts.stale_socket:
        yield Finding(
            "leftovers",
            "warning",
            f"nobody answers at {facts.stale_socket}",
            meaning="an agent was killed there; the next one replaces the socket",
            command="systemctl start relayd-agent   # or: relayd agent ...",
        )
    if facts.agent_runs:
        yield Finding("leftovers", "ok", f"an agent runs for {facts.interface}")
    elif facts.wireguard.link_kind is None and (routes or rules):
        yield Finding(
            "leftovers",
            "warning",
            f"{_several(len(rules), 'rule')} and {_several(routes, 'route')} of ours, without an interface "
            f"{facts.interface}",
            meaning="somebody removed the interface alone, or a clean-up did not get through",
            command=f"{clean} --dry-run\n{clean}",
        )
    elif rules or routes:
        yield Finding(
            "leftovers",
            "ok",
            f"no agent runs; {facts.interface}, {_several(len(rules), 'rule')} and "
            f"{_several(routes, 'route')} stay meanwhile, as they are meant to",
            meaning=f"direct tunnels go on; `{clean}` removes it all",
        )
    else:
        yield Finding("leftovers", "ok", "none: no rule and no route of ours")


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


# --- what is not looked at ---


def clock(_facts: HostFacts) -> Iterator[Finding]:
    """Said, so that nobody wonders."""
    yield Finding(
        "clock",
        "ok",
        "not looked at: nothing that relayd decides depends on the time of day",
        meaning="WireGuard itself wants a clock that doesn't go back over a reboot: peers refuse handshakes "
        "until it has caught up",
    )
