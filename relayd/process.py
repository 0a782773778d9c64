"""A long-lived relayd process: it runs until a signal asks it to stop, and then stops in order."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import trio

from relayd.errors import HostError, leaves
from relayd.manager.manager import Manager
from relayd.manager.notifier import Notifier
from relayd.observe import log
from relayd.reload import Reload
from relayd.signals import Signals

Config = TypeVar("Config", contravariant=True)

STOP_WITHIN_S = 10.0
"""For stopping in order; less than the 90 s after which systemd kills, and than Kubernetes' 30 s."""

HOST_LACKS_S = 3.0
"""A manager starts a relay again within 250 ms, for those that are killed. An interface that isn't there yet
may take hours, and each try costs as much CPU time as a start."""

STATUS_OF = {signal.SIGTERM: 0, signal.SIGINT: 128 + signal.SIGINT, signal.SIGHUP: 128 + signal.SIGHUP}
"""Who sends SIGTERM wants it stopped: success. The others interrupt: 128 and the number, as of shells. SIGHUP
does that when the terminal went; from anybody else it asks for a reload."""


class Job(Protocol[Config]):
    """What a process does."""

    def __call__(
        self, config: Config, manager: Manager, signals: Signals, /, *, task_status: trio.TaskStatus[None]
    ) -> Awaitable[None]:
        """Run until cancelled; call `task_status.started()` once, when useful. `signals` is what to do about
        SIGHUP, and what to do between SIGTERM and being cancelled."""


class _TellsReady:
    """The job's `task_status`: when it is useful, the service manager hears of it."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self.said = False

    def started(self, value: None = None) -> None:
        self.said = True
        self._notifier.ready()


def run_until_signal(
    name: str, job: Job[Config], config: Config, *, again: Callable[[], Config] | None = None
) -> int:
    """Run `job` in trio until it raises or a signal of STATUS_OF comes. Returns the exit status.

    A service manager that started this process hears when it is useful and when it stops.

    SIGTERM lets the job drain first, if it wants to. A second signal ends the draining; one more, or
    STOP_WITHIN_S without, ends the process at once. SIGHUP lets it read its files again, and applies what
    `again` (which may block, and raises ConfigError) says now; but not when the terminal has gone: then it
    stops. `name` is the noun of its events: `relay.stopped`. Raises ConfigError when the manager's variables
    make no sense.

    Where the host lacks something that a start needs, a process that nobody else starts again says so by
    HostError; one of a service manager's says it in the log, and ends some seconds later.
    """
    manager = Manager.from_environment(os.environ)
    ready = _TellsReady(manager.notifier)
    status = HostError.exit_status
    try:
        status = trio.run(_until_signal, name, job, config, manager, again, ready)
    except* HostError as group:
        if ready.said or not manager.notifier.connected:
            raise group from None
        reason = "; ".join(dict.fromkeys(map(str, leaves(group))))
        log.get().error(f"{name}.not_started", reason=reason, again_in_s=HOST_LACKS_S)
        time.sleep(HOST_LACKS_S)
    finally:
        manager.close()
    return status


async def _until_signal(
    name: str,
    job: Job[Config],
    config: Config,
    manager: Manager,
    again: Callable[[], Config] | None,
    ready: _TellsReady,
) -> int:
    logger = log.get()
    notifier = manager.notifier
    status = 0
    signals = Signals()
    reload = Reload(name, config, again, signals, notifier)
    on_terminal = has_terminal() and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # nohup(1)
    with trio.open_signal_receiver(*STATUS_OF) as received:
        async with trio.open_nursery() as nursery:
            running = trio.CancelScope()

            def stop() -> None:
                if not running.cancel_called:
                    running.cancel()
                    nursery.start_soon(_limit_stop, name)

            async def drain() -> None:
                signals.draining.set()
                with trio.move_on_after(signals.drain_s):
                    await signals.drained.wait()
                stop()

            async def watch() -> None:
                nonlocal status
                async for number in received:
                    what = signal.Signals(number)
                    if running.cancel_called:
                        logger.warning(f"{name}.aborted", signal=what.name)
                        os._exit(128 + number)
                    if what is signal.SIGHUP and not (on_terminal and not has_terminal()):
                        nursery.start_soon(reload.now)
                        continue
                    logger.info(f"{name}.stop_requested", signal=what.name)
                    if signals.draining.is_set():
                        stop()
                        continue
                    status = STATUS_OF[what]
                    notifier.stopping()
                    if what is signal.SIGTERM and signals.drain_s:
                        nursery.start_soon(drain)
                    else:
                        stop()

            nursery.start_soon(watch)
            nursery.start_soon(notifier.run)
            with running:
                await job(config, manager, signals, task_status=ready)
            nursery.cancel_scope.cancel()
    logger.info(f"{name}.stopped")
    return status


def has_terminal() -> bool:
    """Whether this process belongs to a terminal that is there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


async def _limit_stop(name: str) -> None:
    """The end of a stop that doesn't end. It leaves to the host no more than SIGKILL does."""
    await trio.sleep(STOP_WITHIN_S)
    log.get().error(f"{name}.aborted", reason=f"not stopped within {STOP_WITHIN_S:g} s")
    os._exit(1)


def raise_descriptor_limit() -> None:
    """As many connections as the host lets us have: the soft limit is 1024 for old programs' select() only.

    See https://0pointer.net/blog/file-descriptor-limits.html; nothing here uses select().
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # a hard limit above fs.nr_open, or a sandbox that forbids it
        log.get().warning("descriptors.kept", limit=soft, reason=error)
