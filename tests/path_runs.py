"""Run the simulated network with many seeds (`make paths`): what the unit tests do with a few.

    python -m tests.path_runs [--runs 10000] [--first 0]

Prints what was drawn, and each run that broke an invariant; the exit status tells whether one did.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from tests.helpers.path_scenarios import run

PROGRESS_EVERY = 1000


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.path_runs", description=__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="how many (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: %(default)s)")
    arguments = parser.parse_args()
    begun = time.monotonic()
    drawn: Counter[str] = Counter()
    broken = 0
    for done, seed in enumerate(range(arguments.first, arguments.first + arguments.runs), 1):
        scenario = run(seed)
        drawn[scenario.steady] += 1
        drawn.update(event.partition(" at ")[0] for event in scenario.events)
        if scenario.broken:
            broken += 1
            print(f"{scenario}: {'; '.join(scenario.broken)}")
        if done % PROGRESS_EVERY == 0:
            print(f"{done} runs, {broken} broken, {time.monotonic() - begun:.0f} s", file=sys.stderr)
    print(f"{arguments.runs} runs, {broken} broken an invariant, {time.monotonic() - begun:.0f} s")
    print(", ".join(f"{what} {count}" for what, count in sorted(drawn.items())))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
