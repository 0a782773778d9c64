"""What an agent knows of how its host is reached: looked for at start, at a change, and now and then.

It goes on from what STUN servers said just now (`own_addresses` asks them, each minute), and asks what takes
longer. A look takes seconds where somebody doesn't answer; nobody waits for it. What one look doesn't find
out stays as it was known before, and a guess replaces nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

import trio

from relayd.agent.discovery.stun_answers import Address, StunAnswers
from relayd.agent.discovery.stun_look import Lifetime, find_lifetime
from relayd.agent.discovery.stun_servers import StunServer
from relayd.agent.discovery.survey import Sources, Survey, survey
from relayd.agent.shared_port import SharedPort
from relayd.endpoints import Endpoint
from relayd.observe import log
from relayd.paths.findings import Finding, renewed, to_publish
from relayd.paths.keepalive import hold_s
from relayd.paths.nat_class import Filtering, NatType, Verdict

REFRESH_S = 600.0
"""Between two looks when nothing happened: what kind of NAT there is hardly ever changes."""

LEASE_PART = 0.5
"""Of a port mapping's lease, after which it is renewed (RFC 6886, section 3.3)."""

MIN_WAIT_S = 30.0
"""Between two looks that a short lease asks for."""

LIFETIME_S = 60.0
"""Lifetimes are tried up to this: a path is held every 25 s at least in any case."""

_LETS_IN = (Filtering.INDEPENDENT, Filtering.NOT_BY_PORT)
"""Who has no NAT and lets in what comes from another port has no firewall either: none filters by address
alone."""

Measure = Callable[[Endpoint, float], Awaitable[Lifetime | None]]
Look = Callable[[SharedPort, StunAnswers, Sources], Awaitable[Survey]]


