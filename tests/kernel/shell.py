"""What every test of the kernel tier needs: commands of the host."""

from __future__ import annotations

import re
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


# Few processes: under emulation each costs some thirty milliseconds.
_HOST = """
for version in 4 6; do ip -$version rule; ip -$version route show table all | sort; done
ip -o link
iptables-nft-save
cat /proc/sys/net/ipv4/conf/lo/accept_local
"""


def host() -> str:
    """All of what relayd could change on a host, WireGuard aside, as it is now."""
    lines = [line for line in sh(_HOST).splitlines() if not line.startswith("#")]
    links = [re.sub(r"^\d+: ", "", line) for line in lines if _LINK.match(line)]  # numbers are drawn anew
    return "\n".join([*(line for line in lines if not _LINK.match(line)), *sorted(links)])


_LINK = re.compile(r"\d+: \S+: <")


UNDO_RULES = "\n".join(
    f"ip -{version} -force -batch - 2>/dev/null <<END || true\n"
    + 4 * "rule del lookup 22347\nrule del fwmark 0x574b\n"
    + "END"
    for version in (4, 6)
)
"""Rules of a test go, and of one that failed."""
