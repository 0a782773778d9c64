"""`relayd top`: what `relayd status` shows, live."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags: as of `relayd status`."""
    parser.add_argument(
        "--control", metavar="PATH", help="show this process only (default: all of /run/relayd/*.sock)"
    )


def run(args: argparse.Namespace) -> int:
    """Show it. The exit status."""
    from relayd.config import RUN_DIR, load_control
    from relayd.top.app import run_top

    return run_top(load_control({"control": args.control}), directory=RUN_DIR)
