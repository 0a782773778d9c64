"""What STUN servers say of WireGuard's port: all of them asked at one time, at each address that they have.

The agent asks in one place (`own_addresses`); what peers are told and what kind of NAT there is both follow
from these answers.
"""

from __future__ import annotations

from collections import abc
from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import trio

from relayd.agent.discovery.stun_client import Answer, NoAnswerError, StunClient
from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.endpoints import Endpoint
from relayd.paths.nat_class import SYMMETRIC, Mapping, Observation, mapping_of

Address = IPv4Address | IPv6Address

PACE_S = 0.002
"""Between two questions: in the order of asking, a NAT that counts its ports up is seen counting. (Trio
starts tasks in no particular order.)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One server's address, and what came of asking it."""

    server: Endpoint
    name: str
    mapped: Endpoint | None = None
    local: Address | None = None
    round_trip_s: float | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class StunAnswers:
    """What was said at one time."""

    asked: tuple[Asked, ...] = ()
    """In the order of asking: first the servers, then where else they can be asked."""
    answers: abc.Mapping[Endpoint, Answer] = field(default_factory=dict)
    """Of those that answered."""
    problems: tuple[str, ...] = ()
    """Names that lead nowhere."""

    def of_version(self, version: int) -> list[Asked]:
        """Those of one IP version."""
        return [one for one in self.asked if one.server.address.version == version]

    def seen(self, version: int) -> list[Asked]:
        """Those of them that told where the question came from."""
        return [one for one in self.of_version(version) if one.mapped is not None]

    def observations(self, version: int) -> list[Observation]:
        """The same as evidence of the NAT's kind."""
        return [
            Observation(one.server, one.mapped) for one in self.of_version(version) if one.mapped is not None
        ]

    def outline(self, version: int) -> tuple[Mapping, frozenset[Endpoint | Address]]:
        """How the NAT maps, and where it has us: of a symmetric one its addresses, as it gives out other
        ports each time. What is unlike the last one is news."""
        seen = self.observations(version)
        mapping = mapping_of(seen)
        symmetric = mapping in SYMMETRIC
        return mapping, frozenset(one.mapped.address if symmetric else one.mapped for one in seen)

    def elsewhere(self, server: Endpoint) -> list[Endpoint]:
        """Where else a server that answered says that it can be asked, and did answer."""
        return [one for one in others(server, self.answers[server]) if one in self.answers]


async def ask_servers(
    client: StunClient,
    resolver: Resolver,
    servers: Sequence[StunServer],
    *,
    versions: Sequence[int] = (4, 6),
) -> StunAnswers:
    """Ask each of `servers`, and where it answers at its second port and address too, which tell whether each
    destination gets a mapping of its own. Some seconds, where nobody answers; nothing is raised.

    `client` sends from the port that is asked about, over the IP `versions` named.
    """
    found: dict[StunServer, list[Endpoint]] = {}
    problems: list[str] = []

    async def resolve(server: StunServer) -> None:
        try:
            found[server] = await resolver.resolve(server)
        except OSError as error:
            problems.append(f"STUN server {server}: {error}")

    # All at once: while DNS is dead, names cost some seconds, and not as often as there are names.
    async with trio.open_nursery() as nursery:
        for server in servers:
            nursery.start_soon(resolve, server)
    targets = dict.fromkeys(
        (str(server), endpoint)
        for server in servers
        for endpoint in found.get(server, ())
        if endpoint.address.version in versions
    )
    answers: dict[Endpoint, Answer] = {}
    asked = await _ask_all(client, list(targets), answers)
    known = {endpoint for _, endpoint in targets}
    more = dict.fromkeys(
        (name, other)
        for name, server in targets
        if server in answers
        for other in others(server, answers[server])
        if other not in known
    )
    asked += await _ask_all(client, list(more), answers)
    return StunAnswers(asked=tuple(asked), answers=answers, problems=tuple(problems))


async def _ask_all(
    client: StunClient, servers: Sequence[tuple[str, Endpoint]], answers: dict[Endpoint, Answer]
) -> list[Asked]:
    """All at once, first sent first."""
    results: dict[int, Asked] = {}

    async def one(number: int, name: str, server: Endpoint) -> None:
        try:
            answer = answers[server] = await client.ask(server)
        except NoAnswerError as error:
            results[number] = Asked(server=server, name=name, problem=str(error))
        else:
            results[number] = Asked(
                server=server,
                name=name,
                mapped=answer.mapped,
                local=answer.local,
                round_trip_s=answer.round_trip_s,
            )

    async with trio.open_nursery() as nursery:
        for number, (name, server) in enumerate(servers):
            nursery.start_soon(one, number, name, server)
            await trio.sleep(PACE_S)
    return [results[number] for number in range(len(servers))]


def others(server: Endpoint, answer: Answer) -> list[Endpoint]:
    """Where else the server can be asked: its second port, its second address, both.

    Its word for its second address is taken only when that is as global as the one that was asked: a server
    that is itself behind a NAT names an address of its own network.
    """
    other = answer.said.other
    if other is None or other.port == server.port or not other.port:
        return []
    second = [Endpoint(server.address, other.port)]
    if (
        other.address == server.address
        or other.address.version != server.address.version
        or other.address.is_global != server.address.is_global
    ):
        return second
    return [*second, Endpoint(other.address, server.port), other]
