"""A peer that comes after WireGuard's first packet to it: the handshake doesn't wait for WireGuard's 5 s."""

from __future__ import annotations

import time

from relayd.agent.initiations import REKEY_TIMEOUT_S
from tests.helpers.natlab import Ipv6, Nat
from tests.helpers.netns import status_of, wait_until
from tests.helpers.path_mesh import CONTROL, PathMesh, Pings

SOON_S = 2.0


def test_a_peer_that_connects_later_is_reached_at_once() -> None:
    with PathMesh((Nat.SYMMETRIC,), (Nat.SYMMETRIC,), ipv6=Ipv6.NONE) as mesh:
        mesh.start_agents("a")
        mesh.wait_up()
        began_at = time.time()
        pings = Pings(mesh)

        def lost_one() -> bool:
            peer = mesh.status("a")
            return peer is not None and peer["relay_gone"] is not None

        wait_until(lost_one, "the relay has told a that b isn't there")
        mesh.start_agents("b")
        up_at = mesh.wait_up()
        first_at = wait_until(pings.first_at, "a ping is answered")
        pings.stop()
        assert first_at - up_at < SOON_S
        if up_at - began_at < REKEY_TIMEOUT_S:  # else WireGuard has tried again by itself
            status = status_of(mesh.nodes["a"], CONTROL)
            assert status is not None
            assert status["proxy"]["initiations_sent_again"] >= 1
