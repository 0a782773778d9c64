"""What `relayd stun` prints, for people and as JSON."""

from __future__ import annotations

from collections.abc import Iterator

from relayd.agent.discovery.stun_answers import Asked
from relayd.agent.discovery.stun_look import Look
from relayd.agent.discovery.survey import Survey
from relayd.observe.text import plain, printable
from relayd.paths.findings import Finding
from relayd.stun.meaning import lifetime_words, mapping_words, meaning

_COLUMN = 11
_WIDTH = 100


def lines(result: Survey, *, interface: str, lifetime: bool = False) -> Iterator[str]:
    """For a person. `interface`: WireGuard's, "" when there is none."""
    if result.lacks:
        yield f"Asked from another port than WireGuard's ({result.lacks}): what follows is an estimate."
    else:
        yield f"Asked from WireGuard's own port, {result.port} ({interface})."
    for look in result.looks:
        yield ""
        yield from _of(look, lifetime=lifetime)
    if not result.looks:
        yield ""
        yield (
            "None of the servers could be asked."
            if result.problems
            else "Nobody was asked: name a STUN server, or a relay (--relay), which is one."
        )
    yield ""
    yield from _reached(result.findings)
    for problem in result.problems:
        yield ""
        yield printable(problem)


def _of(look: Look, *, lifetime: bool) -> Iterator[str]:
    verdict = look.verdict
    seen = f", seen as {verdict.mapped}" if verdict.mapped is not None else ""
    yield f"IPv{look.version}: {verdict.nat.value}{seen}"
    yield from _fact("mapping", mapping_words(verdict))
    yield from _fact("filtering", f"{verdict.filtering.value} ({printable(look.filtering_by)})")
    if lifetime:
        yield from _fact("lifetime", lifetime_words(look))
    for number, asked in enumerate(look.asked):
        yield from _fact("asked" if number == 0 else "", _asked(asked))
    yield from _fact("", meaning(look))


def _asked(asked: Asked) -> str:
    name = printable(asked.name)
    who = str(asked.server) if name == str(asked.server) else f"{asked.server} ({name})"
    if asked.mapped is None:
        return f"{who}: {printable(asked.problem)}"
    trip = f", {asked.round_trip_s * 1000:.1f} ms" if asked.round_trip_s is not None else ""
    return f"{who}: {asked.mapped}{trip}"


def _fact(name: str, text: str) -> Iterator[str]:
    line = ""
    for word in text.split():
        if line and len(line) + 1 + len(word) > _WIDTH - _COLUMN - 2:
            yield f"  {name:{_COLUMN}}{line}"
            name, line = "", word
        else:
            line = f"{line} {word}" if line else word
    yield f"  {name:{_COLUMN}}{line}"


def _reached(findings: tuple[Finding, ...]) -> Iterator[str]:
    if not findings:
        yield "No address of this host is known that others could reach."
        return
    yield "Others may reach this host at"
    # Without WireGuard's port an address is all that is known.
    where = [str(one.endpoint if one.endpoint.port else one.endpoint.address) for one in findings]
    width = max(map(len, where))
    for one, place in zip(findings, where, strict=True):
        guess = ", an estimate" if one.estimated else ""
        yield f"  {place:{width}}  {one.method.value} ({printable(one.source)}){guess}"


def as_answer(result: Survey, *, interface: str) -> object:
    """All of it, for --json."""
    return plain(
        {
            "interface": interface or None,
            "port": result.port or None,
            "estimated": bool(result.lacks),
            "lacks": result.lacks or None,
            "versions": [_look_answer(look) for look in result.looks],
            "findings": [
                {
                    "method": one.method,
                    "endpoint": one.endpoint,
                    "source": one.source,
                    "estimated": one.estimated,
                }
                for one in result.findings
            ],
            "problems": result.problems,
        }
    )


def _look_answer(look: Look) -> dict[str, object]:
    verdict = look.verdict
    return {
        "version": look.version,
        "nat": verdict.nat,
        "mapping": verdict.mapping,
        "filtering": verdict.filtering,
        "filtering_by": look.filtering_by,
        "mapped": verdict.mapped,
        "asked_from_port": look.port,
        "keeps_port": verdict.keeps_port,
        "prediction": None
        if verdict.prediction is None
        else {"next": verdict.prediction.first, "step": verdict.prediction.step},
        "lifetime_s": None
        if look.lifetime is None
        else {"alive": look.lifetime.alive_s, "gone": look.lifetime.dead_s},
        "asked": [
            {
                "server": one.server,
                "name": one.name,
                "mapped": one.mapped,
                "round_trip_ms": None if one.round_trip_s is None else round(one.round_trip_s * 1000, 3),
                "problem": one.problem or None,
            }
            for one in look.asked
        ],
        "meaning": meaning(look),
    }
