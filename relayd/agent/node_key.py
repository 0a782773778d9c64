"""The key of an interface that relayd makes: in the state directory, unless the configuration names another
file.
"""

from __future__ import annotations

import msgspec

from relayd.config import AgentConfig
from relayd.secret_file import private_key


def with_key(config: AgentConfig) -> AgentConfig:
    """`config` with its interface's key, which is made at the first start of all.

    Of two agents that start at once one makes it, and both have the same. Raises ConfigError for a file that
    holds no key (it is never written to), HostError when it can't be read or made.
    """
    owned = config.owned
    if owned is None or owned.private_key is not None:
        return config
    key = private_key(owned.private_key_file)
    return msgspec.structs.replace(config, owned=msgspec.structs.replace(owned, private_key=key))
