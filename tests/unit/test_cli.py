"""The command line: exit statuses, errors in one line, signals. Real processes where it takes one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from relayd import __version__, cli
from relayd.commands import parser, status
from relayd.commands.exit_status import MEANINGS
from relayd.commands.importing import importing
from relayd.commands.parser import GROUPS, all_commands, make_parser
from relayd.errors import ConfigError, HostError, RelaydError

# A relay as a process: what is between its start and its end is seen in its log.
RELAYD = [sys.executable, "-m", "relayd"]
TIMEOUT_S = 30.0


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*RELAYD, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        env=environment(),
    )


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RELAYD_")}


def serve_arguments(directory: Path) -> list[str]:
    places = ("--control", str(directory / "relay.sock"), "--state", str(directory / "state"))
    return ["serve", "--listen", "127.0.0.1:0", "--log", "json", *places]


class Process:
    """A relayd that runs, and its log up to the event that says that it does."""

    def __init__(self, arguments: Sequence[str], until: str) -> None:
        self.process = subprocess.Popen(
            [*RELAYD, *arguments], stderr=subprocess.PIPE, text=True, env=environment()
        )
        self.log: list[dict[str, object]] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))
            if self.log[-1]["event"] == until:
                return
        pytest.fail(f"it ended with {self.process.wait()} before {until}: {self.log}")

    def end(self, *signals: signal.Signals) -> tuple[int, list[object]]:
        """Its exit status, and the events after these signals."""
        for number in signals:
            self.process.send_signal(number)
        _, rest = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, [json.loads(line)["event"] for line in rest.splitlines()]

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


# --- what needs no process ---


def fake_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(_args: object) -> int:
        raise error

    monkeypatch.setattr(status, "run", fail)


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (
            ConfigError("unknown key 'mtuu'", source="/etc/a.toml", line=3, hint="did you mean mtu"),
            2,
            ["relayd: /etc/a.toml:3: unknown key 'mtuu' (did you mean mtu)"],
        ),
        (HostError("no WireGuard here"), 3, ["relayd: no WireGuard here"]),
        (RelaydError("two\nlines"), 1, ["relayd: two lines"]),
        (ExceptionGroup("a", [ExceptionGroup("b", [HostError("deep")])]), 3, ["relayd: deep"]),
        (
            ExceptionGroup("a", [ConfigError("one"), HostError("two"), HostError("two")]),
            2,
            ["relayd: one", "relayd: two"],
        ),
        (KeyboardInterrupt(), 130, []),
        (BaseExceptionGroup("a", [KeyboardInterrupt()]), 130, []),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_error_of_ours_is_a_line_and_its_exit_status(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: list[str],
) -> None:
    fake_command(monkeypatch, error)
    assert cli.main(["status"]) == status
    assert capsys.readouterr().err.splitlines() == said


def test_control_c_before_the_command_begins_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(arguments: object) -> None:
        raise KeyboardInterrupt  # as while a command's modules are loaded

    monkeypatch.setattr(parser, "make_parser", interrupted)
    assert cli.main(["status"]) == 130


def test_control_c_ends_the_process_at_once_while_modules_are_loaded() -> None:
    """A module that takes it for a failure of its own would swallow it."""
    code = (
        "import os, signal\n"
        "from relayd.commands.importing import importing\n"
        "try:\n"
        "    with importing(): os.kill(os.getpid(), signal.SIGINT)\n"
        "except BaseException: print('swallowed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")
    with importing():
        pass
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("error", [ZeroDivisionError(), BrokenPipeError(), OSError(5, "disk")])
def test_bug_is_not_hidden_not_even_beside_an_error_of_ours(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fake_command(monkeypatch, error)
    with pytest.raises((type(error), ExceptionGroup)):
        cli.main(["status"])
    fake_command(monkeypatch, ExceptionGroup("both", [error, HostError("x")]))
    with pytest.raises(ExceptionGroup) as caught:
        cli.main(["status"])
    assert caught.group_contains(type(error))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["status", "--jsn"],
        ["serve", "--lis", "x"],
        ["agent", "extra"],
        ["demo", "--seconds", "x"],
    ],
    ids=" ".join,
)
def test_wrong_command_line_is_status_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage: relayd" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "usage", "said"),
    [
        (["serve", "--lisen", "0.0.0.0:1"], "relayd serve", "--lisen 0.0.0.0:1 (did you mean --listen?)"),
        (["serve", "--http-name=x"], "relayd serve", "--http-name=x (did you mean --http-names?)"),
        (["config", "check", "f", "--jason"], "relayd config check", "--jason (did you mean --json?)"),
        (["agent", "wg0"], "relayd agent", "unrecognized arguments: wg0\n"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_wrong_flag_is_told_with_its_commands_usage_and_what_it_may_have_been(
    arguments: list[str], usage: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.main(arguments)
    shown = capsys.readouterr().err
    assert shown.startswith(f"usage: {usage} [")
    assert said in shown


@pytest.mark.parametrize(
    "command",
    [[], *([name] for name in all_commands()), ["config", "check"], ["config", "show"]],
    ids=" ".join,
)
def test_help_of_every_command_fits_a_screen(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A setting that makes it too long isn't `common`."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("usage: relayd")
    assert len(lines) < 24  # and the prompt
    assert max(map(len, lines)) <= 80


def test_help_without_a_command_names_them_all_under_their_headings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    shown = capsys.readouterr().out
    for heading, commands in GROUPS.items():
        assert f"\n{heading}:\n" in shown
        for name, text in commands.items():
            assert f"\n  {name:17}{text}\n" in shown


def test_exit_statuses_of_errors_are_documented() -> None:
    for error in (RelaydError, ConfigError, HostError):
        assert error.exit_status in MEANINGS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"relayd {__version__}\n"


def test_listen_takes_several_and_may_be_repeated() -> None:
    arguments = ["serve", "--listen", "127.0.0.1:1", "[::1]:1", "--listen", "127.0.0.2:1"]
    args = make_parser(arguments).parse_args(arguments)
    assert args.listen == ["127.0.0.1:1", "[::1]:1", "127.0.0.2:1"]


# --- real processes ---


def test_help_imports_none_of_the_machinery() -> None:
    code = (
        "import sys; from relayd.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('trio', 'rich', 'structlog', 'msgspec') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S, check=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_bad_configuration_is_one_line_with_status_2(tmp_path: Path) -> None:
    (tmp_path / "relay.toml").write_text('[relay]\nlisten = ["127.0.0.1:0"]\nlissten = 3\n')
    done = run("serve", "--config", str(tmp_path / "relay.toml"))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"relayd: {tmp_path}/relay.toml:3: ")
    assert "lissten" in line


def test_status_of_nothing_is_one_line_with_status_1(tmp_path: Path) -> None:
    done = run("status", "--control", str(tmp_path / "a.sock"))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"relayd: no relayd process answers at {tmp_path}/a.sock: there is no such socket\n"


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)], ids=["SIGTERM", "SIGINT"]
)
def test_signal_stops_a_relay_in_order(tmp_path: Path, number: signal.Signals, status: int) -> None:
    with Process(serve_arguments(tmp_path), "relay.started") as relay:
        assert (tmp_path / "relay.sock").is_socket()
        ended, events = relay.end(number)
    assert ended == status
    assert events[0] == "relay.stop_requested"
    assert events[-1] == "relay.stopped"
    assert list(tmp_path.iterdir()) == [tmp_path / "state"]


def test_status_asks_a_running_relay_and_a_second_one_is_refused(tmp_path: Path) -> None:
    with Process(serve_arguments(tmp_path), "relay.started") as relay:
        shown = run("status", "--control", str(tmp_path / "relay.sock"))
        told = run("status", "--json", "--control", str(tmp_path / "relay.sock"))
        second = run(*serve_arguments(tmp_path))
        assert relay.end(signal.SIGTERM)[0] == 0
    assert (shown.returncode, told.returncode) == (0, 0)
    assert shown.stdout.startswith("relay on ")
    assert json.loads(told.stdout)["role"] == "relay"
    assert second.returncode == 3
    assert second.stderr.splitlines()[-1].startswith("relayd: another process answers at")


def test_serve_has_as_many_descriptors_as_the_host_allows(tmp_path: Path) -> None:
    limited = ["sh", "-c", 'ulimit -S -n 256; exec "$@"', "sh", *RELAYD, *serve_arguments(tmp_path)]
    process = subprocess.Popen(limited, stderr=subprocess.PIPE, text=True, env=environment())
    try:
        assert process.stderr is not None
        assert any("relay.started" in line for line in process.stderr)
        limits = Path(f"/proc/{process.pid}/limits").read_text()
    finally:
        process.terminate()
        process.communicate(timeout=TIMEOUT_S)
    (soft, hard) = next(
        line.split()[3:5] for line in limits.splitlines() if line.startswith("Max open files")
    )
    assert soft == hard


@pytest.mark.parametrize(
    "command", [["man"], ["completion", "fish"], ["config", "show", "--role", "relay"]], ids=" ".join
)
def test_a_full_disk_is_one_line_with_status_1(command: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*RELAYD, *command], stdout=full, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S,
            check=False, env=environment(),
        )  # fmt: skip
    said = "relayd: can't write to standard output: No space left on device\n"
    assert (done.returncode, done.stderr) == (1, said)


def test_what_a_locale_has_no_characters_for_is_escaped() -> None:
    directory = os.fsdecode("büro\N{CJK UNIFIED IDEOGRAPH-672C}".encode() + b"\xff")
    strange = {"RELAYD_STATE": directory, "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(
        [*RELAYD, "config", "show", "--role", "relay"],
        capture_output=True, timeout=TIMEOUT_S, check=False, env=environment() | strange,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b'"b\xfcro\\u672c\\udcff"' in done.stdout


def test_reader_of_stdout_that_went_away_is_no_traceback(tmp_path: Path) -> None:
    with Process(serve_arguments(tmp_path), "relay.started") as relay:
        reader, writer = os.pipe()
        os.close(reader)
        try:
            done = subprocess.run(
                [*RELAYD, "status", "--control", str(tmp_path / "relay.sock")],
                stdout=writer, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False,
            )  # fmt: skip
        finally:
            os.close(writer)
        assert (done.returncode, done.stderr) == (141, "")
        full = run_with_stdout("/dev/full", tmp_path)
        assert full.returncode == 1
        assert full.stderr == "relayd: can't write to standard output: No space left on device\n"
        relay.end(signal.SIGTERM)


def run_with_stdout(path: str, directory: Path) -> subprocess.CompletedProcess[str]:
    with open(path, "w") as stream:
        return subprocess.run(
            [*RELAYD, "status", "--json", "--control", str(directory / "relay.sock")],
            stdout=stream, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
