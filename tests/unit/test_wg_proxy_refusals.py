"""What the kernel refuses the proxy: it is counted, mended where it can be, and never waited for.

The refusals are put between the proxy and the kernel's calls; everything else is real. (A real EPERM, by a
real packet filter: tests/netns/test_proxy_eperm.py.)
"""

from __future__ import annotations

import ctypes
import errno
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from relayd.agent.wg_proxy import CALM_S, RENEW_EVERY_S
from relayd.netio import mmsg
from tests.helpers.proxy_rig import ADDRESSES, KEYS, Rig, rig


class Kernel:
    """`sendmmsg` and `recvmmsg` that fail with `send_errors` and `receive_errors`, then work again."""

    def __init__(self) -> None:
        self.send_errors: list[int] = []
        self.receive_errors: list[int] = []
        self.sends = 0
        self._sendmmsg, self._recvmmsg = mmsg.sendmmsg, mmsg.recvmmsg

    def sendmmsg(self, fd: int, address: int, count: int, flags: int) -> int:
        self.sends += 1
        if self.send_errors:
            ctypes.set_errno(self.send_errors.pop(0))
            return -1
        return self._sendmmsg(fd, address, count, flags)

    def recvmmsg(self, fd: int, address: int, count: int, flags: int, timeout: None) -> int:
        if self.receive_errors:
            ctypes.set_errno(self.receive_errors.pop(0))
            return -1
        return self._recvmmsg(fd, address, count, flags, timeout)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    made = Kernel()
    monkeypatch.setattr(mmsg, "sendmmsg", made.sendmmsg)
    monkeypatch.setattr(mmsg, "recvmmsg", made.recvmmsg)
    return made


@pytest.fixture
def bench() -> Iterator[Rig]:
    with rig() as made:
        yield made


def is_refused(bench: Rig) -> bool:
    return bench.proxy.refused


def test_a_refused_socket_is_replaced_on_its_port_and_loses_nothing(bench: Rig, kernel: Kernel) -> None:
    port = bench.proxy.port
    kernel.send_errors = [errno.EPERM]
    bench.deliver((KEYS[0], b"first"), (KEYS[1], b"second"))
    assert bench.heard(2) == [(ADDRESSES[0], b"first"), (ADDRESSES[1], b"second")]
    bench.say(0, b"and back")
    bench.pump(1)
    assert bench.proxy.port == port
    assert bench.proxy.renewals == 1
    assert bench.proxy.drops() == {}


def test_what_waits_in_a_refused_socket_is_read_before_it_goes(bench: Rig, kernel: Kernel) -> None:
    for number in range(100):
        bench.say(0, bytes([number]) * 40)
    kernel.send_errors = [errno.EPERM]
    bench.deliver((KEYS[0], b"x"))
    bench.pump(100)
    assert bench.frames() == [(KEYS[0].raw, bytes([number]) * 40) for number in range(100)]


def test_a_socket_is_replaced_as_often_as_it_is_refused_but_not_for_each_datagram(
    bench: Rig, kernel: Kernel
) -> None:
    for times in range(1, 6):
        for _ in range(3):
            kernel.send_errors = [errno.EPERM] * 2
            bench.deliver((KEYS[0], b"refused"))
            kernel.send_errors.clear()
            bench.watcher.now += RENEW_EVERY_S / 4
        assert bench.proxy.renewals == times
        bench.watcher.now += RENEW_EVERY_S
    assert bench.proxy.drops() == {"wireguard_send_refused": 15}


def test_the_log_tells_of_a_refusal_once_and_of_its_end_once(bench: Rig, kernel: Kernel) -> None:
    with capture_logs() as lines:
        for _ in range(10):
            kernel.send_errors = [errno.EPERM] * 2
            bench.deliver((KEYS[0], b"refused"))
            bench.watcher.now += RENEW_EVERY_S
        assert is_refused(bench)
        for _ in range(10):
            bench.deliver((KEYS[0], b"taken"))
            bench.watcher.now += CALM_S
        assert not is_refused(bench)
    assert [line["event"] for line in lines] == ["proxy.refused", "proxy.allowed"]


def test_without_a_new_socket_the_old_one_stays(
    bench: Rig, kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more_files(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("relayd.netio.datagrams._open", no_more_files)
        kernel.send_errors = [errno.EPERM]
        bench.deliver((KEYS[0], b"refused"))
    assert bench.proxy.last_error == "no new socket: Too many open files"
    assert bench.proxy.drops() == {"wireguard_send_refused": 1}
    bench.deliver((KEYS[0], b"taken"))
    assert bench.heard(1) == [(ADDRESSES[0], b"taken")]


def test_a_refusal_to_receive_replaces_the_socket_too(bench: Rig, kernel: Kernel) -> None:
    bench.say(0, b"waits")
    kernel.receive_errors = [errno.EPERM]
    bench.watcher.turn()
    assert bench.proxy.renewals == 1
    bench.pump(1)
    bench.say(0, b"next")
    bench.pump(2)
    assert bench.frames() == [(KEYS[0].raw, b"waits"), (KEYS[0].raw, b"next")]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EAGAIN, "wireguard_buffer_full"),
        (errno.ENOBUFS, "wireguard_buffer_full"),
        (errno.ECONNREFUSED, "wireguard_port_closed"),
        (errno.ENETUNREACH, "wireguard_send_failed"),
    ],
)
def test_what_the_kernel_does_not_take_is_a_counted_drop_and_the_rest_goes_on(
    bench: Rig, kernel: Kernel, error: int, reason: str
) -> None:
    kernel.send_errors = [error]
    bench.deliver((KEYS[0], b"a" * 9), (KEYS[0], b"b" * 9), (KEYS[0], b"c" * 9), (KEYS[1], b"other"))
    assert bench.heard(1) == [(ADDRESSES[1], b"other")]
    assert bench.proxy.drops() == {reason: 3}
    assert bench.proxy.renewals == 0


def test_an_interrupted_call_is_made_again(bench: Rig, kernel: Kernel) -> None:
    kernel.send_errors = [errno.EINTR]
    kernel.receive_errors = [errno.EINTR]
    bench.deliver((KEYS[0], b"taken"))
    bench.say(0, b"read")
    bench.pump(1)
    assert bench.heard(1) == [(ADDRESSES[0], b"taken")]
    assert bench.proxy.drops() == {}


@pytest.mark.parametrize("error", [errno.EIO, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_host_without_udp_segment_gets_every_datagram_by_itself(
    bench: Rig, kernel: Kernel, error: int
) -> None:
    contents = [bytes([number]) * 50 for number in range(20)]
    with capture_logs() as lines:
        kernel.send_errors = [error]
        bench.deliver(*((KEYS[0], content) for content in contents))
        assert bench.heard(20) == [(ADDRESSES[0], content) for content in contents]
        assert not bench.proxy.segmenting
        bench.deliver(*((KEYS[0], content) for content in contents))
        assert bench.heard(20) == [(ADDRESSES[0], content) for content in contents]
    assert bench.proxy.drops() == {}
    assert [line["event"] for line in lines] == ["proxy.segmenting_refused"]


def test_an_error_that_waits_on_the_socket_is_counted_and_the_datagrams_behind_it_are_read(
    bench: Rig, kernel: Kernel
) -> None:
    bench.say(0, b"behind it")
    kernel.receive_errors = [errno.ECONNREFUSED, errno.ENETDOWN]
    bench.pump(1)
    assert bench.frames() == [(KEYS[0].raw, b"behind it")]
    assert bench.proxy.drops() == {"wireguard_port_closed": 1, "receive_failed": 1}
    assert bench.proxy.renewals == 0
