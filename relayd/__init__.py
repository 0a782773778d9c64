"""relayd: a working path between every pair of WireGuard nodes."""

__version__ = "0.1.0"
