"""The status page: one document of HTML, style and script, put together from the files beside this one.

What it shows it asks for at `/status`. The Content-Security-Policy allows the very style and script in it (by
their hashes), questions to where it came from, and nothing else: no inline handler, no form, no frame, no
other host. So even text of a peer's that was put into the document as markup couldn't act.
"""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from relayd.observe.http_server import Answer

SCRIPTS = (
    "format.js",
    "dom.js",
    "spark.js",
    "rates.js",
    "table.js",
    "relay.js",
    "picture.js",
    "agent.js",
    "main.js",
)
"""In the order in which they use each other."""


@cache
def answer() -> Answer:
    """The page. Raises no error that a request could cause: the files are part of the program."""
    parts = files(__package__)

    def text(name: str) -> str:
        return parts.joinpath(name).read_text(encoding="utf-8")

    style = text("page.css")
    script = '"use strict";\n' + "".join(text(name) for name in SCRIPTS)
    html = text("page.html").replace("/*STYLE*/", style).replace("/*SCRIPT*/", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src {_hash(style)}",
            f"script-src {_hash(script)}",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    headers = (("Content-Security-Policy", policy), ("X-Frame-Options", "DENY"))
    return Answer(200, "text/html; charset=utf-8", html.encode(), headers)


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"
