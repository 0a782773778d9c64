"""Lines of a TOML file: every key, table and array element has one, and it is the right one."""

from __future__ import annotations

import string
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.config.toml import KeyPath, dotted, key_lines, parse_document
from relayd.errors import ConfigError


def paths_of(value: Any, path: KeyPath = ()) -> Iterator[KeyPath]:
    """Every path into `value`, as tomllib sees it."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths_of(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths_of(item, (*path, index))


TRICKY = '''\
# a comment with [brackets] and = signs
a.b = 1 # ] "
"q\\u0041"."r.s" . 'lit"eral' = { x = [1, 2], "y" = {z=3}, w.v = "}" }
multi = """
[not.a.table]
key = "no"
a\\""" and two quotes at the end"""""
literal = \'\'\'
# nor a comment\\\'\'\'\'
k = 5
arr = [
  "one,]", # ]
  [ 2,
    { u = 1 } ],
  \'\'\'
  x\'\'\',

]
when = 1979-05-27 07:32:00
empty = []
none = {}
[[peer]]
public_key = 1
[peer.sub]
z = 1
[[peer]]
[[peer.in]]
a=1
[[peer.in]]
  [ x . "y" ] # implies x
[x]
last=1.5'''

TRICKY_LINES = {
    "a": 2,
    "a.b": 2,
    'qA."r.s"."lit\\"eral".x[2]': 3,
    'qA."r.s"."lit\\"eral".y.z': 3,
    'qA."r.s"."lit\\"eral".w.v': 3,
    "multi": 4,
    "literal": 8,
    "k": 10,
    "arr": 11,
    "arr[1]": 12,
    "arr[2]": 13,
    "arr[2][1]": 13,
    "arr[2][2].u": 14,
    "arr[3]": 15,
    "when": 19,
    "none": 21,
    "peer": 22,
    "peer[1]": 22,
    "peer[1].public_key": 23,
    "peer[1].sub": 24,
    "peer[1].sub.z": 25,
    "peer[2]": 26,
    "peer[2].in[1].a": 28,
    "peer[2].in[2]": 29,
    "x.y": 30,
    "x": 31,
    "x.last": 32,
}


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
def test_every_construct_of_toml_has_its_line(ending: str) -> None:
    text = TRICKY.replace("\n", ending)
    lines = {dotted(path): line for path, line in key_lines(text).items()}
    assert {name: lines.get(name) for name in TRICKY_LINES} == TRICKY_LINES
    assert set(key_lines(text)) == set(paths_of(tomllib.loads(text)))


# A generator of TOML text together with the line of what it writes.

BARE = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=4)
ANY_TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n\t\"'#[]{}=,.\\"),
    max_size=8,
)


def basic(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\x7f", "\\u007f")
    return f'"{escaped}"'


def multi_line(text: str) -> str:
    return '"""' + text.replace("\\", "\\\\").replace('"""', '""\\"').replace("\x7f", "\\u007f") + '"""'


KEY = st.one_of(BARE, ANY_TEXT.map(basic))
SPACE = st.sampled_from(["", " ", "\t "])
GAP = st.sampled_from(["", " ", "\n", ' # ]}, = "\n\n'])
SCALAR = st.one_of(
    st.integers(-9, 99).map(str),
    st.sampled_from(
        ["true", "1.5e3", "inf", "1979-05-27 07:32:00", "07:32:00", "0xff", "''", "'#'", "'''\n'\n'''"]
    ),
    ANY_TEXT.map(basic),
    ANY_TEXT.map(multi_line),
)


