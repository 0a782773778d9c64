"""The page of a real relay: it is there, it is killed, it is back."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By

from tests.browser.test_page import is_live, text, until

SOON_S = 20.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def relay(directory: Path, port: int) -> Iterator[subprocess.Popen[str]]:
    """`relayd serve`, once it takes agents in."""
    flags = ["--listen", "127.0.0.1:0", "--open", "--log", "json", "--http", f"127.0.0.1:{port}"]
    flags += ["--control", str(directory / "relay.sock"), "--state", str(directory / "state")]
    process = subprocess.Popen(
        [sys.executable, "-m", "relayd", "serve", *flags],
        stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert process.stderr is not None
        events = (json.loads(line)["event"] for line in process.stderr)
        assert "relay.started" in events
        yield process
    finally:
        process.kill()
        process.communicate(timeout=SOON_S)


def test_a_relay_that_is_killed_is_missed_and_one_in_its_place_is_found(
    browser: Chrome, tmp_path: Path
) -> None:
    port = free_port()
    with relay(tmp_path, port) as process:
        browser.get(f"http://127.0.0.1:{port}/")
        is_live(browser)
        assert "No agent is connected." in text(browser)
        assert browser.find_elements(By.CLASS_NAME, "figure")[0].text == "0"
        process.kill()
        until(browser, "document.getElementById('live').textContent === 'No answer'")
        assert "The process doesn't answer" in text(browser)
    with relay(tmp_path, port):
        is_live(browser)
        assert "doesn't answer" not in text(browser)
