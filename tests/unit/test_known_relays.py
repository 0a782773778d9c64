"""What is remembered of relays' keys, when several are met at a time."""

from __future__ import annotations

import threading
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import trio

from relayd.agent import known_relays
from relayd.agent.known_relays import KnownRelays
from relayd.kernel.state_dir import write_json
from tests.helpers.identities import OTHER_RELAY, RELAY


async def test_two_relays_that_are_met_at_one_time_are_both_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the key of one would be trusted on first use once more after a restart, whatever it is then."""
    both_have_read = threading.Barrier(2)

    def write(path: Path, content: msgspec.Struct) -> None:
        with suppress(threading.BrokenBarrierError):
            both_have_read.wait(0.2)  # if they may: then both have read before one has written
        write_json(path, content)

    monkeypatch.setattr(known_relays, "write_json", write)
    known = KnownRelays(tmp_path / "relays.json")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(known.remember, "one.example.net:3478", RELAY.public)
        nursery.start_soon(known.remember, "other.example.net:3478", OTHER_RELAY.public)
    again = KnownRelays(tmp_path / "relays.json")
    assert again.key_of("one.example.net:3478") == RELAY.public
    assert again.key_of("other.example.net:3478") == OTHER_RELAY.public
