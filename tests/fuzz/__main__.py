"""`python -m tests.fuzz SECONDS [TARGET...]`: atheris on each target in turn, sharing the time.

What reaches new code is kept in tests/fuzz/corpus/TARGET. What breaks a target is written there too, so that
the tests go on failing until it is mended. Exit status 1: something broke.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
MAX_BYTES = 4096
"""Of one input: what may be sent before admission."""


def main(argv: list[str]) -> int:
    if argv and argv[0] == "--one":
        return fuzz(argv[1], argv[2:])
    seconds = float(argv[0]) if argv else 60.0
    from tests.fuzz.targets import TARGETS

    names = argv[1:] or list(TARGETS)
    broken = [name for name in names if not run(name, max(1, round(seconds / len(names))))]
    print(f"fuzz: {len(names)} targets, broken: {', '.join(broken) or 'none'}")
    return bool(broken)


def run(name: str, seconds: int) -> bool:
    """One target in a process of its own, as libFuzzer ends it. -> whether it held"""
    from tests.fuzz.targets import seeds

    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(seeds()[name]):
        (kept / f"seed-{number}").write_bytes(data)
    # libFuzzer writes what is new into the first of its folders.
    command = [sys.executable, "-m", "tests.fuzz", "--one", name, str(kept)]
    command += [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-artifact_prefix={kept}/broken-"]
    return subprocess.run(command, check=False).returncode == 0


def fuzz(name: str, flags: list[str]) -> int:
    """libFuzzer's own main: never returns."""
    import atheris

    with atheris.instrument_imports(include=["relayd"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([name, *flags], TARGETS[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
