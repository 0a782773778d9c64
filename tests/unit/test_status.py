"""`relayd status`: what is asked, what a person sees at 80 columns, what a program gets."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from relayd.errors import RelaydError
from relayd.status import show_peer, show_status
from relayd.status_view import print_status
from tests.helpers.observed import agent_status, relay_status
from tests.helpers.observed import key as observed_key

LONGEST = "[2001:db8:1234:5678:9abc:def0:1234:5678]:51820"
AGENT: dict[str, Any] = {
    "role": "agent",
    "version": "0.1.0",
    "uptime_s": 7512.3,
    "interface": "wire_kube",
    "public_key": "A" * 43 + "=",
    "listen_port": 51820,
    "relay": {
        "address": "relay.example.net:3478",
        "state": "connected",
        "round_trip_ms": 1.234,
        "connected_s": 3600,
        "dials": 2,
        "reason": "silent for 20 s",
    },
    "peers": [
        {
            "key": "B" * 43 + "=",
            "path": "direct",
            "reason": "fresh handshake",
            "endpoint": LONGEST,
            "handshake_age_s": 12,
            "rx_bytes": 123456789,
            "tx_bytes": 1 << 41,
        },
        {
            "key": "C" * 43 + "=",
            "path": "relay",
            "reason": "no handshake for 180 s",
            "endpoint": "127.64.3.9:22347",
            "handshake_age_s": None,
            "rx_bytes": 0,
            "tx_bytes": 2048,
        },
    ],
    "drops": {"unknown_key": 3, "queue_full": 12345, "malformed": 0},
}


def relay(peers: int, **facts: object) -> dict[str, Any]:
    return {
        "role": "relay",
        "version": "0.1.0",
        "uptime_s": 100.0,
        "listen": ["0.0.0.0:3478", "[::]:3478"],
        "connections": peers,
        "frames_in": 1000,
        "frames_out": 900,
        "bytes_in": 10000,
        "bytes_out": 9000,
        "drops": {},
        "peers": [
            {
                "key": f"{number:044}",
                "address": LONGEST,
                "queued_bytes": 1 << 20,
                "bytes_in": number * 10**10,
                "bytes_out": 0,
                "drops": {"full": number},
                "connected_s": 59 + number * 3600,
            }
            for number in range(peers)
        ],
    } | facts


def shown(*answers: tuple[Mapping[str, Any], Mapping[str, Any]], columns: int | None = None) -> str:
    stream = io.StringIO()
    print_status(answers, file=stream, columns=columns)
    return stream.getvalue()


@pytest.mark.parametrize("answer", [AGENT, relay(3)], ids=["agent", "relay"])
def test_on_a_narrow_terminal_everything_can_be_read_too(answer: dict[str, Any]) -> None:
    lines = shown((answer, {}), columns=40).splitlines()
    assert max(map(len, lines)) <= 40
    assert len(lines) < 40, "a column of one character a line"
    assert LONGEST in "".join(line.strip() for line in lines)


@pytest.mark.parametrize("answer", [AGENT, relay(3)], ids=["agent", "relay"])
def test_nothing_is_wider_than_80_columns_and_nothing_is_cut(answer: dict[str, Any]) -> None:
    text = shown((answer, {}), columns=80)
    assert max(map(len, text.splitlines())) <= 80
    assert "\u2026" not in text
    # Folded somewhere, perhaps, but all of it.
    assert any(LONGEST[:at] in text and LONGEST[at:] in text for at in range(20, len(LONGEST) + 1))


def test_agent_shows_relay_round_trip_path_reason_traffic_and_drops() -> None:
    lines = shown((AGENT, {})).splitlines()
    assert lines[0] == "agent on wire_kube, up 2 h 5 min, relayd 0.1.0"
    assert lines[2] == (
        "relay relay.example.net:3478, connected for 1 h, round trip 1.2 ms, 2 dials, "
        "last fault: silent for 20 s"
    )
    assert lines[3] == "drops queue_full 12,345, unknown_key 3"
    assert lines[5].split()[:2] == ["BBBBBBBB", "direct"]
    assert "12 s 117.7 MiB 2.0 TiB fresh handshake" in lines[5]
    assert LONGEST in lines[5]
    assert "never" in lines[6]
    assert "no handshake for 180 s 127.64.3.9:22347" in lines[6]


def test_reason_stands_under_the_endpoint_on_a_narrow_terminal() -> None:
    lines = shown((AGENT, {}), columns=80).splitlines()
    at = next(number for number, line in enumerate(lines) if "127.64.3.9:22347" in line)
    assert lines[at + 1].strip() == "no handshake for 180 s"


def test_relay_shows_rates_between_two_answers() -> None:
    later = relay(0, uptime_s=100.5, frames_in=2000, bytes_in=1_260_000, frames_out=900, bytes_out=9000)
    lines = shown((relay(0), later)).splitlines()
    assert "in    2,000 frames, 1.2 MiB; now 2,000 frames/s, 20.0 Mbit/s" in lines
    assert "out   900 frames, 8.8 KiB; now 0 frames/s, 0 bit/s" in lines


def test_relay_that_was_restarted_between_the_answers_shows_no_rates() -> None:
    assert "now" not in shown((relay(0), relay(0, uptime_s=0.1)))


def test_busiest_come_first_and_the_rest_is_counted_on_a_terminal_only() -> None:
    narrow, plain = shown((relay(40), {}), columns=80), shown((relay(40), {}))
    assert "and 10 more that carried less" in narrow
    assert narrow.index("363.2 GiB") < narrow.index("93.1 GiB")
    assert "more that carried less" not in plain
    assert plain.count(LONGEST) == 40


def test_output_that_is_no_terminal_has_one_line_a_peer_and_no_escapes() -> None:
    text = shown((AGENT, {}), (relay(3), {}))
    assert "\x1b" not in text
    assert sum(LONGEST in line for line in text.splitlines()) == 4


def test_strangers_words_do_not_reach_the_terminal_raw() -> None:
    evil = AGENT | {"relay": AGENT["relay"] | {"reason": "the relay says: \x1b[2J[bold]\nrelay"}}
    text = shown((evil, {}), columns=80)
    assert "\x1b" not in text
    assert "[bold]" in text


def test_answer_of_another_version_that_lacks_facts_is_shown_all_the_same() -> None:
    text = shown(({"role": "agent", "peers": [{}]}, {}), ({"role": "relay", "peers": [{}]}, {}))
    assert "agent on -" in text
    assert "relay on -" in text


# --- asking ---


@contextmanager
def answering(path: Path, *answers: Mapping[str, Any]) -> Iterator[None]:
    """A process that gives these answers, one a connection, on a thread of its own."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        listener.settimeout(10)

        def serve() -> None:
            for answer in answers:
                connection, _ = listener.accept()
                with connection:
                    connection.settimeout(10)
                    connection.recv(4096)
                    connection.sendall(json.dumps(answer).encode() + b"\n")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_json_is_a_line_for_each_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(tmp_path / "agent-wg0.sock", AGENT), answering(tmp_path / "relay.sock", relay(1)):
        assert show_status(None, as_json=True, directory=str(tmp_path)) == 0
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [AGENT, relay(1)]


