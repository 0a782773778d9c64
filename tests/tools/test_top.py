"""`relayd top` on a real terminal: a pty with a program behind it that understands what is drawn."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyte
import pytest
import trio

from relayd.observe.control import serve_control
from relayd.observe.telling import Telling
from tests.helpers.observed import Watched, agent_status, relay_status

SOON_S = 20.0
SUBPROCESS_S = 20.0


@contextmanager
def answering(path: Path, watched: Watched) -> Iterator[None]:
    """A control socket that answers for `watched`."""
    ready = threading.Event()
    held: list[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = []

    async def serve() -> None:
        with trio.CancelScope() as scope:
            held.append((trio.lowlevel.current_trio_token(), scope))
            async with trio.open_nursery() as nursery:
                await nursery.start(serve_control, str(path), Telling(watched).answers())
                ready.set()

    thread = threading.Thread(target=trio.run, args=(serve,), daemon=True)
    thread.start()
    assert ready.wait(SOON_S)
    token, scope = held[0]
    try:
        yield
    finally:
        token.run_sync_soon(scope.cancel)
        thread.join(SOON_S)


class Screen:
    """A terminal with `relayd top` on it."""

    def __init__(
        self, *arguments: str, columns: int = 80, lines: int = 24, term: str = "xterm-256color"
    ) -> None:
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""
        self.master, slave = pty.openpty()
        self._set_size(lines, columns)
        self.before = termios.tcgetattr(slave)
        self.slave = slave
        self.process = subprocess.Popen(
            ["setsid", "--ctty", sys.executable, "-m", "relayd", "top", *arguments],
            stdin=slave, stdout=slave, stderr=slave,
            env=os.environ | {"TERM": term, "PYTHONUTF8": "1"},
        )  # fmt: skip

    def _set_size(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def resize(self, lines: int, columns: int) -> None:
        self.screen.resize(lines, columns)
        self._set_size(lines, columns)

    def press(self, keys: str) -> None:
        os.write(self.master, keys.encode())

    def text(self) -> str:
        return "\n".join(self.screen.display)

    def until(self, condition: Callable[[str], bool], what: str) -> str:
        """What is on the screen once that is so."""
        deadline = time.monotonic() + SOON_S
        while not condition(self.text()):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what}; on the screen:\n{self.text()}")
            self.read(0.05)
        return self.text()

    def shows(self, part: str) -> str:
        return self.until(lambda text: part in text, f"shows {part!r}")

    def hides(self, part: str) -> str:
        return self.until(lambda text: part not in text, f"shows no {part!r} any more")

    def read(self, seconds: float) -> None:
        while select.select([self.master], [], [], seconds)[0]:
            try:
                data = os.read(self.master, 65536)
            except OSError:  # EIO: nobody has the other end any more
                return
            self.raw += data
            self._stream.feed(data)
            seconds = 0.0

    def end(self) -> int:
        """Its exit status, once it has ended."""
        deadline = time.monotonic() + SOON_S
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.text()
            self.read(0.05)
        self.read(0.1)
        return self.process.returncode

    def is_as_before(self) -> bool:
        """Whether the terminal was given back: its modes, its cursor, and the screen that was there."""
        modes = termios.tcgetattr(self.slave) == self.before
        last = max(self.raw.rfind(b"\x1b[?1049l"), 0)
        return modes and last > self.raw.rfind(b"\x1b[?1049h") and b"\x1b[?25h" in self.raw

    def close_terminal(self) -> None:
        """As when the window is closed, or the SSH connection lost."""
        os.close(self.slave)
        os.close(self.master)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SUBPROCESS_S)
        os.close(self.slave)
        os.close(self.master)


@contextmanager
def top(*arguments: str, **settings: Any) -> Iterator[Screen]:
    screen = Screen(*arguments, **settings)
    try:
        yield screen
    finally:
        screen.close()


def test_shows_sorts_finds_and_quits(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    watched = Watched(relay_status(60))
    with answering(path, watched), top("--control", str(path)) as screen:
        assert "OUT bit/s▾" in screen.shows("agents  60,")
        screen.press("\x1b[C\x1b[C")
        assert "1 to 13 of 60" in screen.shows("DROPS▾")
        screen.press("r")
        screen.shows("DROPS▴")
        screen.press("/203.0.113.17:")
        screen.shows("find: 203.0.113.17:")
        screen.until(lambda text: text.count("203.0.113.") == 3, "one row, and twice what is looked for")
        screen.press("\r")
        screen.shows("only '203.0.113.17:'")
        screen.press("\x1b")
        screen.shows("1 to 13 of 60")
        screen.press("?")
        screen.shows("any key goes back")
        screen.press("x")
        screen.shows("agents  60,")
        watched.status = relay_status(61)
        screen.shows("agents  61,")
        screen.press("q")
        assert screen.end() == 0
        assert screen.is_as_before()


def test_pausing_holds_what_is_shown(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    watched = Watched(relay_status(3))
    with answering(path, watched), top("--control", str(path)) as screen:
        screen.shows("agents  3,")
        screen.press("p")
        screen.shows("paused")
        watched.status = relay_status(4)
        asked = watched.asked
        screen.read(3.0)  # longer than between two questions
        assert watched.asked <= asked + 1  # one may have been on its way
        assert "agents  3," in screen.text()
        screen.press("p")
        screen.shows("agents  4,")


def test_follows_the_terminals_size(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with answering(path, Watched(agent_status())), top("--control", str(path)) as screen:
        screen.shows("peers   1 direct, 1 by the relay, 1 without a way")
        screen.resize(30, 130)
        screen.shows("no handshake for 180 s")
        screen.resize(10, 40)
        screen.hides("no handshake")
        screen.resize(5, 20)
        screen.shows("40x8 at least")


def test_says_when_the_process_is_gone_and_when_it_is_back(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with top("--control", str(path)) as screen:
        screen.shows("no answer for")
        with answering(path, Watched(relay_status(3))):
            screen.shows("agents  3,")
            screen.hides("no answer")
        screen.shows("no answer for")
        assert "agents  3," in screen.text()


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130), (signal.SIGHUP, 129)]
)
def test_a_signal_gives_the_terminal_back(tmp_path: Path, number: signal.Signals, status: int) -> None:
    path = tmp_path / "relay.sock"
    with answering(path, Watched(relay_status(3))), top("--control", str(path)) as screen:
        screen.shows("agents  3,")
        screen.process.send_signal(number)
        assert screen.end() == status
        assert screen.is_as_before()


def test_control_c_on_the_terminal_quits(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with answering(path, Watched(relay_status(3))), top("--control", str(path)) as screen:
        screen.shows("agents  3,")
        screen.press("\x03")
        assert screen.end() == 130
        assert screen.is_as_before()


def test_control_z_gives_the_terminal_back_and_takes_it_again(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with answering(path, Watched(relay_status(3))), top("--control", str(path)) as screen:
        screen.shows("agents  3,")
        screen.process.send_signal(signal.SIGTSTP)
        _, state = os.waitpid(screen.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(state)
        screen.read(0.2)
        assert screen.is_as_before()
        screen.screen.reset()
        screen.process.send_signal(signal.SIGCONT)
        screen.shows("agents  3,")
        screen.press("q")
        assert screen.end() == 0


def test_a_terminal_that_goes_away_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "relay.sock"
    with answering(path, Watched(relay_status(3))):
        screen = Screen("--control", str(path))
        screen.shows("agents  3,")
        screen.close_terminal()
        assert screen.process.wait(SUBPROCESS_S) in (0, 129, -signal.SIGHUP)  # it is told twice


def test_a_dumb_terminal_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    with top("--control", str(tmp_path / "x.sock"), term="dumb", columns=200) as screen:
        assert screen.end() == 1
        assert "needs a terminal that can move its cursor (TERM is dumb)" in screen.text()
        assert "`relayd status` prints the same once" in screen.text()
        assert "\x1b[?1049h" not in screen.raw.decode()


def test_no_terminal_is_refused_with_what_to_do_instead(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "relayd", "top", "--control", str(tmp_path / "x.sock")],
        capture_output=True, text=True, timeout=SUBPROCESS_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("relayd: relayd top needs a terminal on standard input and output;")
    assert len(done.stderr.splitlines()) == 1
