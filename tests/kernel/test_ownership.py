"""Making an interface, finding it again, and refusing what isn't ours, in a real kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_interface
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.device import PeerSettings
from relayd.kernel.host_rules import Applied
from relayd.kernel.ownership import Owned, keep_owned, open_owned
from tests.helpers.wireguard_contract import networks, new_key
from tests.kernel.shell import removed, sh

NAME = "wire_kube"
DIRECT = Endpoint.parse("192.0.2.1:51820")
PEER = PeerSettings(key=new_key().public(), allowed_ips=networks("10.77.0.0/16"), endpoint=DIRECT)
OWNED = Owned(
    name=NAME,
    private_key=new_key(),
    listen_port=51820,
    mtu=1380,
    addresses=(ip_interface("10.8.0.1/24"), ip_interface("fd08::1/64")),
    peers=(PEER,),
)
SHOWN = f"wg show all dump; ip -d address show dev {NAME}; ip route; ip -6 route"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    removed(NAME)


async def test_a_new_one_has_all_it_should_and_is_known_by_its_alias(state: Path) -> None:
    opened = await open_owned(OWNED, state)
    assert opened.made
    shown = sh(f"ip -d address show dev {NAME}; wg show {NAME}")
    for text in (
        "mtu 1380", "alias made by relayd", "10.8.0.1/24", "fd08::1/64", "fwmark: 0x574b",
        "listening port: 51820", "allowed ips: 10.77.0.0/16", "endpoint: 192.0.2.1:51820",
    ):  # fmt: skip
        assert text in shown


async def test_one_with_our_key_is_used_byte_for_byte_as_it_is(state: Path) -> None:
    await open_owned(OWNED, state)
    # On the relay, by an agent in a life before.
    sh(f"wg set {NAME} peer {PEER.key} endpoint 127.64.1.2:22347")
    before = sh(SHOWN)
    with capture_logs() as lines:
        opened = await open_owned(OWNED, state)
    assert not opened.made
    assert [line["event"] for line in lines] == ["interface.reused"]
    assert sh(SHOWN) == before
    assert await keep_owned(OWNED, state) == Applied()
    assert sh(SHOWN) == before


async def test_one_with_our_key_is_ours_whoever_made_it(state: Path) -> None:
    sh(
        f"ip link add {NAME} type wireguard; wg set {NAME} private-key /dev/stdin listen-port 51820",
        stdin=OWNED.private_key.to_base64(),
    )
    opened = await open_owned(OWNED, state)
    assert not opened.made
    assert "alias" not in sh(f"ip link show {NAME}")


async def test_one_that_we_made_with_another_key_is_made_anew_and_that_is_said(state: Path) -> None:
    await open_owned(OWNED, state)
    index = sh(f"cat /sys/class/net/{NAME}/ifindex")
    other = replace(OWNED, private_key=new_key(), peers=())
    with capture_logs() as lines:
        opened = await open_owned(other, state)
    assert opened.made
    assert "interface.torn_down" in [line["event"] for line in lines]
    assert sh(f"cat /sys/class/net/{NAME}/ifindex") != index
    assert sh(f"wg show {NAME} public-key").strip() == str(other.private_key.public())
    assert sh(f"wg show {NAME} peers") == ""


@pytest.mark.parametrize("kind", ["wireguard", "veth", "dummy", "tun"])
async def test_g22_one_that_is_not_ours_is_refused_by_name_and_not_touched(state: Path, kind: str) -> None:
    if kind == "tun":
        sh(f"ip tuntap add {NAME} mode tun")
    else:
        sh(f"ip link add {NAME} type {kind}")
    if kind == "wireguard":
        sh(
            f"wg set {NAME} private-key /dev/stdin peer {PEER.key} allowed-ips 10.1.0.0/16",
            stdin=new_key().to_base64(),
        )
    before = sh(SHOWN)
    with pytest.raises(HostError, match=f"{NAME} (has another key than ours|is a)") as refused:
        await open_owned(OWNED, state)
    assert "left alone" in str(refused.value)
    assert sh(SHOWN) == before


async def test_a_blank_one_that_somebody_just_made_is_refused(state: Path) -> None:
    sh(f"ip link add {NAME} type wireguard")
    with pytest.raises(HostError, match="left alone"):
        await open_owned(OWNED, state)


async def test_a_start_that_was_killed_half_way_is_gone_on_with(state: Path) -> None:
    # Killed between making it and naming it: what is left is the file that said so beforehand.
    await open_owned(OWNED, state)
    removed(NAME)
    sh(f"ip link add {NAME} type wireguard")
    opened = await open_owned(OWNED, state)
    assert not opened.made
    assert "alias made by relayd" in sh(f"ip link show {NAME}")
    # Killed between naming and configuring it, and the file lost.
    removed(NAME)
    sh(f"ip link add {NAME} type wireguard; ip link set {NAME} alias 'made by relayd'; rm {state}/made-*")
    await open_owned(OWNED, state)
    assert "fwmark: 0x574b" in sh(f"wg show {NAME}")


async def test_a_disk_that_takes_nothing_keeps_no_interface_from_being_made(state: Path) -> None:
    (state / "file").touch()
    with capture_logs() as lines:
        assert (await open_owned(OWNED, state / "file")).made
    assert "state.unwritable" in [line["event"] for line in lines]


async def test_a_direct_endpoint_without_a_session_follows_the_configuration(state: Path) -> None:
    await open_owned(OWNED, state)
    moved = replace(PEER, endpoint=Endpoint.parse("192.0.2.2:51820"))
    await open_owned(replace(OWNED, peers=(moved,)), state)
    assert "192.0.2.2:51820" in sh(f"wg show {NAME} endpoints")


async def test_what_somebody_changes_is_put_right_and_endpoints_are_left(state: Path) -> None:
    await open_owned(OWNED, state)
    right = sh(SHOWN).replace("192.0.2.1:51820", "192.0.2.3:3")
    sh(
        f"ip address del 10.8.0.1/24 dev {NAME}; ip link set {NAME} mtu 1300 down; "
        f"wg set {NAME} fwmark 0 listen-port 4711 "
        f"peer {PEER.key} allowed-ips 10.1.0.0/16 endpoint 192.0.2.3:3"
    )
    done = await keep_owned(OWNED, state)
    assert done.written == [
        f"interface {NAME} up", "mtu 1380", "address 10.8.0.1/24", "address fd08::1/64",
        "key, port, mark or peers",
    ]  # fmt: skip
    assert sh(SHOWN).replace("proto kernel ", "") == right.replace("proto kernel ", "")
    sh(f"ip link del {NAME}")
    assert await keep_owned(OWNED, state) == Applied(written=[f"interface {NAME}"])
    assert sh(SHOWN).count("10.77.0.0/16") == 1


async def test_a_port_that_others_have_keeps_no_peer_that_was_deleted(state: Path) -> None:
    """The mesh names another port, which is in use on this host: its peers are followed all the same."""
    await open_owned(OWNED, state)
    new = PeerSettings(key=new_key().public(), allowed_ips=networks("10.78.0.0/16"))
    sh("ip link add wire9 type wireguard; wg set wire9 listen-port 51999; ip link set wire9 up")
    try:
        done = await keep_owned(replace(OWNED, listen_port=51999, peers=(new,)), state)
    finally:
        removed("wire9")
    assert [problem.partition(":")[0] for problem in done.problems] == [
        f"{NAME} cannot listen on UDP port 51999"
    ]
    assert sh(f"wg show {NAME} peers").split() == [str(new.key)]
    assert "listening port: 51820" in sh(f"wg show {NAME}")
