"""What an agent keeps of its looks, on a virtual clock; and the client's questions."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address
from math import inf

import pytest
import trio
from trio.testing import MockClock

from relayd.agent.discovery.gateway import Mapped
from relayd.agent.discovery.keeper import LIFETIME_S, REFRESH_S, Discovery, Measure
from relayd.agent.discovery.stun_answers import Asked, StunAnswers
from relayd.agent.discovery.stun_client import GIVE_UP_S, NoAnswerError, StunClient
from relayd.agent.discovery.stun_look import Lifetime, Look, find_lifetime
from relayd.agent.discovery.stun_servers import Resolver, StunServer, usable
from relayd.agent.discovery.survey import Sources, Survey
from relayd.agent.shared_port import SharedPort
from relayd.endpoints import Endpoint
from relayd.netio.raw_udp import Address, Datagram
from relayd.paths.findings import Finding, Method
from relayd.paths.keepalive import FIREWALL_HOLD_S
from relayd.paths.nat_class import Filtering, NatType, Verdict
from relayd.wire import stun

SERVER = Endpoint.parse("198.51.100.1:3478")
SEEN = Endpoint.parse("203.0.113.5:51820")
MOVED = Endpoint.parse("203.0.113.99:51820")
OWN = ip_address("192.168.1.2")


# The client ------------------------------------------------------------------------------------------------


@dataclass
class Network:
    """A sender that loses the first `lose` datagrams, and then answers as a server does."""

    lose: int = 0
    error: OSError | None = None
    reply: bytes | None = None
    sent: list[tuple[float, bytes]] = field(default_factory=list)
    clients: list[StunClient] = field(default_factory=list)

    def send(self, payload: bytes, to: Endpoint, *, source: Address | None = None) -> None:
        if self.error is not None:
            raise self.error
        self.sent.append((trio.current_time(), payload))
        if len(self.sent) <= self.lose:
            return
        answer = stun.answer_untrusted(payload, SEEN, local=SERVER, other=None)
        assert answer is not None
        data = self.reply if self.reply is not None else answer.data
        self.clients[0].on_datagram(Datagram(payload=data, source=to, local=OWN))

    def client(self) -> StunClient:
        self.clients.append(StunClient(self))
        return self.clients[0]


@pytest.fixture
def network() -> Network:
    return Network()


async def test_a_question_is_repeated_until_it_is_answered(
    network: Network, autojump_clock: MockClock
) -> None:
    network.lose = 2
    begun = trio.current_time()
    answer = await network.client().ask(SERVER)
    assert answer.mapped == SEEN
    assert answer.local == OWN
    assert [round(at - begun, 3) for at, _ in network.sent] == [0.0, 0.5, 1.5]
    assert len({payload for _, payload in network.sent}) == 1, "the same question, so any answer is one to it"


async def test_a_question_that_nobody_answers_ends_in_time_with_the_reason(
    network: Network, autojump_clock: MockClock
) -> None:
    network.lose = 100
    begun = trio.current_time()
    with pytest.raises(NoAnswerError, match="within 3 s"):
        await network.client().ask(SERVER)
    assert trio.current_time() - begun == pytest.approx(GIVE_UP_S)
    assert len(network.sent) == 3


async def test_what_can_not_be_sent_and_what_is_refused_is_told(
    network: Network, autojump_clock: MockClock
) -> None:
    client = network.client()
    with pytest.raises(NoAnswerError, match="refused with error 420"):
        await client.ask(SERVER, change_port=True)
    network.error = OSError(errno.ENETUNREACH, "Network is unreachable")
    with pytest.raises(NoAnswerError, match="unreachable"):
        await client.ask(SERVER)


async def test_answers_that_nobody_asked_for_and_malformed_ones_are_ignored(
    network: Network, autojump_clock: MockClock
) -> None:
    client = network.client()
    client.on_datagram(Datagram(payload=b"", source=SERVER, local=OWN))
    client.on_datagram(Datagram(payload=stun.encode_request(b"t" * 12), source=SERVER, local=OWN))
    network.reply = stun.encode_request(b"t" * 12)
    with pytest.raises(NoAnswerError, match="within"):
        await client.ask(SERVER)


@pytest.mark.parametrize(
    "told",
    ["203.0.113.5:0", "0.0.0.0:51820", "224.0.0.1:51820", "127.0.0.1:51820", "[2001:db8::5]:51820"],
)
async def test_an_answer_that_names_no_place_of_ours_is_ignored(
    network: Network, autojump_clock: MockClock, told: str
) -> None:
    """Peers refuse a list of candidates with a port 0 in it, and so would hear of no address at all."""
    lie = Endpoint.parse(told)
    client, send = network.client(), network.send

    def lying(payload: bytes, to: Endpoint, *, source: Address | None = None) -> None:
        network.reply = None
        if len(network.sent) == 0:  # from whoever is first, as one in between can be
            network.reply = stun.answer_untrusted(payload, lie, local=SERVER, other=None).data  # type: ignore[union-attr]
        send(payload, to, source=source)

    network.send = lying  # type: ignore[method-assign]
    assert (await client.ask(SERVER)).mapped == SEEN
    assert len(network.sent) == 2


# Names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("stun.example.net", "stun.example.net:3478"),
        ("stun.example.net:19302", "stun.example.net:19302"),
        ("192.0.2.1", "192.0.2.1:3478"),
        ("[2001:db8::1]", "[2001:db8::1]:3478"),
        ("2001:db8::1", "[2001:db8::1]:3478"),
        ("[2001:db8::1]:99", "[2001:db8::1]:99"),
    ],
)
def test_a_server_is_written_with_or_without_its_port(text: str, told: str) -> None:
    assert str(StunServer.parse(text)) == told


@pytest.mark.parametrize("text", ["", "no name", "a:b", "host:99999", "no_name!:1"])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        StunServer.parse(text)


def test_a_name_that_leads_to_this_host_is_not_asked() -> None:
    for text in ("127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "169.254.1.1", "fe80::1"):
        assert not usable(ip_address(text), named=True)
    assert usable(ip_address("127.0.0.1"), named=False)
    assert usable(ip_address("10.0.0.1"), named=True)


async def test_g15_a_lying_name_server_takes_the_last_good_address_not_away(
    autojump_clock: MockClock,
) -> None:
    answers = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1"]

    async def look(host: str, port: int, **_more: object) -> list[tuple[object, ...]]:
        return [(2, 2, 17, "", (text, port)) for text in answers]

    resolver, server = Resolver(look), StunServer.parse("stun.example.net")
    good = [Endpoint(ip_address(text), 3478) for text in ("192.0.2.1", "192.0.2.2", "2001:db8::1")]
    assert await resolver.resolve(server) == good
    answers[:] = ["127.0.0.1", "0.0.0.0"]
    assert await resolver.resolve(server) == good
    answers.clear()
    assert await resolver.resolve(server) == good


# What is kept ----------------------------------------------------------------------------------------------


def finding(endpoint: Endpoint, method: Method = Method.STUN, *, estimated: bool = False) -> Finding:
    return Finding(method=method, endpoint=endpoint, estimated=estimated)


def found(*findings: Finding, nat: NatType = NatType.CONE, failed: bool = False, lease_s: int = 0) -> Survey:
    mapped = next((one.endpoint for one in findings if one.method is Method.STUN), None)
    verdict = Verdict(nat=NatType.UNKNOWN if failed else nat, mapped=mapped)
    return Survey(
        port=51820,
        looks=(Look(version=4, port=51820, verdict=verdict),),
        findings=findings,
        failed=frozenset({(Method.STUN, 4)}) if failed else frozenset(),
        mapped=Mapped("PCP", SEEN, lease_s, "192.168.1.1") if lease_s else None,
    )


class Rig:
    """A Discovery whose looks come from a list; the last one again and again."""

    def __init__(self, port: SharedPort, looks: list[Survey], *, measure: Measure | None = None) -> None:
        self.looks, self.looked_at = looks, list[float]()
        self.changes = 0
        sources = Sources(measure_lifetime=measure is not None)
        self.discovery = Discovery(
            port, sources, changed=self._changed, look=self._look, measure=measure or find_lifetime
        )
        self.discovery.heard(StunAnswers())

    def _changed(self) -> None:
        self.changes += 1

    async def _look(self, _port: SharedPort, _said: StunAnswers, sources: Sources) -> Survey:
        await trio.lowlevel.checkpoint()
        self.asked = sources
        self.looked_at.append(trio.current_time())
        return self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]

    async def after(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.discovery.run()


@contextmanager
def any_port() -> Iterator[SharedPort]:
    port = SharedPort(0, on_stun=lambda _: None, on_sealed=lambda _: None, raw=False)
    try:
        yield port
    finally:
        port.close()


async def test_stun_failing_keeps_what_was_known(autojump_clock: MockClock) -> None:
    with any_port() as port:
        rig = Rig(port, [found(finding(SEEN)), found(failed=True)])
        await rig.after(REFRESH_S + 1)
        assert len(rig.looked_at) == 2
        assert [one.endpoint for one in rig.discovery.findings] == [SEEN]
        assert rig.discovery.published == SEEN
        assert rig.discovery.nat() is NatType.CONE
        assert rig.changes == 1


async def test_a_guess_is_published_while_there_is_nothing_else_and_never_replaces_what_was_seen(
    autojump_clock: MockClock,
) -> None:
    guess = finding(Endpoint.parse("203.0.113.5:40000"), estimated=True)
    with any_port() as port:
        rig = Rig(port, [found(guess), found(finding(SEEN)), found(guess)])
        await rig.after(1)
        assert rig.discovery.published == guess.endpoint
        await rig.after(2 * REFRESH_S + 1)
        assert rig.discovery.published == SEEN
        assert [one.endpoint for one in rig.discovery.findings] == [SEEN]


async def test_news_are_followed_at_once_and_a_lease_is_renewed_at_its_half(
    autojump_clock: MockClock,
) -> None:
    with any_port() as port:
        rig = Rig(port, [found(finding(SEEN), lease_s=200), found(finding(MOVED)), found(finding(MOVED))])
        begun = trio.current_time()
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.discovery.run)
            await trio.sleep(101)
            assert [round(at - begun) for at in rig.looked_at] == [0, 100]
            assert rig.discovery.published == MOVED
            rig.discovery.look_again()
            rig.discovery.heard(StunAnswers())
            await trio.sleep(1)
            assert [round(at - begun) for at in rig.looked_at] == [0, 100, 101]
            nursery.cancel_scope.cancel()
        assert rig.changes == 2


async def test_what_a_reload_changes_is_looked_for_at_once(autojump_clock: MockClock) -> None:
    with any_port() as port:
        rig = Rig(port, [found(finding(SEEN))])
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.discovery.run)
            await trio.sleep(1)
            rig.discovery.ask(manual=(), port_mapping=False, aws="auto", measure_lifetime=False)  # as it was
            await trio.sleep(1)
            assert len(rig.looked_at) == 1
            rig.discovery.ask(manual=(MOVED,), port_mapping=True, aws="never", measure_lifetime=False)
            await trio.sleep(1)
            assert len(rig.looked_at) == 2
            nursery.cancel_scope.cancel()
        assert rig.asked == Sources(manual=(MOVED,), port_mapping=True, aws="never")


def said(*ports: int) -> StunAnswers:
    """What two servers saw."""
    return StunAnswers(
        asked=tuple(
            Asked(server=Endpoint(SEEN.address, number), name="", mapped=Endpoint(SEEN.address, port))
            for number, port in enumerate(ports, 1)
        )
    )


@pytest.mark.parametrize(
    ("before", "after", "news"),
    [
        ((7, 7), (7, 7), False),
        ((7, 7), (8, 8), True),
        ((7, 7), (7, 9), True),  # another NAT
        ((7, 9), (100, 4000), False),  # what a symmetric one does
        ((7, 7), (), True),
    ],
)
async def test_answers_that_say_nothing_new_ask_for_no_look(
    before: tuple[int, ...], after: tuple[int, ...], news: bool, autojump_clock: MockClock
) -> None:
    with any_port() as port:
        rig = Rig(port, [found(finding(SEEN))])
        rig.discovery.heard(said(*before))
        async with trio.open_nursery() as nursery:
            await nursery.start(rig.discovery.run)
            await trio.sleep(1)
            rig.discovery.heard(said(*after))
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        assert len(rig.looked_at) == (2 if news else 1)


async def test_a_mapping_lives_as_long_as_was_measured_and_is_held_by_that(autojump_clock: MockClock) -> None:
    measured = []

    async def measure(server: Endpoint, most_s: float) -> Lifetime | None:
        await trio.sleep(most_s)
        measured.append(server)
        return Lifetime(13.0, 20.0) if len(measured) > 1 else None  # at first the server falls silent

    def nat(mapped: Endpoint) -> Survey:
        verdict = Verdict(nat=NatType.CONE, mapped=mapped, translated=True)
        return Survey(port=51820, looks=(Look(version=4, port=51820, verdict=verdict),))

    other = Endpoint.parse("203.0.113.77:51820")
    with any_port() as port:
        rig = Rig(port, [nat(SEEN), nat(SEEN), nat(other)], measure=measure)
        discovery = rig.discovery
        discovery.heard(said(SEEN.port))
        async with trio.open_nursery() as nursery:
            await nursery.start(discovery.run)
            await trio.sleep(LIFETIME_S + 1)
            assert discovery.hold_s(10.0, True) == 10.0
            await trio.sleep(REFRESH_S)
            assert len(measured) == 2
            assert discovery.hold_s(10.0, True) == 6.5
            assert discovery.status()["mapping_lifetime_s"] == {"alive": 13.0, "gone": 20.0}
            await trio.sleep(REFRESH_S)  # another outer address, another NAT
            assert len(measured) == 3
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("filtering", "held"),
    [
        (Filtering.INDEPENDENT, False),
        (Filtering.NOT_BY_PORT, False),
        (Filtering.ADDRESS_AND_PORT, True),
        (Filtering.UNKNOWN, True),
    ],
)
async def test_without_a_nat_a_path_is_held_for_a_firewall_that_may_be_there(
    filtering: Filtering, held: bool, autojump_clock: MockClock
) -> None:
    verdict = Verdict(nat=NatType.OPEN, mapped=SEEN, filtering=filtering)
    survey = Survey(port=51820, looks=(Look(version=4, port=51820, verdict=verdict),))
    with any_port() as port:
        rig = Rig(port, [survey])
        assert rig.discovery.hold_s(10.0, False) == FIREWALL_HOLD_S  # nothing is known yet
        await rig.after(1)
        assert rig.discovery.hold_s(10.0, False) == (FIREWALL_HOLD_S if held else inf)


async def test_the_status_names_the_nat_the_endpoint_and_the_methods(autojump_clock: MockClock) -> None:
    with any_port() as port:
        rig = Rig(port, [found(finding(SEEN), finding(MOVED, Method.UPNP), nat=NatType.SYMMETRIC)])
        await rig.after(1)
        status = rig.discovery.status()
        assert status["nat"] == {"ipv4": "symmetric"}
        assert status["endpoint"] == str(SEEN)
        assert [one["method"] for one in status["findings"]] == ["stun", "upnp"]  # type: ignore[attr-defined]
