"""`relayd demo`: the real processes, in network namespaces of their own, with the lights on."""
