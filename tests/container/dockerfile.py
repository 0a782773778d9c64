"""A Dockerfile as values. Parsed by dockerfile-parse; what a stage is, and what a variable holds, is ours."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser


@dataclass(frozen=True, slots=True)
class Step:
    """One instruction: `RUN`, and all that follows it."""

    word: str
    rest: str


@dataclass(slots=True)
class Stage:
    """From one FROM to the next."""

    base: str
    name: str
    steps: list[Step] = field(default_factory=list)

    def all(self, word: str) -> list[Step]:
        """Its instructions of that kind."""
        return [step for step in self.steps if step.word == word]


def stages(path: Path, arguments: dict[str, str]) -> list[Stage]:
    """The stages, with the defaults of ARGs before the first FROM, and `arguments`, put in their FROMs."""
    with path.open("rb") as file:
        structure = DockerfileParser(fileobj=file).structure
    known, found = dict[str, str](), list[Stage]()
    for entry in structure:
        step = Step(entry["instruction"], entry["value"].strip())
        if step.word == "FROM":
            base, _, name = step.rest.partition(" AS ")
            found.append(Stage(filled(base, known), name.strip()))
        elif step.word == "ARG" and not found:
            name, _, default = step.rest.partition("=")
            known[name] = arguments.get(name, default)
        elif step.word != "COMMENT":
            found[-1].steps.append(step)
    for stage in found:
        for step in stage.all("ARG"):
            name, _, default = step.rest.partition("=")
            known.setdefault(name, arguments.get(name, default))
    return found


def filled(text: str, known: dict[str, str]) -> str:
    """`${NAME}` and `$NAME` replaced by what is known of them; others stay."""
    return re.sub(r"\$\{?(\w+)\}?", lambda match: known.get(match[1], match[0]), text)


def pairs(rest: str) -> dict[str, str]:
    """`A=b C="d e"` of ENV and LABEL."""
    return dict(word.split("=", 1) for word in shlex.split(rest))
