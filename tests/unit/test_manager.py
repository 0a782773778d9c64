"""The service manager's protocol, spoken with a real datagram socket and real descriptors."""

from __future__ import annotations

import os
import resource
import socket
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import trio
import trio.testing

from relayd.config import RelayConfig
from relayd.errors import ConfigError, HostError
from relayd.manager import messages
from relayd.manager.manager import Manager, watchdog_period_s
from relayd.manager.notifier import Notifier
from relayd.manager.passed import Passed, take_passed
from relayd.manager.status_line import status_services
from relayd.manager.watchdog import Pulse, feed
from relayd.netio.poller import Poller
from relayd.relay.server import serve
from tests.helpers.fake_manager import Store, launch

SOON_S = 20.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(str(tmp_path / "notify"))
    yield store
    store.close()


def notifier_of(store: Store) -> Notifier:
    environ = {"NOTIFY_SOCKET": store.address}
    notifier = Notifier.from_environment(environ)
    assert environ == {}  # programs that we start must not speak for us
    return notifier


# --- the messages ---


@pytest.mark.parametrize(
    ("message", "lines"),
    [
        (messages.status("one line\nonly"), b"STATUS=one line only"),
        (messages.reloading(1_500_000), b"RELOADING=1\nMONOTONIC_USEC=1500000"),
        (messages.store("@1", poll=True), b"FDSTORE=1\nFDNAME=@1"),
        (messages.store("@1", poll=False), b"FDSTORE=1\nFDNAME=@1\nFDPOLL=0"),
        (messages.remove("@1"), b"FDSTOREREMOVE=1\nFDNAME=@1"),
    ],
)
def test_messages_are_as_sd_notify_has_them(message: bytes, lines: bytes) -> None:
    assert message == lines


@pytest.mark.parametrize("name", ["", "a:b", "a\nb", "\x7f", "schlüssel", "n" * 256])
def test_a_name_that_the_manager_would_refuse_is_refused_here(name: str) -> None:
    with pytest.raises(ValueError, match="not a descriptor's name"):
        messages.store(name, poll=True)


# --- the line to the manager ---


def test_what_is_told_arrives(store: Store) -> None:
    notifier = notifier_of(store)
    before_us = time.monotonic_ns() // 1000
    notifier.reloading()
    notifier.ready("serving")
    notifier.alive()
    notifier.stopping()
    notifier.close()
    store.take()
    assert store.heard[0] == "RELOADING=1"
    assert before_us <= int(store.heard[1].removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000
    assert store.heard[2:] == ["READY=1", "STATUS=serving", "WATCHDOG=1", "STOPPING=1"]


def test_a_stored_descriptor_is_another_door_to_the_same_file_until_it_is_removed(store: Store) -> None:
    notifier = notifier_of(store)
    ours, theirs = socket.socketpair()
    notifier.store("@7", theirs.fileno(), poll=False)
    theirs.close()
    assert store.names() == ["@7"]
    os.write(store.kept[0][1], b"still open")
    assert ours.recv(99) == b"still open"
    notifier.remove("@7")
    assert store.names() == []
    assert ours.recv(99) == b""
    ours.close()
    notifier.close()


def test_abstract_names_are_reached_too() -> None:
    store = Store(f"@relayd-test-{os.getpid()}")
    notifier = notifier_of(store)
    notifier.ready()
    store.take()
    assert store.heard == ["READY=1"]
    store.close()
    notifier.close()


@pytest.mark.parametrize("address", [None, "", "vsock:2:9", "/nowhere/at/all"])
def test_without_a_manager_nothing_happens(address: str | None) -> None:
    notifier = Notifier(address)
    assert not notifier.connected
    notifier.ready()
    notifier.store("@1", 0)
    notifier.close()
    assert notifier.counts == {"lost": 0}


async def test_a_manager_that_does_not_read_is_never_waited_for_and_gets_all_in_order(
    store: Store,
) -> None:
    notifier = notifier_of(store)
    pairs = [socket.socketpair() for _ in range(3)]
    with trio.fail_after(SOON_S):
        number = 0
        while notifier.counts["sent"] == number:  # until the socket takes no more
            notifier.status(str(number))
            number += 1
        notifier.store("@1", pairs[0][1].fileno())
        notifier.remove("@1")
        notifier.store("@1", pairs[1][1].fileno())
        for _, theirs in pairs:
            theirs.close()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notifier.run)
            while store.names() != ["@1"] or len(store.heard) < number + 6:  # noqa: ASYNC110 (no event tells)
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    assert store.heard[:number] == [f"STATUS={one}" for one in range(number)]
    assert pairs[0][0].recv(1) == b""
    os.write(store.kept[0][1], b"second")
    assert pairs[1][0].recv(99) == b"second"
    for ours, _ in pairs:
        ours.close()
    notifier.close()
    assert notifier.counts["lost"] == 0


