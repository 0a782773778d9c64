"""The log: what a line looks like, what never gets into one, and a reader that doesn't read."""

from __future__ import annotations

import io
import json
import logging
import os
import re
from collections.abc import Iterator
from ipaddress import ip_address, ip_network

import pytest
import structlog

from relayd.config import LogMode
from relayd.endpoints import Endpoint
from relayd.keys import PrivateKey, PublicKey
from relayd.observe import log
from relayd.observe.text import plain, printable

KEY = PublicKey(bytes(range(32)))


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_time_level_event_and_facts_as_text() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    log.get(peer=KEY).info(
        "peer.relayed",
        endpoint=Endpoint.parse("[2001:db8::1]:51820"),
        seen=[ip_address("192.0.2.1")],
        net=ip_network("10.0.0.0/8"),
        age_s=1.5,
    )
    (line,) = lines(stream)
    assert list(line)[:3] == ["timestamp", "level", "event"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", str(line.pop("timestamp")))
    assert line == {
        "level": "info",
        "event": "peer.relayed",
        "peer": str(KEY),
        "endpoint": "[2001:db8::1]:51820",
        "seen": ["192.0.2.1"],
        "net": "10.0.0.0/8",
        "age_s": 1.5,
    }


def test_auto_is_json_unless_it_is_a_terminal() -> None:
    stream = io.StringIO()
    log.configure("auto", stream=stream)
    log.get().info("relay.started")
    assert lines(stream)[0]["event"] == "relay.started"


def test_auto_is_the_console_form_with_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    outer, inner = os.openpty()
    with open(inner, "w") as stream:
        log.configure("auto", stream=stream)
        log.get().info("relay.started", listen=["[::]:3478"])
        said = os.read(outer, 4096).decode()
    os.close(outer)
    assert "relay.started" in said
    assert "[::]:3478" in said
    assert "\x1b[" in said


def test_console_form_has_no_colours_where_there_is_no_terminal() -> None:
    stream = io.StringIO()
    log.configure("console", stream=stream)
    log.get().warning("link.lost", reason="silent for 20 s")
    assert "\x1b" not in stream.getvalue()
    assert re.search(r"Z \[warning *\] link\.lost +reason='silent for 20 s'", stream.getvalue())


@pytest.mark.parametrize("mode", ["json", "console"])
def test_private_key_never_shows(mode: LogMode) -> None:
    key = PrivateKey(b"\x11\x22\x33\x44" * 8)
    stream = io.StringIO()
    log.configure(mode, stream=stream)
    try:
        raise ValueError("the key file can't be read")
    except ValueError:
        log.get().exception(
            "agent.failed", key=key, nested={"all": [key]}, private_key=key.to_base64(), token=b"secret"
        )
    said = stream.getvalue()
    assert "the key file can't be read" in said
    assert said.count("<hidden>") == 4
    for form in (key.to_base64(), key.raw.hex(), repr(key.raw)[2:-1], "secret'", b"secret".hex()):
        assert form not in said


def test_strangers_words_can_not_break_a_line_or_move_the_cursor() -> None:
    stream = io.StringIO()
    log.configure("console", stream=stream)
    log.get().warning("link.refused", text="bye\n2026 relay.started \x1b[2J\u202e")
    assert stream.getvalue().count("\n") == 1
    assert "\x1b" not in stream.getvalue()
    assert "\u202e" not in stream.getvalue()
    assert printable("na\u00efve \u2713") == "na\u00efve \u2713"


def test_values_of_any_kind_come_out_plain() -> None:
    assert plain({KEY: (b"\x01\x02", None, True, {1}, OSError(5, "no"))}) == {
        str(KEY): ["0102", None, True, [1], "OSError: [Errno 5] no"]
    }


def test_libraries_speak_through_the_same_log_from_warning_on() -> None:
    stream = io.StringIO()
    log.configure("json", stream=stream)
    logging.getLogger("trio.serve_listeners").error("accept returned %s", "EMFILE")
    logging.getLogger("pyroute2").info("chatter")
    (line,) = lines(stream)
    assert line["event"] == "library.logged"
    assert line["library"] == "trio.serve_listeners"
    assert line["message"] == "accept returned EMFILE"


def test_reader_of_stderr_that_stands_still_blocks_nobody_and_is_told_what_it_missed() -> None:
    reader, writer = os.pipe()
    with open(writer, "w") as stream:
        log.configure("json", stream=stream)
        for number in range(2000):
            log.get().info("link.lost", number=number)  # a pipe holds 64 KiB: this is twice that
        got = os.read(reader, 1 << 20)
        log.get().info("link.connected")
        later = os.read(reader, 1 << 20)
    os.close(reader)
    kept = len(got.splitlines())
    assert 0 < kept < 2000
    told = json.loads(later.splitlines()[-1])
    assert told["event"] == "link.connected"
    assert told["log_lines_lost"] == 2000 - kept


def test_reader_of_stderr_that_went_away_ends_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        log.configure("json", stream=stream)
        log.get().info("link.lost")
        log.get().info("link.connected")


class TestThrottle:
    """One line per event and chosen keys in so many seconds."""

    def setup_method(self) -> None:
        self.now = 100.0
        self.stream = io.StringIO()
        log.configure("json", stream=self.stream)
        self.throttle = log.Throttle(log.get(), every_s=10, by=("peer",), clock=lambda: self.now)

    def said(self) -> list[tuple[object, ...]]:
        return [(line["event"], line.get("peer"), line.get("suppressed")) for line in lines(self.stream)]

    def test_repeats_are_counted_and_the_next_line_says_how_many(self) -> None:
        for _ in range(4):
            self.throttle.warning("peer.refused", peer="a")
        self.now += 9.9
        self.throttle.warning("peer.refused", peer="a")
        self.now += 0.1
        self.throttle.warning("peer.refused", peer="a")
        self.now += 10
        self.throttle.warning("peer.refused", peer="a")
        refused = "peer.refused"
        assert self.said() == [(refused, "a", None), (refused, "a", 4), (refused, "a", None)]

    def test_other_events_and_other_keys_have_lines_of_their_own(self) -> None:
        self.throttle.info("peer.refused", peer="a", reason="x")
        self.throttle.info("peer.refused", peer="b", reason="x")
        self.throttle.info("peer.refused", peer="a", reason="y")  # reason isn't among the chosen
        self.throttle.info("peer.removed", peer="a")
        assert [line[:2] for line in self.said()] == [
            ("peer.refused", "a"),
            ("peer.refused", "b"),
            ("peer.removed", "a"),
        ]

    def test_its_memory_is_bounded(self) -> None:
        for number in range(self.throttle.LIMIT + 1):
            self.throttle.debug("peer.refused", peer=number)
        assert len(self.throttle._seen) == self.throttle.LIMIT

    def test_who_chooses_the_keys_does_not_choose_how_many_lines_there_are(self) -> None:
        self.throttle = log.Throttle(log.get(), every_s=10, by=("peer",), clock=lambda: self.now, most=3)
        for number in range(2 * self.throttle.LIMIT):
            self.throttle.warning("peer.refused", peer=number)
        assert [peer for _, peer, _ in self.said()] == [0, 1, 2]
        assert len(self.throttle._seen) == self.throttle.LIMIT
        self.now += 10
        self.throttle.warning("peer.refused", peer=2 * self.throttle.LIMIT - 1)
        assert self.said()[3:] == [("peer.refused", 2 * self.throttle.LIMIT - 1, 1)]
