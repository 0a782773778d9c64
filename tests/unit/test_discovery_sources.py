"""Where an agent looks for its address besides STUN: a cloud's metadata, and what a gateway says."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from relayd.agent.discovery.cloud import looks_like_aws
from relayd.agent.discovery.survey import is_outside


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("sys/devices/virtual/dmi/id/sys_vendor", "Amazon EC2\n", True),
        ("sys/hypervisor/uuid", "ec2e1916-9099-7caf-fd21-012345abcdef\n", True),
        ("sys/devices/virtual/dmi/id/sys_vendor", "QEMU\n", False),
        ("sys/hypervisor/uuid", "\xff\xfe", False),
        ("etc/hostname", "ec2", False),
    ],
)
def test_a_machine_of_aws_is_known_by_what_its_hypervisor_says(
    tmp_path: Path, name: str, text: str, expected: bool
) -> None:
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_bytes(text.encode("latin-1"))
    assert looks_like_aws(tmp_path) is expected


@pytest.mark.parametrize(
    ("text", "outside"),
    [
        ("203.0.113.5", True),
        ("8.8.8.8", True),
        ("100.64.0.1", False),
        ("100.128.0.1", True),
        ("10.0.0.1", False),
        ("172.31.0.1", False),
        ("192.168.1.1", False),
        ("169.254.1.1", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
    ],
)
def test_what_a_gateway_calls_its_outer_address_may_be_an_inner_one(text: str, outside: bool) -> None:
    assert is_outside(ip_address(text)) is outside
