"""What of a process's connections lives on, with real TCP sockets and a store that keeps duplicates.

The "next process" is a second Handover in this one: it gets what the store has, as one that was started anew.
"""

from __future__ import annotations

import os
import select
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from relayd.manager import handover
from relayd.manager.handover import Handover
from relayd.manager.ledger import MAX_FACTS_BYTES, Entry, Ledger, LedgerError, bytes_written, cookie_of
from relayd.manager.manager import Manager
from relayd.manager.notifier import Notifier
from relayd.manager.passed import Passed
from tests.helpers.fake_manager import Store

FORMAT = b"test 1"


class Service:
    """Processes, one after the other, and the store between them."""

    def __init__(self, address: str, stack: ExitStack) -> None:
        """`stack` closes what a test leaves open."""
        self.store = Store(address)
        self._stack = stack
        self._running: list[Handover] = []

    def process(self, format_: bytes = FORMAT, *, limit: int | None = None) -> Handover:
        """The next one."""
        self.store.take()
        passed = [Passed(name, os.dup(fd)) for name, fd in self.store.kept]
        manager = Manager(self.notifier(), passed, store_limit=limit)
        return self.running(Handover(manager, format_))

    def running(self, process: Handover) -> Handover:
        for one in process.carried:
            self._stack.enter_context(one.sock)
        self._running.append(process)
        return process

    def notifier(self) -> Notifier:
        notifier = Notifier(self.store.address)
        self._stack.callback(notifier.close)
        return notifier

    def end(self, process: Handover) -> None:
        """It is no more, and its descriptors with it."""
        self._running.remove(process)
        process.close()

    def close(self) -> None:
        """The test is over."""
        for process in list(self._running):
            self.end(process)
        self._stack.close()
        self.store.close()

    def pair(self) -> tuple[socket.socket, socket.socket]:
        """Both ends of a TCP connection; the first is the accepted one."""
        with socket.create_server(("127.0.0.1", 0)) as listener:
            theirs = self._stack.enter_context(socket.create_connection(listener.getsockname()))
            ours, _ = listener.accept()
        return self._stack.enter_context(ours), theirs

    def save(self, process: Handover, connections: dict[int, bytes], shared: bytes = b"") -> bool:
        """An end in order."""
        with ThreadPoolExecutor(1) as reader:
            heard = self.store.heard.count("BARRIER=1")
            reading = reader.submit(
                self.store.wait, lambda: self.store.heard.count("BARRIER=1") > heard, "a barrier"
            )
            saved = process.save(connections, shared=shared)
            reading.result()
        return saved


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    service = Service(str(tmp_path / "notify"), ExitStack())
    yield service
    service.close()


def ended(sock: socket.socket) -> bool:
    """Whether its other end has closed, as far as it can tell within two seconds."""
    poll = select.poll()
    poll.register(sock, select.POLLRDHUP)
    return bool(poll.poll(2000))


def test_connections_live_on_with_what_was_saved_for_them(service: Service) -> None:
    first = service.process()
    ours, theirs = service.pair()
    ours.send(b"hello")
    slot = first.admit(ours, b"who", bytes_out=5)
    assert slot == 1
    assert service.save(first, {slot: b"half a frame"}, b"totals")
    ours.close()
    service.end(first)
    theirs.send(b"meanwhile")
    second = service.process()
    (one,) = second.carried
    assert (one.slot, one.facts, one.state, one.bytes_out) == (1, b"who", b"half a frame", 5)
    assert second.in_order
    assert second.shared == b"totals"
    assert one.sock.recv(99) == b"meanwhile"
    one.sock.send(b"again")
    assert theirs.recv(99) == b"helloagain"
    assert service.store.names() == ["@1", "@ledger"]  # the state is used up
    second.forget(one.slot)
    one.sock.close()
    assert service.store.names() == ["@ledger"]
    assert ended(theirs)
    service.end(second)
    theirs.close()


