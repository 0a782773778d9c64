"""Run one command in a throw-away virtual machine that has the kernel's own WireGuard.

    python -m tests.kernel.vm -- python -m pytest tests/kernel -q

The guest boots a distribution's kernel under QEMU, by plain emulation, and sees the host's files at the same
paths: same interpreter, same packages, same ip, nft and wg; nothing is built or copied. What the command
writes is gone with the machine, except below the directory that --out names. Its only network is its own
loopback. Output and exit status are the command's; 124 means out of time, 125 that there was no machine.

Needs root and these packages: qemu-system-x86 qemu-system-common busybox-static kmod (and virtiofsd, where
qemu-system-common is without it). The kernel is fetched by apt-get download on first use and unpacked into
the cache, never installed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from tests.kernel.bytecode import layer
from tests.kernel.image import Kernel, VmError, fetch_kernel, locked, make_initrd
from tests.kernel.machine import FAILED, Job, Outcome, run

INSIDE = "RELAYD_VM"
"""The variable that is 1 inside, or SYSTEMD."""

SYSTEMD = "systemd"
"""It is process 1."""

_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def _environment(extra: list[str], *, systemd: bool) -> dict[str, str]:
    """The command's: this interpreter first in PATH, so that `python` is this one."""
    here = Path(sys.executable).parent
    environment = {
        "HOME": os.environ.get("HOME", "/root"),
        "LANG": "C.UTF-8",
        "TERM": "dumb",
        "PATH": f"{here}:{_SYSTEM_PATH}",
        INSIDE: SYSTEMD if systemd else "1",
    }
    if sys.prefix != sys.base_prefix:
        environment["VIRTUAL_ENV"] = sys.prefix
    if "CI" in os.environ:
        environment["CI"] = os.environ["CI"]
    return environment | dict(item.split("=", 1) for item in extra)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.kernel.vm",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--out",
        type=Path,
        metavar="DIR",
        help="what the command writes below DIR stays (JUnit XML, coverage)",
    )
    add(
        "--env",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a variable for the command (repeatable)",
    )
    add("--timeout", type=float, default=1140.0, metavar="S", help="boot included (%(default)s)")
    add("--memory", type=int, default=1024, metavar="MIB", help="%(default)s")
    add("--processors", type=int, default=2, metavar="N", help="%(default)s")
    # Never kvm by default: where it is nested it can be broken ("KVM internal error, emulation failure").
    add(
        "--accel",
        choices=["tcg", "kvm"],
        default="tcg",
        help="kvm only where it is known to work (%(default)s)",
    )
    add(
        "--steady",
        action="store_true",
        help="one processor, and a clock that counts its instructions: what is about time may run in it",
    )
    add(
        "--kernel", type=Path, metavar="DIR", help="DIR/vmlinuz and DIR/lib/modules/VERSION, instead of apt's"
    )
    add("--refresh", action="store_true", help="ask apt for a newer kernel than the one in the cache")
    add("--cache", type=Path, default=Path("~/.cache/relayd/kernelvm"), metavar="DIR", help="%(default)s")
    add("--systemd", action="store_true", help="systemd as process 1, and the command as a service of its")
    add("--times", action="store_true", help="tell when each stage was reached")
    add("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGUMENT...]")
    arguments = parser.parse_args(argv)
    if arguments.command[:1] == ["--"]:
        del arguments.command[0]
    if not arguments.command:
        parser.error("no command")
    if any("=" not in item for item in arguments.env):
        parser.error("--env wants NAME=VALUE")
    return arguments


def _run(arguments: argparse.Namespace) -> Outcome:
    cache: Path = arguments.cache.expanduser().resolve()
    cache.mkdir(parents=True, exist_ok=True)
    if arguments.out is not None:
        arguments.out.mkdir(parents=True, exist_ok=True)
    with locked(cache):
        if arguments.kernel is not None:
            kernel = Kernel(arguments.kernel.resolve())
        else:
            kernel = fetch_kernel(cache, refresh=arguments.refresh)
        initrd = make_initrd(kernel, cache)
    environment = _environment(arguments.env, systemd=arguments.systemd)
    job = Job(
        command=arguments.command,
        directory=Path.cwd(),
        environment=environment,
        layer=layer(Path.cwd(), cache, arguments.command, environment),
        out=arguments.out.resolve() if arguments.out is not None else None,
        timeout_s=arguments.timeout,
        memory_mib=arguments.memory,
        processors=1 if arguments.steady else arguments.processors,
        accelerator=arguments.accel,
        systemd=arguments.systemd,
        steady=arguments.steady,
    )
    return run(job, kernel, initrd, cache, sys.stdout.buffer, sys.stderr.buffer)


def _end(number: int, _frame: FrameType | None) -> None:
    sys.exit(128 + number)  # and so through every clean-up


def main(argv: list[str] | None = None) -> int:
    """Exit status."""
    arguments = _arguments(argv)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        outcome = _run(arguments)
    except VmError as error:
        print(f"vm: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    if outcome.reason:
        print(f"vm: {outcome.reason}; the end of its console:\n{outcome.console}", file=sys.stderr)
    if arguments.times:
        print("vm: " + "; ".join(f"{stage} {at_s:.1f} s" for stage, at_s in outcome.marks), file=sys.stderr)
    return outcome.status


if __name__ == "__main__":
    sys.exit(main())