@st.composite
def arrays(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    items = draw(st.lists(values, max_size=3))
    body = ",".join(draw(GAP) + item + draw(GAP) for item in items)
    trailing = "," + draw(GAP) if bool(items) and draw(st.booleans()) else ""
    return f"[{body}{trailing}{draw(GAP)}]"


@st.composite
def inline_tables(draw: st.DrawFn, values: st.SearchStrategy[str]) -> str:
    keys = draw(st.lists(st.tuples(KEY, values), max_size=3, unique_by=lambda pair: pair[0]))
    return (
        "{" + ",".join(f"{draw(SPACE)}{key}{draw(SPACE)}={draw(SPACE)}{value} " for key, value in keys) + "}"
    )


VALUE = st.recursive(SCALAR, lambda values: arrays(values) | inline_tables(values), max_leaves=6)


@st.composite
def documents(draw: st.DrawFn) -> str:
    names = st.sampled_from(["a", "b", "peer", '"a"', "'b c'"]) | KEY
    dotted_keys = st.lists(names, min_size=1, max_size=3).map(" . ".join)
    lines = []
    for _ in range(draw(st.integers(0, 8))):
        match draw(st.integers(0, 3)):
            case 0:
                lines.append(f"{draw(SPACE)}[{draw(SPACE)}{draw(dotted_keys)}]{draw(SPACE)}")
            case 1:
                lines.append(f"[[{draw(dotted_keys)}{draw(SPACE)}]] # x = 1")
            case _:
                lines.append(f"{draw(dotted_keys)} ={draw(SPACE)}{draw(VALUE)}")
    return "\n".join(lines)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first text is slow to make
@given(documents())
def test_exactly_what_tomllib_finds_has_a_line(text: str) -> None:
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        # A key twice, mostly. What stands before the trouble is often a whole document, and worth a look.
        with pytest.raises(ConfigError):
            parse_document(text, source="f")
        text = text.rpartition("\n")[0]
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError:
            return
    lines = key_lines(text)
    assert set(lines) == set(paths_of(data))
    assert all(1 <= line <= text.count("\n") + 1 for line in lines.values())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first text is slow to make
@given(st.lists(st.tuples(BARE, VALUE), max_size=6, unique_by=lambda pair: pair[0]))
def test_a_key_has_the_line_that_it_was_written_on(pairs: list[tuple[str, str]]) -> None:
    text, written = "", {}
    for key, value in pairs:
        written[key] = text.count("\n") + 1
        text += f"{key} = {value}\n"
    lines = key_lines(text)
    assert {key: lines[(key,)] for key in written} == written


@pytest.mark.parametrize(
    ("text", "line", "problem"),
    [
        ("a = 1\nb = json\n", 2, "in quotes"),
        ("a = 1\na = 2\n", 2, "this key is in its table already"),
        ("[a]\n[b]\n[a]\n", 3, "this table is there already"),
        ("a = 1\n\nb = [1,\n2\n", 4, "at the end of the file"),
        ("x", 1, "at the end of the file"),
        ("a = 1979-02-30\n", 1, "Invalid date"),
        ("\n[Interface]\nPrivateKey = abc=\n", 3, "Invalid value"),
    ],
)
def test_a_syntax_error_has_its_line(text: str, line: int, problem: str) -> None:
    with pytest.raises(ConfigError, match="not valid TOML") as caught:
        parse_document(text, source="relayd.toml")
    assert caught.value.line == line
    assert caught.value.source == "relayd.toml"
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wg_quick_file_is_recognized() -> None:
    with pytest.raises(ConfigError, match="wg-quick") as caught:
        parse_document("[Interface]\nPrivateKey = abc=\n", source="wg0.conf")
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("opening", ["[", "{ a = "])
def test_bottomless_nesting_is_an_error_like_others(opening: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_document("a = " + opening * 100_000, source="f")
    assert caught.value.source == "f"


def test_an_integer_with_thousands_of_digits_is_an_error_like_others() -> None:
    with pytest.raises(ConfigError):
        parse_document("a = " + "9" * 10_000, source="f")


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first text is slow to make
@given(st.text())
def test_no_text_raises_anything_but_config_error(text: str) -> None:
    try:
        last = max(parse_document(text, source="f").lines.values(), default=1)
    except ConfigError as error:
        last = error.line or 1
    assert 1 <= last <= text.count("\n") + 1
