"""`relayd agent`: give each peer of this host's WireGuard interface a path that works."""

from __future__ import annotations

import argparse
from functools import partial

from relayd.commands.flags import add_file, add_settings, given
from relayd.commands.importing import importing
from relayd.config import load_agent, load_host
from relayd.config.settings import AGENT
from relayd.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    add_file(parser)
    parser.add_argument(
        "--clean-state",
        action="store_true",
        help="build an interface of relayd's own anew at this start; the key stays "
        "(WIREKUBE_CLEAN_STATE=true: likewise, until a start without it)",
    )
    parser.add_argument(
        "--release",
        action="store_true",
        help="run nothing; give an adopted interface the endpoints back that it had",
    )
    add_settings(parser, AGENT, all_help=all_help)


def run(args: argparse.Namespace) -> int:
    """Run until a signal comes, or release. The exit status."""
    if args.release:
        return _release(args)
    with importing():
        from relayd.observe import log
        from relayd.process import run_until_signal

    load = partial(load_agent, args.config, given(args, AGENT) | {"clean_state": args.clean_state})
    config = load()
    log.configure(config.log)
    with importing():
        from relayd.agent.running import run_agent

    return run_until_signal("agent", run_agent, config, again=load)


def _release(args: argparse.Namespace) -> int:
    from relayd.host_commands import release
    from relayd.observe import log

    if args.config is not None:
        raise ConfigError("--release takes no configuration", source="--config", hint="--interface NAME")
    config = load_host(given(args, AGENT, ("interface", "state_dir", "control")))
    log.configure()
    return release(config)