def test_out_of_descriptors_what_would_have_to_wait_is_lost_and_no_error(store: Store) -> None:
    notifier = notifier_of(store)
    while not notifier.counts["waited"] and notifier.counts["sent"] < 100_000:
        notifier.status("before")
    ours, theirs = socket.socketpair()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, before[1]))
    try:
        notifier.store("@1", theirs.fileno())
        notifier.remove("@1")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert (notifier.counts["lost"], notifier.counts["waited"]) == (1, 2)
    for sock in (ours, theirs):
        sock.close()
    notifier.close()


def test_settled_when_the_manager_has_seen_it_all_and_not_before(store: Store) -> None:
    notifier = notifier_of(store)
    while not notifier.counts["waited"] and notifier.counts["sent"] < 100_000:
        notifier.status("before")
    assert not notifier.settle(0.05)
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(store.wait, lambda: store.heard.count("BARRIER=1") == 2, "two barriers")
        assert notifier.settle(SOON_S)
        reading.result()
    assert set(store.heard) == {"STATUS=before", "BARRIER=1"}
    notifier.close()


def test_a_manager_that_went_away_is_counted_and_does_no_harm(store: Store) -> None:
    notifier = notifier_of(store)
    store.close()
    notifier.ready()
    notifier.alive()
    assert notifier.counts["lost"] == 2
    notifier.close()


# --- what was passed ---


SHOW = """
import os
import resource
from relayd.manager.passed import take_passed
print([(one.name, one.fd, os.get_inheritable(one.fd), os.read(one.fd, 9)) for one in take_passed(os.environ)])
print([name for name in os.environ if name.startswith("LISTEN_")])
"""


def test_passed_descriptors_have_their_names_and_are_not_inherited_further(tmp_path: Path) -> None:
    pipes = [os.pipe() for _ in range(2)]
    for (_, writes), text in zip(pipes, (b"one", b"two"), strict=True):
        os.write(writes, text)
    environ = {**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "relayd.socket:@1"}
    with (tmp_path / "out").open("wb") as output:
        shown = launch([reads for reads, _ in pipes], [sys.executable, "-c", SHOW], environ, output.fileno())
        assert shown.wait(SOON_S) == 0
    said = (tmp_path / "out").read_text()
    assert said == "[('relayd.socket', 3, False, b'one'), ('@1', 4, False, b'two')]\n[]\n"
    for both in pipes:
        for fd in both:
            os.close(fd)