def test_after_a_kill_those_between_frames_live_on_and_the_others_are_closed(service: Service) -> None:
    first = service.process()
    pairs = [service.pair() for _ in range(4)]
    between, receiving, sending, unwritten = [
        first.admit(ours, bytes([number]), bytes_out=0) for number, (ours, _) in enumerate(pairs)
    ]
    for slot, (ours, _) in zip((between, receiving, sending, unwritten), pairs, strict=True):
        first.ledger.sent[slot] = ours.send(b"a whole frame")
    first.ledger.received[receiving] = 1
    pairs[2][0].send(b"half a fra")
    for ours, _ in pairs:
        ours.close()
    service.end(first)
    second = service.process()
    assert not second.in_order
    assert [(one.facts, one.state, one.bytes_out) for one in second.carried] == [
        (b"\x00", None, 13),
        (b"\x03", None, 13),
    ]
    assert second.closed == {"mid_frame": 2}
    assert [ended(theirs) for _, theirs in pairs[1:3]] == [True, True]
    assert service.store.names() == ["@1", "@4", "@ledger"]
    # And what was carried once is carried again.
    second.ledger.sent[between] += second.carried[0].sock.send(b"more")
    for one in second.carried:
        one.sock.close()
    service.end(second)
    third = service.process()
    assert [one.bytes_out for one in third.carried] == [17, 13]
    for one in third.carried:
        one.sock.close()
    service.end(third)
    for _, theirs in pairs:
        theirs.close()


def test_what_the_peer_has_not_read_yet_counts_as_written(service: Service) -> None:
    ours, theirs = service.pair()
    ours.setblocking(False)
    start = bytes_written(ours)
    total = 0
    with suppress(BlockingIOError):
        while total < 1 << 30:
            total += ours.send(bytes(65536))
            assert bytes_written(ours) - start == total
    assert 0 < total < 1 << 30
    left = total
    while left:
        left -= len(theirs.recv(1 << 20))
    assert bytes_written(ours) - start == total
    ours.close()
    theirs.close()


