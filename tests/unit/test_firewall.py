"""What iptables prints of a chain: which of its rules is ours, whatever those of others say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayd.errors import HostError
from relayd.kernel.firewall import KUBE_PROXY, KUBELET, NFT, Iptables, chain_of

OURS = (
    "-A KUBE-FIREWALL -d 127.0.0.0/8 -m mark --mark 0x574b "
    '-m comment --comment "wirekube: allow WG relay proxy on loopback" -j ACCEPT\n'
)
STRANGE = '-A KUBE-FIREWALL -m comment --comment "it\\\'s\n-A \\"line\\"\nmore" -j ACCEPT\n'


def test_a_comment_may_have_line_breaks() -> None:
    chain = chain_of(NFT, f"-N KUBE-FIREWALL\n{STRANGE}{OURS}# Warning: it's legacy\n{STRANGE}", KUBELET)
    assert (chain.ours, chain.length) == ((2,), 3)


def fake_iptables(directory: Path, said: str, status: int) -> Iptables:
    """A host whose one iptables says that to everything but --version."""
    program = directory / "iptables-nft"
    program.write_text(f"#!/bin/sh\ncat <<'EOF'\n{said}EOF\nexit {status}\n")
    program.chmod(0o755)
    return Iptables(f"{directory}{os.pathsep}{os.defpath}")


async def test_a_rule_that_speaks_of_permission_is_no_refusal(tmp_path: Path) -> None:
    rule = '-A KUBE-FIREWALL -m comment --comment "no permission: you must be root" -j DROP\n'
    firewall = fake_iptables(tmp_path, rule, 0)
    firewall._binaries = {(NFT, 4): str(tmp_path / "iptables-nft")}
    assert [one.length for one in await firewall.chains() if one.exemption is not KUBE_PROXY] == [1]


async def test_a_refusal_says_which_capability_is_missing(tmp_path: Path) -> None:
    firewall = fake_iptables(tmp_path, "Permission denied (you must be root)\n", 4)
    firewall._binaries = {(NFT, 4): str(tmp_path / "iptables-nft")}
    with pytest.raises(HostError, match="CAP_NET_ADMIN is missing"):
        await firewall.chains()
