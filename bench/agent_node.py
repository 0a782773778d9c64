"""One agent without a WireGuard: the project's own proxy and relay link, in a process of their own.

`python -m bench.agent_node RELAY OWN PEER PORT`: the address of the relay, the numbers of the own and of
the peer's key, and the UDP port at which somebody stands for WireGuard. Prints `ready ADDRESS PORT`, the
loopback endpoint of the peer, once the relay knows it; then forwards until it is ended. Its UDP port is
any free one, so that two of them fit one host.
"""

from __future__ import annotations

import sys
from ipaddress import IPv4Address

import trio

from bench.frames import key_of
from relayd.agent.link_settings import LinkSettings
from relayd.agent.loopback import derive
from relayd.agent.relay_link import RelayLink
from relayd.agent.wg_proxy import WgProxy
from relayd.endpoints import split_host_port
from relayd.errors import RelaydError
from relayd.join import JoinString
from relayd.keys import PrivateKey, PublicKey
from relayd.netio.datagrams import DatagramSocket
from relayd.netio.poller import Poller
from relayd.observe import log
from relayd.wire.runs import Run

CONNECTED_WITHIN_S = 10.0


async def forward(relay: JoinString, own: PrivateKey, peer: PublicKey, wireguard_port: int) -> None:
    """Run the agent's data path until cancelled. Raises RelaydError, and TooSlowError without a relay."""
    poller = Poller()

    def deliver(buffer: bytearray, runs: list[Run], now: float) -> None:
        proxy.deliver(buffer, runs, now)

    link = RelayLink(poller, relay, own, deliver, LinkSettings(insecure=True))
    address: IPv4Address = derive(peer)
    proxy = WgProxy(
        poller,
        DatagramSocket(0),
        wireguard_port=wireguard_port,
        peers={peer: address},
        send_frames=link.send,
        congested=link.congested,
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(poller.run)
        await nursery.start(link.run)
        with trio.fail_after(CONNECTED_WITHIN_S):
            while not link.connected:  # noqa: ASYNC110 - the link has no event for it
                await trio.sleep(0.01)
        print(f"ready {address} {proxy.port}", flush=True)
        try:
            await trio.sleep_forever()
        finally:
            print(f"drops {link.drops()} {proxy.drops()}", file=sys.stderr, flush=True)


def main() -> None:
    """Entry point."""
    relay, own, peer, port = sys.argv[1:]
    log.configure("json")
    try:
        trio.run(
            forward,
            JoinString(*split_host_port(relay)),
            PrivateKey(key_of(int(own))),
            PrivateKey(key_of(int(peer))).public(),
            int(port),
        )
    except (RelaydError, trio.TooSlowError) as error:
        sys.exit(f"the agent did not start: {error}")


if __name__ == "__main__":
    main()
