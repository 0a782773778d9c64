"""What was pressed, from the bytes that a terminal sends. Pure.

Names: a printable character for itself, else up, down, left, right, pageup, pagedown, home, end, enter, tab,
backspace, escape. What isn't known is left out.
"""

from __future__ import annotations

import re

_SEQUENCES = {
    "A": "up",
    "B": "down",
    "C": "right",
    "D": "left",
    "H": "home",
    "F": "end",
    "1~": "home",
    "4~": "end",
    "5~": "pageup",
    "6~": "pagedown",
    "7~": "home",
    "8~": "end",
    "Z": "backtab",
}
_SINGLE = {
    "\r": "enter",
    "\n": "enter",
    "\t": "tab",
    "\x7f": "backspace",
    "\b": "backspace",
    "\x1b": "escape",
}
# CSI with parameters, SS3, or one character (ECMA-48, section 5.4; xterm's ctlseqs).
_TOKEN = re.compile(r"\x1b\[([0-9;]*[A-Za-z~])|\x1bO([A-Z])|(.)", re.DOTALL)


def keys_of(data: bytes) -> list[str]:
    """The keys in what one read gave. A read has whole sequences, as terminals write them whole."""
    found = []
    for csi, ss3, single in _TOKEN.findall(data.decode("utf-8", errors="ignore")):
        name = _SEQUENCES.get(csi or ss3, "") if csi or ss3 else _SINGLE.get(single, single)
        if name and (len(name) > 1 or name.isprintable()):
            found.append(name)
    return found
