"""Mistakes in a relay's configuration: each has its line, its key, and what would be right."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.config_files import relay_error


@pytest.mark.parametrize(
    ("text", "line", "key", "problem", "hint"),
    [
        ('[relay]\nlisten = ["0.0.0.0"]', 2, "relay.listen[1]", "has no port", "did you mean 0.0.0.0:3478?"),
        ('[relay]\nlisten = "3478"', 2, "relay.listen[1]", "without an address", "mean 0.0.0.0:3478?"),
        ('[relay]\nhttp = "9478"', 2, "relay.http", "without an address", "mean 127.0.0.1:9478?"),
        ('[relay]\nhttp = "host:1"', 2, "relay.http", "not an IP address", "example 127.0.0.1:1"),
        ('[relay]\nlisten = "localhost:1"', 2, "relay.listen[1]", "not an IP address", "127.0.0.1:1"),
        ('[relay]\nlisten = ["*:1"]', 2, "relay.listen[1]", "not an IP address", "0.0.0.0:1"),
        ('[relay]\nlisten = ["::1:1"]', 2, "relay.listen[1]", "goes in brackets", ""),
        ('[relay]\nlisten = ["[127.0.0.1:1"]', 2, "relay.listen[1]", "not an IP address", ""),
        ('[relay]\nlisten = ["1.1.1.1:99999"]', 2, "relay.listen[1]", "'99999' is not a port", ""),
        ('[relay]\nlisten = ["224.0.0.1:1"]', 2, "relay.listen[1]", "multicast", ""),
        (
            '[relay]\nlisten = [\n"1.1.1.1:1",\n7]',
            4,
            "relay.listen[2]",
            "is an integer, not a string",
            "quotes",
        ),
        (
            '[relay]\nlisten = [\n"[::]:1",\n"[0::0]:1"]',
            4,
            "relay.listen[2]",
            "[::]:1 is here twice",
            "element 1",
        ),
        ("[relay]\nlisten = []", 2, "relay.listen", "no address to accept connections on", "0.0.0.0:3478"),
        ("[relay]\nlisten = 7", 2, "relay.listen", "is an integer, not an array", ""),
        ("[relay]\nqueue_bytes = 5", 2, "relay.queue_bytes", "5 is out of range", "65540 to"),
        ("[relay]\nsilence_s = inf", 2, "relay.silence_s", "out of range", "0.1 to 3600"),
        ("[relay]\nround_byte = 5", 2, "relay.round_byte", "unknown key", "did you mean round_bytes?"),
        ('[relay]\naddress = "a:1"', 2, "relay.address", "unknown key", "relayd agent"),
        ('[interface]\nname = "wg0"', 1, "interface", "unknown key", "relayd agent"),
        ("lisen = 7", 1, "lisen", "unknown key", "a key stands under its table: [relay]"),
        ('listen = ["0.0.0.0:1"]', 1, "listen", "unknown key", "it goes under [relay]"),
        ("[relay]\nqueue_age_ms = 0", 2, "relay.queue_age_ms", "out of range", "1 to 60000"),
        ("[relay]\naccepts_s = 0", 2, "relay.accepts_s", "0 is out of range", "at most 1000000"),
        ("[relay]\nhttp = true", 2, "relay.http", "is a boolean", "off for none"),
        ('[relay]\nstun_port = "none"', 2, "relay.stun_port", "is a string", "off for none"),
        ('[relay]\n\ntls_cert = "a"', 3, "relay.tls_cert", "tls_key is missing", "come together"),
        ('[relay]\n\ntls_key = "a"', 3, "relay.tls_key", "tls_cert is missing", "come together"),
        ("[relay]\ntls_only = true", 2, "relay.tls_only", "no certificate", "or tls_self_signed"),
        (
            "[relay]\ntls_cert = 'a'\ntls_key = 'b'\ntls_self_signed = true",
            4,
            "relay.tls_self_signed",
            "named already",
            "leave out",
        ),
        ('[relay]\nadmit = "kubernetes"', 2, "relay.admit", "where the API server is", "--api-server"),
        (
            '[relay]\nopen = true\nadmit = "kubernetes"\napi_server = "https://a"',
            3,
            "relay.admit",
            "is said twice",
            "leave out one of admit and open",
        ),
    ],
)
def test_a_relays_mistake_has_line_key_problem_and_hint(
    text: str, line: int, key: str, problem: str, hint: str, tmp_path: Path
) -> None:
    error = relay_error(tmp_path, text)
    assert (error.line, error.key) == (line, key)
    assert problem in error.problem
    assert hint in error.hint
