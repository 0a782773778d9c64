"""`relayd agent`: sits beside the host's WireGuard and gives every peer a path that works."""
