"""The command line: relayd serve | agent | status | cleanup | check | demo.

Each sub-command imports what it needs when it runs, so that `relayd --help` and `relayd status` are quick.
(argparse, not a library: a dozen flags, no prompts, and nothing to load before the first line of help.)

Exit statuses: 0 done, or stopped by SIGTERM; 1 failed (of check: found an error); 2 a wrong flag or
configuration, and nothing on the host was changed; 3 the host lacks something; 130 Ctrl-C; 141 standard
output was closed, as by `| head`.
"""

from __future__ import annotations

import argparse
import os
import select
import sys
from collections.abc import Sequence

from relayd import __version__
from relayd.errors import ConfigError, RelaydError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
STDOUT_CLOSED = 141  # 128 + SIGPIPE, as of a program that doesn't ignore the signal


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit status; an error that is ours is one clear line on stderr."""
    _open_standard_streams()
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser(arguments).parse_args(arguments)
    status = 1
    try:
        status = args.run(args)
        if sys.stdout is not None:
            sys.stdout.flush()
    except* RelaydError as group:
        status = _tell(group)
    except* KeyboardInterrupt:
        status = INTERRUPTED
    except* BrokenPipeError as group:
        if not _stdout_is_closed():
            raise group from None
        status = STDOUT_CLOSED
    return status


def _parser(arguments: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="relayd",
        description="A working path between every pair of WireGuard nodes: straight UDP where it can be had, "
        "through a relay where it can't.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"relayd {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    serve = command("serve", "Run a relay.")
    serve.set_defaults(run=_serve)
    serve.add_argument(
        "--listen", metavar="ADDR:PORT", nargs="+", action="extend",
        help="accept agents here; may be repeated (default 0.0.0.0:3478 and [::]:3478)",
    )  # fmt: skip
    agent = command("agent", "Give each peer of this host's WireGuard interface a path that works.")
    agent.set_defaults(run=_agent)
    agent.add_argument("--relay", metavar="HOST:PORT", help="the relay")
    agent.add_argument("--interface", metavar="NAME", help="the WireGuard interface (default wire_kube)")
    agent.add_argument("--state", metavar="DIR", help="what is remembered (default /var/lib/wirekube)")
    agent.add_argument(
        "--clean-state",
        action="store_true",
        help="at this start, take down what an interface of relayd's own has on this host, and build it "
        "anew; the key stays (WIREKUBE_CLEAN_STATE=true: once, until a start without it)",
    )
    agent.add_argument(
        "--release",
        action="store_true",
        help="run nothing; give the peers of an adopted interface the endpoints back that the relay replaced",
    )
    for long_lived in (serve, agent):
        long_lived.add_argument("--config", metavar="FILE", help="a TOML file; flags win over it")
        long_lived.add_argument("--control", metavar="PATH", help="the socket that `relayd status` asks")
        long_lived.add_argument(
            "--log",
            metavar="MODE",
            help="auto (the default), console or json; auto is json unless stderr is a terminal",
        )

    status = command("status", "Show what the relay and the agents on this host are doing.")
    status.set_defaults(run=_status)
    status.add_argument("--json", action="store_true", help="one line of JSON for each process")
    status.add_argument(
        "--control", metavar="PATH", help="ask this process only (default: all of /run/relayd/*.sock)"
    )

    cleanup = command(
        "cleanup", "Remove from this host what the agent added to it. Exit status 0 only if nothing is left."
    )
    cleanup.set_defaults(run=_cleanup)
    cleanup.add_argument("--interface", metavar="NAME", help="the agent's interface (default wire_kube)")
    cleanup.add_argument("--state", metavar="DIR", help="the agent's memory (default /var/lib/wirekube)")
    cleanup.add_argument("--control", metavar="PATH", help="where the agent answers, if it was told so")
    cleanup.add_argument("--dry-run", action="store_true", help="only say what there is to remove")
    cleanup.add_argument("--json", action="store_true", help="one line of JSON")
    cleanup.add_argument("--force", action="store_true", help="don't ask whether an agent runs")

    check = command("check", "Look this host over: what stands in the tunnels' way, and what mends it.")
    check.set_defaults(run=_check)
    check.add_argument("--relay", metavar="HOST:PORT", help="try to reach this relay too")
    check.add_argument("--interface", metavar="NAME", help="the WireGuard interface (default wire_kube)")
    check.add_argument("--config", metavar="FILE", help="the agent's TOML file; flags win over it")
    check.add_argument("--json", action="store_true", help="one line of JSON")

    demo = command("demo", "Show it at work, in network namespaces of its own. Needs root.")
    demo.set_defaults(run=_demo)
    if arguments[:1] == ["demo"]:
        from relayd.demo.command import add_arguments

        add_arguments(demo)
    return parser


# --- the commands ---


def _serve(args: argparse.Namespace) -> int:
    from relayd.config import load_relay
    from relayd.observe import log
    from relayd.process import raise_descriptor_limit, run_until_signal

    config = load_relay(args.config, _flags(args, "listen", "control", "log"))
    log.configure(config.log)
    raise_descriptor_limit()
    from relayd.relay.server import serve

    return run_until_signal("relay", serve, config)


def _agent(args: argparse.Namespace) -> int:
    if args.release:
        return _release(args)
    from relayd.config import load_agent
    from relayd.observe import log
    from relayd.process import run_until_signal

    words = ("relay", "interface", "state", "control", "log", "clean_state")
    config = load_agent(args.config, _flags(args, *words))
    log.configure(config.log)
    from relayd.agent.agent import run_agent

    return run_until_signal("agent", run_agent, config)


def _release(args: argparse.Namespace) -> int:
    from relayd.config import load_host
    from relayd.host_commands import release

    if args.config is not None:
        raise ConfigError("--release takes no configuration", source="--config", hint="--interface NAME")
    return release(load_host(_flags(args, "interface", "state", "control")))


def _cleanup(args: argparse.Namespace) -> int:
    from relayd.config import load_host
    from relayd.host_commands import cleanup

    config = load_host(_flags(args, "interface", "state", "control"))
    return cleanup(config, dry_run=args.dry_run, as_json=args.json, force=args.force)


def _status(args: argparse.Namespace) -> int:
    from relayd.config import load_control
    from relayd.status import show_status

    return show_status(load_control(_flags(args, "control")), as_json=args.json)


def _check(args: argparse.Namespace) -> int:
    from relayd.config import load_agent
    from relayd.doctor.command import check

    config = load_agent(args.config, _flags(args, "relay", "interface"), relay_needed=False)
    return check(config, as_json=args.json)


def _demo(args: argparse.Namespace) -> int:
    from relayd.demo.command import main as demo

    return demo(args)


def _flags(args: argparse.Namespace, *names: str) -> dict[str, object]:
    return {name: getattr(args, name) for name in names}


# --- errors and streams ---


def _tell(group: BaseExceptionGroup[RelaydError]) -> int:
    """Each error once, a line each. The exit status is the first one's."""
    errors = list(_leaves(group))
    for line in dict.fromkeys(f"relayd: {error}" for error in errors):
        print(" ".join(line.splitlines()), file=sys.stderr)
    return errors[0].exit_status


def _leaves(group: BaseExceptionGroup[RelaydError]) -> list[RelaydError]:
    return [
        leaf
        for one in group.exceptions
        for leaf in (_leaves(one) if isinstance(one, BaseExceptionGroup) else [one])
    ]


def _stdout_is_closed() -> bool:
    """Whether nobody reads standard output any more. What it still holds is then thrown away, so that the
    interpreter's own flush at exit doesn't complain once more."""
    if sys.stdout is None:
        return False
    descriptor = sys.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, 0)
    if not any(mask & (select.POLLERR | select.POLLHUP) for _, mask in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    return True


def _open_standard_streams() -> None:
    """Make sure that descriptors 0 to 2 are taken: or a library's words to stderr may go out by a socket."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
