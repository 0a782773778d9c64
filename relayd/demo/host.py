"""What the host must have for a laboratory of namespaces, checked before anything is started."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable

from relayd.errors import HostError

SEARCH_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])
"""A root shell that came from `su` has no /usr/sbin in its PATH, and `ip` lives there."""

PACKAGES = {
    "ip": "iproute2",
    "iperf3": "iperf3",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ping": "iputils-ping",
    "setpriv": "util-linux",
    "unshare": "util-linux",
    "wg": "wireguard-tools",
    "wireguard-go": "wireguard-go",
}
"""Program -> the Debian and Ubuntu package that has it."""

TUN_DEVICE = "/dev/net/tun"


def program(name: str) -> str:
    """The path of a program. Raises HostError naming the package and the command that installs it."""
    path = shutil.which(name, path=SEARCH_PATH)
    if path is None:
        raise HostError(f"{name} is missing: apt-get install {PACKAGES.get(name, name)}")
    return path


def check_programs(names: Iterable[str]) -> None:
    """Raises HostError naming all that is missing at once, and the one command that installs it."""
    missing = [name for name in names if shutil.which(name, path=SEARCH_PATH) is None]
    if missing:
        packages = sorted({PACKAGES.get(name, name) for name in missing})
        verb = "is" if len(missing) == 1 else "are"
        raise HostError(f"{', '.join(missing)} {verb} missing: apt-get install {' '.join(packages)}")


def check_root() -> None:
    """Raises HostError for anybody but root: namespaces and WireGuard interfaces need it."""
    if os.geteuid() != 0:
        raise HostError("network namespaces need root: run it again with sudo")


def check_tun() -> None:
    """Raises HostError when wireguard-go would find no TUN device to open."""
    if not os.path.exists(TUN_DEVICE):
        raise HostError(
            f"{TUN_DEVICE} is missing, which wireguard-go needs: modprobe tun (in a container: "
            "docker run --device /dev/net/tun)"
        )
