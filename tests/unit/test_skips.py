"""A skip that nobody expected fails the session in CI, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run_pytest(directory: Path, source: str, ci: str, *options: str) -> subprocess.CompletedProcess[str]:
    (directory / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    (directory / "test_it.py").write_text("import pytest\n" + source)
    where = ["-p", "no:cacheprovider", "--rootdir", str(directory), str(directory)]
    env = {"CI": ci, "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *where],
        env=env,
        capture_output=True, text=True, timeout=60, check=False, cwd=directory,
    )  # fmt: skip


SKIPPED = "def test_a(): pytest.skip('no wireguard')\ndef test_b(): pass\n"
MODULE = "pytest.skip('no wireguard', allow_module_level=True)\n"
MARKED = "@pytest.mark.expected_skip('needs two hosts')\n" + SKIPPED
FAILS_AS_EXPECTED = "@pytest.mark.xfail(strict=True)\ndef test_a(): raise OSError\n"


@pytest.mark.parametrize(
    ("source", "ci", "status"),
    [
        pytest.param(SKIPPED, "true", 1, id="a-test-in-ci"),
        pytest.param(SKIPPED, "", 0, id="a-test-elsewhere"),
        pytest.param(MODULE, "true", 1, id="a-module-in-ci"),
        pytest.param(MARKED, "true", 0, id="one-that-was-expected"),
        pytest.param(FAILS_AS_EXPECTED, "true", 0, id="an-expected-failure-is-no-skip"),
        pytest.param(SKIPPED.replace("pass", "assert False"), "true", 1, id="a-failure-stays-one"),
    ],
)
def test_unexpected_skip_fails_the_session_in_ci(tmp_path: Path, source: str, ci: str, status: int) -> None:
    done = run_pytest(tmp_path, source, ci)
    assert done.returncode == status, done.stdout + done.stderr
    told = "without an expected_skip marker" in done.stdout
    assert told == (ci == "true" and source not in (MARKED, FAILS_AS_EXPECTED))
    if told:
        assert "no wireguard" in done.stdout


@pytest.mark.parametrize(
    ("source", "status"), [(SKIPPED, 1), (MODULE, 1), (MARKED, 0), (FAILS_AS_EXPECTED, 0)]
)
def test_the_same_in_several_processes(tmp_path: Path, source: str, status: int) -> None:
    done = run_pytest(tmp_path, source, "true", "-p", "xdist", "-n1")
    assert done.returncode == status, done.stdout + done.stderr


def test_expected_skip_needs_a_reason(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, "@pytest.mark.expected_skip\ndef test_a(): pass\n", "true")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "needs a reason" in done.stdout + done.stderr
