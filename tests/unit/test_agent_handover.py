"""What of an agent lives on, with real sockets and a store that keeps duplicates."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from relayd.agent import handover
from relayd.agent.handover import LOOPBACK, Absence, AgentHandover, Facts, facts_of, resumed_of
from relayd.keys import PublicKey
from relayd.manager.manager import Manager
from relayd.manager.notifier import Notifier
from relayd.manager.passed import Passed
from relayd.netio.datagrams import DatagramSocket
from relayd.netio.outbox import Outbox
from relayd.wire.frames import encode_data
from relayd.wire.identity import Trust, Welcomed
from relayd.wire.identity_frames import Welcome
from tests.helpers.fake_manager import Store

OWN, RELAY, PEER = (PublicKey(bytes([number]) * 32) for number in (1, 2, 3))
ADDRESS = "relay.example.net:3478"
ABSENT = Absence(PEER.raw, "other.example.net:3478", 12.5, 60.0)
WELCOMED = Welcomed(RELAY, Trust.PINNED, Welcome(relay=b"instance", observed="192.0.2.1:40000", stun=(3478,)))


class Service:
    """Agents, one after the other, and the store between them."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        self.store = Store(address)
        stack.callback(self.store.close)
        self.stack = stack

    def agent(self) -> AgentHandover:
        """The next one."""
        self.store.take()
        notifier = Notifier(self.store.address)
        self.stack.callback(notifier.close)
        agent = AgentHandover(Manager(notifier, [Passed(name, os.dup(fd)) for name, fd in self.store.kept]))
        self.stack.callback(agent.close)
        for one in agent.store.carried:
            self.stack.enter_context(one.sock)
        return agent

    def end(self, agent: AgentHandover, waiting: Outbox) -> int:
        """It ends in order. -> how many connections it has handed over"""
        heard = self.store.heard.count("BARRIER=1")
        with ThreadPoolExecutor(1) as reader:
            reading = reader.submit(
                self.store.wait, lambda: self.store.heard.count("BARRIER=1") > heard, "a barrier"
            )
            saved = agent.save(ADDRESS, waiting, [ABSENT])
            reading.result()
        return saved

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """A connection to a relay, and the relay's end."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ours = self.stack.enter_context(socket.create_connection(listener.getsockname()))
            theirs, _ = listener.accept()
        return ours, self.stack.enter_context(theirs)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with ExitStack() as stack:
        yield Service(str(tmp_path / "notify"), stack)


def datagrams(service: Service, agent: AgentHandover, port: int) -> DatagramSocket:
    made = DatagramSocket(
        port, mark=lambda sock: None, passed=agent.take_loopback(port), keep=agent.keep_loopback
    )
    service.stack.callback(made.close)
    return made


def test_datagrams_wait_in_the_socket_for_the_next_agent(service: Service) -> None:
    first = service.agent()
    before = datagrams(service, first, 0)
    before.close()
    with socket.socket(type=socket.SOCK_DGRAM) as wireguard:
        service.store.take()
        wireguard.sendto(b"meanwhile", ("127.64.0.9", before.port))
        after = datagrams(service, service.agent(), before.port)
        assert after.port == before.port
        assert os.read(after.fileno(), 99) == b"meanwhile"


def test_another_port_is_another_socket_and_the_old_one_goes(service: Service) -> None:
    before = datagrams(service, service.agent(), 0)
    with socket.socket(type=socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        other = free.getsockname()[1]
    before.close()
    after = datagrams(service, service.agent(), other)
    assert after.port == other
    assert service.store.names() == ["@ledger", LOOPBACK]
    datagrams(service, Service(service.store.address + "2", service.stack).agent(), before.port)


def test_a_renewed_socket_takes_the_old_ones_place_in_the_store(service: Service) -> None:
    agent = service.agent()
    sock = datagrams(service, agent, 0)
    sock.renew().close()
    names = service.store.names()
    assert names == ["@ledger", LOOPBACK]
    kept = next(fd for name, fd in service.store.kept if name == LOOPBACK)
    assert os.path.sameopenfile(kept, sock.fileno())


def test_a_connection_goes_on_with_the_same_relay_for_the_same_key(service: Service) -> None:
    first = service.agent()
    ours, theirs = service.pair()
    slot = first.admit(ours, facts_of(ADDRESS, OWN, WELCOMED, connected_at=5.0), bytes_out=0)
    outbox, waiting = Outbox(), Outbox()
    frame = encode_data(PEER, b"payload")
    outbox.keep([frame, frame], 10, 0.0)
    waiting.put(frame, 0.0)
    first.suspended(slot, partial=b"half", outbox=outbox)
    assert service.end(first, waiting) == 1
    second = service.agent()
    ((one, facts, state),) = second.take(ADDRESS, OWN)
    resumed = resumed_of(one, state)
    assert (resumed.partial, resumed.rest) == (b"half", frame[10:])
    assert [data for _, data in resumed.queued] == [frame]
    assert facts.proved_key() == RELAY
    assert facts.decoded_welcome() == WELCOMED.welcome
    assert (facts.trust, facts.connected_at) == ("pinned", 5.0)
    after = Outbox()
    assert second.absent == [ABSENT]
    second.take_waiting("other.example.net:3478", after)
    assert after.queued_frames == 0
    second.take_waiting(ADDRESS, after)
    assert after.queued_frames == 1
    theirs.send(b" a frame")
    assert one.sock.recv(99) == b" a frame"


def test_connections_to_several_relays_are_found_by_their_addresses(service: Service) -> None:
    first = service.agent()
    other = "other.example.net:3478"
    for address in (ADDRESS, other):
        ours, _ = service.pair()
        first.admit(ours, facts_of(address, OWN, None, connected_at=0.0), bytes_out=0)
        ours.close()
    second = service.agent()
    assert second.has(ADDRESS, own_key=OWN)
    assert second.has(other, own_key=OWN)
    assert not second.has("third.example.net:3478", own_key=OWN)
    assert not second.has(other, own_key=PEER)
    assert len(second.take(other, OWN)) == 1
    assert not second.has(other, own_key=OWN)
    assert second.has(ADDRESS, own_key=OWN)


@pytest.mark.parametrize(("address", "key"), [("other.example.net:3478", OWN), (ADDRESS, PEER)])
def test_a_connection_to_another_relay_or_for_another_key_is_closed(
    address: str, key: PublicKey, service: Service
) -> None:
    first = service.agent()
    ours, theirs = service.pair()
    first.admit(ours, facts_of(ADDRESS, OWN, None, connected_at=0.0), bytes_out=0)
    ours.close()
    second = service.agent()
    assert second.take(address, key) == []
    second.refuse_rest()
    assert second.store.closed == {"not_ours": 1}
    assert service.store.names() == ["@ledger"]
    assert theirs.recv(1) == b""


def test_another_version_closes_the_connection_and_has_a_socket_of_its_own(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = service.agent()
    old = datagrams(service, first, 0)
    ours, theirs = service.pair()
    first.admit(ours, facts_of(ADDRESS, OWN, None, connected_at=0.0), bytes_out=0)
    ours.close()
    monkeypatch.setattr(handover, "FORMAT", b"agent 9")
    second = service.agent()
    assert second.take(ADDRESS, OWN) == []
    assert second.store.closed == {"unknown_format": 1}
    assert theirs.recv(1) == b""
    assert "of another version" in capsys.readouterr().out
    # A UDP socket has no format: datagrams that wait in it are as good as ever.
    kept = second.take_loopback(old.port)
    assert kept is not None
    kept.close()


def test_facts_that_make_no_sense_close_the_connection(service: Service) -> None:
    first = service.agent()
    ours, theirs = service.pair()
    first.store.admit(ours, b"\xc1")
    ours.close()
    second = service.agent()
    assert second.take(ADDRESS, OWN) == []
    assert second.store.closed == {"unreadable": 1}
    service.store.take()
    assert theirs.recv(1) == b""


def test_a_welcome_that_is_too_long_to_be_kept_is_left_out(service: Service) -> None:
    welcome = Welcome(replicas=tuple(f"replica-{number}.example.net:3478" for number in range(16)))
    facts = facts_of(ADDRESS, OWN, Welcomed(RELAY, Trust.FIRST, welcome), connected_at=0.0)
    assert facts.decoded_welcome() == Welcome()
    ours, _ = service.pair()
    assert service.agent().admit(ours, facts, bytes_out=0) == 1


def test_a_connection_that_is_broken_already_is_not_kept(service: Service) -> None:
    ours, _ = service.pair()
    ours.close()
    facts = Facts(bytes(16), OWN.raw, b"", "", b"", 0.0)
    assert service.agent().admit(ours, facts, bytes_out=0) == 0
