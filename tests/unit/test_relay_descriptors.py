"""A shortage of descriptors is told of once, however often one accept() in between goes well."""

from __future__ import annotations

import errno
from typing import Any

from structlog.testing import capture_logs

from relayd.relay.descriptors import CALM_S, Spare

EMFILE = OSError(errno.EMFILE, "Too many open files")


def events(logged: list[Any]) -> list[str]:
    return [line["event"] for line in logged]


def test_a_shortage_is_told_of_once_until_it_has_been_calm() -> None:
    now = 0.0
    spare = Spare(clock=lambda: now)
    with capture_logs() as logged:
        for _ in range(100):
            now += CALM_S / 2
            spare.short(EMFILE)
            spare.enough()
        assert events(logged) == ["relay.descriptors_exhausted"]
        now += CALM_S
        spare.enough()
        spare.enough()
        assert events(logged) == ["relay.descriptors_exhausted", "relay.descriptors_suffice"]
        spare.short(EMFILE)
    spare.close()
    assert events(logged)[2:] == ["relay.descriptors_exhausted"]
