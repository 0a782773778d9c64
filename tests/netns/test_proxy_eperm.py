"""A packet filter that refuses the proxy's datagrams with a true EPERM, in a network namespace of its own."""

from __future__ import annotations

import ctypes
import itertools
import os
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

from relayd.agent.wg_proxy import RENEW_EVERY_S, WgProxy
from relayd.netio.datagrams import DatagramSocket
from tests.helpers.proxy_rig import ADDRESSES, KEYS, Rig, Watcher, wireguard_socket

CLONE_NEWNET = 0x40000000

RULES = """
table inet refusals {
    chain output {
        type filter hook output priority 0;
        meta mark %s drop
    }
}
"""


def in_own_namespace(body: Callable[[], None]) -> None:
    """Run `body` in a thread of its own that has a network namespace of its own; both end with it."""

    def enter_and_run() -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.unshare(CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        run("ip", "link", "set", "lo", "up")
        body()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(enter_and_run).result()


def run(*command: str, text: str | None = None) -> None:
    subprocess.run(command, input=text, text=True, check=True, timeout=20)


def refuse(marks: str) -> None:
    """Drop what leaves with one of `marks`. A UDP send that the output hook drops fails with EPERM."""
    run("nft", "-f", "-", text=RULES % marks)


class MarkedRig(Rig):
    """A rig whose first socket is marked 1, the next 2, and so on, so that a rule can tell them apart."""

    def __init__(self) -> None:
        self.watcher = Watcher()
        self.wireguard = wireguard_socket()
        self.sent = []
        numbers = itertools.count(1)
        self.proxy = WgProxy(
            self.watcher,
            DatagramSocket(
                22347, mark=lambda new: new.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, next(numbers))
            ),
            wireguard_port=self.wireguard.getsockname()[1],
            peers=dict(zip(KEYS, ADDRESSES, strict=True)),
            send_frames=self._send_frames,
        )


def heard_from_first_peer(*contents: bytes) -> list[tuple[IPv4Address, bytes]]:
    return [(ADDRESSES[0], content) for content in contents]


def test_a_socket_that_a_filter_refuses_is_replaced_every_time_and_nothing_is_lost() -> None:
    def body() -> None:
        rig = MarkedRig()
        refuse("1-3")
        rig.deliver((KEYS[0], b"a"), (KEYS[0], b"b"))  # socket 1 is refused, and so is 2
        for _ in range(2):
            rig.watcher.now += RENEW_EVERY_S
            rig.deliver((KEYS[0], b"c"))  # 3 is refused; 4 isn't
        rig.deliver((KEYS[0], b"d"))
        assert rig.heard(2) == heard_from_first_peer(b"c", b"d")
        assert rig.proxy.renewals == 3
        assert rig.proxy.port == 22347
        assert rig.proxy.drops() == {"wireguard_send_refused": 3}
        rig.say(0, b"and back")
        rig.pump(1)
        rig.close()

    in_own_namespace(body)


def test_a_filter_that_refuses_one_socket_costs_no_datagram() -> None:
    def body() -> None:
        rig = MarkedRig()
        for number in range(30):
            rig.say(1, bytes([number]) * 100)
        refuse("1")
        rig.deliver((KEYS[0], b"first"), (KEYS[0], b"second"))
        assert rig.heard(2) == heard_from_first_peer(b"first", b"second")
        rig.pump(30)
        assert rig.frames() == [(KEYS[1].raw, bytes([number]) * 100) for number in range(30)]
        assert rig.proxy.drops() == {}
        rig.close()

    in_own_namespace(body)


def test_a_filter_that_stays_has_one_new_socket_a_second_made_and_the_other_direction_works_on() -> None:
    def body() -> None:
        rig = MarkedRig()
        refuse("1-1000")
        for number in range(100):
            rig.deliver((KEYS[0], b"refused"))
            rig.say(2, bytes([number]) * 10)
            rig.pump(number + 1)
            rig.watcher.now += RENEW_EVERY_S / 16  # an exact fraction: the tenth renewal isn't one step late
        assert rig.proxy.renewals == 1 + 99 // 16
        assert rig.proxy.drops() == {"wireguard_send_refused": 100}
        run("nft", "flush", "ruleset")
        rig.deliver((KEYS[0], b"taken"))
        assert rig.heard(1) == heard_from_first_peer(b"taken")
        rig.close()

    in_own_namespace(body)