def test_what_is_passed_to_another_process_is_not_ours() -> None:
    environ = {"LISTEN_FDS": "1", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a"}
    assert take_passed(environ) == []
    assert take_passed({}) == []


@pytest.mark.parametrize(
    ("environ", "what"),
    [
        ({"LISTEN_FDS": "two", "LISTEN_PID": "7"}, "not numbers"),
        ({"LISTEN_FDS": "2", "LISTEN_PID": "7", "LISTEN_FDNAMES": "one"}, "names 1"),
        ({"LISTEN_FDS": "60000", "LISTEN_PID": "7"}, "isn't open"),
    ],
)
def test_variables_that_contradict_themselves_are_an_error(environ: dict[str, str], what: str) -> None:
    with pytest.raises(ValueError, match=what):
        take_passed(environ, pid=7)


def test_such_an_error_ends_the_start_as_a_wrong_configuration_does() -> None:
    with pytest.raises(ConfigError, match="environment: LISTEN_FDS"):
        Manager.from_environment({"LISTEN_FDS": "x", "LISTEN_PID": "1"})


def test_a_manager_object_gives_each_descriptor_once_and_closes_the_rest() -> None:
    reads, writes = os.pipe()
    manager = Manager(Notifier(None), [Passed("@1", reads), Passed("relayd.socket", writes)])
    assert manager.take(prefix="@") == [Passed("@1", reads)]
    assert manager.take(prefix="@") == []
    manager.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(writes)
    os.close(reads)


@pytest.mark.parametrize(
    ("environ", "period_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_watchdog_period_is_for_the_process_that_it_names(
    environ: dict[str, str], period_s: float | None
) -> None:
    assert watchdog_period_s(environ, pid=7) == period_s


# --- the watchdog ---


async def test_the_watchdog_is_fed_while_the_data_plane_serves_and_only_then(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    notifier, poller = notifier_of(store), Poller()
    pulse = Pulse(poller)

    async def fed(times: int) -> None:
        before = store.heard.count("WATCHDOG=1")
        while store.heard.count("WATCHDOG=1") < before + times:
            await trio.sleep(0.01)
            store.take()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed, notifier, pulse, 0.15)
        await trio.sleep(0.3)
        store.take()
        assert "WATCHDOG=1" not in store.heard  # nobody runs the poller
        async with trio.open_nursery() as served:
            await served.start(poller.run)
            with trio.fail_after(SOON_S):
                await fed(3)
            served.cancel_scope.cancel()
        await trio.sleep(0.1)
        store.take()
        heard = len(store.heard)
        await trio.sleep(0.3)
        store.take()
        assert len(store.heard) == heard
        nursery.cancel_scope.cancel()
    pulse.close()
    poller.close()
    notifier.close()


async def test_the_status_line_is_told_when_it_changes(
    store: Store, autojump_clock: trio.testing.MockClock
) -> None:
    notifier = notifier_of(store)
    texts = iter(["serving 1 agent", "serving 1 agent", "serving 2 agents"])
    (service,) = status_services(Manager(notifier), lambda: next(texts, "serving 3 agents"))
    with trio.move_on_after(100):
        await service.run(task_status=trio.TASK_STATUS_IGNORED)
    store.take()
    assert store.heard == ["STATUS=serving 1 agent", "STATUS=serving 2 agents", "STATUS=serving 3 agents"]
    notifier.close()
    assert status_services(Manager.none(), str) == []


# --- socket activation ---


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.listen()
    return sock


async def test_a_relay_serves_on_sockets_that_were_passed_and_says_when_it_does(
    tmp_path: Path, store: Store
) -> None:
    tcp, udp = listening(), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    where = tcp.getsockname()
    udp.bind(where)
    passed = [Passed("relayd.socket", os.dup(tcp.fileno())), Passed("relayd.socket", os.dup(udp.fileno()))]
    manager = Manager(notifier_of(store), passed)
    with socket.create_connection(where):  # it waits in the backlog: no relay yet
        async with trio.open_nursery() as nursery:
            await nursery.start(
                serve, RelayConfig(control=str(tmp_path / "control"), state_dir=str(tmp_path)), manager
            )
            stream = await trio.open_tcp_stream(*where)
            await stream.aclose()
            nursery.cancel_scope.cancel()
    manager.close()
    tcp.close()
    udp.close()


@pytest.mark.parametrize(
    ("kind", "what"),
    [
        ("pipe", "is no socket"),
        ("unix", "neither IPv4 nor IPv6"),
        ("idle", "neither listens"),
        ("udp", "but none that"),
    ],
)
async def test_passed_descriptors_that_are_no_use_end_the_start(kind: str, what: str, tmp_path: Path) -> None:
    made: list[socket.socket] = []
    if kind == "pipe":
        fd, other = os.pipe()
        os.close(other)
    elif kind == "unix":
        made += socket.socketpair()
        fd = os.dup(made[0].fileno())
    else:
        made.append(socket.socket(type=socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM))
        made[0].bind(("127.0.0.1", 0))
        fd = os.dup(made[0].fileno())
    manager = Manager(Notifier(None), [Passed("odd", fd)])
    with pytest.raises(HostError, match=what):
        await serve(RelayConfig(control=str(tmp_path / "control"), state_dir=str(tmp_path)), manager)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    for sock in made:
        sock.close()
    manager.close()
