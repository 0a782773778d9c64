"""The status page in a real browser: what it shows, to whom it can be shown, and what it withstands."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from relayd.observe import page
from tests.browser.conftest import look_like
from tests.helpers.http_thread import Served, served
from tests.helpers.observed import Watched, agent_peer, agent_status, relay_peer, relay_status

SOON_S = 15.0
HOSTILE = """<img src=x onerror="document.title='pwned'"><script>document.title='pwned'</script>"""


def until(browser: Chrome, condition: str, *arguments: object) -> Any:
    """Wait for a JavaScript expression to be true; its value."""
    wait = WebDriverWait(browser, SOON_S, poll_frequency=0.05)
    return wait.until(lambda _: js(browser, f"return {condition}", *arguments), condition)


def js(browser: Chrome, script: str, *arguments: object) -> Any:
    return browser.execute_script(script, *arguments)


def text(browser: Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def is_live(browser: Chrome) -> None:
    until(browser, "document.getElementById('live').textContent === 'Live'")


def again(browser: Chrome) -> None:
    """Have the page ask now, not in two seconds."""
    js(browser, "state.heardAt = null; ask();")
    until(browser, "state.heardAt !== null")


@contextmanager
def shown(browser: Chrome, status: dict[str, Any]) -> Iterator[tuple[Watched, Served]]:
    """The page of a process with this status; at the end the browser must have had nothing to complain of."""
    watched = Watched(status)
    with served(watched) as site:
        browser.get(site.url)
        is_live(browser)
        yield watched, site
        assert complaints(browser) == []


def complaints(browser: Chrome) -> list[str]:
    """Errors and violations of the policy, on the browser's console."""
    return [entry["message"] for entry in browser.get_log("browser")]  # type: ignore[no-untyped-call]


def rows(browser: Chrome) -> list[WebElement]:
    return browser.find_elements(By.CSS_SELECTOR, "tbody tr")


# What it shows


def test_a_relay_shows_its_connections_queues_and_drops(browser: Chrome) -> None:
    with shown(browser, relay_status(3)) as (watched, _):
        assert len(rows(browser)) == 3
        assert "receiver too slow: its queue was full" in text(browser)
        assert "refused: never registered" in text(browser)
        later = relay_status(4, uptime_s=watched.status["uptime_s"] + 2.0, bytes_out=11_500_000)
        watched.status = later
        again(browser)
        assert len(rows(browser)) == 4
        assert browser.find_elements(By.CLASS_NAME, "figure")[1].text == "10.0Mbit/s"


def test_an_agent_draws_every_peer_on_its_way(browser: Chrome) -> None:
    with shown(browser, agent_status(("direct", "direct", "relay"))) as (watched, _):
        ways = "return [...document.querySelectorAll('.panel > .picture .wire')].map(w => w.classList[1])"
        assert sorted(js(browser, ways)) == ["direct", "direct", "relay", "relay"]  # one of them to the relay
        label = js(browser, "return document.querySelector('.panel > .picture').getAttribute('aria-label')")
        assert label.startswith("2 direct, 1 by the relay; the relay is connected")
        watched.status = agent_status(("direct", "none"))
        watched.status["relay"] |= {"state": "waiting", "round_trip_ms": None, "reason": "connect: refused"}
        again(browser)
        assert sorted(js(browser, ways)) == ["direct", "none", "none"]
        assert "No way to 1 peer: the relay is away (connect: refused)." in text(browser)


def test_many_peers_are_bundled_in_the_picture_and_all_in_the_table(browser: Chrome) -> None:
    with shown(browser, agent_status(("direct",) * 30 + ("relay",) * 10)):
        assert len(rows(browser)) == 40
        assert js(browser, "return document.querySelectorAll('.panel > .picture .dot').length") == 12
        assert "25 more" in text(browser)


def test_problems_of_the_host_are_said(browser: Chrome) -> None:
    problem = "rp_filter is 1 on wg0"
    with shown(browser, agent_status((), host_problems=[problem], interface_problem="gone")):
        assert f"On this host: {problem}" in text(browser)
        assert "Interface wg0: gone" in text(browser)


@pytest.mark.parametrize(
    ("fact", "words"),
    [("admission_awaited", "Nobody is let in yet"), ("admission_problem", "Who is let in is as it was")],
)
def test_a_relay_says_when_it_cannot_ask_who_is_let_in(browser: Chrome, fact: str, words: str) -> None:
    with shown(browser, relay_status(1, **{fact: "the API server doesn't answer"})):
        assert f"{words}: the API server doesn't answer" in text(browser)


def test_nobody_connected_is_said_in_words(browser: Chrome) -> None:
    with shown(browser, relay_status(0)):
        assert "No agent is connected." in text(browser)


def test_hundreds_of_agents_are_shown_in_part_and_found_by_name(browser: Chrome) -> None:
    with shown(browser, relay_status(250)):
        assert len(rows(browser)) == 100
        assert "The 100 that carried most, of 250." in text(browser)
        js(browser, "state.heardAt = null")
        browser.find_element(By.XPATH, "//button[text()='Show more']").click()
        until(browser, "document.querySelectorAll('tbody tr').length === 250")
        find = browser.find_element(By.TAG_NAME, "input")
        find.send_keys("203.0.113.17:")
        assert len(rows(browser)) == 1
        find.send_keys("nothing")
        assert len(rows(browser)) == 0
        assert "Nothing here has" in text(browser)


