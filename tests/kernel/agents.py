"""Starts relayd's commands in network namespaces, as processes that have nothing left to import.

Under emulation it takes an interpreter seconds to import what relayd needs; on a machine it takes a few
tenths of one. So one process has it all imported, and forks a child for each start: a process like any other,
with its own pid to be killed by, that begins where `relayd`'s main() does.

    with Agents(directory) as agents:
        agent = agents.start("a", "agent", "--config", "/etc/agent.toml")
        agent.wait_for("agent.started")
        agent.kill(signal.SIGKILL)
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.helpers.fake_manager import Store, place

START_S = 30.0
_CLONE_NEWNET = 0x40000000  # linux/sched.h


class Running:
    """A process that was started."""

    def __init__(self, agents: Agents, pid: int, log: Path) -> None:
        self.pid, self._agents, self._log = pid, agents, log
        self.status: int | None = None

    def output(self) -> str:
        """All that it said."""
        return self._log.read_text()

    def wait_for(self, event: str, *, count: int = 1, timeout_s: float = START_S) -> None:
        """Until its log has `event`, that often."""
        deadline = time.monotonic() + timeout_s
        while self.output().count(event) < count:
            assert time.monotonic() < deadline, f"no {event}:\n{self.output()}"
            time.sleep(0.02)

    def kill(self, number: signal.Signals) -> int:
        """Send a signal, and wait for the end. -> exit status, or minus the signal"""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Until it has ended. -> exit status, or minus the signal"""
        if self.status is None:
            self.status = self._agents.ask({"wait": self.pid})
        return self.status


class Agents:
    """The process that forks."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._running: list[Running] = []
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.kernel.agents"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self.running():
            running.kill(signal.SIGKILL)
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait(timeout=START_S)
        self._server.stdout.close()

    def start(self, netns: str, *arguments: str, service: str = "") -> Running:
        """Run `relayd ARGUMENTS` in the network namespace (as `ip netns` names it).

        With `service` it has a service manager, who keeps its descriptors from one start of that name to the
        next (tests.helpers.fake_manager)."""
        log = self._directory / f"log-{len(self._running)}"
        log.touch()
        pid = self.ask({"netns": netns, "arguments": arguments, "log": str(log), "service": service})
        self._running.append(Running(self, pid, log))
        return self._running[-1]

    def running(self) -> list[Running]:
        """Those that nobody has waited for."""
        return [running for running in self._running if running.status is None]

    def ask(self, request: object) -> int:
        """One request, one answer."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return int(self._server.stdout.readline())


def serve() -> None:
    """Answer requests on stdin until it ends."""
    # What the commands import when they run.
    import relayd.agent.agent
    import relayd.agent.release
    import relayd.cli
    import relayd.config
    import relayd.host_commands
    import relayd.observe.log
    import relayd.process
    import relayd.relay.server  # noqa: F401

    stores: dict[str, Store] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            print(_wait(request["wait"], stores.values()))
            continue
        store = None
        if service := request["service"]:
            if service not in stores:
                # A path: an abstract name would be that of one network namespace.
                stores[service] = Store(f"{tempfile.gettempdir()}/manager-{os.getpid()}-{service}")
            store = stores[service]
            store.take()
        pid = os.fork()
        if pid == 0:
            _become(request["netns"], request["arguments"], request["log"], store)
        print(pid)


def _wait(pid: int, stores: Iterable[Store]) -> int:
    """Until a child has ended; stores are emptied meanwhile. -> exit status, or minus the signal"""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        for store in stores:
            store.take()
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)


def _become(netns: str, arguments: list[str], log: str, store: Store | None) -> None:
    """In the child: run the command, and end."""
    status = 70
    try:
        if store is not None:
            os.environ.update(store.environ([name for name, _ in store.kept]), LISTEN_PID=str(os.getpid()))
            place([fd for _, fd in store.kept])
        output = os.open(log, os.O_WRONLY | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for number, descriptor in enumerate((null, output, output)):
            os.dup2(descriptor, number)
        libc = ctypes.CDLL(None, use_errno=True)
        namespace = os.open(f"/run/netns/{netns}", os.O_RDONLY)
        if libc.setns(namespace, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        from relayd.cli import main

        try:
            status = main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        sys.stdout.flush()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve()
