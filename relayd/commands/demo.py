"""`relayd demo`: see it at work."""

from __future__ import annotations

import argparse

from relayd.demo import command


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    command.add_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Play it. The exit status."""
    return command.main(args)
