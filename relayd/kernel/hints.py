"""What a host can lack, each with what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from relayd.errors import HostError


def lacks_capability(attempt: str) -> HostError:
    """`attempt` ("read wg0") was refused for want of CAP_NET_ADMIN."""
    interpreter = os.path.realpath(sys.executable)
    return HostError(
        f"cannot {attempt}: CAP_NET_ADMIN is missing. Run as root; or, under systemd, put "
        f"AmbientCapabilities=CAP_NET_ADMIN into the unit; or grant it to the interpreter, and so to every "
        f"script that it runs: setcap cap_net_admin+ep {interpreter}"
    )


def socket_refused(attempt: str, path: Path) -> HostError:
    """`attempt` was refused by the permissions of a userspace WireGuard's socket."""
    return HostError(
        f"cannot {attempt}: no permission for {path}. Run as root, or as the user who started that process"
    )


def no_interface(name: str, existing: Sequence[str]) -> HostError:
    """There is no interface `name`; `existing` are the WireGuard interfaces that there are."""
    if existing:
        return HostError(f"there is no interface {name}; WireGuard interfaces here: {', '.join(existing)}")
    return HostError(
        f"there is no interface {name}, nor any other WireGuard interface here. "
        f"Make it first (wg-quick up {name}), or describe it under [interface] in the agent's configuration"
    )


def other_kind(name: str, kind: str, existing: Sequence[str]) -> HostError:
    """`name` exists and is not WireGuard; `kind` is the kernel's word for it, "" if it has none."""
    what = f"a {kind} interface" if kind else "a network device"
    others = f"; WireGuard interfaces here: {', '.join(existing)}" if existing else ""
    return HostError(f"{name} is {what}, not WireGuard: it was left alone{others}")


def tun_without_process(name: str, path: Path) -> HostError:
    """`name` is a TUN interface, and no userspace WireGuard listens at `path`."""
    return HostError(
        f"{name} is a tun interface, and no userspace WireGuard answers for it at {path}. If wireguard-go "
        f"runs it, look whether that process lives and shares this mount namespace; else it is not WireGuard"
    )


def nobody_answers(path: Path) -> HostError:
    """The socket at `path` is there, and the process that made it is not."""
    return HostError(
        f"nothing answers at {path}: the userspace WireGuard behind it has ended; start it again"
    )


def no_wireguard(name: str) -> HostError:
    """`name` cannot be made: the kernel has no WireGuard."""
    return HostError(
        f"cannot make {name}: this kernel has no WireGuard. Load its module (modprobe wireguard; Linux 5.6 "
        f"and later ship it), or run it in userspace: wireguard-go {name}"
    )


def port_in_use(name: str, port: int) -> HostError:
    """`name` was to listen on `port`, and something else does."""
    return HostError(
        f"{name} cannot listen on UDP port {port}: it is in use (ss -ulpn 'sport = :{port}' says by what). "
        f"Free it, or choose another listen_port"
    )


def no_private_key(name: str) -> HostError:
    """`name` has no private key yet."""
    return HostError(f"{name} has no private key yet: set one (wg set {name} private-key FILE)")


def no_ipv6(attempt: str, name: str) -> HostError:
    """`attempt` was refused because `name` may have no IPv6."""
    return HostError(
        f"cannot {attempt}: IPv6 is disabled on {name} (sysctl -w net.ipv6.conf.{name}.disable_ipv6=0, or "
        f"net.ipv6.conf.default.disable_ipv6=0 for an interface that is yet to be made)"
    )


def no_answer(attempt: str, who: str, seconds: float) -> HostError:
    """`attempt` ran out of time."""
    return HostError(f"cannot {attempt}: {who} did not answer within {seconds:g} s")


def refused(attempt: str, code: int) -> HostError:
    """`attempt` failed with an errno that has no story of its own."""
    return HostError(f"cannot {attempt}: {os.strerror(code)} (errno {code})")


def port_taken_at_up(name: str) -> HostError:
    """`name` was set up, and something else has its port."""
    return HostError(
        f"{name} cannot be set up: its UDP port is in use (`wg show {name} listen-port`, then `ss -ulpn`). "
        f"Free it, or choose another listen_port"
    )


def always_changing(name: str) -> HostError:
    """Every dump of `name` was interrupted by a change."""
    return HostError(f"cannot read {name}: it changed each time while it was read; is a script rewriting it?")


def not_ours(name: str, public_key: str) -> HostError:
    """`name` is WireGuard, has another key than the configuration's, and relayd didn't make it."""
    return HostError(
        f"{name} has another key than ours ({public_key}) and wasn't made by relayd: it was left alone. To "
        f"use it as it is, run relayd agent --interface {name} without an [interface] section; else give "
        f"[interface] another name, or remove it yourself: ip link delete {name}"
    )


def process_has_other_key(name: str, public_key: str) -> HostError:
    """Likewise, of an interface that a userspace WireGuard runs: relayd can't make it anew."""
    return HostError(
        f"{name} is run by a userspace WireGuard with another key than ours ({public_key}): it was left "
        f"alone. Start that process again: it then has no key yet"
    )
