"""A long-lived process: what signals do to it. Each is a real process that gets real signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import pytest

# One that cleans up for ever, as only a bug does; one that fails while it stops; one that ends by itself.
PROGRAM = """
import sys, trio
from relayd import process
from relayd.errors import HostError
from relayd.observe import log
from relayd.process import run_until_signal

process.time.sleep = lambda seconds: log.get().info("job.pauses", seconds=seconds)

async def job(kind, manager, signals, *, task_status):
    if kind in ("draining", "drains for ever"):
        signals.drain_s = 600.0
    if kind == "reloading":
        signals.on_reload.append(lambda: log.get().info("job.reloads"))
    if kind == "lacking":
        raise HostError("there is no interface wg0")
    if kind == "lost":
        task_status.started()
        raise HostError("the interface is gone")
    log.get().info("job.started")
    try:
        if kind == "draining":
            await signals.draining.wait()
            log.get().info("job.drains")
            signals.drained.set()
        await trio.sleep(0 if kind == "short" else float("inf"))
    finally:
        if kind == "stuck":
            with trio.CancelScope(shield=True):
                log.get().info("job.stuck")
                await trio.sleep_forever()
        if kind == "failing":
            raise HostError("the interface is gone")

log.configure("json")
sys.exit(run_until_signal("job", job, sys.argv[1]))
"""


def play(
    kind: str, *steps: tuple[str, signal.Signals], environ: Mapping[str, str] = MappingProxyType({})
) -> tuple[int, list[str], str]:
    """Start a job, send each signal at its event. -> exit status, all events, the rest of stderr"""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, kind],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    events, rest = [], ""
    waiting = list(steps)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if not line.startswith("{"):
                rest += line
                continue
            events.append(json.loads(line)["event"])
            if waiting and waiting[0][0] == events[-1]:
                process.send_signal(waiting.pop(0)[1])
        return process.wait(timeout=30), events, rest
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 0), (signal.SIGINT, 130)],
    ids=lambda value: getattr(value, "name", ""),
)
def test_signal_stops_it_in_order(number: signal.Signals, status: int) -> None:
    ended, events, _ = play("idle", ("job.started", number))
    assert ended == status
    assert events == ["job.started", "job.stop_requested", "job.stopped"]


def test_sigterm_lets_a_job_drain_that_wants_to() -> None:
    ended, events, _ = play("draining", ("job.started", signal.SIGTERM))
    assert ended == 0
    assert events == ["job.started", "job.stop_requested", "job.drains", "job.stopped"]


def test_ctrl_c_drains_nothing() -> None:
    ended, events, _ = play("drains for ever", ("job.started", signal.SIGINT))
    assert ended == 130
    assert events == ["job.started", "job.stop_requested", "job.stopped"]


def test_second_signal_ends_the_draining_in_order() -> None:
    ended, events, _ = play(
        "drains for ever", ("job.started", signal.SIGTERM), ("job.stop_requested", signal.SIGTERM)
    )
    assert ended == 0
    assert events == ["job.started", "job.stop_requested", "job.stop_requested", "job.stopped"]


def test_sighup_reloads_what_can_be_reloaded() -> None:
    steps = [("job.started", signal.SIGHUP), ("job.reloads", signal.SIGHUP), ("job.reloads", signal.SIGTERM)]
    ended, events, _ = play("reloading", *steps)
    assert ended == 0
    assert events.count("job.reloads") == 2
    assert events[-2:] == ["job.stop_requested", "job.stopped"]


def test_second_signal_ends_what_does_not_stop() -> None:
    ended, events, _ = play("stuck", ("job.started", signal.SIGTERM), ("job.stuck", signal.SIGINT))
    assert ended == 130
    assert events == ["job.started", "job.stop_requested", "job.stuck", "job.aborted"]


def test_error_while_it_stops_is_not_hidden_by_the_signal() -> None:
    ended, events, rest = play("failing", ("job.started", signal.SIGTERM))
    assert ended == 1
    assert "job.stopped" not in events
    assert "HostError: the interface is gone" in rest


@pytest.mark.parametrize("managed", [False, True])
def test_who_lacks_something_of_the_host_is_started_again_by_a_manager_with_a_pause(
    managed: bool, tmp_path: Path
) -> None:
    """Each try of systemd's costs a start's CPU time, four times a second: an interface may come in hours."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        environ = {"NOTIFY_SOCKET": str(tmp_path / "notify")} if managed else {}
        ended, events, rest = play("lacking", environ=environ)
        lost = play("lost", environ=environ)
    assert ("HostError: there is no interface wg0" in rest) is not managed
    assert (ended, events) == ((3, ["job.not_started", "job.pauses"]) if managed else (1, []))
    assert "HostError: the interface is gone" in lost[2], "it was of use: it is started again at once"
    assert lost[1] == []


def test_job_that_ends_by_itself_ends_the_process() -> None:
    assert play("short") == (0, ["job.started", "job.stopped"], "")
