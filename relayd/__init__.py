"""relayd: a working path between every pair of WireGuard nodes."""

from importlib.metadata import version

__version__ = version("relayd")
