"""`relayd cleanup`: remove from this host what the agent added to it."""

from __future__ import annotations

import argparse

from relayd.commands.flags import add_settings, given
from relayd.config import load_host
from relayd.config.settings import AGENT

SETTINGS = ("interface", "state_dir", "control")


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    parser.description = (
        "Remove from this host what the agent added to it. Exit status 0 only if nothing is left."
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what there is to remove")
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument("--force", action="store_true", help="don't ask whether an agent runs")
    this = "this interface alone (default: wire_kube, and each that relayd made)"
    add_settings(parser, AGENT, SETTINGS, interface=this)


def run(args: argparse.Namespace) -> int:
    """Remove it. The exit status."""
    from relayd.host_commands import cleanup
    from relayd.observe import log

    config = load_host(given(args, AGENT, SETTINGS))
    log.configure()  # to stderr: what is printed may be meant for a program
    return cleanup(config, dry_run=args.dry_run, as_json=args.json, force=args.force)
