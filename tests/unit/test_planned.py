"""Configuring a WireGuard interface: what of it is refused, and what is written all the same."""

from __future__ import annotations

from typing import Literal

import pytest
import trio

from relayd.errors import HostError
from relayd.kernel.device import Changes, Interface, PeerSettings
from relayd.kernel.planned import PlannedWireGuard
from tests.helpers.wireguard_contract import new_key

OWN, PEER = new_key(), new_key().public()


class Stubborn(PlannedWireGuard):
    """An interface whose port nobody can have."""

    engine: Literal["kernel", "userspace"] = "kernel"

    def __init__(self) -> None:
        super().__init__("wire_kube")
        self.written: list[Changes] = []

    async def dump(self) -> Interface:
        await trio.lowlevel.checkpoint()
        return Interface("wire_kube", OWN.public(), 51820, 0, {}, OWN)

    async def _write(self, attempt: str, changes: Changes) -> None:
        await trio.lowlevel.checkpoint()
        if changes.listen_port is not None:
            raise HostError("in use")
        self.written.append(changes)


async def test_a_port_in_use_keeps_no_peer_from_coming_or_going() -> None:
    wireguard = Stubborn()
    peers = [PeerSettings(key=PEER, allowed_ips=())]
    with pytest.raises(HostError, match="in use"):
        await wireguard.configure(OWN, listen_port=4711, fwmark=0, peers=peers)
    assert [[peer.key for peer in changes.peers] for changes in wireguard.written] == [[PEER]]
