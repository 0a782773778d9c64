"""`relayd stun`, without an agent or beside one: a look from WireGuard's port, or as near to it as can be
had."""

from __future__ import annotations

import json

import trio

from relayd.agent.discovery.stun_answers import ask_servers
from relayd.agent.discovery.stun_client import StunClient
from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.agent.discovery.survey import Sources, Survey, survey
from relayd.agent.shared_port import SharedPort
from relayd.config import AgentConfig
from relayd.errors import HostError
from relayd.kernel.wireguard import open_wireguard
from relayd.netio.raw_udp import Datagram
from relayd.observe.output import at_work, printing
from relayd.stun.view import as_answer, lines


def show(
    config: AgentConfig, *, as_json: bool, lifetime_s: float = 0.0, port: int = 0, map_port: bool = False
) -> int:
    """Look, and print. 0 when a STUN server answered, or none was to be asked.

    With `map_port` the gateway is asked for a mapping. `port`: WireGuard's, for who may not ask the
    interface. Raises RelaydError when it can't be printed.
    """
    texts = [*(relay.address for relay in config.relays), *config.stun]
    servers = [StunServer.parse(text) for text in texts]
    sources = Sources(
        servers=tuple(dict.fromkeys(servers)),
        manual=config.endpoints,
        lifetime_s=lifetime_s,
        port_mapping=map_port,
        aws=config.aws_metadata,
    )
    asked = ", ".join(str(one) for one in sources.servers) or "nobody"
    patience = f"; up to {lifetime_s:g} s, for how long a mapping lives" if lifetime_s else ""
    with at_work(f"asking {asked}{patience}"):
        result, interface = trio.run(_look, config.interface, port, sources)
    with printing():
        if as_json:
            print(json.dumps(as_answer(result, interface=interface), ensure_ascii=False))
        else:
            for line in lines(result, interface=interface, lifetime=lifetime_s > 0):
                print(line)
    answered = any(one.mapped is not None for look in result.looks for one in look.asked)
    return 0 if answered or not servers else 1


async def _look(interface: str, port: int, sources: Sources) -> tuple[Survey, str]:
    name, lacks = "", ""
    if not port:
        try:
            port, name = (await (await open_wireguard(interface)).read()).listen_port, interface
        except HostError as error:
            lacks = str(error)
        if not port:
            lacks = lacks or f"{interface} listens on no port: it is down, or has no key"
    clients: list[StunClient] = []

    def on_stun(datagram: Datagram) -> None:
        clients[0].on_datagram(datagram)

    shared = SharedPort(port, on_stun=on_stun, on_sealed=lambda _datagram: None, raw=bool(port), lacks=lacks)
    try:
        clients.append(StunClient(shared))
        async with trio.open_nursery() as nursery:
            await nursery.start(shared.run)
            said = await ask_servers(clients[0], Resolver(), sources.servers, versions=shared.versions)
            result = await survey(shared, said, sources)
            nursery.cancel_scope.cancel()
    finally:
        shared.close()
    return result, name or interface
