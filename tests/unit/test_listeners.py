"""The relay's sockets, where the kernel isn't all of Linux."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack

import pytest

from relayd.config import RelayConfig
from relayd.errors import HostError
from relayd.relay import listeners

CONFIG = RelayConfig(listen=("127.0.0.1:0",))


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOPROTOOPT])
def test_a_relay_listens_where_sockets_can_have_no_mark(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refused(_sock: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(listeners, "set_mark", refused)
    with ExitStack() as stack:
        found = listeners.open_listeners(CONFIG, [], stack)
        (tcp,), (udp,) = found.tcp, found.udp
        assert tcp.getsockname() == udp.getsockname()


def test_any_other_error_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_sock: object) -> None:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))

    monkeypatch.setattr(listeners, "set_mark", broken)
    with ExitStack() as stack, pytest.raises(HostError, match="cannot listen"):
        listeners.open_listeners(CONFIG, [], stack)
