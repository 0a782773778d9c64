"""`relayd status`: what the relay and the agents on this host are doing."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags. Not from the table: without --control it asks every process there is."""
    parser.add_argument("--json", action="store_true", help="one line of JSON for each process")
    parser.add_argument(
        "peer",
        nargs="?",
        metavar="PEER",
        help="this peer alone, by its name, its key, or the beginning of it",
    )
    parser.add_argument("--why", action="store_true", help="how that peer came to its path, in words")
    parser.add_argument(
        "--control", metavar="PATH", help="ask this process only (default: all of /run/relayd/*.sock)"
    )


def run(args: argparse.Namespace) -> int:
    """Show it. The exit status."""
    from relayd.config import load_control
    from relayd.errors import ConfigError
    from relayd.status import show_peer, show_status

    if args.peer is not None:
        return show_peer(load_control({"control": args.control}), args.peer, why=args.why, as_json=args.json)
    if args.why:
        raise ConfigError("which peer's path? relayd status PEER --why", source="--why")
    return show_status(load_control({"control": args.control}), as_json=args.json)
