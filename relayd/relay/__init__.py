"""`relayd serve`: takes frames from one agent and hands them to another."""
