"""What an agent knows of how its host is reached: looked for at start, at a change, and now and then.

A look takes seconds where somebody doesn't answer; nobody waits for it. What one look doesn't find out stays
as it was known before, and a guess replaces nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Literal

import trio

from relayd.agent.discovery.stun_client import StunClient
from relayd.agent.discovery.stun_servers import Resolver, StunServer
from relayd.agent.discovery.survey import Sources, Survey, survey
from relayd.agent.shared_port import SharedPort
from relayd.endpoints import Endpoint
from relayd.observe import log
from relayd.paths.findings import Finding, renewed, to_publish
from relayd.paths.nat_class import NatType, Verdict

REFRESH_S = 600.0
"""Between two looks when nothing happened: what kind of NAT there is hardly ever changes."""

LEASE_PART = 0.5
"""Of a port mapping's lease, after which it is renewed (RFC 6886, section 3.3)."""

MIN_WAIT_S = 30.0
"""Between two looks that a short lease asks for."""

Look = Callable[[SharedPort, StunClient, Resolver, Sources], Awaitable[Survey]]


class Discovery:
    """The findings, and the task that keeps them true."""

    def __init__(
        self,
        port: SharedPort,
        client: StunClient,
        sources: Sources,
        *,
        changed: Callable[[], None],
        resolver: Resolver | None = None,
        look: Look = survey,
    ) -> None:
        """`port` is read by somebody, who gives `client` the STUN messages. `changed` is called when
        findings or the NAT's kind did; it must not block. `look` is `survey`, or a test's."""
        self._port, self._client, self._sources = port, client, sources
        self._changed, self._look = changed, look
        self._resolver = resolver if resolver is not None else Resolver()
        self._news = trio.Event()
        self.findings: list[Finding] = []
        """The most believable first."""
        self.published: Endpoint | None = None
        """What others are told: the best that was ever really seen, or a guess while there is nothing
        else."""
        self.verdicts: dict[int, Verdict] = {}
        """What kind of NAT there is, by IP version; the last that was found out."""
        self.problems: tuple[str, ...] = ()

    def look_again(self) -> None:
        """Something happened: look at once."""
        self._news.set()

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
    ) -> None:
        """Ask these from now on: see Sources."""
        sources = replace(self._sources, manual=manual, port_mapping=port_mapping, aws=aws)
        if sources != self._sources:
            self._sources = sources
            self.look_again()

    def nat(self, version: int = 4) -> NatType:
        """The NAT's kind."""
        verdict = self.verdicts.get(version)
        return verdict.nat if verdict is not None else NatType.UNKNOWN

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep it true until cancelled. Ready at once."""
        task_status.started()
        while True:
            self._news = trio.Event()
            found = await self._look(self._port, self._client, self._resolver, self._sources)
            self._learn(found)
            wait_s = REFRESH_S
            if found.mapped is not None and found.mapped.lifetime_s:
                wait_s = min(wait_s, max(MIN_WAIT_S, found.mapped.lifetime_s * LEASE_PART))
            with trio.move_on_after(wait_s):
                await self._news.wait()

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
            "problems": list(self.problems),
        }
