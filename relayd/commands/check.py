"""`relayd check`: a doctor for the host."""

from __future__ import annotations

import argparse

from relayd.commands.flags import HOSTS_INTERFACE, add_file, add_settings, given
from relayd.config.settings import AGENT

SETTINGS = ("relays", "relay_file", "insecure_relay", "interface")


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    add_file(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    add_settings(parser, AGENT, SETTINGS, interface=HOSTS_INTERFACE)


def run(args: argparse.Namespace) -> int:
    """Look the host over. The exit status."""
    from relayd.commands.host_config import host_config
    from relayd.doctor.command import check
    from relayd.observe import log

    config = host_config(args.config, given(args, AGENT, SETTINGS))
    log.configure(config.log)  # to stderr: what is printed may be meant for a program
    return check(config, as_json=args.json)
