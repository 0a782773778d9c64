"""The mesh as a configuration file describes it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing
from msgspec import structs
from trio.testing import MockClock

from relayd.config import AgentConfig, load_agent
from relayd.coordination.model import AdoptedInterface, Mesh, MeshPeer, OwnedInterface, RelayAddress
from relayd.coordination.source import Source
from relayd.coordination.static_file import StaticFile
from relayd.join import JoinString
from tests.helpers.config_files import AGENT, KEY_A, OWN, with_private_key, write


async def test_the_snapshot_is_what_the_file_says(tmp_path: Path) -> None:
    config = load_agent(write(with_private_key(tmp_path), AGENT), {}, environ={})
    source: Source = StaticFile(config)
    mesh = await source.snapshot()
    assert config.owned is not None
    assert mesh.interface == OwnedInterface(
        name="wg0", private_key=OWN, listen_port=51821, addresses=config.owned.address, mtu=1380
    )
    assert mesh.relays == (JoinString("relay.example.net", 3478),)
    assert mesh.peers[0] == MeshPeer(
        key=KEY_A,
        allowed_ips=config.peers[0].allowed_ips,
        endpoint=config.peers[0].endpoint,
        keepalive_s=25,
    )
    assert mesh.peers[1].endpoint is None
    assert OWN.to_base64() not in repr(mesh)
    assert repr(OWN.raw) not in repr(mesh)


async def test_an_interface_that_exists_is_adopted_by_name() -> None:
    source = StaticFile(AgentConfig(relays=(JoinString("2001:db8::1", 3478),), interface="wg7"))
    expected = Mesh(interface=AdoptedInterface("wg7"), peers=(), relays=(JoinString("2001:db8::1", 3478),))
    assert await source.snapshot() == expected


async def test_a_reload_tells_who_waits_and_keeps_the_key_that_the_agent_made(tmp_path: Path) -> None:
    config = load_agent(write(with_private_key(tmp_path), AGENT), {}, environ={})
    assert config.owned is not None
    source = StaticFile(config)
    seen = await source.snapshot()
    got: list[Mesh] = []

    async def wait() -> None:
        got.append(await source.changed(seen))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        source.use(config)
        await trio.testing.wait_all_tasks_blocked()
        assert not got
        keyless = structs.replace(config.owned, private_key=None)
        source.use(structs.replace(config, owned=keyless, peers=config.peers[:1]))
    (mesh,) = got
    assert mesh == replace(seen, peers=seen.peers[:1])


async def test_without_a_reload_a_file_never_changes(mock_clock: MockClock) -> None:
    mock_clock.autojump_threshold = 0
    source = StaticFile(AgentConfig(relays=(JoinString("192.0.2.1", 3478),)))
    seen = await source.snapshot()
    with trio.move_on_after(1_000_000) as scope:
        await source.changed(seen)
    assert scope.cancelled_caught


async def test_who_saw_something_else_is_told_at_once() -> None:
    source = StaticFile(AgentConfig(relays=(JoinString("192.0.2.1", 3478),)))
    current = await source.snapshot()
    with trio.fail_after(1):
        assert await source.changed(replace(current, relays=(JoinString("192.0.2.2", 1),))) == current


@pytest.mark.parametrize("text", ["relay.example.net:3478", "192.0.2.1:1", "[2001:db8::1]:65535"])
def test_a_relays_address_is_written_as_it_was_read(text: str) -> None:
    assert str(RelayAddress.parse(text)) == text
