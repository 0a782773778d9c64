"""The demonstration itself: traffic runs; the relay is killed and comes back, and so is an agent."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Protocol

import trio

from relayd.demo.lab import Lab
from relayd.demo.plan import DOWN_S, LIMIT_S, RECOVERY_S, Outcome, Plan, Stage, Throughput, outcome
from relayd.demo.process import Process
from relayd.demo.stage import CONTROL_AGENT, Theatre
from relayd.demo.timeline import Second, Timeline
from relayd.demo.traffic import (
    iperf_client_argv,
    iperf_server_argv,
    parse_iperf_line,
    parse_ping_line,
    ping_argv,
)
from relayd.errors import RelaydError
from relayd.observe import control

STARTUP_S = 15.0
"""A relay or an agent on a slow machine; some tenths of a second on others."""
FIRST_PING_S = 15.0
"""WireGuard repeats a lost handshake after 5 s (REKEY_TIMEOUT): two may get lost."""
SETTLE_S = 2.0
"""How much of calm traffic is shown after it came back, at least."""
IPERF_SLACK_S = 5.0
"""What iperf3 may take beyond its measuring: to listen, to connect, to hand over its figures."""
TICK_S = 0.1


class DemoError(RelaydError):
    """The demonstration could not be played to its end; the text says why."""


class Report(Protocol):
    """Who is told while it happens."""

    def opened(self, stage: Stage) -> None:
        """The laboratory stands."""

    def said(self, what: str) -> None:
        """What is being waited for."""

    def settled(self, second: Second) -> None:
        """A second that no answer can change any more, in order."""

    def running(self, seconds: list[Second]) -> None:
        """The seconds that are not settled yet, oldest first; several times a second."""

    def closed(self, outcome: Outcome) -> None:
        """It is over."""


class Story:
    """One performance. Everything it starts belongs to `lab`, which the caller closes."""

    def __init__(self, lab: Lab, plan: Plan, report: Report) -> None:
        self._plan, self._report = plan, report
        self._theatre = Theatre(lab)
        self._stage = self._theatre.describe()
        self._timeline = Timeline(time.time())
        self._running: dict[str, Process] = {}
        self._faults: list[tuple[str, float, float]] = []
        self._throughput: Throughput | None = None
        self._ready_s: float | None = None
        self._shown = 0
        report.opened(self._stage)

    async def play(self) -> None:
        """From the first process to the last ping. Raises DemoError, or HostError."""
        if self._theatre.can_reach_directly():
            raise DemoError("the nodes reach each other directly; nothing would be shown")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._show)
            await self._start()
            nursery.start_soon(self._ping)
            self._report.said("waiting for the first answer")
            self._ready_s = await self._wait_back(self._timeline.start_at, FIRST_PING_S)
            if self._ready_s is None:
                raise DemoError(f"no ping was answered within {FIRST_PING_S:g} s")
            self._happened("the tunnel works", at=self._timeline.start_at + self._ready_s)
            self._report.said("")
            await self._pass(self._plan.calm_s)
            await self._measure()
            await self._pass(self._plan.calm_s)
            await self._kill("relay", self._theatre.start_relay)
            await self._kill("agent on a", lambda: self._theatre.start_agent(self._theatre.a))
            nursery.cancel_scope.cancel()

    def outcome(self, error: str = "") -> Outcome:
        """What came of it, also when it was cut short."""
        endpoints: tuple[str, ...] = ()
        if not error:
            tunnels = (self._theatre.tunnel_a, self._theatre.tunnel_b)
            endpoints = tuple(str(found) for tunnel in tunnels for found in tunnel.endpoints().values())
        for second in self._unshown():
            self._report.settled(second)
        return outcome(
            self._stage, self._timeline, self._faults,
            throughput=self._throughput, ready_s=self._ready_s, endpoints=endpoints, error=error,
        )  # fmt: skip

    # --- acts ---

    async def _start(self) -> None:
        """Relay and agents, until both agents are connected and WireGuard points at them."""
        theatre = self._theatre
        self._happened("relay and agents started")
        self._report.said("waiting for the agents to connect")
        self._running["relay"] = theatre.start_relay()
        for name, node in (("agent on a", theatre.a), ("agent on b", theatre.b)):
            self._running[name] = theatre.start_agent(node)
        with trio.move_on_after(STARTUP_S) as patience:
            for node in (theatre.a, theatre.b):
                while not await self._is_carrying(str(node.path(CONTROL_AGENT))):
                    await self._pass(TICK_S)
        if patience.cancelled_caught:
            said = "; ".join(f"{name}: {process.last_words()}" for name, process in self._running.items())
            raise DemoError(f"no connection to the relay within {STARTUP_S:g} s. {said}")
        self._happened("both agents connected")

    async def _is_carrying(self, control_path: str) -> bool:
        """Whether the agent is connected and has pointed its peer at the relay."""
        try:
            status = await control.ask(control_path, "status")
        except control.NobodyAnswersError:  # not up yet
            return False
        return status["relay"]["state"] == "connected" and all(
            peer["path"] == "relay" for peer in status["peers"]
        )

    async def _measure(self) -> None:
        """iperf3 from a to b."""
        theatre, seconds = self._theatre, self._plan.throughput_s
        to = self._stage.tunnel_addresses[1]
        server = theatre.b.start(*iperf_server_argv(to))
        with trio.move_on_after(IPERF_SLACK_S):
            while "listening" not in server.output():  # noqa: ASYNC110 (another process: there is no event)
                await trio.sleep(0.02)
        self._happened("iperf3 begins")
        client = theatre.a.start(*iperf_client_argv(to, seconds=seconds), pipe=True)
        retransmits: int | None = None

        def heard(line: str) -> None:
            nonlocal retransmits
            rate = parse_iperf_line(line)
            if rate is None:
                return
            # An interval is told as it ends. (When iperf3 began is less sure: after its process did.)
            self._timeline.add_rate(rate, time.time() - rate.end_s)
            if rate.summary == "sender":
                retransmits = rate.retransmits
            elif rate.summary == "receiver":
                self._throughput = Throughput(rate.megabits_per_s, rate.end_s, retransmits)

        with trio.move_on_after(seconds + IPERF_SLACK_S):
            await _each_line(client, heard)
        said = client.last_words() or server.last_words() or "no answer"
        for process in (client, server):
            theatre.lab.discard(process)
        if self._throughput is None:
            raise DemoError(f"iperf3 carried nothing: {said}")
        self._happened("iperf3 ends")

    async def _kill(self, name: str, restart: Callable[[], Process]) -> None:
        """SIGKILL, a second of nothing, a new process, and the wait for traffic."""
        began = trio.current_time()
        process = self._running.pop(name)
        killed_at = time.time()
        process.send_signal(signal.SIGKILL)
        self._happened(f"{name} killed (SIGKILL)", at=killed_at)
        await self._pass(DOWN_S)
        self._theatre.lab.discard(process)
        restarted_at = time.time()
        self._running[name] = restart()
        self._faults.append((name, killed_at, restarted_at))
        self._happened(f"{name} started again", at=restarted_at)
        self._report.said(f"waiting for the traffic to come back ({name})")
        back_s = await self._wait_back(restarted_at, RECOVERY_S)
        if back_s is None:
            raise DemoError(f"{name}: the traffic was not back {RECOVERY_S:g} s after the restart")
        self._happened("the traffic is back", at=self._timeline.start_at + back_s)
        self._report.said("")
        await self._pass(max(SETTLE_S, self._plan.fault_s - (trio.current_time() - began)))

    # --- while it runs ---

    async def _ping(self) -> None:
        ping = self._theatre.a.start(*ping_argv(self._stage.tunnel_addresses[1], seconds=LIMIT_S), pipe=True)

        def heard(line: str) -> None:
            if (probe := parse_ping_line(line)) is not None:
                self._timeline.add(probe)

        await _each_line(ping, heard)
        raise DemoError(f"ping ended: {ping.last_words() or ping.returncode()}")

    async def _show(self) -> None:
        while True:
            for second in self._unshown(settled_by=time.time()):
                self._report.settled(second)
            self._report.running(self._timeline.seconds()[self._shown :])
            await trio.sleep(TICK_S)

    def _unshown(self, settled_by: float = float("inf")) -> list[Second]:
        rest = self._timeline.seconds()[self._shown :]
        fresh = [second for second in rest if self._timeline.is_settled(second.number, settled_by)]
        self._shown += len(fresh)
        return fresh

    def _happened(self, what: str, *, at: float | None = None) -> None:
        self._timeline.event(time.time() if at is None else at, what)

    async def _wait_back(self, since: float, timeout_s: float) -> float | None:
        with trio.move_on_after(timeout_s):
            while (back_s := self._timeline.back_after(since)) is None:
                await self._pass(TICK_S)
            return back_s
        return None

    async def _pass(self, seconds: float) -> None:
        """Let time pass; what should be running must be."""
        end = trio.current_time() + seconds
        while (left_s := end - trio.current_time()) > 0:
            for name, process in self._running.items():
                if process.returncode() is not None:
                    raise DemoError(
                        f"{name} ended by itself ({process.returncode()}): {process.last_words()}"
                    )
            await trio.sleep(min(TICK_S, left_s))


async def _each_line(process: Process, heard: Callable[[str], None]) -> None:
    """Hand on what a process started with a pipe prints, line by line, until it ends."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(process.out)) as stream:
        async for part in stream:
            *whole, rest = (rest + bytes(part)).split(b"\n")
            for line in whole:
                heard(line.decode(errors="replace"))
