"""Each parser against hypothesis, and against every input that a fuzzer kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS, seeds

CORPUS = Path(__file__).parent / "corpus"
SEEDS = seeds()


@st.composite
def mutated(draw: st.DrawFn, begin: list[bytes]) -> bytes:
    """One of the right inputs with some of it changed, cut, repeated or inserted."""
    data = bytearray(draw(st.sampled_from(begin)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        match draw(st.integers(0, 3)):
            case 0 if at < len(data):
                data[at] = draw(st.integers(0, 255))
            case 1:
                del data[at:]
            case 2:
                data[at:at] = draw(st.binary(max_size=40))
            case _:
                data[at:at] = data[max(0, at - 40) : at]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_refused_or_understood(name: str) -> None:
    @settings(max_examples=150, deadline=None, database=None)
    @given(st.one_of(st.binary(max_size=600), mutated(SEEDS[name])))
    def attack(data: bytes) -> None:
        TARGETS[name](data)

    attack()


@pytest.mark.parametrize("name", TARGETS)
def test_what_was_kept_still_passes(name: str) -> None:
    kept = sorted((CORPUS / name).glob("*"))
    assert kept, f"make fuzz keeps a corpus for {name}"
    for path in kept:
        TARGETS[name](path.read_bytes())
    for data in SEEDS[name]:
        TARGETS[name](data)
