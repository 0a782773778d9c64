"""`relayd stun`: how this host is reached from elsewhere, and what that means for direct paths."""
