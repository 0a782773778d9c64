"""The host: WireGuard interfaces, and (later) what relayd adds to routing and firewall."""
