"""What an agent does before it begins: clean state, once for each time that it is asked for."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from relayd.agent.beginning import clean_state
from relayd.config import AgentConfig, load_agent
from relayd.kernel import host_rules
from relayd.kernel.host_rules import HostRules
from relayd.kernel.routing import Rule
from relayd.kernel.sysctls import Sysctls
from relayd.marks import TABLE_PRIORITY
from tests.helpers.fake_host import FakeFirewall, FakeRouting, proc_sys

NAME = "none-such"
FILE = f"""\
[relay]
address = "192.0.2.2:3478"

[interface]
name = "{NAME}"
address = ["10.8.0.1/24"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "agent.toml"
    path.write_text(FILE)
    return path


def config_of(file: Path, **environ: str) -> AgentConfig:
    return msgspec.structs.replace(
        load_agent(file, {}, environ=environ), state_dir=str(file.parent / "state")
    )


class Rules(HostRules):
    """Of a host in memory, on which a rule is left from before."""

    def __init__(self, directory: Path) -> None:
        self.memory = FakeRouting()
        super().__init__(
            self.memory, Sysctls(directory / "state", proc_sys(directory / "proc")), FakeFirewall()
        )
        self.leave()

    def leave(self) -> None:
        self.memory.rules.append(host_rules.table_rule(4))

    def left(self) -> list[Rule]:
        return [rule for rule in self.memory.rules if rule.priority == TABLE_PRIORITY]


async def test_the_environment_asks_for_it_once_however_often_it_is_started(file: Path) -> None:
    """A DaemonSet's variable stays: each restart of a pod would cut all tunnels."""
    asked, rules = config_of(file, WIREKUBE_CLEAN_STATE="true"), Rules(file.parent)
    await clean_state(asked, rules)
    assert rules.left() == []
    rules.leave()
    await clean_state(asked, rules)
    assert rules.left(), "done at the start before"
    await clean_state(config_of(file), rules)
    assert rules.left(), "nobody asks"
    await clean_state(asked, rules)
    assert rules.left() == [], "asked for anew"


async def test_a_disk_that_has_become_read_only_keeps_no_agent_from_starting(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = Rules(file.parent)
    await clean_state(config_of(file, WIREKUBE_CLEAN_STATE="true"), rules)

    def refuse(path: object, **_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")  # whether the file is there or not

    monkeypatch.setattr(os, "unlink", refuse)
    with capture_logs() as lines:
        await clean_state(config_of(file), rules)
    assert [line["event"] for line in lines] == ["state.unwritable"]
    with capture_logs() as lines:
        await clean_state(
            msgspec.structs.replace(config_of(file), state_dir=str(file.parent / "other")), rules
        )
    assert lines == []


@pytest.mark.parametrize("said", ["false", ""])
async def test_nothing_but_true_asks_for_it(file: Path, said: str) -> None:
    rules = Rules(file.parent)
    await clean_state(config_of(file, WIREKUBE_CLEAN_STATE=said), rules)
    assert rules.left()
