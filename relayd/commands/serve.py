"""`relayd serve`: run a relay."""

from __future__ import annotations

import argparse

from relayd.commands.flags import add_file, add_settings, given
from relayd.config import load_relay
from relayd.config.settings import RELAY


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    add_file(parser)
    add_settings(parser, RELAY, all_help=all_help)


def run(args: argparse.Namespace) -> int:
    """Run until a signal comes. The exit status."""
    from relayd.observe import log
    from relayd.process import raise_descriptor_limit, run_until_signal

    config = load_relay(args.config, given(args, RELAY))
    log.configure(config.log)
    raise_descriptor_limit()
    from relayd.relay.server import serve

    return run_until_signal("relay", serve, config)
