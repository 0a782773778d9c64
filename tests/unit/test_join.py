"""The join string: what it says, what it takes, and what it says when it doesn't."""

from __future__ import annotations

import base64
import contextlib
from urllib.parse import quote

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from relayd.join import MAX_CHARACTERS, JoinString
from relayd.keys import PublicKey
from relayd.tokens import MADE_BYTES, MAX_TOKEN_BYTES, MIN_TOKEN_BYTES, check_token, token_of

KEY = PublicKey(b"\xfb\xff\xfe" + bytes(range(29)))
URL_SAFE = "-__-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxw"
TOKEN = "abcdefghijklmnop"
PIN = bytes(range(32))
PIN_TEXT = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"


def test_it_looks_like_this() -> None:
    plain = JoinString("relay.example.net", 3478, KEY, TOKEN)
    assert plain.format() == f"relayd://relay.example.net:3478?key={URL_SAFE}&token={TOKEN}"
    tls = JoinString("2001:db8::1", 443, KEY, TOKEN, tls=True, pin=PIN)
    assert tls.format() == f"relayds://[2001:db8::1]:443?key={URL_SAFE}&token={TOKEN}&pin={PIN_TEXT}"
    assert JoinString("192.0.2.1", 3478).format() == "relayd://192.0.2.1:3478"


def test_its_address_is_host_and_port() -> None:
    assert JoinString("2001:db8::1", 443).address == "[2001:db8::1]:443"
    assert JoinString("relay.example.net", 443).address == "relay.example.net:443"


_LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
_HOST = (
    st.lists(_LABEL, min_size=1, max_size=4).map(".".join)
    | st.ip_addresses(v=4).map(str)
    | st.ip_addresses(v=6).map(str)
)
_TOKENS = st.text(
    st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=MIN_TOKEN_BYTES, max_size=MAX_TOKEN_BYTES
)
_KEYS = st.binary(min_size=32, max_size=32).filter(any)


@given(
    host=_HOST,
    port=st.integers(1, 65535),
    key=st.none() | _KEYS.map(PublicKey),
    token=st.just("") | _TOKENS,
    tls=st.booleans(),
    pin=st.none() | st.binary(min_size=32, max_size=32),
)
def test_it_survives_the_round_trip(
    host: str, port: int, key: PublicKey | None, token: str, tls: bool, pin: bytes | None
) -> None:
    join = JoinString(host, port, key, token, tls=tls, pin=pin if tls else None)
    text = join.format()
    assert len(text) <= MAX_CHARACTERS
    assert JoinString.parse(text) == join
    assert JoinString.parse(f"  {text}\n") == join


@given(_KEYS)
def test_a_key_is_understood_in_each_of_its_spellings(raw: bytes) -> None:
    standard = base64.b64encode(raw).decode()
    url_safe = base64.urlsafe_b64encode(raw).decode()
    for text in (standard, quote(standard, safe=""), url_safe, url_safe.rstrip("="), standard.rstrip("=")):
        assert JoinString.parse(f"relayd://h:1?key={text}").key == PublicKey(raw)


