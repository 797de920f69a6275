"""Simulated clusters: C{python -m tests.simulate --seeds 1-1000} (docs/reliability-simulator.md)."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulator.checks import Violation
from tests.simulator.shrink import shrink
from tests.simulator.simulation import run
from tests.simulator.story import Story, tell

PROGRESS_SECONDS = 10.0


def seeds(text: str) -> range:
    """C{FROM-TO}, both included; or C{COUNT}, from 0."""
    first, dash, last = text.partition("-")
    chosen = range(int(first), int(last) + 1) if dash else range(int(first))
    if not chosen:
        raise ValueError(f"no seeds in {text}")
    return chosen


def show(story: Story) -> None:
    """Print what happens in C{story}, and how it ends."""
    transcript: list[str] = []
    print(story)
    try:
        run(story, transcript)
        ending = "nothing is violated"
    except Violation as violation:
        ending = f"violated: {violation}"
    print("\n".join(transcript))
    print(ending)


def report(story: Story, violation: Violation, steps: int) -> None:
    """Print a failing story, whole and shrunk."""
    print(f"seed {story.seed} fails: {violation}\n")
    print(story)
    shrunk = shrink(story)
    print(f"\nshrunk to {len(shrunk.events)} events:")
    show(shrunk)
    print(f"\nagain: python -m tests.simulate --steps {steps} --seed {story.seed} --story")


def main() -> int:
    """Run; 0 if nothing is violated, else 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulate", description="Simulate clusters, seed by seed.")
    parser.add_argument("--seeds", type=seeds, default=range(1000), metavar="FROM-TO", help="or a number, from 0")
    parser.add_argument("--steps", type=int, default=60, help="events of each story")
    parser.add_argument("--seed", type=int, help="this one only")
    parser.add_argument("--story", action="store_true", help="print what happens")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first failing seed")
    options = parser.parse_args()
    chosen = options.seeds if options.seed is None else range(options.seed, options.seed + 1)
    if options.story:
        for seed in chosen:
            show(tell(seed, options.steps))
        return 0

    began = told = time.monotonic()
    failed: list[int] = []
    deliveries = acknowledged = strict = excused = 0
    for number, seed in enumerate(chosen):
        story = tell(seed, options.steps)
        try:
            history = run(story).history
        except Violation as violation:
            failed.append(seed)
            report(story, violation, options.steps)
            if not options.keep_going:
                return 1
        else:
            deliveries += history.deliveries
            acknowledged += len(history.acknowledged) - 1
            strict += story.strict
            excused += bool(history.lost)
        now = time.monotonic()
        if now - told >= PROGRESS_SECONDS:
            told = now
            rate = (number + 1) / (now - began)
            print(f"{number + 1} of {len(chosen)} seeds, {rate:.0f} a second, {len(failed)} failed", file=sys.stderr)
    took = time.monotonic() - began
    print(
        f"{len(chosen)} seeds of {options.steps} steps in {took:.0f} s ({len(chosen) / took:.0f} a second): "
        f"{acknowledged} acknowledged changes, {deliveries} deliveries, {strict} stories in which a minority fails "
        f"at most; {excused} others lost a change with an excuse; "
        f"{len(failed)} failed{': ' + str(failed) if failed else ''}"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
