"""`relayd top`: what `relayd status` shows, live, on a terminal.

keys (pure) -> state (pure) -> view (pure: status and state in, lines out) -> terminal -> screen
app: asks the processes, reads keys, and draws
"""
