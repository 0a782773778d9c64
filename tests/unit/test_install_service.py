"""`relayd install-service`: what it writes, what it leaves alone, and what it says."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import relayd
from relayd.cli import main
from relayd.config import RelayConfig, load_agent, load_relay
from relayd.errors import HostError
from relayd.install import bytecode, service
from relayd.install.plan import CONFIGS, MARK, UNIT_DIRECTORY, UNITS, rendered
from relayd.install.service import install, shipped
from relayd.marks import FWMARK, RELAY_PORT

SYSTEM = "etc/systemd/system"


class Systemctl:
    """Stands for the program: remembers what it was asked."""

    def __init__(self, version: str = "systemd 252 (252.38)", agents: str = "", fails: str = "") -> None:
        self._version, self._agents, self._fails = version, agents, fails
        self.asked: list[str] = []

    def __call__(self, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
        asked = " ".join(argv[1:])
        if asked == "--version":
            return subprocess.CompletedProcess(argv, 0 if self._version else 127, self._version, "")
        if asked.startswith("list-units"):
            return subprocess.CompletedProcess(argv, 0, self._agents, "")
        self.asked.append(asked)
        if self._fails and asked.startswith(self._fails):
            return subprocess.CompletedProcess(argv, 1, "", "Access denied")
        return subprocess.CompletedProcess(argv, 0, "", "")


def installed(root: Path, *, uninstall: bool = False, dry_run: bool = False) -> list[str]:
    """Run it below `root`. -> what it said"""
    said: list[str] = []
    status = install(
        root=root, program="/usr/bin/relayd", uninstall=uninstall, dry_run=dry_run, tell=said.append
    )
    assert status == 0
    return said


def files(root: Path) -> dict[str, str]:
    return {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}


def test_it_writes_the_units_and_examples_and_a_second_time_nothing(tmp_path: Path) -> None:
    said = installed(tmp_path)
    assert sorted(files(tmp_path)) == sorted(
        [f"{SYSTEM}/{name}" for name in UNITS] + [f"etc/relayd/{name}" for name in CONFIGS]
    )
    assert sum(line.startswith("written: ") for line in said) == len(UNITS) + len(CONFIGS)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "etc/relayd").iterdir()}
    assert modes == {"relay.toml": 0o644, "agent-wg0.toml.example": 0o600}, "an agent's has a token"
    before = files(tmp_path)
    said = installed(tmp_path)
    assert "nothing to do" in said
    assert files(tmp_path) == before
    assert installed(tmp_path, uninstall=True)[0].startswith("removed: ")
    assert files(tmp_path) == {}
    assert installed(tmp_path, uninstall=True) == ["nothing to do"]


def test_a_dry_run_says_the_same_and_does_nothing(tmp_path: Path) -> None:
    said = installed(tmp_path, dry_run=True)
    assert f"would write: {UNIT_DIRECTORY}/relayd.service" in said
    assert files(tmp_path) == {}
    installed(tmp_path)
    before = files(tmp_path)
    assert f"would remove: {UNIT_DIRECTORY}/relayd.service" in installed(
        tmp_path, uninstall=True, dry_run=True
    )
    assert files(tmp_path) == before


def test_an_old_unit_of_ours_is_updated_and_configuration_is_kept(tmp_path: Path) -> None:
    installed(tmp_path)
    unit, config = tmp_path / SYSTEM / "relayd.service", tmp_path / "etc/relayd/relay.toml"
    unit.write_text(f"{MARK}, of another year.\n[Service]\n")
    config.write_text("[relay]\nlog = 'json'\n")
    said = installed(tmp_path)
    assert f"updated: {UNIT_DIRECTORY}/relayd.service" in said
    assert "kept: /etc/relayd/relay.toml (configuration is yours)" in said
    assert "ExecStart=/usr/bin/relayd serve" in unit.read_text()
    installed(tmp_path, uninstall=True)
    assert files(tmp_path) == {"etc/relayd/relay.toml": "[relay]\nlog = 'json'\n"}


@pytest.mark.parametrize("uninstall", [False, True])
def test_a_unit_that_somebody_else_wrote_stops_it_before_anything_is_changed(
    uninstall: bool, tmp_path: Path
) -> None:
    theirs = tmp_path / SYSTEM / "relayd.service"
    theirs.parent.mkdir(parents=True)
    theirs.write_text("[Service]\nExecStart=/opt/theirs\n")
    with pytest.raises(HostError, match=r"relayd.service: relayd install-service didn't write it"):
        installed(tmp_path, uninstall=uninstall)
    assert len(files(tmp_path)) == 1


def test_on_the_running_host_the_manager_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UNIT_DIRECTORY", f"{tmp_path}/system")
    monkeypatch.setattr(service, "CONFIG_DIRECTORY", f"{tmp_path}/relayd")
    said: list[str] = []
    systemctl = Systemctl(agents="relayd-agent@wg0.service loaded active running relayd\n")
    assert install(program="/usr/bin/relayd", tell=said.append, run=systemctl) == 0
    assert systemctl.asked == ["daemon-reload"]
    assert "start the relay:  systemctl enable --now relayd.socket relayd.service" in said
    assert install(program="/usr/bin/relayd", tell=said.append, run=systemctl) == 0
    assert systemctl.asked == ["daemon-reload"]
    assert install(program="/usr/bin/relayd", uninstall=True, tell=said.append, run=systemctl) == 0
    assert [asked for asked in systemctl.asked if asked.startswith("disable")] == [
        "disable --now relayd.socket",
        "disable --now relayd.service",
        "disable --now relayd-agent@wg0.service",
    ]
    assert systemctl.asked[-1] == "daemon-reload"
    assert list((tmp_path / "system").iterdir()) == []


@pytest.mark.parametrize(
    ("systemctl", "what"),
    [
        (Systemctl(""), "no systemd"),
        (Systemctl("systemd 219"), "too old"),
        (Systemctl(fails="daemon-reload"), "daemon-reload: Access denied"),
    ],
)
def test_what_the_host_lacks_is_said(
    systemctl: Systemctl, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "UNIT_DIRECTORY", f"{tmp_path}/system")
    monkeypatch.setattr(service, "CONFIG_DIRECTORY", f"{tmp_path}/relayd")
    with pytest.raises(HostError, match=what):
        install(program="/usr/bin/relayd", tell=lambda line: None, run=systemctl)


def test_newer_managers_get_what_they_can_do() -> None:
    text = shipped("relayd.service")
    old = rendered(text, program="/opt/x/bin/relayd", version=252)
    assert "ExecStart=/opt/x/bin/relayd serve" in old
    assert "Type=notify\n" in old
    assert "ExecReload=" in old
    assert "RestartSteps" not in old
    newer = rendered(text, program="/usr/bin/python3 -m relayd", version=254)
    assert "ExecStart=/usr/bin/python3 -m relayd serve" in newer
    assert "Type=notify-reload\n" in newer
    assert "ExecReload=" not in newer
    assert "RestartMaxDelaySec=30s\n" in newer


@pytest.mark.parametrize("program", ["relayd", "/with blank/relayd", "/a%h/relayd", "/a'b/relayd"])
def test_a_program_that_a_unit_cannot_name_is_refused(program: str, tmp_path: Path) -> None:
    with pytest.raises(HostError, match="can't be named"):
        install(root=tmp_path, program=program, tell=lambda line: None)
    assert files(tmp_path) == {}


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["install-service", "--root", str(tmp_path), "--program", "/usr/bin/relayd"]) == 0
    assert f"written: {UNIT_DIRECTORY}/relayd.socket" in capsys.readouterr().out
    assert main(["install-service", "--root", str(tmp_path), "--uninstall"]) == 0
    assert files(tmp_path) == {}


def test_the_configurations_that_come_along_are_right(tmp_path: Path) -> None:
    for name in CONFIGS:
        (tmp_path / name).write_text(shipped(name))
    assert load_relay(tmp_path / "relay.toml", {}, environ={}) == RelayConfig()
    agent = load_agent(tmp_path / "agent-wg0.toml.example", {"interface": "wg0"}, environ={})
    assert [relay.address for relay in agent.relays] == ["relay.example.net:3478"]


def test_numbers_in_the_units_are_relayds_own() -> None:
    socket_unit = shipped("relayd.socket")
    assert f"Mark={FWMARK}\n" in socket_unit
    assert socket_unit.count(f":{RELAY_PORT}\n") == 4
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read_string(shipped("relayd.service"))
    assert parser["Service"]["CapabilityBoundingSet"] == ""


# --- bytecode ---

_COMPILE = "from relayd.install.bytecode import compile_services; print(compile_services())"


def test_what_services_load_is_compiled_once(tmp_path: Path) -> None:
    """Of an installation without bytecode; the variables that keep Python from writing it don't count."""
    shutil.copytree(
        Path(relayd.__file__).parent, tmp_path / "relayd", ignore=shutil.ignore_patterns("__pycache__")
    )
    environ = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    environ["PYTHONPYCACHEPREFIX"] = str(tmp_path / "elsewhere")
    counts = [
        int(
            subprocess.run(
                [sys.executable, "-c", _COMPILE], cwd=tmp_path, env=environ, capture_output=True, check=True
            ).stdout
        )
        for _ in range(2)
    ]
    assert counts[0] > 100
    assert counts[1] == 0
    assert (tmp_path / "relayd" / "relay" / "__pycache__").is_dir()
    assert not (tmp_path / "elsewhere").exists()


def test_an_installation_that_is_not_whole_is_installed_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "LOADED", ("relayd.nothing_of_this_name",))
    assert bytecode.compile_services() == 0