def test_a_restart_of_the_process_makes_no_rate_of_it(browser: Chrome) -> None:
    with shown(browser, relay_status(3)) as (watched, _):
        watched.status = relay_status(1, uptime_s=1.0, bytes_out=5, frames_out=1)
        again(browser)
        assert [one.text for one in browser.find_elements(By.CLASS_NAME, "figure")][1] == "0bit/s"
        assert "-/s" not in text(browser)
        assert len(rows(browser)) == 1


# When nobody answers


def test_it_says_when_the_process_is_gone_and_when_it_is_back(browser: Chrome) -> None:
    status = relay_status(3)
    with served(Watched(status)) as site:
        browser.get(site.url)
        is_live(browser)
        port = int(site.url.rpartition(":")[2])
    until(browser, "document.getElementById('live').textContent === 'No answer'")
    said = text(browser)
    assert "The process doesn't answer (it can't be reached)." in said
    assert "The figures below are from " in said
    assert js(browser, "return document.title") == "No answer - relayd"
    assert float(js(browser, "return getComputedStyle(document.getElementById('content')).opacity")) < 1
    with served(Watched(status), port=port):
        is_live(browser)
        until(browser, "!document.body.classList.contains('stale')")
        assert "doesn't answer" not in text(browser)


def test_it_says_when_the_process_is_stopped(browser: Chrome) -> None:
    with served(Watched(relay_status(3))) as site:
        browser.get(site.url)
        is_live(browser)
        resume = threading.Event()
        try:
            site.stall(resume)
            until(browser, "document.getElementById('live').textContent === 'No answer'")
            assert "nothing within 5 seconds" in text(browser)
        finally:
            resume.set()
        is_live(browser)


# What it withstands


def test_what_peers_choose_is_text_and_nothing_else(browser: Chrome) -> None:
    facts = {"key": HOSTILE, "address": HOSTILE}
    status = relay_status(1, drops={HOSTILE: 1}, refused={HOSTILE: 2}, listen=[HOSTILE])
    status["peers"] = [relay_peer(1, **facts)]
    with shown(browser, status):
        assert HOSTILE in text(browser)
        assert js(browser, "return [document.images.length, document.scripts.length]") == [0, 1]
        assert js(browser, "return document.title") != "pwned"


def test_so_it_is_on_an_agent(browser: Chrome) -> None:
    status = agent_status(("relay",), interface=HOSTILE, host_problems=[HOSTILE])
    status["relay"] |= {"address": HOSTILE, "reason": HOSTILE, "state": HOSTILE, "received": {HOSTILE: 1}}
    status["peers"] = [agent_peer(1, "relay", name=HOSTILE, reason=HOSTILE, endpoint=HOSTILE)]
    with shown(browser, status):
        assert HOSTILE in text(browser)
        assert js(browser, "return [document.images.length, document.scripts.length]") == [0, 1]
        assert js(browser, "return document.title") != "pwned"


