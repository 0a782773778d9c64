"""`relayd serve --show-join`: the join string of a relay that has been started before."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from relayd.config import RelayConfig
from relayd.endpoints import Endpoint
from relayd.errors import ConfigError, HostError
from relayd.observe.output import printing
from relayd.relay.credentials import AdmissionFiles, joined
from relayd.secret_file import RELAY_KEY, relay_key


def show_join(config: RelayConfig) -> None:
    """Print the join string of a relay that has been started with this configuration before.

    Raises ConfigError and HostError, and changes nothing.
    """
    ports = [Endpoint.parse(text).port for text in config.listen]
    if not ports[0]:
        raise ConfigError("port 0 means any free one: the join string can't be known", source="--listen")
    files = AdmissionFiles.of(config)
    # The operator's own files as the operator, what the relay has made as the relay.
    gate = None if files.tokens_are_ours else files.read(make=False)
    named, config = config.state_dir, _seen_by_its_owner(config)
    key_file = Path(config.state_dir) / RELAY_KEY
    try:
        started = key_file.exists()
    except PermissionError as error:
        raise HostError(f"cannot look into {named}: {error.strerror} (ask as root)") from error
    if not started:
        raise HostError(
            f"{Path(named) / RELAY_KEY} is not there: no relay has been started with this state directory "
            "(see --state)"
        )
    key = relay_key(Path(config.state_dir)).public()
    gate = gate or AdmissionFiles.of(config).read(make=False)
    join = joined(config, key, gate, ports[0])
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
    except OSError:  # as is about to be said
        return config
    return msgspec.structs.replace(config, state_dir=".")
