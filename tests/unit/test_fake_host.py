"""The fakes of routing and firewall do what the kernel does (see also tests/kernel/test_host_contract.py)."""

from __future__ import annotations

import pytest

from relayd.kernel.firewall import Firewall
from relayd.kernel.routing import Routing
from tests.helpers.fake_host import FakeFirewall, FakeRouting
from tests.helpers.host_contract import FirewallContract, NatContract, RoutingContract


class TestFakeRouting(RoutingContract):
    @pytest.fixture
    def routing(self) -> Routing:
        return FakeRouting()


class TestFakeFirewall(FirewallContract):
    @pytest.fixture
    def firewall(self) -> Firewall:
        return FakeFirewall(nft=[False])


@pytest.mark.parametrize("version", [4, 6])
class TestFakeNat(NatContract):
    @pytest.fixture
    def firewall(self, version: int) -> Firewall:
        fake = FakeFirewall()
        fake.nat["nft", version] = ["other", "jump"]
        return fake
