"""docs/ARCHITECTURE.md: the files that it names are there, and its layers are those that are held."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text()
PARTS = "agent|kernel|netio|observe|paths|relay|wire"


def test_its_layers_are_those_of_the_import_linter() -> None:
    (block,) = re.findall(r"^    cli > commands .*\n(?:    .*\n)*", PAGE, re.MULTILINE)
    told = [set(layer.split(" | ")) for layer in " ".join(block.split()).split(" > ")]
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
    held = [set(layer.replace("relayd.", "").split(" | ")) for layer in settings["contracts"][0]["layers"]]
    assert told == held


def test_what_its_table_names_is_there() -> None:
    rows = re.findall(r"^\| (`[^|]*) \|", PAGE.partition("## Where things are")[2], re.MULTILINE)
    table = rows[: next(at for at, row in enumerate(rows) if "bench/" in row) + 1]
    named = [name for row in table for name in re.findall(r"`([^`]+)`", row)]
    assert len(named) > 30
    for name in named:
        assert any(list(place.glob(name)) for place in (ROOT, ROOT / "relayd")), name


def test_what_its_flows_name_is_there() -> None:
    flows = PAGE.partition("## Where things are")[0]
    named = set(re.findall(rf"\b(?:{PARTS})(?:\.[a-z_]+)+", flows))
    assert len(named) > 20
    for name in named:
        parts = ("relayd", *name.split("."))
        # A module; or one, and a function of it.
        found = [ROOT.joinpath(*parts[:length]).with_suffix(".py") for length in (len(parts), len(parts) - 1)]
        assert any(path.exists() for path in found), name
