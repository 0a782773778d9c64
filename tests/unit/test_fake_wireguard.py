"""The fake WireGuard keeps the claims that the real ones keep."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest

from relayd.endpoints import Endpoint
from relayd.errors import HostError
from tests.helpers.fake_wireguard import FakeWireGuard
from tests.helpers.wireguard_contract import OTHER_PORT, PORT, Pair, WireGuardContract, new_key


@dataclass
class FakePair:
    here: FakeWireGuard = field(default_factory=lambda: FakeWireGuard("here"))
    there: FakeWireGuard = field(default_factory=lambda: FakeWireGuard("there"))

    async def handshake(self) -> None:
        for near, far, port in ((self.here, self.there, OTHER_PORT), (self.there, self.here, PORT)):
            near.update_peer(
                (await far.read()).public_key,
                endpoint=Endpoint.parse(f"127.0.0.1:{port}"),
                handshake_at=time.time(),
                rx_bytes=92,
                tx_bytes=148,
            )


class TestFakeWireGuard(WireGuardContract):
    @pytest.fixture
    def pair(self) -> Pair:
        return FakePair()

    async def test_a_failing_host_fails_every_call(self) -> None:
        fake = FakeWireGuard(private_key=new_key())
        await fake.read()
        fake.failure = HostError("the interface went away")
        with pytest.raises(HostError, match="went away"):
            await fake.read()
        with pytest.raises(HostError, match="went away"):
            await fake.set_endpoint(new_key().public(), Endpoint.parse("192.0.2.1:1"))
