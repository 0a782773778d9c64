"""`relayd check`: looks a host over, says what stands in the way of the tunnels, and how to mend it."""
