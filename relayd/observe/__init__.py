"""What an operator sees: logs, counters, the control socket."""