class Discovery:
    """The findings, and the task that keeps them true."""

    def __init__(
        self,
        port: SharedPort,
        sources: Sources,
        *,
        changed: Callable[[], None],
        look: Look = survey,
        measure: Measure = find_lifetime,
    ) -> None:
        """`changed` is called when findings or the NAT's kind did; it must not block. `look` and
        `measure` are `survey` and `find_lifetime`, or a test's."""
        self._port, self._sources = port, sources
        self._changed, self._look, self._measure = changed, look, measure
        self._said = StunAnswers()
        self._wanted = True
        """Whether the next answers are to be followed by a look, whatever they are."""
        self._heard, self._news = trio.Event(), trio.Event()
        self.findings: list[Finding] = []
        """The most believable first."""
        self.published: Endpoint | None = None
        """What others are told: the best that was ever really seen, or a guess while there is nothing
        else."""
        self.verdicts: dict[int, Verdict] = {}
        """What kind of NAT there is, by IP version; the last that was found out."""
        self.problems: tuple[str, ...] = ()
        self.lifetime: Lifetime | None = None
        """How long the IPv4 NAT keeps an idle mapping, if that was asked for and found out."""
        self._measured: Address | None = None
        """The NAT's outer address that it was found out for, or is being."""

    def look_again(self) -> None:
        """Something happened: look as soon as the STUN servers have been asked again."""
        self._wanted = True

    def heard(self, said: StunAnswers) -> None:
        """The STUN servers were asked. What they say goes into the next look: that is now, if it is news."""
        news = any(said.outline(version) != self._said.outline(version) for version in (4, 6))
        if self._wanted or news:
            self._wanted = False
            self._news.set()
        self._said = said
        self._heard.set()

    def use_servers(self, servers: tuple[StunServer, ...]) -> None:
        """These are the STUN servers from now on."""
        if servers != self._sources.servers:
            self._sources = replace(self._sources, servers=servers)
            self.look_again()

    def ask(
        self,
        *,
        manual: tuple[Endpoint, ...],
        port_mapping: bool,
        aws: Literal["auto", "always", "never"],
        measure_lifetime: bool,
    ) -> None:
        """Ask these from now on: see Sources."""
        sources = replace(
            self._sources,
            manual=manual,
            port_mapping=port_mapping,
            aws=aws,
            measure_lifetime=measure_lifetime,
        )
        if not measure_lifetime:
            self.lifetime = self._measured = None
        if sources != self._sources:
            self._sources = sources
            self._news.set()  # what STUN servers say has nothing to do with it

    def hold_s(self, wanted_s: float, behind_nat: bool) -> float:
        """How often an idle direct path needs a datagram; inf: never. `wanted_s`: as configured, behind a
        NAT."""
        told = [verdict.filtering for verdict in self.verdicts.values() if verdict.mapped is not None]
        return hold_s(
            behind_nat=behind_nat,
            filtered=not told or any(one not in _LETS_IN for one in told),
            wanted_s=wanted_s,
            alive_s=self.lifetime.alive_s if self.lifetime is not None else None,
        )

    def nat(self, version: int = 4) -> NatType:
        """The NAT's kind."""
        verdict = self.verdicts.get(version)
        return verdict.nat if verdict is not None else NatType.UNKNOWN

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it true until cancelled. Ready at once; the first look waits for the STUN servers."""
        task_status.started()
        await self._heard.wait()
        async with trio.open_nursery() as nursery:
            while True:
                self._news = trio.Event()
                found = await self._look(self._port, self._said, self._sources)
                self._learn(found)
                if self._sources.measure_lifetime:
                    nursery.start_soon(self._find_lifetime)
                wait_s = REFRESH_S
                if found.mapped is not None and found.mapped.lifetime_s:
                    wait_s = min(wait_s, max(MIN_WAIT_S, found.mapped.lifetime_s * LEASE_PART))
                with trio.move_on_after(wait_s):
                    await self._news.wait()

    async def _find_lifetime(self) -> None:
        """Once for each outer address, which takes LIFETIME_S; again after the next look if nobody could
        tell."""
        verdict, seen = self.verdicts.get(4), self._said.seen(4)
        if verdict is None or verdict.mapped is None or not verdict.translated or not seen:
            return
        if self._measured == verdict.mapped.address:
            return
        mine = self._measured = verdict.mapped.address
        self.lifetime = None
        found = await self._measure(seen[0].server, LIFETIME_S)
        if self._measured != mine:
            return  # the address is another one now
        if found is None:
            self._measured = None
            return
        self.lifetime = found
        log.get().info("nat.lifetime", alive_s=found.alive_s, gone_s=found.dead_s)
        self._changed()

    def _learn(self, found: Survey) -> None:
        before = [one.endpoint for one in self.findings], self.published, dict(self.verdicts)
        self.findings = renewed(self.findings, found.findings, failed=found.failed)
        self.published = to_publish(self.findings, self.published)
        for look in found.looks:
            # Where nobody answered, the NAT is what it was.
            if look.verdict.mapped is not None or look.version not in self.verdicts:
                self._tell(look.version, look.verdict)
                self.verdicts[look.version] = look.verdict
        for problem in found.problems:
            if problem not in self.problems:
                log.get().info("discovery.problem", problem=problem)
        self.problems = found.problems
        if before != ([one.endpoint for one in self.findings], self.published, self.verdicts):
            self._changed()

    def _tell(self, version: int, verdict: Verdict) -> None:
        known = self.verdicts.get(version)
        if known is None or (known.nat, known.mapped) != (verdict.nat, verdict.mapped):
            log.get().info(
                "nat.found",
                version=version,
                nat=verdict.nat,
                mapping=verdict.mapping,
                filtering=verdict.filtering,
                seen_as=verdict.mapped,
            )

    def status(self) -> dict[str, object]:
        """What `relayd status` shows."""
        return {
            "nat": {f"ipv{version}": verdict.nat.value for version, verdict in sorted(self.verdicts.items())},
            "endpoint": str(self.published) if self.published is not None else None,
            "estimated": self._port.estimated,
            "findings": [
                {"endpoint": str(one.endpoint), "method": one.method.value, "source": one.source}
                for one in self.findings
            ],
            "mapping_lifetime_s": None
            if self.lifetime is None
            else {"alive": self.lifetime.alive_s, "gone": self.lifetime.dead_s},
            "problems": list(self.problems),
        }
