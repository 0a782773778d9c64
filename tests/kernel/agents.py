"""Starts relayd's commands in network namespaces, as processes that have nothing left to import.

Under emulation it takes an interpreter seconds to import what relayd needs; on a machine it takes a few
tenths of one. So one process has it all imported, and forks a child for each start: a process like any other,
with its own pid to be killed by, that begins where `relayd`'s main() does.

    with Imported() as imported, Agents(directory, imported) as agents:
        agent = agents.start("a", "agent", "--config", "/etc/agent.toml")
        agent.wait_for("agent.started")
        agent.kill(signal.SIGKILL)
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.helpers.fake_manager import Store, place

START_S = 60.0
"""For a start, on a host that has other work too."""

NETLINK_S = 30.0
"""On a machine milliseconds are enough, and relayd waits for five seconds."""


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

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Send a signal, and wait for the end. -> exit status, or minus the signal"""
        os.kill(self.pid, number)
        return self.wait()

    def wait(self) -> int:
        """Until it has ended. -> exit status, or minus the signal"""
        if self.status is None:
            self.status = self._agents.ask({"wait": self.pid})
        return self.status


class Imported:
    """The process that has everything imported. It is asked over a socket, and may be before it is ready."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="agents-")
        self.address = f"{self._directory.name}/sock"
        # Bound here, so that nobody has to wait for it.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self.address)
            listener.listen()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.kernel.agents"],
                stdin=listener.fileno(),
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End it. Those who asked it have ended."""
        self._process.terminate()
        self._process.wait(START_S)
        self._directory.cleanup()


class Agents:
    """Starts processes, as a child of the one that has everything imported does for us alone."""

    def __init__(self, directory: Path, imported: Imported) -> None:
        self._directory = directory
        self._running: list[Running] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(imported.address)
        self._answers = self._socket.makefile()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for running in self.running():
            running.kill(signal.SIGKILL)
        self._answers.close()
        self._socket.close()

    def start(self, netns: str, *arguments: str, service: str = "") -> Running:
        """Run `relayd ARGUMENTS` in the network namespace (as `ip netns` names it here).

        With `service` it has a service manager, who keeps its descriptors from one start of that name to the
        next (tests.helpers.fake_manager)."""
        # Names of namespaces are those of this process's /run, and so are locks.
        here = f"/proc/{os.getpid()}"
        return self._start((f"{here}/root/run/netns/{netns}", f"{here}/ns/mnt"), arguments, service)

    def start_beside(self, pid: int, *arguments: str) -> Running:
        """Run `relayd ARGUMENTS` in the network and mount namespaces of a process."""
        return self._start((f"/proc/{pid}/ns/net", f"/proc/{pid}/ns/mnt"), arguments)

    def _start(self, namespaces: tuple[str, ...], arguments: tuple[str, ...], service: str = "") -> Running:
        log = self._directory / f"log-{len(self._running)}"
        log.touch()
        request = {"namespaces": namespaces, "arguments": arguments, "log": str(log), "service": service}
        self._running.append(Running(self, self.ask(request), log))
        return self._running[-1]

    def running(self) -> list[Running]:
        """Those that nobody has waited for."""
        return [running for running in self._running if running.status is None]

    def ask(self, request: object) -> int:
        """One request, one answer."""
        self._socket.sendall(f"{json.dumps(request)}\n".encode())
        return int(self._answers.readline())


def be_patient() -> None:
    """In this process and its children netlink may take as long as it does under emulation."""
    from relayd.kernel import rtnl

    rtnl.DEADLINE_S = NETLINK_S


def serve() -> None:
    """Accept who connects to the socket that is stdin, and answer each in a child of its own."""
    # What the commands import when they run.
    import encodings.idna  # noqa: F401 (by name look-ups)

    import relayd.agent.release
    import relayd.agent.running
    import relayd.cli
    import relayd.config
    import relayd.host_commands
    import relayd.observe.log
    import relayd.process
    import relayd.relay.server  # noqa: F401
    from relayd.commands.parser import make_parser

    for command in ("agent", "serve", "cleanup"):
        make_parser([command])  # which imports its module
    be_patient()
    gc.freeze()  # what is here stays: a child's collections needn't touch, and so copy, its pages
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    # The first three descriptors stay taken: what is opened later is none of them.
    with socket.socket(fileno=os.dup(0)) as listener, open(os.devnull) as null:
        os.dup2(null.fileno(), 0)
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                _answer(connection)
                os._exit(0)
            connection.close()


def _answer(connection: socket.socket) -> None:
    """Until it ends."""
    stores: dict[str, Store] = {}
    for line in connection.makefile():
        request = json.loads(line)
        if "wait" in request:
            answer = _wait(request["wait"], stores.values())
        else:
            store = None
            if service := request["service"]:
                if service not in stores:
                    # A path: an abstract name would be that of one network namespace.
                    stores[service] = Store(f"{tempfile.gettempdir()}/manager-{os.getpid()}-{service}")
                store = stores[service]
                store.take()
            answer = os.fork()
            if answer == 0:
                _become(request["namespaces"], request["arguments"], request["log"], store)
        connection.sendall(f"{answer}\n".encode())


def _wait(pid: int, stores: Iterable[Store]) -> int:
    """Until a child has ended; stores are emptied meanwhile. -> exit status, or minus the signal"""
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        for store in stores:
            store.take()
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)


def _become(namespaces: list[str], arguments: list[str], log: str, store: Store | None) -> None:
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
        libc, directory = ctypes.CDLL(None, use_errno=True), os.getcwd()
        for namespace in [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in namespaces]:
            if libc.setns(namespace, 0):
                raise OSError(ctypes.get_errno(), "setns")
        os.chdir(directory)  # setns(2): the root directory, after a change of mount namespace
        from relayd.cli import main

        try:
            status = main(arguments)
        except SystemExit as error:
            status = int(error.code or 0)
        sys.stdout.flush()
    except BaseException:  # noqa: BLE001 (whatever it is, it goes where the process's words go)
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    serve()
