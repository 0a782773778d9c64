"""`relayd stun`: how this host is reached from elsewhere."""

from __future__ import annotations

import argparse

from relayd.commands.flags import HOSTS_INTERFACE, add_file, add_settings, given
from relayd.config.settings import AGENT
from relayd.errors import ConfigError

SETTINGS = ("relays", "relay_file", "interface")
LIFETIME_S = 120.0
"""How long a NAT keeps an idle mapping at most, that is worth knowing: keepalives are sent more often."""


def add_arguments(parser: argparse.ArgumentParser, *, all_help: bool = False) -> None:
    """Its flags."""
    parser.usage = f"{parser.prog} [OPTIONS] [SERVER ...]"
    parser.add_argument(
        "servers",
        metavar="SERVER",
        nargs="*",
        help="STUN servers to ask, HOST or HOST:PORT (default: the relay, and those of the configuration)",
    )
    add_file(parser)
    parser.add_argument("--json", action="store_true", help="one line of JSON")
    parser.add_argument(
        "--lifetime",
        metavar="SECONDS",
        nargs="?",
        const=LIFETIME_S,
        default=0.0,
        type=float,
        help=f"find out too how long a mapping lives without traffic, up to so long ({LIFETIME_S:g}), "
        "which it takes",
    )
    parser.add_argument(
        "--map",
        action="store_true",
        help="have the gateway map WireGuard's port, for two hours, if it does that",
    )
    parser.add_argument(
        "--port", metavar="PORT", type=int, default=0, help="WireGuard's port (default: ask it)"
    )
    add_settings(parser, AGENT, SETTINGS, interface=HOSTS_INTERFACE)


def run(args: argparse.Namespace) -> int:
    """Look, and show it. The exit status."""
    from relayd.commands.host_config import host_config
    from relayd.observe import log
    from relayd.stun.command import show

    if not 0 <= args.port <= 65535:
        raise ConfigError(f"{args.port} is not a port from 1 to 65535", source="--port")
    if not 0 <= args.lifetime <= 600:
        raise ConfigError(f"{args.lifetime:g} is not a time from 1 to 600 s", source="--lifetime")
    flags = given(args, AGENT, SETTINGS)
    if args.servers:
        flags = dict(flags) | {"stun": args.servers}
    config = host_config(args.config, flags)
    log.configure(config.log)
    return show(config, as_json=args.json, lifetime_s=args.lifetime, port=args.port, map_port=args.map)