def test_no_source_makes_markup_of_text() -> None:
    for name in page.SCRIPTS:
        source = (Path(page.__file__).parent / name).read_text()
        for danger in ("innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "new Function"):
            assert danger not in source, name


def test_the_policy_lets_no_other_script_act_and_no_other_host_be_asked(browser: Chrome) -> None:
    with shown(browser, relay_status(1)) as (_, site):
        js(
            browser,
            "const s = document.createElement('script'); s.textContent = 'window.pwned = 1';"
            "document.body.append(s);"
            "document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.pwned = 2\">');",
        )
        assert js(browser, "return window.pwned ?? null") is None
        other = "fetch('http://127.0.0.2:1/').then(() => arguments[0]('asked'), e => arguments[0](e.name))"
        assert browser.execute_async_script(other) == "TypeError"
        assert sum("Content Security Policy" in one for one in complaints(browser)) >= 3
        asked = js(browser, "return performance.getEntriesByType('resource').map(e => e.name)")
        assert {url.split("?")[0] for url in asked if "127.0.0.2" not in url} <= {
            f"{site.url}/status",
            f"{site.url}/x",
        }


# Who can use it


@pytest.mark.parametrize("width", [320, 375, 768])
@pytest.mark.parametrize("role", ["relay", "agent"])
def test_nothing_is_wider_than_the_screen(browser: Chrome, width: int, role: str) -> None:
    look_like(browser, width=width, height=812)
    long = "a-name-that-is-as-long-as-they-come.with.dots.in.it.example.net"
    if role == "relay":
        status = relay_status(3)
        address = "[2001:db8:1234:5678:9abc:def0:1234:5678]:51820"
        status["peers"] = [relay_peer(n, address=address, bytes_in=1 << 50) for n in range(3)]
    else:
        status = agent_status(("direct", "relay", "none"), host_problems=["x" * 200])
        status["peers"] = [
            agent_peer(n, path, name=long) for n, path in enumerate(("direct", "relay", "none"))
        ]
        status["relay"] |= {"address": f"{long}:3478"}
    with shown(browser, status):
        wide = js(
            browser,
            "const w = document.documentElement.clientWidth + 1;"
            "return [...document.querySelectorAll('body *')].filter(e => !e.closest('.quiet')"
            " && e.getBoundingClientRect().right > w).map(e => e.outerHTML.slice(0, 80))",
        )
        assert wide == []
        assert js(browser, "return document.documentElement.scrollWidth") <= width


CONTRASTS = """
function parse(c) { const m = c.match(/[\\d.]+/g).map(Number); return m.length === 3 ? [...m, 1] : m; }
function light([r, g, b]) {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
  return .2126 * x + .7152 * y + .0722 * z;
}
function behind(e) {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c[3] === 1) return c;
  }
  return [255, 255, 255, 1];
}
const poor = [];
for (const e of document.querySelectorAll('body *')) {
  const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
  if (!own || e.closest('.quiet, script, noscript, .skip') || !e.getClientRects().length) continue;
  const style = getComputedStyle(e);
  const colour = parse(e instanceof SVGElement ? style.fill : style.color);
  const [one, other] = [light(colour), light(behind(e))].sort((a, b) => b - a);
  const ratio = (one + .05) / (other + .05);
  if (ratio < 4.5) poor.push([e.textContent, ratio.toFixed(2), style.color]);
}
return poor;
"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("role", ["relay", "agent"])
def test_all_text_has_contrast(browser: Chrome, dark: bool, role: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1."""
    look_like(browser, dark=dark)
    status = relay_status(3) if role == "relay" else agent_status(host_problems=["x"])
    with shown(browser, status):
        background = js(browser, "return getComputedStyle(document.body).backgroundColor")
        assert (background == "rgb(14, 19, 24)") is dark
        assert js(browser, CONTRASTS) == []


@pytest.mark.parametrize("still", [False, True], ids=["motion", "reduced"])
def test_nothing_moves_for_those_who_asked_for_that(browser: Chrome, still: bool) -> None:
    look_like(browser, still=still)
    with shown(browser, relay_status(3)):
        assert (js(browser, "return document.getAnimations().length") == 0) is still


FOCUSED = "document.activeElement"


def test_everything_is_done_by_keys(browser: Chrome) -> None:
    with shown(browser, relay_status(3)):
        seen = []
        for _ in range(9):
            ActionChains(browser).send_keys(Keys.TAB).perform()
            seen.append(
                js(browser, "return document.activeElement.textContent || document.activeElement.type")
            )
        assert seen[0] == "Skip to the figures"
        assert seen[1:] == ["Pause", "search", "Key", "Connected", "In", "Out", "Queued", "Drops"]
        assert js(browser, "return getComputedStyle(document.activeElement).outlineStyle") == "solid"
        ActionChains(browser).send_keys(Keys.ENTER).perform()
        drops = "document.querySelector('th[aria-sort]')"
        assert js(browser, f"return {drops}.textContent + {drops}.ariaSort") == "Dropsdescending"
        assert [row.text.split()[-1] for row in rows(browser)] == ["2", "1", "0"]
        ActionChains(browser).send_keys(Keys.SPACE).perform()
        assert [row.text.split()[-1] for row in rows(browser)] == ["0", "1", "2"]


def test_pausing_asks_for_nothing_more(browser: Chrome) -> None:
    with shown(browser, relay_status(3)) as (watched, _):
        pause = browser.find_element(By.ID, "pause")
        pause.send_keys(Keys.SPACE)
        assert pause.get_attribute("aria-pressed") == "true"
        assert "Paused" in text(browser)
        assert js(browser, "return [state.paused, state.asking]") == [True, False]
        watched.status = relay_status(5)
        pause.send_keys(Keys.SPACE)
        is_live(browser)
        assert len(rows(browser)) == 5


def test_a_screen_reader_finds_its_way(browser: Chrome) -> None:
    with shown(browser, agent_status()):
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        found: dict[str, list[str]] = {}
        for node in tree:
            if not node.get("ignored"):
                found.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
        for landmark in ("banner", "main", "navigation", "contentinfo", "table"):
            assert len(found[landmark]) == 1, landmark
        assert found["heading"][0] == "relayd agent"
        assert found["table"] == ["Peers and their paths"]
        assert found["columnheader"][:2] == ["Peer", "Path"]
        assert len(found["row"]) == 4
        assert any(name.startswith("1 direct, 1 by the relay, 1 without a way") for name in found["image"])
        assert found["searchbox"] == ["Find"]
        assert all(found["button"])
        # Changes that are told: whether it is live, what is wrong, what a search found. Not every figure.
        assert len(found["status"]) == 3


def test_on_a_phone_the_table_is_a_table_still(browser: Chrome) -> None:
    look_like(browser, width=375, height=812)
    with shown(browser, agent_status()):
        tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
        roles = [node["role"]["value"] for node in tree if not node.get("ignored")]
        assert roles.count("row") == 4
        assert roles.count("cell") == 18
        assert roles.count("columnheader") == 6