def test_a_peer_is_found_by_its_name_or_the_beginning_of_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = agent_status(("direct", "relay"))
    status["peers"][1]["name"] = "branch office"
    key = status["peers"][1]["key"]
    for asked in ("branch office", key[:7]):
        with answering(tmp_path / "agent-wg0.sock", status):
            assert show_peer(None, asked, why=False, as_json=False, directory=str(tmp_path)) == 0
        (tmp_path / "agent-wg0.sock").unlink()
        assert f"{key} (branch office)" in capsys.readouterr().out
    with answering(tmp_path / "agent-wg0.sock", status), pytest.raises(RelaydError, match="of that name"):
        show_peer(None, "branch", why=False, as_json=False, directory=str(tmp_path))
    assert shown((status, status)).count("branch office") == 1


def test_one_named_process_is_asked_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with answering(tmp_path / "a.sock", AGENT):
        assert show_status(str(tmp_path / "a.sock"), as_json=False, directory="/nonexistent") == 0
    assert "agent on wire_kube" in capsys.readouterr().out


def test_relay_is_asked_twice_for_its_rates(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relayd.status.SAMPLE_S", 0.001)
    with answering(tmp_path / "relay.sock", relay(0), relay(0, uptime_s=101.0, frames_in=1500)):
        assert show_status(None, as_json=False, directory=str(tmp_path)) == 0
    assert "now 500 frames/s" in capsys.readouterr().out


def test_nothing_that_runs_is_one_clear_error(tmp_path: Path) -> None:
    for directory in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RelaydError, match="no relay or agent runs here") as caught:
            show_status(None, as_json=False, directory=str(directory))
        assert caught.value.exit_status == 1


def test_dead_process_is_told_beside_a_live_ones_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExitStack() as stack:
        dead = stack.enter_context(socket.socket(socket.AF_UNIX))
        dead.bind(str(tmp_path / "agent-wg0.sock"))
        stack.enter_context(answering(tmp_path / "agent-wg1.sock", AGENT))
        assert show_status(None, as_json=False, directory=str(tmp_path)) == 1
    said = capsys.readouterr()
    assert "agent on wire_kube" in said.out
    assert said.err.startswith("relayd: no relayd process answers at")
    assert "agent-wg0.sock" in said.err


# What both roles tell of themselves beside their peers


def whole(status: dict[str, Any]) -> str:
    return shown((status, {}))


def test_a_relay_tells_who_was_let_in_who_was_not_and_who_proved_nothing() -> None:
    status = relay_status(3)
    status["peers"][1]["proved"] = False
    text = " ".join(whole(status).split())
    assert "agents 3 connected (1 without a proof), 2 on their way in, 6 let in" in text
    assert "refused: key in use 1, never registered 3" in text


