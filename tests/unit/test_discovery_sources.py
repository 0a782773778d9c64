"""Where an agent looks for its address besides STUN: a cloud's metadata, and what a gateway says."""

from __future__ import annotations

import socket
import struct
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio

from relayd.agent.discovery import cloud
from relayd.agent.discovery.cloud import NoMetadataError, aws_public_address, looks_like_aws
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


async def test_a_metadata_service_that_breaks_the_connection_is_told_of_and_no_more(
    monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery
) -> None:
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(cloud, "ADDRESS", "127.0.0.1")
        monkeypatch.setattr(cloud, "PORT", listener.getsockname()[1])

        async def resets() -> None:
            accepted, _ = await listener.accept()
            await accepted.recv(1)
            accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            accepted.close()

        nursery.start_soon(resets)
        with pytest.raises(NoMetadataError, match="reset"):
            await aws_public_address()


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
