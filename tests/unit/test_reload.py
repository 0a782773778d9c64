"""SIGHUP: what a new configuration changes in a relay that runs, and what happens when the terminal goes."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

TIMEOUT_S = 30.0

RELAY = """\
[relay]
listen = ["127.0.0.1:0"]
control = "relay.sock"
state_dir = "state"
http = "off"
stun_port = "off"
log = "json"
"""


class Serving:
    """A relay as a process, and its log."""

    def __init__(self, directory: Path, *, stdout: int = subprocess.DEVNULL) -> None:
        self.file = directory / "relay.toml"
        self.file.write_text(RELAY)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "relayd", "serve", "--config", str(self.file)],
            stdout=stdout, stderr=subprocess.PIPE, text=True, env=environ,
        )  # fmt: skip
        self.until("relay.started")

    def until(self, event: str) -> dict[str, Any]:
        """The next line of its log with this event."""
        assert self.process.stderr is not None
        for text in self.process.stderr:
            line: dict[str, Any] = json.loads(text)
            if line["event"] == event:
                return line
        pytest.fail(f"it ended before {event}")

    def reload(self, text: str) -> None:
        self.file.write_text(text)
        self.process.send_signal(signal.SIGHUP)


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[Serving]:
    serving = Serving(tmp_path)
    yield serving
    serving.process.terminate()
    serving.process.communicate(timeout=TIMEOUT_S)
    assert serving.process.returncode == 0


def test_what_can_be_applied_is_and_the_rest_is_named(relay: Serving) -> None:
    relay.reload(RELAY.replace("127.0.0.1:0", "127.0.0.1:9") + "silence_s = 33\nmax_unregistered = 7\n")
    assert relay.until("relay.reloaded")["changed"] == ["silence_s", "max_unregistered"]
    assert relay.until("relay.restart_needed")["settings"] == ["listen"]
    # What was applied counts as known: the next one differs from it, not from the start.
    relay.reload(RELAY + "silence_s = 33\nmax_unregistered = 8\n")
    assert relay.until("relay.reloaded")["changed"] == ["max_unregistered"]


def test_who_is_let_in_changes_with_the_file(relay: Serving, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("0123456789abcdef0123456789abcdef\n")
    (tmp_path / "tokens").chmod(0o600)
    relay.reload(RELAY + 'token_file = "tokens"\n')
    assert relay.until("relay.reloaded")["changed"] == ["token_file"]
    assert relay.until("admission.reloaded")
    relay.reload(RELAY + 'allow_list = "nowhere"\n')
    assert relay.until("relay.reloaded")["changed"] == ["token_file", "allow_list"]
    assert "nowhere" in relay.until("admission.kept")["reason"]


def test_a_mistake_changes_nothing_and_is_told_with_its_line(relay: Serving) -> None:
    relay.reload(RELAY + "silence_s = 33\nsilense_s = 3\n")
    refused = relay.until("relay.config_refused")
    assert f"{relay.file}:9: relay.silense_s: unknown key" in refused["reason"]
    relay.reload(RELAY + "silence_s = 33\n")
    assert relay.until("relay.reloaded")["changed"] == ["silence_s"]


def test_a_relay_without_a_file_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "relayd", "serve", "--listen", "127.0.0.1:0", "--http", "off", "--log", "json",
         "--control", str(tmp_path / "relay.sock"), "--state", str(tmp_path), "--stun-port", "off"],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    for text in process.stderr:
        event = json.loads(text)["event"]
        if event == "relay.started":
            process.send_signal(signal.SIGHUP)
        elif event == "relay.reloaded":
            process.terminate()
    process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0


def test_a_relay_whose_join_string_nobody_reads_goes_on(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    relay = Serving(tmp_path, stdout=writing)
    os.close(writing)
    assert relay.until("relay.join_string_unread")["reason"] == "Broken pipe"
    relay.reload(RELAY)
    relay.until("relay.reloaded")
    relay.process.terminate()
    _, said = relay.process.communicate(timeout=TIMEOUT_S)
    assert (relay.process.returncode, "Traceback" in said) == (0, False)


def test_a_terminal_that_goes_takes_it_along(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.touch()
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1), under which the tests may run
        with log.open("w") as output:
            os.dup2(output.fileno(), 2)
        arguments = ["serve", "--listen", "127.0.0.1:0", "--http", "off", "--log", "json"]
        arguments += ["--control", str(tmp_path / "r.sock"), "--state", str(tmp_path), "--stun-port", "off"]
        os.execl(sys.executable, sys.executable, "-m", "relayd", *arguments)
    deadline = time.monotonic() + TIMEOUT_S
    while "relay.started" not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 129
    assert "relay.stopped" in log.read_text()
