"""What every test of the kernel tier needs: commands of the host."""

from __future__ import annotations

import subprocess


def sh(script: str, *, stdin: str = "") -> str:
    """The output of a shell script that must not fail."""
    done = subprocess.run(
        ["sh", "-ec", script], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"
    return done.stdout


def removed(*names: str) -> None:
    """Interfaces of a test go, if they are there."""
    for name in names:
        subprocess.run(["ip", "link", "del", name], capture_output=True, timeout=60, check=False)


HOST = (
    "ip rule; ip -6 rule; ip route show table all | sort; ip -6 route show table all | sort; "
    "ip -o link | sed 's/^[0-9]*: //' | sort; { iptables-nft-save | grep -v '^#' || true; }; "
    "sysctl net.ipv4.conf.lo.accept_local"
)
"""All of what relayd could change on a host, WireGuard aside."""


def host() -> str:
    """HOST as it is now."""
    return sh(HOST)


UNDO_RULES = "; ".join(
    f"while ip -{version} rule del {rule} 2>/dev/null; do :; done"
    for version in (4, 6)
    for rule in ("lookup 22347", "fwmark 0x574b")
)
"""Rules of a test go, and of one that failed."""
