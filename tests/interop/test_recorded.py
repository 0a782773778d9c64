"""Our relay answers each recorded exchange as a WireKube relay did."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.exchanges import EXCHANGES, RECORDED, Exchange, nat_probe, play

HOST = "127.0.0.1"


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A `relayd serve` process of its own, on loopback."""
    directory: Path = tmp_path_factory.mktemp("relay")
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "relayd", "serve", "--listen", f"{HOST}:{port}"]
    command += ["--control", str(directory / "relay.sock"), "--log", "json"]
    command += ["--auth", "optional", "--state", str(directory / "state")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            for line in process.stderr:
                if json.loads(line)["event"] == "relay.started":
                    break
            else:
                pytest.fail("the relay ended before it had started")
            yield port
        finally:
            process.terminate()
            process.wait(10)


@pytest.mark.parametrize("exchange", [*EXCHANGES, nat_probe(HOST)], ids=lambda exchange: exchange.name)
def test_exchange_is_answered_as_recorded(exchange: Exchange, port: int) -> None:
    assert play(exchange, HOST, port) == json.loads(RECORDED.read_text())[exchange.name]