def test_parameters_come_in_any_order_and_the_scheme_in_any_case() -> None:
    text = f"RELAYDS://h:1/?pin={PIN_TEXT}&token={TOKEN}&key={URL_SAFE}"
    assert JoinString.parse(text) == JoinString("h", 1, KEY, TOKEN, tls=True, pin=PIN)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "begins with relayd://"),
        ("relay.example.net:3478", "begins with relayd://"),
        ("https://h:1?key=x", "begins with relayd://"),
        ("relayd:h:1", "begins with relayd://"),
        ("relayd://", "no port"),
        ("relayd://h", "no port"),
        ("relayd://h:", "not a port"),
        ("relayd://:1", "no port"),
        ("relayd://h:0", "port 0"),
        ("relayd://h:65536", "not a port"),
        ("relayd://2001:db8::1:3478", "brackets"),
        ("relayd://[2001:db8::zz]:3478", "IPv6"),
        ("relayd://[fe80::1%eth0]:3478", "IPv6"),
        ("relayd://ho$t:1", "host name"),
        ("relayd://a..b:1", "host name"),
        ("relayd://-a:1", "host name"),
        ("relayd://" + "a" * 254 + ":1", "host name"),
        ("relayd://user@h:1", "no user"),
        ("relayd://h:1/path", "no path"),
        ("relayd://h:1#x", "no #"),
        ("relayd://h:1?key", "key= is empty"),
        ("relayd://h:1?tokn=0123456789abcdef", "'tokn' is not known"),
        (f"relayd://h:1key=x&token={TOKEN}", "begin, with a ?"),
        (f"relayd://h:1token={TOKEN}", "begin, with a ?"),
        (f"relayd://h:1{TOKEN}", "begin, with a ?"),
        ("relayd://h:1?", ""),
        (f"relayd://h:1?token={TOKEN}&token={TOKEN}", "token= is there twice"),
        ("relayd://h:1?key=", "key= is empty"),
        ("relayd://h:1?key=AAAA", "key= is 3 bytes long"),
        (f"relayd://h:1?key={URL_SAFE[:-1]}", "key="),
        (f"relayd://h:1?key={URL_SAFE[:-1]}x", "can't be right"),
        (f"relayd://h:1?key={URL_SAFE}==", "key="),
        ("relayd://h:1?key=" + "A" * 43, "all zeros"),
        ("relayd://h:1?key=!!!!", "not base64"),
        ("relayd://h:1?key=%ff%ff", "not text"),
        ("relayd://h:1?key=%zz", "hexadecimal"),
        ("relayd://h:1?token=short", "5 characters"),
        ("relayd://h:1?token=" + "x" * 257, "257 characters"),
        ("relayd://h:1?token=0123456789%20abcdef", "without blanks"),
        ("relayd://h:1?token=0123456789%0Aabcdef", "without blanks"),
        (f"relayd://h:1?pin={PIN_TEXT}", "pin= is for TLS"),
        ("relayds://h:1?pin=AAAA", "3 bytes long"),
        ("relayd://h:1?key=x y", "no blanks"),
        ("relayd://h:1?key=x\ny", "no blanks"),
        ("relayd://h\N{LATIN SMALL LETTER O WITH DIAERESIS}st:1", "ASCII"),
        ("relayd://h:1?key=" + "A" * MAX_CHARACTERS, "characters long"),
    ],
)
def test_a_mistake_is_named(text: str, problem: str) -> None:
    if not problem:
        assert JoinString.parse(text) == JoinString("h", 1)
        return
    with pytest.raises(ValueError, match=problem):
        JoinString.parse(text)


@given(st.text(max_size=100) | st.text(max_size=100).map("relayd://h:1?".__add__))
def test_any_text_is_a_join_string_or_a_value_error(text: str) -> None:
    try:
        join = JoinString.parse(text)
    except ValueError:
        return
    assert JoinString.parse(join.format()) == join


@given(st.data())
def test_one_wrong_character_never_passes_for_another_key(data: st.DataObject) -> None:
    text = JoinString("h", 1, KEY).format()
    at = data.draw(st.integers(len(text) - 43, len(text) - 1))
    other = data.draw(st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    assume(other not in text[at] + "+-/_")
    with contextlib.suppress(ValueError):
        assert JoinString.parse(text[:at] + other + text[at + 1 :]).key != KEY


@pytest.mark.parametrize("text", [f"key={TOKEN}secret", f"token={TOKEN}%zz", f"tokem={TOKEN}", TOKEN])
def test_a_mistake_never_quotes_what_may_be_secret(text: str) -> None:
    for before in ("relayd://h:1?", "relayd://h:1", "relayd://[::1]:1"):
        with pytest.raises(ValueError, match="=") as caught:
            JoinString.parse(f"{before}{text}")
        assert TOKEN not in str(caught.value)


def test_a_token_shows_neither_in_a_log_nor_in_a_repr() -> None:
    join = JoinString("h", 1, KEY, TOKEN)
    assert TOKEN not in str(join)
    assert TOKEN not in repr(join)
    assert str(join) == "relayd://h:1"


def test_a_made_token_is_a_token_and_needs_all_its_randomness() -> None:
    token = token_of(bytes(range(MADE_BYTES)))
    assert check_token(token) == token == "AAECAwQFBgcICQoLDA0ODxAREhMUFRYX"
    with pytest.raises(ValueError, match="24"):
        token_of(bytes(MADE_BYTES - 1))


@pytest.mark.parametrize("text", ["", "x" * 15, "x" * 257, "with blank in it", "\t" * 20, "\u00e9" * 20])
def test_what_can_not_be_a_token_is_refused_unquoted(text: str) -> None:
    with pytest.raises(ValueError, match="token") as caught:
        check_token(text)
    assert not text or text not in str(caught.value)


@pytest.mark.timeout(10)
def test_a_long_name_with_a_mistake_at_its_end_is_refused_at_once() -> None:
    """Labels with an optional dot between them could be cut in 2^60 ways; each was tried."""
    with pytest.raises(ValueError, match="host name"):
        JoinString.parse(f"relayd://{'a' * 60}!:1?token={TOKEN}")
