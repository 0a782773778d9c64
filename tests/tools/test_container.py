"""The Dockerfile, as hadolint and as operators read it. (`make container-test` runs its stages.)"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relayd import marks
from tests.container.dockerfile import Stage, pairs, stages

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "Dockerfile"


@pytest.fixture(scope="module")
def built() -> list[Stage]:
    return stages(DOCKERFILE, {})


def test_hadolint_finds_nothing_to_complain_of() -> None:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    hadolint = shutil.which("hadolint", path=path)
    if hadolint is None:
        pytest.skip("hadolint isn't installed")
    done = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "style", str(DOCKERFILE)],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_bases_are_pinned_and_the_same(built: list[Stage]) -> None:
    for stage in built:
        image, _, version = stage.base.partition(":")
        assert image == "debian"
        assert version.partition(".")[0].isdigit()
        assert "." in version
    assert len({stage.base for stage in built}) == 1


def test_the_last_stage_has_no_compiler_and_no_installer(built: list[Stage]) -> None:
    said = " ".join(step.rest for step in built[-1].steps)
    for word in ("gcc", "build-essential", "python3-dev", "python3-pip", "python3-venv", "pip install"):
        assert word not in said
    assert all("--no-install-recommends" in step.rest for step in built[-1].all("RUN"))


def test_it_runs_as_nobody_in_particular_and_says_how_it_is_stopped_and_looked_at(built: list[Stage]) -> None:
    last = built[-1]
    uid, _, gid = last.all("USER")[-1].rest.partition(":")
    assert int(uid) >= 1000
    assert int(gid) >= 1000
    assert [step.rest for step in last.all("STOPSIGNAL")] == ["SIGTERM"]
    assert json.loads(last.all("ENTRYPOINT")[0].rest) == ["relayd"]
    assert json.loads(last.all("CMD")[0].rest) == ["serve"]
    assert 'CMD ["relayd", "status", "--json"]' in last.all("HEALTHCHECK")[0].rest
    ports = set(last.all("EXPOSE")[0].rest.split())
    assert ports >= {f"{marks.RELAY_PORT}/tcp", f"{marks.RELAY_PORT}/udp"}


def test_labels(built: list[Stage]) -> None:
    labels = pairs(built[-1].all("LABEL")[0].rest)
    prefix = "org.opencontainers.image."
    assert {name.removeprefix(prefix) for name in labels} >= {"title", "description", "version", "revision"}
    assert all(name.startswith(prefix) for name in labels)


def test_what_is_copied_is_not_ignored(built: list[Stage]) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for stage in built:
        for step in stage.all("COPY"):
            *sources, _ = step.rest.split()
            if not step.rest.startswith("--from="):
                for source in sources:
                    assert source.partition("/")[0] in kept, source
                    assert (ROOT / source).exists()
