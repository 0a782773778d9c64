"""reconciler: follows an interface that peers, ports and keys change on, and that comes and goes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path as FilePath

import pytest
import trio
from structlog.testing import capture_logs

from relayd.agent.direct_endpoints import DirectEndpoints
from relayd.agent.loopback import derive
from relayd.agent.reconcile import Path
from relayd.agent.reconciler import GAP_S, Deciders, Reconciler
from relayd.endpoints import Endpoint
from relayd.errors import HostError
from relayd.kernel.wireguard import Interface
from relayd.keys import PrivateKey, PublicKey
from relayd.paths.patience import Patience
from relayd.paths.verdict import Verdict
from tests.helpers.fake_wireguard import FakeWireGuard

A, B = PublicKey(b"a" * 32), PublicKey(b"b" * 32)
OWN = PrivateKey(b"o" * 32)
PORT = 22347
DIRECT = Endpoint.parse("192.0.2.9:51820")


def proxy_endpoint(key: PublicKey) -> Endpoint:
    return Endpoint(derive(key), PORT)


async def here(function: Callable[..., None], *arguments: object) -> None:
    """Not in a thread: the clock of these tests jumps while it waits for one."""
    await trio.lowlevel.checkpoint()
    function(*arguments)


class Host:
    """An interface, and what its reconciler tells proxy and link."""

    def __init__(self, state_dir: FilePath) -> None:
        self.wireguard = FakeWireGuard(private_key=OWN)
        self.reopened: list[FakeWireGuard] = []
        self.peers: list[Mapping[PublicKey, IPv4Address]] = []
        self.ports: list[int] = []
        self.keys: list[PublicKey] = []
        self.connected = True
        self.direct = DirectEndpoints(state_dir, self.wireguard.name, in_thread=here)
        self.configured: dict[PublicKey, Endpoint] = {}
        self.lines: list[Mapping[str, object]] = []
        self.deciders: Deciders | None = None

    def set_peers(self, peers: Mapping[PublicKey, IPv4Address]) -> None:
        self.peers.append(dict(peers))

    def set_wireguard_port(self, port: int) -> None:
        self.ports.append(port)

    def register_as(self, key: PrivateKey) -> None:
        self.keys.append(key.public())

    async def reopen(self) -> FakeWireGuard:
        await trio.lowlevel.checkpoint()
        if not self.reopened:
            raise HostError("there is no interface wire_kube")
        return self.reopened.pop()

    @asynccontextmanager
    async def reconciled(self) -> AsyncIterator[Reconciler]:
        """With the reconciler running, and its first look taken."""
        reconciler = Reconciler(
            await self.wireguard.read(),
            self.wireguard,
            reopen=self.reopen,
            proxy=self,
            link=self,
            address_of=derive,
            direct=self.direct,
            configured=self.configured,
            proxy_port=PORT,
            patience=Patience(),
            every_s=1.0,
            deciders=self.deciders,
        )
        with capture_logs() as lines:
            self.lines = lines  # type: ignore[assignment]  # structlog's own kind of mapping
            async with trio.open_nursery() as nursery:
                await nursery.start(reconciler.run)
                yield reconciler
                nursery.cancel_scope.cancel()
        reconciler.close()

    def events(self) -> list[str]:
        return [str(line["event"]) for line in self.lines]


@pytest.fixture
def host(tmp_path: FilePath) -> Host:
    return Host(tmp_path)


async def test_proxy_knows_a_peer_before_the_kernel_sends_there(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A)
    async with host.reconciled():
        assert host.peers[-1] == {A: derive(A)}
        assert host.wireguard.endpoints_set == [(A, proxy_endpoint(A))]
        assert host.ports[-1] == 51820


async def test_endpoint_that_is_right_is_written_once(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A)
    host.wireguard.add_peer(B, endpoint=DIRECT, handshake_at=time.time())
    async with host.reconciled():
        await trio.sleep(60.5)
        assert host.wireguard.endpoints_set == [(A, proxy_endpoint(A))]
        assert len(host.peers) == 1
    assert host.events() == ["peer.relayed", "peer.direct"]


async def test_what_the_kernel_has_stays_when_the_agent_stops(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A)
    async with host.reconciled():
        pass
    assert host.wireguard.closed
    assert host.wireguard.endpoints_set == [(A, proxy_endpoint(A))]
    assert host.wireguard.written == []


async def test_peers_ports_and_keys_are_followed(host: Host, autojump_clock: trio.testing.MockClock) -> None:
    host.wireguard.add_peer(A)
    async with host.reconciled() as reconciler:
        host.wireguard.add_peer(B)
        host.wireguard.set_listen_port(40_001)
        await trio.sleep(1.5)
        assert host.peers[-1] == {A: derive(A), B: derive(B)}
        assert host.wireguard.endpoints_set[-1] == (B, proxy_endpoint(B))
        assert host.ports[-1] == 40_001
        host.wireguard.remove_peer(A)
        new_key = PrivateKey(b"n" * 32)
        await host.wireguard.configure(
            new_key,
            listen_port=40_001,
            fwmark=0,
            peers=[],
        )
        host.wireguard.add_peer(B, endpoint=proxy_endpoint(B))
        await trio.sleep(1.0)
        assert host.peers[-1] == {B: derive(B)}
        assert host.keys[-1] == new_key.public()
        assert reconciler.paths.keys() == {B}
    assert host.events() == ["peer.relayed", "peer.relayed", "peer.removed"]


async def test_interface_that_goes_is_said_once_and_found_again(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A)
    async with host.reconciled() as reconciler:
        host.wireguard.failure = HostError("there is no interface wire_kube")
        await trio.sleep(30.0)
        assert reconciler.problem == "there is no interface wire_kube"
        again = FakeWireGuard(private_key=OWN)
        again.add_peer(A)
        host.reopened.append(again)
        await trio.sleep(1.0)
        assert reconciler.problem == ""
        assert again.endpoints_set == [(A, proxy_endpoint(A))]
        assert host.wireguard.closed
    assert again.closed
    assert host.events() == ["peer.relayed", "interface.lost", "interface.found"]


async def test_endpoint_that_is_refused_is_tried_again_and_costs_the_others_nothing(
    host: Host, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = host.wireguard.set_endpoint
    refusing = True

    async def refuse_a(key: PublicKey, endpoint: Endpoint) -> None:
        if key == A and refusing:
            raise HostError("cannot set the endpoint")
        await real(key, endpoint)

    monkeypatch.setattr(host.wireguard, "set_endpoint", refuse_a)
    host.wireguard.add_peer(A)
    host.wireguard.add_peer(B)
    async with host.reconciled():
        await trio.sleep(10.5)
        assert host.wireguard.endpoints_set == [(B, proxy_endpoint(B))]
        refusing = False
        await trio.sleep(1.0)
        assert host.wireguard.endpoints_set[-1] == (A, proxy_endpoint(A))
    assert host.events() == ["peer.endpoint_refused", "peer.relayed", "peer.relayed"]


async def test_direct_path_that_dies_under_traffic_goes_to_the_relay_with_one_line(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A, endpoint=DIRECT, handshake_at=time.time())
    async with host.reconciled():
        for second in range(200):
            host.wireguard.update_peer(A, tx_bytes=148 * second)
            await trio.sleep(1.0)
        assert host.wireguard.endpoints_set == [(A, proxy_endpoint(A))]
    assert host.events() == ["peer.direct", "peer.relayed"]
    assert host.lines[-1]["reason"] == "no handshake for 180 s"


async def test_what_was_direct_in_a_life_before_is_tried_when_the_relay_is_silent(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A, endpoint=DIRECT, handshake_at=1.0)
    async with host.reconciled():
        await trio.sleep(1.5)
        host.wireguard.update_peer(A, tx_bytes=148)
        await trio.sleep(15)
        assert host.wireguard.endpoints_set[-1] == (A, proxy_endpoint(A))
    assert host.direct.endpoints == {A: DIRECT}

    host.wireguard.closed = False
    host.direct = DirectEndpoints(host.direct.path.parent, host.wireguard.name, in_thread=here)
    async with host.reconciled() as reconciler:
        assert reconciler.paths[A].reason == "relayed before"
        await trio.sleep(1.5)
        host.wireguard.update_peer(A, tx_bytes=296)
        await trio.sleep(20)
        assert host.wireguard.endpoints_set[-1] == (A, DIRECT)


async def test_the_configurations_endpoint_is_tried_before_a_remembered_one(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.configured = {A: Endpoint.parse("192.0.2.77:7")}
    host.wireguard.add_peer(A, endpoint=proxy_endpoint(A))
    async with host.reconciled() as reconciler:
        assert reconciler.paths[A].given_up == host.configured[A]
    assert host.wireguard.endpoints_set == []


async def test_where_the_relay_is_always_used_no_endpoint_helps(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.wireguard.add_peer(A, endpoint=DIRECT, handshake_at=time.time())
    async with host.reconciled() as reconciler:
        assert host.wireguard.endpoints_set == []
        reconciler.relay_always(True)
        reconciler.nudge()
        await trio.sleep(0.5)
        assert host.wireguard.endpoints_set == [(A, proxy_endpoint(A))]
        assert (reconciler.paths[A].path, reconciler.paths[A].reason) == (
            Path.RELAY,
            "the mesh's relay mode is always",
        )
        assert host.direct.endpoints == {A: DIRECT}, "for when that ends"
        # The kernel roams to where the peer's packets come from.
        host.wireguard.add_peer(A, endpoint=DIRECT, handshake_at=time.time())
        await trio.sleep(1.5)
        assert host.wireguard.endpoints_set == [(A, proxy_endpoint(A))] * 2
        reconciler.relay_always(False)
        host.wireguard.add_peer(A, endpoint=DIRECT, handshake_at=time.time())
        await trio.sleep(1.5)
        assert reconciler.paths[A].path is Path.DIRECT


class Undecided:
    """A peer whose packets come from two places in turn: each look finds it elsewhere than the last one did,
    which is a reason to look at once."""

    def __init__(self) -> None:
        self.looks = 0
        self.nudge: Callable[[], None] = lambda: None

    def saw(self, interface: Interface, now: float) -> None:
        self.looks += 1
        self.nudge()

    def verdicts(self, now: float) -> Mapping[PublicKey, Verdict]:
        return {}

    def was_set(self, key: PublicKey, endpoint: Endpoint | None) -> None:
        raise AssertionError("nothing is set")


async def test_a_peer_that_is_elsewhere_at_each_look_is_not_looked_at_all_the_time(
    host: Host, autojump_clock: trio.testing.MockClock
) -> None:
    host.deciders = undecided = Undecided()
    host.wireguard.add_peer(A, endpoint=DIRECT, handshake_at=time.time())
    async with host.reconciled() as reconciler:
        undecided.nudge = reconciler.nudge
        undecided.looks = 0
        reconciler.nudge()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        assert undecided.looks <= 1
        await trio.sleep(100 * GAP_S)
        assert 90 <= undecided.looks <= 101