def test_queue_delay_is_that_of_the_time_between_two_answers_if_there_are_two() -> None:
    first, later = relay_status(0, uptime_s=10.0), relay_status(0, uptime_s=10.5)
    assert "queue 64.0 KiB for agents, 1 of them behind" in shown((first, later))
    assert "of what had to wait, 99 % was sent within 500 ms" not in shown((first, later))
    assert "of what had to wait, 99 % was sent within 500 ms" in whole(first)
    later["queue_delay"]["frames"][2] += 1000
    assert "99 % was sent within 5 ms" in shown((first, later))


def test_what_is_wrong_is_said_in_the_words_of_readyz() -> None:
    text = whole(agent_status(("direct", "none"), host_problems=["rp_filter is 1"], interface_problem="gone"))
    for line in ("not ready interface wg0: gone", f"not ready no way to 1 peer: {observed_key(1)[:8]}"):
        assert line in text.splitlines()
    assert "host  rp_filter is 1" in text.splitlines()
    assert "not ready" not in whole(agent_status(("direct", "relay")))
    assert "not ready draining" in whole(relay_status(0, draining=True))
    kept = whole(relay_status(0, admission_problem="the API server doesn't answer"))
    assert "agents who is let in is as it was: the API server doesn't answer" in kept.splitlines()


def test_an_agent_tells_how_it_trusts_its_relay_and_what_that_says() -> None:
    status = agent_status(("direct",))
    status["relay"] |= {"trust": "pinned", "health": "two agents have this key"}
    text = " ".join(whole(status).split())
    assert "round trip 1.2 ms, key pinned, 2 dials" in text
    assert "the relay says: two agents have this key" in text


def test_what_its_cluster_does_is_said_when_it_is_not_as_it_should_be() -> None:
    status = agent_status(("direct",), mesh_problem="interface name")
    status["cluster"] |= {"current": False, "problems": ["two peers have one key"]}
    lines = whole(status).splitlines()
    assert "mesh  after a restart only: interface name" in lines
    assert "cluster what is known of it isn't current" in lines
    assert "cluster two peers have one key" in lines
    assert "cluster" not in whole(agent_status(("direct",)))


def test_the_page_is_named_where_there_is_one() -> None:
    assert "page  http://127.0.0.1:9478/" in whole(relay_status(0)).splitlines()
    assert "page" not in whole(relay_status(0, http=None))


def test_of_many_peers_a_terminal_gets_those_first_that_need_somebody() -> None:
    text = shown((agent_status(("direct",) * 20 + ("relay",) * 2 + ("none",)), {}), columns=80)
    rows = [line.split()[1] for line in text.splitlines() if line[8:9] == " " and line.startswith("kkkkk")]
    assert rows == ["none", "relay", "relay", *["direct"] * 5]
    assert "and 15 more (--json lists all)" in text
    assert len(text.splitlines()) <= 40


def test_several_relays_are_a_line_each_and_the_home_is_named() -> None:
    relays = [
        AGENT["relay"] | {"home": True, "key": "K" * 43 + "=", "trust": "pinned", "health": "two agents"},
        {"address": "192.0.2.9:3478", "state": "idle", "home": False},
    ]
    text = shown((AGENT | {"relays": relays}, {}))
    assert "home  relay.example.net:3478, connected for 1 h" in text
    assert ", key pinned" in text
    assert "the relay says: two agents" in text
    assert "relay 192.0.2.9:3478, idle" in text


def test_what_the_relay_said_of_a_peer_is_shown() -> None:
    gone = {"reason": "isn't connected to the relay", "age_s": 75.0, "count": 3}
    peers = [AGENT["peers"][0] | {"relay_gone": gone}]
    text = shown((AGENT | {"peers": peers}, {}))
    assert "relay: it isn't connected to the relay (1 min 15 s ago)" in " ".join(text.split())


def test_each_peer_is_shown_with_since_when_both_round_trips_and_what_became_of_what_was_tried() -> None:
    status = agent_status(("direct", "relay"))
    status["peers"][0]["paths"]["candidates"] = [{"state": "failed"}, {"state": "valid"}, {"state": "failed"}]
    wide = shown((status, {})).splitlines()
    direct, relayed = (next(line for line in wide if path in line[8:16]) for path in ("direct", "relay"))
    assert "2 h 1 min" in direct
    assert "session (direct 3.5 ms, relay 41 ms; tried 3: 2 failed, 1 valid)" in direct
    assert "no handshake for 180 s (relay 41 ms)" in relayed
    narrow = " ".join(" ".join(shown((status, {}), columns=80).split()).split("  "))
    assert "session for 2 h 1 min; direct 3.5 ms, relay 41 ms; tried 3: 2 failed, 1 valid" in narrow
