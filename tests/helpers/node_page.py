"""The blocks of commands in docs/ that tests run, by the names that the pages' comments give them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/node-management.md"


def blocks_of(page: Path) -> dict[str, str]:
    """Those of one page."""
    return dict(re.findall(r"<!-- run: (.+?) -->\n```sh\n(.*?)```", page.read_text(), re.DOTALL))


BLOCKS = blocks_of(PAGE)
