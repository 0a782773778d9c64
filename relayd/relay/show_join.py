"""`relayd serve --show-join`: the join string of a relay that has been started before."""

from __future__ import annotations

import os

import msgspec

from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.errors import ConfigError
from relayd.observe.output import printing
from relayd.relay.credentials import join_string, load_credentials


def show_join(config: RelayConfig) -> None:
    """Print the join string of a relay that has been started with this configuration before.

    Raises ConfigError and HostError, and changes nothing.
    """
    ports = [Endpoint.parse(text).port for text in config.listen]
    if not ports[0]:
        raise ConfigError("port 0 means any free one: the join string can't be known", source="--listen")
    config = _seen_by_its_owner(config)
    join = join_string(config, load_credentials(config, make=False), ports[0])
    with printing():
        print(join.format())


def _seen_by_its_owner(config: RelayConfig) -> RelayConfig:
    """For root, who asks for the secrets of a relay that runs as another user, as under systemd: look from
    inside its state directory, as that user, who alone may have chosen what is in there."""
    try:
        owner = os.stat(config.state_dir)
        if os.geteuid() or not owner.st_uid:
            return config
        os.chdir(config.state_dir)  # root's to do: what is above it may be closed to that user
        os.setegid(owner.st_gid)
        os.seteuid(owner.st_uid)
    except OSError:  # as load_credentials is about to say
        return config
    return msgspec.structs.replace(config, state_dir=".")
