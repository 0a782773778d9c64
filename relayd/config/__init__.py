"""The configuration: frozen types, and the only reader of TOML and of the environment.

A value comes from the first of these that has it: flag, RELAYD_* environment variable, file, default.
Anything wrong is one `ConfigError` that says where, what, and what would be right.
"""

from relayd.config.load import load_agent, load_control, load_host, load_relay
from relayd.config.types import (
    HTTP_ADDRESS,
    KEY_FILE,
    RELAY_CONTROL,
    RUN_DIR,
    STATE_DIR,
    AgentConfig,
    HostConfig,
    InterfaceConfig,
    LogMode,
    PeerConfig,
    RelayConfig,
    agent_control,
)

__all__ = [
    "HTTP_ADDRESS",
    "KEY_FILE",
    "RELAY_CONTROL",
    "RUN_DIR",
    "STATE_DIR",
    "AgentConfig",
    "HostConfig",
    "InterfaceConfig",
    "LogMode",
    "PeerConfig",
    "RelayConfig",
    "agent_control",
    "load_agent",
    "load_control",
    "load_host",
    "load_relay",
]
