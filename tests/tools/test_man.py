"""The manual page, as two programs that read such pages judge it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relayd.commands.exit_status import MEANINGS
from relayd.commands.parser import all_commands
from relayd.config.settings import INTERFACE_KEYS, PEER_KEYS, ROLES

TIMEOUT_S = 30.0


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("man") / "relayd.1"
    with path.open("w") as output:
        subprocess.run([sys.executable, "-m", "relayd", "man"], stdout=output, check=True, timeout=TIMEOUT_S)
    return path


def mandoc(*arguments: str) -> str:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc isn't installed")
    done = subprocess.run(
        ["mandoc", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    return done.stdout + done.stderr


def test_mandoc_finds_nothing_to_complain_of(page: Path) -> None:
    assert mandoc("-Tlint", "-Wstyle", str(page)) == ""


def test_groff_has_no_warnings(page: Path) -> None:
    if shutil.which("groff") is None:
        pytest.skip("groff isn't installed")
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-z", str(page)],
        capture_output=True, text=True, timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")


def test_it_names_everything_that_can_be_said(page: Path) -> None:
    shown = mandoc("-Tascii", "-O", "width=500", str(page)).replace("\b", "\b")
    text = "".join(
        char for index, char in enumerate(shown) if char != "\b" and shown[index + 1 : index + 2] != "\b"
    )
    assert "relayd status [OPTIONS] [PEER]" in text
    assert "relayd stun [OPTIONS] [SERVER ...]" in text
    for role in ROLES:
        for one in role.settings:
            for name in (one.flag, one.variable, f"{one.path[1]} in [{one.table}]", one.help):
                assert name in text, name
    for name in (*INTERFACE_KEYS, *PEER_KEYS, *all_commands()):
        assert name in text, name
    for number, meaning in MEANINGS.items():
        assert f"{number} " in text
        assert meaning in text
