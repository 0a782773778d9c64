"""Pairs of real interfaces for the contract, and waiting for their handshake."""

from __future__ import annotations

from dataclasses import dataclass

import trio

from relayd.kernel.device import Interface, WireGuard

HANDSHAKE_S = 30.0
"""It takes milliseconds, and on an emulated machine one lost initiation more (5 s, REKEY_TIMEOUT)."""


@dataclass(frozen=True)
class RealPair:
    """Two interfaces of one network namespace."""

    here: WireGuard
    there: WireGuard

    async def handshake(self) -> None:
        """WireGuard makes it by itself, for the sake of the keepalive. Raises trio.TooSlowError."""
        with trio.fail_after(HANDSHAKE_S):
            for wireguard in (self.here, self.there):
                while not _all_met(await wireguard.read()):  # noqa: ASYNC110 (only the interface knows)
                    await trio.sleep(0.05)


def _all_met(interface: Interface) -> bool:
    return all(peer.handshake_at is not None and peer.rx_bytes for peer in interface.peers.values())
