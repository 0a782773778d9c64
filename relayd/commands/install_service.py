"""`relayd install-service`: systemd's units for relay and agents."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    parser.description = (
        "Write systemd's units for a relay (relayd.socket, relayd.service) and for agents "
        "(relayd-agent@INTERFACE.service), and example configurations where there are none. Run again, it "
        "brings the units up to date. It starts nothing."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to do")
    parser.add_argument(
        "--uninstall",
        action="store_true",
        help="stop and remove the units; configuration that was changed, keys and the tunnels stay",
    )
    parser.add_argument(
        "--root", metavar="DIR", type=Path, help="write below DIR, for a package; systemctl isn't called"
    )
    parser.add_argument(
        "--program", metavar="PATH", help="the relayd that the units start (default: the one that runs now)"
    )


def run(args: argparse.Namespace) -> int:
    """Do it. The exit status."""
    from relayd.install.service import install
    from relayd.observe.output import printing

    with printing():
        return install(root=args.root, program=args.program, uninstall=args.uninstall, dry_run=args.dry_run)
