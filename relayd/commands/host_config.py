"""The configuration of commands that look at a host as an agent on it would."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
import trio

from relayd.config import AgentConfig
from relayd.config.load import examine_agent
from relayd.kernel.discover import usual_interface


def host_config(path: str | None, flags: Mapping[str, object]) -> AgentConfig:
    """As `load_agent`, without the need of a relay. Where nobody names the interface it is this host's usual
    one: a gateway's is called wg0 as a rule. Raises ConfigError."""
    examined = examine_agent(path, flags, relay_needed=False)
    config = examined.right()
    if config.owned is not None or "interface" in examined.found:
        return config
    return msgspec.structs.replace(config, interface=trio.run(usual_interface))
