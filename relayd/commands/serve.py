"""`relayd serve`: run a relay."""

from __future__ import annotations

import argparse
from functools import partial

from relayd.commands.flags import add_file, add_settings, given
from relayd.commands.importing import importing
from relayd.config import load_relay
from relayd.config.settings import RELAY


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    add_file(parser)
    parser.add_argument(
        "--show-join", action="store_true", help="run nothing; print the join string, as at every start"
    )
    add_settings(parser, RELAY, all_help=all_help)


def run(args: argparse.Namespace) -> int:
    """Run until a signal comes. The exit status."""
    with importing():
        from relayd.observe import log
        from relayd.process import raise_descriptor_limit, run_until_signal

    load = partial(load_relay, args.config, given(args, RELAY))
    config = load()
    log.configure(config.log)
    if args.show_join:
        from relayd.relay.show_join import show_join

        show_join(config)
        return 0
    raise_descriptor_limit()
    with importing():
        from relayd.relay.server import serve

    return run_until_signal("relay", serve, config, again=load)
