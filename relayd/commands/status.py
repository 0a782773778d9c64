"""`relayd status`: what the relay and the agents on this host are doing."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags. Not from the table: without --control it asks every process there is."""
    parser.add_argument("--json", action="store_true", help="one line of JSON for each process")
    parser.add_argument(
        "--control", metavar="PATH", help="ask this process only (default: all of /run/relayd/*.sock)"
    )


def run(args: argparse.Namespace) -> int:
    """Show it. The exit status."""
    from relayd.config import load_control
    from relayd.status import show_status

    return show_status(load_control({"control": args.control}), as_json=args.json)
