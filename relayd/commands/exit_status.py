"""What the exit statuses of every command mean; the man page's list is this one.

The statuses of errors are those of their classes, in `relayd.errors`.
"""

from __future__ import annotations

from relayd.errors import ConfigError, HostError, RelaydError

INTERRUPTED = 130  # 128 + SIGINT, as shells have it
STDOUT_CLOSED = 141  # 128 + SIGPIPE, as of a program that doesn't ignore the signal

MEANINGS = {
    0: "Done. Of serve and agent: stopped by SIGTERM. Of check: there is no error. Of cleanup: nothing "
    "is left.",
    RelaydError.exit_status: "Failed. Of check: there is an error. Of cleanup: something is left. Of status: "
    "nothing answers. Of stun: no server answered.",
    ConfigError.exit_status: "A flag, a variable or the configuration is wrong; nothing on the host was "
    "changed.",
    HostError.exit_status: "The host lacks something: a capability, a module, an interface. The message says "
    "what, and how to get it.",
    129: "Ended because its terminal went (SIGHUP).",
    INTERRUPTED: "Ended by Ctrl-C.",
    STDOUT_CLOSED: "Whoever read standard output has gone, as by `| head`.",
}
