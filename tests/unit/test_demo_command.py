"""`relayd demo`: its flags, and what it says when the host lacks something."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from relayd.demo import host
from relayd.demo.command import add_arguments, main
from relayd.demo.plan import DEFAULT_SECONDS
from relayd.errors import HostError


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(argv)


def test_flags_have_their_defaults() -> None:
    assert vars(parse()) == {"json": False, "seconds": DEFAULT_SECONDS}
    assert vars(parse("--json", "--seconds", "20")) == {"json": True, "seconds": 20}


@pytest.mark.parametrize("text", ["5", "600", "-20", "ten", "20.5", "", "²0"])
def test_a_length_out_of_range_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse("--seconds", text)
    assert stopped.value.code == 2
    assert "whole number from" in capsys.readouterr().err


def test_without_root_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match="need root: run it again with sudo"):
        main(parse())


def test_all_missing_programs_are_named_with_one_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr(host, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(HostError) as caught:
        main(parse())
    said = str(caught.value)
    assert "iperf3" in said
    assert said.endswith("apt-get install iperf3 iproute2 iputils-ping util-linux wireguard-tools")


def test_one_missing_program_is_named_with_its_package(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(host, "SEARCH_PATH", str(tmp_path))
    with pytest.raises(HostError, match=r"^ping is missing: apt-get install iputils-ping$"):
        host.program("ping")


def test_a_missing_tun_device_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "TUN_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(HostError, match="modprobe tun"):
        host.check_tun()
