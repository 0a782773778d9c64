"""One line of the doctor's answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """`error`: some traffic will not pass. `warning`: it may pass, or not always. `ok`: as it should be."""

    check: str
    """Which look-over it comes from: one word or two, the same for all of its findings."""

    level: Level
    text: str
    """What was seen."""

    meaning: str = ""
    """What follows from it."""

    command: str = ""
    """What mends it, as one would type it; may have several lines."""

    def __post_init__(self) -> None:
        """Raises ValueError for a complaint that leaves its reader alone with it."""
        if self.level != "ok" and not (self.meaning and self.command):
            raise ValueError(f"{self.check}: a {self.level} says what it means, and what mends it")
