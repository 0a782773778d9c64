"""The proxy's socket on `lo`: what it tells when it can't be had, and how it is renewed."""

from __future__ import annotations

import errno
import select
import socket
from collections.abc import Iterator

import pytest

from relayd.errors import HostError
from relayd.netio.datagrams import DatagramSocket
from tests.helpers.proxy_rig import WAIT_S, no_mark, wireguard_socket


@pytest.fixture
def sock() -> Iterator[DatagramSocket]:
    made = DatagramSocket(0, mark=no_mark)
    yield made
    made.close()


def waits(fd: int, wait_s: float = WAIT_S) -> bool:
    return bool(select.select([fd], [], [], wait_s)[0])


def test_it_receives_for_every_loopback_address(sock: DatagramSocket) -> None:
    with wireguard_socket() as sender:
        for address in ("127.0.0.1", "127.64.0.0", "127.100.1.255", "127.127.255.255"):
            sender.sendto(address.encode(), (address, sock.port))
            assert waits(sock.fileno())
            assert datagrams_in(sock) == [address.encode()]


def datagrams_in(sock: DatagramSocket) -> list[bytes]:
    with socket.fromfd(sock.fileno(), socket.AF_INET, socket.SOCK_DGRAM) as same:
        same.setblocking(False)
        found = []
        while waits(same.fileno(), 0):
            found.append(same.recv(100))
        return found


def test_a_port_that_is_taken_is_named_with_the_way_out(sock: DatagramSocket) -> None:
    with pytest.raises(HostError, match=rf"port {sock.port} on lo is in use.*proxy_port"):
        DatagramSocket(sock.port, mark=no_mark)


def test_a_mark_that_is_not_allowed_names_the_capability() -> None:
    def not_allowed(_sock: socket.socket) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with pytest.raises(HostError, match="CAP_NET_ADMIN"):
        DatagramSocket(0, mark=not_allowed)


def test_a_renewed_socket_has_the_port_and_the_old_one_what_came_before(sock: DatagramSocket) -> None:
    with wireguard_socket() as sender:
        sender.sendto(b"before", ("127.64.0.9", sock.port))
        port = sock.port
        old = sock.renew()
        assert waits(old.fileno())
        assert old.recv(100) == b"before"
        old.close()
        sender.sendto(b"after", ("127.64.0.9", port))
        assert waits(sock.fileno())
        assert datagrams_in(sock) == [b"after"]


def test_each_new_socket_is_marked() -> None:
    marked: list[int] = []
    sock = DatagramSocket(0, mark=lambda new: marked.append(new.fileno()))
    first = sock.fileno()
    sock.renew().close()
    assert marked == [first, sock.fileno()]
    sock.close()


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_another_process_cannot_share_the_port_not_even_after_a_renewal(
    sock: DatagramSocket, option: int
) -> None:
    """With SO_REUSEADDR set on both, whoever binds last gets WireGuard's datagrams."""
    for _ in range(2):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as thief:
            thief.setsockopt(socket.SOL_SOCKET, option, 1)
            with pytest.raises(OSError, match="in use"):
                thief.bind(("127.64.0.9", sock.port))
        sock.renew().close()


def test_a_renewal_that_fails_leaves_the_old_socket_as_it_was(
    sock: DatagramSocket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_sock: socket.socket) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    before = sock.fileno()
    with monkeypatch.context() as patch:
        patch.setattr(sock, "_mark", refuse)
        with pytest.raises(PermissionError):
            sock.renew()
    assert sock.fileno() == before
    with wireguard_socket() as sender:
        sender.sendto(b"still here", ("127.64.0.9", sock.port))
        assert waits(sock.fileno())
    assert datagrams_in(sock) == [b"still here"]
