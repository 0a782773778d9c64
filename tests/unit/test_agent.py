"""agent.run_agent: the whole agent on `lo`, between a socket in WireGuard's place and a relay's end.

Marked sockets take CAP_NET_ADMIN.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from msgspec import structs

from relayd.agent import agent as agent_module
from relayd.agent import beginning, running
from relayd.agent.loopback import derive
from relayd.agent.running import run_agent
from relayd.config import AgentConfig
from relayd.errors import HostError
from relayd.kernel.host_rules import HostRules
from relayd.kernel.sysctls import Sysctls
from relayd.keys import PrivateKey, PublicKey
from relayd.netio.names import Names
from relayd.observe.control import ask
from relayd.observe.exposition import Exporter
from relayd.signals import Signals
from relayd.wire.frames import DATA
from tests.helpers.fake_host import FakeFirewall, FakeRouting, proc_sys
from tests.helpers.fake_wireguard import FakeWireGuard
from tests.helpers.status_page import undocumented, unexposed
from tests.helpers.tiny_relay import TinyRelay, until

OWN = PrivateKey(b"o" * 32)
PEER, STRANGER = PublicKey(b"p" * 32), PublicKey(b"s" * 32)


@asynccontextmanager
async def wireguard_socket() -> AsyncIterator[trio.socket.SocketType]:
    """What the kernel's WireGuard does towards its endpoints: a UDP port."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        await sock.bind(("127.0.0.1", 0))
        yield sock


def config(relay: TinyRelay, folder: Path) -> AgentConfig:
    return AgentConfig(
        relays=(relay.join,),
        insecure_relay=True,
        interface="wg0",
        control=str(folder / "agent.sock"),
        http=None,
        state_dir=str(folder / "state"),
        proxy_port=0,
    )


def adopt(monkeypatch: pytest.MonkeyPatch, wireguard: FakeWireGuard) -> None:
    async def open_fake(name: str) -> FakeWireGuard:
        await trio.lowlevel.checkpoint()
        assert name == wireguard.name
        return wireguard

    def fake_rules(config: AgentConfig) -> HostRules:
        sysctls = Sysctls(Path(config.state_dir), proc_sys(Path(config.state_dir) / "proc"))
        return HostRules(FakeRouting(), sysctls, FakeFirewall())

    monkeypatch.setattr(agent_module, "open_wireguard", open_fake)
    monkeypatch.setattr(beginning, "open_wireguard", open_fake)
    monkeypatch.setattr(running, "host_rules", fake_rules)


async def status_of(settings: AgentConfig) -> dict[str, Any]:
    return await ask(settings.control_path, "status")


async def test_datagrams_become_frames_and_frames_become_datagrams(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with wireguard_socket() as kernel:
        wireguard = FakeWireGuard("wg0", OWN, listen_port=kernel.getsockname()[1])
        wireguard.add_peer(PEER)
        adopt(monkeypatch, wireguard)
        with TinyRelay() as relay:
            settings = config(relay, tmp_path)
            async with trio.open_nursery() as nursery:
                await nursery.start(run_agent, settings)
                ((key, endpoint),) = wireguard.endpoints_set
                assert (key, endpoint.address) == (PEER, derive(PEER))
                session = await relay.accept()
                await session.register(OWN.public())

                await kernel.sendto(b"\x01\x00\x00\x00initiation", (str(endpoint.address), endpoint.port))
                assert await session.expect(DATA) == PEER.raw + b"\x01\x00\x00\x00initiation"

                await session.deliver(STRANGER, b"who is this")
                await session.deliver(PEER, b"\x02\x00\x00\x00response")
                payload, source = await kernel.recvfrom(2048)
                assert payload == b"\x02\x00\x00\x00response"
                assert source == (str(endpoint.address), endpoint.port)

                status = await status_of(settings)
                # All that the metrics read is there, for a real agent.
                assert b"wirekube_direct_peers_total 0.0" in Exporter().render(status, status["peers"])
                assert undocumented(status) == set(), "a row in docs/status.md"
                assert unexposed(status) == set(), "a line in observe/metrics.py, a row in docs/metrics.md"
                assert status["role"] == "agent"
                assert status["relay"]["state"] == "connected"
                assert status["drops"] == {"unknown_key": 1}
                assert status["loop_lag_ms_max"] > 0
                (peer,) = status["peers"]
                assert (peer["path"], peer["reason"]) == ("relay", "no endpoint")
                assert (peer["relay_tx_frames"], peer["relay_rx_frames"]) == (1, 1)

                session.sock.close()
                with trio.fail_after(30):
                    while (await status_of(settings))["peers"][0]["path"] != "none":
                        await until(lambda: True)
                nursery.cancel_scope.cancel()
        assert wireguard.closed
        assert not await trio.Path(settings.control_path).exists()


async def test_agent_is_ready_without_its_relay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wireguard = FakeWireGuard("wg0", OWN)
    wireguard.add_peer(PEER)
    adopt(monkeypatch, wireguard)
    with TinyRelay() as relay:
        settings = config(relay, tmp_path)
    async with trio.open_nursery() as nursery:
        await nursery.start(run_agent, settings)
        assert wireguard.endpoints_set[0][0] == PEER
        with trio.fail_after(30):
            while (await status_of(settings))["relay"]["state"] != "waiting":
                await until(lambda: True)
        status = await status_of(settings)
        assert "Connection refused" in status["relay"]["reason"]
        assert status["peers"][0]["path"] == "none"
        assert isinstance(trio.socket.set_custom_hostname_resolver(None), Names)
        nursery.cancel_scope.cancel()


async def test_missing_interface_ends_the_agent_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wireguard = FakeWireGuard("wg0", OWN)
    wireguard.failure = HostError("there is no interface wg0")
    adopt(monkeypatch, wireguard)
    with TinyRelay() as relay, pytest.raises(HostError, match="there is no interface wg0"):
        await run_agent(config(relay, tmp_path))
    assert wireguard.closed


async def test_a_reload_changes_the_relay_and_what_else_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wireguard = FakeWireGuard("wg0", OWN)
    wireguard.add_peer(PEER)
    adopt(monkeypatch, wireguard)
    signals = Signals()
    with TinyRelay() as relay, TinyRelay() as other:
        settings = config(relay, tmp_path)
        async with trio.open_nursery() as nursery:
            await nursery.start(run_agent, settings, None, signals)
            session = await relay.accept()
            await session.register(OWN.public())
            # The relay, and at once what the relay's links are told.
            new = structs.replace(
                settings, relays=(other.join,), http="127.0.0.1:0", reconcile_s=0.2, fresh_handshake_s=77.0
            )
            for use in signals.on_config:
                use(new)
            again = await other.accept()
            await again.register(OWN.public())
            while (frame := await session.next_frame()) is not None:
                assert frame[0] == DATA  # what peers' agents are told, if it was quicker than the reload
            with trio.fail_after(30):
                while (status := await status_of(settings))["http"] is None:
                    await until(lambda: True)
            assert status["relay"]["address"] == other.join.address
            assert status["patience"]["fresh_handshake_s"] == 77.0
            nursery.cancel_scope.cancel()
