"""The blocks of commands in docs/node-management.md, by the names that the page's comments give them."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/node-management.md"

BLOCKS: dict[str, str] = dict(
    re.findall(r"<!-- run: (.+?) -->\n```sh\n(.*?)```", PAGE.read_text(), re.DOTALL)
)
