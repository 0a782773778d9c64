"""The questions that tell what kind of NAT there is, for one IP version (RFC 5780, section 4).

Mapping is found out from WireGuard's own port: it is that one's that counts. Filtering is found out from a
port of its own each time: what was sent from WireGuard's port before has opened the NAT in ways that nobody
remembers.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from relayd.agent.discovery.relay_probes import RelayProbes
from relayd.agent.discovery.stun_answers import Address, Asked, StunAnswers
from relayd.agent.discovery.stun_client import Answer, NoAnswerError, StunClient
from relayd.agent.shared_port import SharedPort
from relayd.endpoints import Endpoint
from relayd.netio.raw_udp import Datagram
from relayd.observe import log
from relayd.paths.nat_class import Filtering, Verdict, classify
from relayd.wire import stun

LIFETIMES_S = (1, 2, 3, 5, 8, 13, 20, 30, 45, 60, 90, 120, 180, 300, 600)
"""How long a mapping may be idle before it is tried whether it still is there. Each has a port of its own."""

TRIES, LATE_S = 3, 0.4
"""An answer through a mapping that is there still has arrived by then, one of three."""


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a mapping lives without traffic: at least `alive_s`; gone after `dead_s` (None: not tried for
    so long)."""

    alive_s: float
    dead_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What was found out for one IP version."""

    version: int
    port: int
    """That the questions came from."""
    asked: list[Asked] = field(default_factory=list)
    verdict: Verdict
    filtering_by: str = ""
    """Which server's second port told of the filtering, or why nobody's did."""
    lifetime: Lifetime | None = None


@asynccontextmanager
async def fresh_client(
    also: Callable[[Datagram], None] | None = None,
) -> AsyncIterator[tuple[SharedPort, StunClient]]:
    """A client on a port that nothing was sent from before. `also` hears all STUN that comes to it.

    Raises OSError, and what the body raises of NoAnswerError and OSError as it is.
    """
    clients: list[StunClient] = []

    def on_stun(datagram: Datagram) -> None:
        clients[0].on_datagram(datagram)
        if also is not None:
            also(datagram)

    port = SharedPort(0, on_stun=on_stun, on_sealed=lambda _datagram: None, raw=False)
    failure: NoAnswerError | OSError | None = None
    try:
        clients.append(StunClient(port))
        async with trio.open_nursery() as nursery:
            await nursery.start(port.run)
            try:
                yield port, clients[0]
            except (NoAnswerError, OSError) as error:
                failure = error  # raised outside, where no group is made of it
            nursery.cancel_scope.cancel()
    finally:
        port.close()
    if failure is not None:
        raise failure


async def look(
    said: StunAnswers,
    port: int,
    *,
    version: int,
    own: Collection[Address],
    lifetime_s: float = 0.0,
    probes: RelayProbes | None = None,
) -> Look:
    """Go on from what servers `said` of WireGuard's `port`, over one IP version.

    Raises nothing for what the network does: it is in the result.
    """
    asked = said.of_version(version)
    answered = [one.server for one in asked if one.server in said.answers]
    filtering, by = Filtering.UNKNOWN, "no server that answered has a second port"
    for server in answered:
        if second := said.elsewhere(server):
            filtering, by = await find_filtering(server, others=second)
            if filtering is not Filtering.UNKNOWN:
                break
    classic = [server for server in answered if said.answers[server].said.changed is not None]
    if filtering is Filtering.UNKNOWN and classic and version == 4:
        filtering, by = await _by_classic(classic[0])
    if filtering is Filtering.UNKNOWN and probes is not None and answered and version == 4:
        try:
            filtering, by = await probes.find(answered[0])
        except OSError as error:
            by = f"the relay's probes: {error.strerror}"
    lifetime = None
    if lifetime_s and answered:
        lifetime = await find_lifetime(answered[0], lifetime_s)
    return Look(
        version=version,
        port=port,
        asked=asked,
        verdict=classify(said.observations(version), filtering, own=own, port=port),
        filtering_by=by,
        lifetime=lifetime,
    )


async def find_filtering(server: Endpoint, *, others: Sequence[Endpoint]) -> tuple[Filtering, str]:
    """How the NAT filters, by a server that has `others`, which are known to answer (RFC 5780, section
    4.4)."""
    try:
        async with fresh_client() as (_, client):
            await client.ask(server)
            addresses = {one.address for one in others} - {server.address}
            if addresses:
                answer = await _from_elsewhere(client, server, change_ip=True)
                if answer is not None and answer.source.address != server.address:
                    return Filtering.INDEPENDENT, str(server)
            answer = await _from_elsewhere(client, server, change_ip=False)
            if answer is None:
                await client.ask(server)  # that nothing came isn't because the server has gone
                return Filtering.ADDRESS_AND_PORT, str(server)
            if answer.source == server:
                return Filtering.UNKNOWN, f"{server} answers from the port that was asked"
            return (Filtering.ADDRESS if addresses else Filtering.NOT_BY_PORT), str(server)
    except (NoAnswerError, OSError) as error:
        return Filtering.UNKNOWN, f"{server}: {error}"


async def _by_classic(server: Endpoint) -> tuple[Filtering, str]:
    from relayd.agent.discovery import classic  # few servers are, and pystun3 is loaded for them alone

    try:
        return await classic.classify(server), f"{server}, a classic server"
    except classic.ClassicError as error:
        return Filtering.UNKNOWN, f"{server}, a classic server: {error}"


async def _from_elsewhere(client: StunClient, server: Endpoint, *, change_ip: bool) -> Answer | None:
    """The answer that was asked to come from elsewhere; None: nothing came. Raises NoAnswerError: refused."""
    try:
        return await client.ask(server, change_ip=change_ip, change_port=True)
    except NoAnswerError as error:
        if "refused" in str(error):
            raise
        return None


async def find_lifetime(server: Endpoint, most_s: float) -> Lifetime | None:
    """How long an idle mapping lives, up to `most_s` seconds, which it takes (RFC 5780, section 4.6).

    One port for each time: a question opens its mapping, and when the time has come another port has the
    server answer to that mapping (RESPONSE-PORT). None: the server doesn't do that, or doesn't answer.
    """
    alive: dict[float, bool] = {}
    times: list[float] = [time for time in LIFETIMES_S if time <= most_s] or [most_s]

    async def one(time: float) -> None:
        heard = trio.Event()
        wanted = os.urandom(stun.TRANSACTION_BYTES)

        def on_stun(datagram: Datagram) -> None:
            if datagram.payload[8:20] == wanted:
                heard.set()

        try:
            async with fresh_client(on_stun) as (_, client), fresh_client() as (other, _):
                mapped = (await client.ask(server)).mapped
                await trio.sleep(time)
                for _again in range(TRIES):
                    other.send(stun.encode_request(wanted, response_port=mapped.port), server)
                    with trio.move_on_after(LATE_S):
                        await heard.wait()
                        break
                alive[time] = heard.is_set()
        except (NoAnswerError, OSError) as error:
            log.get().debug("stun.lifetime_unknown", after_s=time, error=str(error))

    async with trio.open_nursery() as nursery:
        for time in times:
            nursery.start_soon(one, time)
    living = [time for time in times if alive.get(time)]
    if not living:
        # Nothing ever came, not after the shortest time either: the server doesn't send to other ports.
        return None
    dead = [time for time in times if alive.get(time) is False and time > max(living)]
    return Lifetime(max(living), min(dead) if dead else None)
