"""Lines as ping (iputils 20221126) and iperf3 (3.12) print them become the values that the demo counts."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from relayd.demo.traffic import (
    Answer,
    Missing,
    Rate,
    parse_iperf_line,
    parse_ping_line,
    ping_argv,
)


def test_an_answered_ping_is_placed_at_the_time_it_was_sent() -> None:
    line = "[1795458566.754558] 64 bytes from 198.18.0.2: icmp_seq=17 ttl=64 time=250 ms\n"
    heard = parse_ping_line(line)
    assert isinstance(heard, Answer)
    assert heard.seq == 17
    assert heard.round_trip_s == pytest.approx(0.25)
    assert heard.sent_at == pytest.approx(1795458566.504558, abs=1e-6)


def test_an_unanswered_ping_is_placed_one_interval_before_it_was_missed() -> None:
    heard = parse_ping_line("[1795458566.928113] no answer yet for icmp_seq=1", interval_s=0.05)
    assert isinstance(heard, Missing)
    assert heard.seq == 1
    assert heard.sent_at == pytest.approx(1795458566.878113, abs=1e-6)


@pytest.mark.parametrize(
    "line",
    [
        "PING 198.18.0.2 (198.18.0.2) 56(84) bytes of data.",
        "",
        "--- 198.18.0.2 ping statistics ---",
        "3 packets transmitted, 3 received, 0% packet loss, time 110ms",
        "rtt min/avg/max/mdev = 0.039/0.137/0.211/0.072 ms",
        "ping: sendmsg: Destination address required",
        "[1795458566.75] From 192.0.2.1 icmp_seq=3 Destination Host Unreachable",
        "[1795458566.75] 64 bytes from 198.18.0.2: icmp_seq=3 ttl=64 time=0.1 ms (DUP!)",
    ],
)
def test_what_is_not_about_a_probe_of_ours_counts_neither_way(line: str) -> None:
    assert parse_ping_line(line) is None


def test_the_ping_that_is_started_prints_what_the_parser_reads() -> None:
    argv = ping_argv(IPv4Address("198.18.0.2"), seconds=56.0)
    # -D: times, -O: a line for those missing, -n: no names (which would look for a resolver)
    assert {"-D", "-O", "-n"} <= set(argv)
    assert argv[argv.index("-w") + 1] == "56"
    assert argv[-1] == "198.18.0.2"


def test_an_interval_of_iperf3_is_read_with_its_retransmits() -> None:
    line = "[  5]   1.00-2.00   sec  1.50 GBytes  12873 Mbits/sec  1125    495 KBytes       "
    assert parse_iperf_line(line) == Rate(1.0, 2.0, 12873.0, 1125, "")


def test_the_summaries_of_iperf3_are_told_apart() -> None:
    sender = "[  5]   0.00-3.00   sec  5.04 GBytes  14415 Mbits/sec  10263             sender"
    receiver = "[  5]   0.00-3.04   sec   120 MBytes   332 Mbits/sec                  receiver"
    assert parse_iperf_line(sender) == Rate(0.0, 3.0, 14415.0, 10263, "sender")
    assert parse_iperf_line(receiver) == Rate(0.0, 3.04, 332.0, None, "receiver")


@pytest.mark.parametrize(
    "line",
    [
        "Connecting to host 198.18.0.2, port 5201",
        "[  5] local 198.18.0.1 port 44752 connected to 198.18.0.2 port 5201",
        "[ ID] Interval           Transfer     Bitrate         Retr  Cwnd",
        "- - - - - - - - -",
        "iperf3: error - unable to connect to server: Connection refused",
        "iperf Done.",
        "",
    ],
)
def test_headings_and_errors_of_iperf3_are_no_rates(line: str) -> None:
    assert parse_iperf_line(line) is None
