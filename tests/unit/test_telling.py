"""The status as text: whole, made in portions, and made once for all who ask at a time."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trio
import trio.testing

from relayd.observe import telling
from relayd.observe.telling import BUSIEST, Telling
from tests.helpers.observed import Watched, relay_status


async def test_it_is_one_line_with_all_of_it() -> None:
    status = relay_status(3)
    text = await Telling(Watched(status)).text()
    assert json.loads(text) == status
    assert text.count(b"\n") == 1
    assert text.endswith(b"\n")


async def test_the_short_one_has_the_busiest_only() -> None:
    answers = Telling(Watched(relay_status(BUSIEST + 5))).answers()
    assert len(json.loads(await answers["busiest"]())["peers"]) == BUSIEST
    assert len(json.loads(await answers["status"]())["peers"]) == BUSIEST + 5


async def test_others_have_their_turn_while_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telling, "PORTION_S", 0.0)  # a portion a peer
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await Telling(Watched(relay_status(500))).text()
        nursery.cancel_scope.cancel()
    assert turns >= 400


async def test_a_crowd_gets_one_text_that_was_made_once() -> None:
    watched = Watched(relay_status(50))
    told = Telling(watched)
    texts: list[bytes] = []

    async def ask(limit: int | None) -> None:
        texts.append(await told.text(limit))

    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(ask, None)
        for _ in range(20):
            nursery.start_soon(ask, 5)
    assert watched.asked == 2
    assert len({id(text) for text in texts}) == 2
    assert len(json.loads(await told.text())["peers"]) == 50
    assert watched.asked == 3  # nothing is kept


async def test_who_waits_for_a_maker_that_is_cancelled_gets_it_all_the_same() -> None:
    told = Telling(Watched(relay_status(5)))
    first = trio.CancelScope()
    texts: list[bytes] = []

    async def maker() -> None:
        with first:
            await told.text()

    async def waiter() -> None:
        texts.append(await told.text())

    held: Any = told._turn
    async with trio.open_nursery() as nursery, held:
        nursery.start_soon(maker)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(waiter)
        await trio.testing.wait_all_tasks_blocked()
        first.cancel()
        await trio.testing.wait_all_tasks_blocked()
    assert [len(json.loads(text)["peers"]) for text in texts] == [5]