def test_another_version_closes_everything_and_says_so(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    first = service.process(b"test 0")
    ours, theirs = service.pair()
    first.admit(ours, b"who")
    ours.close()
    service.end(first)
    second = service.process(b"test 1")
    assert second.carried == []
    assert second.closed == {"unknown_format": 1}
    assert ended(theirs)
    assert "of another version" in capsys.readouterr().out
    assert service.store.names() == ["@ledger"]
    theirs.close()
    ours, theirs = service.pair()
    assert second.admit(ours, b"who") == 1
    ours.close()
    service.end(second)
    third = service.process(b"test 1")
    assert len(third.carried) == 1
    third.carried[0].sock.close()
    service.end(third)
    theirs.close()


@pytest.mark.parametrize("damage", ["id", "garbage", "empty"])
def test_a_state_that_is_not_the_ledgers_counts_as_none(service: Service, damage: str) -> None:
    first = service.process()
    ours, theirs = service.pair()
    slot = first.admit(ours, b"who")
    service.save(first, {slot: b"state"})
    state = next(fd for name, fd in service.store.kept if name == handover.STATE)
    if damage == "id":
        first.ledger.state_id += 2
    elif damage == "garbage":
        os.pwrite(state, b"\xc1\xc1\xc1", 0)
    else:
        os.ftruncate(state, 0)
    service.end(first)
    second = service.process()
    assert not second.in_order
    assert [one.state for one in second.carried] == [None]
    assert service.store.names() == ["@1", "@ledger"]
    for sock in (second.carried[0].sock, ours, theirs):
        sock.close()
    service.end(second)


def test_a_state_is_used_once_even_if_the_manager_keeps_it(service: Service) -> None:
    first = service.process()
    ours, theirs = service.pair()
    slot = first.admit(ours, b"who")
    service.save(first, {slot: b"state"})
    service.end(first)
    passed = [Passed(name, os.dup(fd)) for name, fd in service.store.kept]
    # This one is killed before the manager hears of it.
    second = service.running(Handover(Manager(Notifier(None), passed), FORMAT))
    assert second.carried[0].state == b"state"
    second.carried[0].sock.close()
    service.end(second)
    third = service.process()
    assert not third.in_order
    assert third.carried[0].state is None
    for sock in (third.carried[0].sock, ours, theirs):
        sock.close()
    service.end(third)


def test_a_socket_under_a_wrong_name_is_closed(service: Service) -> None:
    first = service.process()
    ours, theirs = service.pair()
    other, its_peer = service.pair()
    first.admit(ours, b"who")
    first.forget(1)
    first.ledger.write(1, Entry(cookie_of(ours), bytes_written(ours), b"who"))
    service.notifier().store("@1", other.fileno())
    service.notifier().store("@2", other.fileno())
    service.notifier().store("@zz", other.fileno())
    service.notifier().store("@ffffffff", other.fileno())
    service.end(first)
    second = service.process()
    assert second.carried == []
    assert second.closed == {"unknown": 3}
    assert ended(its_peer)
    assert service.store.names() == ["@ledger"]
    service.end(second)
    for sock in (ours, theirs, other, its_peer):
        sock.close()


@pytest.mark.parametrize("stale_first", [True, False])
def test_of_several_under_one_name_the_one_that_the_ledger_means_lives_on(
    service: Service, stale_first: bool
) -> None:
    """As when the manager never heard that the slot's earlier connection had ended."""
    first = service.process()
    ours, theirs = service.pair()
    stale, its_peer = service.pair()
    if stale_first:
        service.notifier().store("@1", stale.fileno())
    assert first.admit(ours, b"who") == 1
    if not stale_first:
        service.notifier().store("@1", stale.fileno())
    service.notifier().store("@1", ours.fileno())
    service.notifier().store("@01", stale.fileno())  # nobody's name
    service.end(first)
    for sock in (ours, stale):
        sock.close()
    second = service.process()
    assert [one.facts for one in second.carried] == [b"who"]
    assert ended(its_peer)
    second.ledger.sent[1] = second.carried[0].sock.send(b"on")
    assert theirs.recv(9) == b"on"
    assert service.store.names() == ["@1", "@ledger"]
    service.end(second)
    third = service.process()
    assert [one.facts for one in third.carried] == [b"who"]
    third.carried[0].sock.close()
    service.end(third)
    for sock in (theirs, its_peer):
        sock.close()


def test_without_a_manager_nothing_is_kept(service: Service) -> None:
    process = service.running(Handover(Manager.none(), FORMAT))
    ours, theirs = service.pair()
    assert process.admit(ours, b"who") == 0
    assert not process.save({})
    process.forget(0)
    process.ledger.sent[0] = 7  # what a connection without a slot writes
    service.end(process)
    ours.close()
    theirs.close()


def test_no_more_than_the_manager_has_room_for(service: Service) -> None:
    process = service.process(limit=handover.OTHERS + 2)
    pairs = [service.pair() for _ in range(3)]
    slots = [process.admit(ours, b"who") for ours, _ in pairs]
    assert slots == [1, 2, 0]
    process.forget(1)
    assert process.admit(pairs[2][0], b"who") == 1
    for both in pairs:
        for sock in both:
            sock.close()
    service.end(process)


def test_refusing_a_carried_connection_closes_it(service: Service) -> None:
    first = service.process()
    ours, theirs = service.pair()
    first.admit(ours, b"who")
    ours.close()
    service.end(first)
    second = service.process()
    second.refuse(second.carried[0], "not_admitted")
    assert second.closed == {"not_admitted": 1}
    assert ended(theirs)
    assert service.store.names() == ["@ledger"]
    service.end(second)
    theirs.close()


@pytest.mark.parametrize("content", [b"", b"short", bytes(4096), b"relayd\x00\x01" + bytes(4096)])
def test_what_is_no_ledger_is_not_opened(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "ledger"
    path.write_bytes(content)
    fd = os.open(path, os.O_RDWR)
    with pytest.raises(LedgerError):
        Ledger.open(fd, FORMAT)
    os.close(fd)


def test_a_ledger_that_was_cut_short_is_not_opened() -> None:
    ledger = Ledger.create(FORMAT, slots=4)
    fd = os.dup(ledger.fd)
    ledger.close()
    os.ftruncate(fd, 100)
    with pytest.raises(LedgerError, match="can't hold 4"):
        Ledger.open(fd, FORMAT)
    os.close(fd)


def test_facts_that_do_not_fit_are_a_bug() -> None:
    ledger = Ledger.create(FORMAT, slots=4)
    with pytest.raises(ValueError, match="have room"):
        ledger.write(1, Entry(1, 0, bytes(MAX_FACTS_BYTES + 1)))
    ledger.write(3, Entry(9, 8, bytes(MAX_FACTS_BYTES)))
    assert ledger.read(3) == Entry(9, 8, bytes(MAX_FACTS_BYTES))
    assert ledger.read(0) is ledger.read(2) is ledger.read(4) is None
    ledger.close()
