"""cleanup: what goes, what stays, and what is told; on a host in memory. (In a kernel: tests/kernel.)"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from relayd.agent import loopback
from relayd.errors import HostError
from relayd.kernel import host_rules, state_dir
from relayd.kernel.cleanup import ROUNDS, Cleanup
from relayd.kernel.device import NO_KEY, Interface
from relayd.kernel.host_rules import HostRules
from relayd.kernel.links import MADE_HERE, Link
from relayd.kernel.ownership import BOOT_ID
from relayd.kernel.routing import RoutingChanges
from relayd.kernel.sysctls import Sysctls
from relayd.keys import PublicKey
from tests.helpers.fake_host import FakeDevice, FakeFirewall, FakeRouting, default_rules, proc_sys

LINK = Link("wire_kube", 7, "wireguard", 1420, True, MADE_HERE)
INTERFACE = Interface("wire_kube", PublicKey(b"o" * 32), 51820, 0, {})
OURS = host_rules.owned("wire_kube", [ip_interface("10.8.0.1/24")], [ip_network("10.9.0.0/24")])


class Host:
    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self.routing = FakeRouting()
        self.firewall = FakeFirewall(nft=[False], legacy=[False])
        self.device = FakeDevice(LINK, INTERFACE)
        self.proc = proc_sys(directory / "proc", net__ipv4__conf__lo__accept_local="0")
        self.sysctls = Sysctls(self.state, self.proc)

    async def install(self) -> None:
        await HostRules(self.routing, self.sysctls, self.firewall).apply(OURS, [])
        for name in ("privatekey", "loopback.json", ".privatekey.0123", "made-wire_kube.json"):
            (self.state / name).write_text("x")

    def cleanup(
        self, *, others: Sequence[str] = (), controls: Sequence[Path] = (), with_files: bool = True
    ) -> Cleanup:
        return Cleanup(
            "wire_kube",
            self.state,
            routing=self.routing,
            sysctls=self.sysctls,
            firewall=self.firewall,
            device=self.device,
            others=others,
            controls=controls,
            with_files=with_files,
        )

    def files(self) -> list[str] | None:
        return sorted(os.listdir(self.state)) if self.state.exists() else None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


async def test_everything_goes_and_is_told_of(host: Host) -> None:
    await host.install()
    told: list[str] = []
    outcome = await host.cleanup().run(told=lambda item: told.append(str(item)))
    assert outcome.is_clean
    assert told == [str(item) for item in outcome.removed]
    assert host.routing.rules == default_rules()
    assert host.routing.routes == []
    assert host.firewall.chains_of == {"nft": [False], "legacy": [False]}
    assert (host.device.removed, host.files()) == (["wire_kube"], None)
    assert host.sysctls.read("net/ipv4/conf/lo/accept_local") == "0"
    assert (await host.cleanup().run()).removed == []


async def test_of_several_interfaces_each_goes_with_its_files(host: Host) -> None:
    await host.install()
    host.device.more["wg0"] = (replace(LINK, name="wg0"), replace(INTERFACE, name="wg0"))
    (host.state / "made-wg0.json").write_text("x")
    alone = await host.cleanup().run(dry_run=True)
    assert alone.kept == [f"{host.state} has other things in it: made-wg0.json"]
    outcome = await host.cleanup(others=["wg0"]).run()
    assert (outcome.is_clean, outcome.kept) == (True, [])
    assert (host.device.removed, host.files()) == (["wire_kube", "wg0"], None)


async def test_a_dry_run_changes_nothing_and_is_clean_only_where_nothing_is(host: Host) -> None:
    await host.install()
    rules, files = list(host.routing.rules), host.files()
    outcome = await host.cleanup().run(dry_run=True)
    assert not outcome.is_clean
    assert (host.routing.rules, host.files(), host.device.removed) == (rules, files, [])
    await host.cleanup().run()
    assert (await host.cleanup().run(dry_run=True)).is_clean


async def test_what_fails_is_told_and_the_rest_goes(host: Host) -> None:
    await host.install()
    host.firewall.failure = HostError("iptables: it broke")
    outcome = await host.cleanup().run()
    assert not outcome.is_clean
    assert outcome.failed == ["iptables: it broke"]
    assert host.routing.rules == default_rules()
    assert host.device.removed == ["wire_kube"]
    host.firewall.failure = None
    assert (await host.cleanup().run()).is_clean


async def test_what_somebody_keeps_putting_back_is_told_as_left(host: Host) -> None:
    rule = host_rules.table_rule(4)
    await host.routing.write(RoutingChanges(add_rules=(rule,)))
    write = host.routing.write

    async def and_back(changes: RoutingChanges) -> None:
        await write(changes)
        await write(RoutingChanges(add_rules=(rule,)))

    host.routing.write = and_back  # type: ignore[method-assign]  # the fake as an agent beside us
    outcome = await host.cleanup().run()
    assert not outcome.is_clean
    assert [str(item) for item in outcome.left] == [str(rule)]
    assert len(outcome.removed) >= ROUNDS


@pytest.mark.parametrize(
    "change",
    [
        lambda host: setattr(host.device, "link", replace(LINK, alias="")),
        lambda host: setattr(host.device, "link", replace(LINK, kind="tun")),
        lambda host: setattr(host.device, "interface", None),
    ],
)
async def test_g22_an_interface_that_is_not_ours_stays(host: Host, change: Callable[[Host], None]) -> None:
    change(host)
    outcome = await host.cleanup().run()
    assert outcome.is_clean
    assert host.device.removed == []
    assert len(outcome.kept) == 1


async def test_one_that_a_killed_start_had_only_just_made_goes(host: Host) -> None:
    """Without a name, a key or a mark: what says whose it is was written beforehand, and goes too."""
    link, blank = replace(LINK, alias=""), Interface("wire_kube", NO_KEY, 0, 0, {})
    host.device = FakeDevice(link, blank)
    assert (await host.cleanup().run()).kept, "it could be anybody's"
    host.device.removed.clear()
    made = host.state / state_dir.made_file("wire_kube")
    made.parent.mkdir()
    made.write_text(json.dumps({"boot": BOOT_ID.read_text().strip()}))
    outcome = await host.cleanup().run()
    assert (outcome.is_clean, outcome.kept, host.device.removed) == (True, [], ["wire_kube"])
    host.device = FakeDevice(link, replace(blank, public_key=PublicKey(b"o" * 32)))
    made.parent.mkdir()
    made.write_text(json.dumps({"boot": BOOT_ID.read_text().strip()}))
    assert (await host.cleanup().run()).kept, "somebody has given it a key"


async def test_a_rebuild_keeps_the_key(host: Host) -> None:
    await host.install()
    files = host.files()
    outcome = await host.cleanup(with_files=False).run()
    assert outcome.is_clean
    assert host.files() == files
    assert host.device.removed == ["wire_kube"]


async def test_the_memory_of_a_switch_that_cannot_be_restored_stays(host: Host) -> None:
    await host.install()
    switch = host.proc / "net/ipv4/conf/lo/accept_local"
    restore = host.sysctls.restore

    def refuse(old: object) -> None:
        raise HostError("read-only file system")

    host.sysctls.restore = refuse  # type: ignore[method-assign]
    outcome = await host.cleanup().run()
    assert not outcome.is_clean
    assert host.files() == ["sysctls.json"]
    assert switch.read_text() == "1\n"
    host.sysctls.restore = restore  # type: ignore[method-assign]
    assert (await host.cleanup().run()).is_clean
    assert switch.read_text() == "0\n"


def test_the_names_of_the_agents_files_are_known() -> None:
    assert state_dir.is_ours(loopback.FILE_NAME, "wire_kube")
    assert state_dir.is_ours("endpoints-wire_kube.json", "wire_kube")
    assert not state_dir.is_ours("endpoints-wg0.json", "wire_kube")
    assert not state_dir.is_ours("relay.key", "wire_kube")


def test_an_agent_that_starts_while_a_cleanup_ends_holds_the_directory_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, flock = tmp_path / "state", fcntl.flock
    state.mkdir()

    def late(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_SH and "gone" not in os.listdir(tmp_path):
            state.rename(tmp_path / "gone")  # the cleanup's last step, after ours looked for it
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with state_dir.held(state, alone=False):
        assert state.is_dir()
        with pytest.raises(state_dir.InUseError), state_dir.held(state, alone=True):
            pass


@pytest.mark.parametrize(("content", "mode"), [("", 0o700), ("of-others", 0o755)])
def test_a_directory_that_somebody_has_made_for_us_is_closed_to_others(
    tmp_path: Path, content: str, mode: int
) -> None:
    """kubelet makes that of a hostPath with 0755."""
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    if content:
        (state / content).touch()
    with state_dir.held(state, alone=True):
        assert state.stat().st_mode & 0o777 == 0o755, "a cleanup changes nothing"
    with state_dir.held(state, alone=False):
        assert state.stat().st_mode & 0o777 == mode


def test_a_state_directory_in_use_is_not_ours_alone(tmp_path: Path) -> None:
    with state_dir.held(tmp_path / "state", alone=False):
        with state_dir.held(tmp_path / "state", alone=False):
            pass
        with pytest.raises(state_dir.InUseError), state_dir.held(tmp_path / "state", alone=True):
            pass
    with (
        state_dir.held(tmp_path / "state", alone=True),
        pytest.raises(state_dir.InUseError),
        state_dir.held(tmp_path / "state", alone=False),
    ):
        pass
    with state_dir.held(tmp_path / "nowhere", alone=True):
        assert not (tmp_path / "nowhere").exists()
