"""Makes a failing story shorter, as long as it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.simulator.checks import Violation
from tests.simulator.simulation import run
from tests.simulator.story import PACE_ALL, PACE_NONE, Event, Story


def failure(story: Story) -> str:
    """What is violated; empty if nothing is."""
    try:
        run(story)
    except Violation as violation:
        return str(violation)
    return ""


def _fails(story: Story) -> bool:
    return bool(failure(story))


def shrink(story: Story, fails: Callable[[Story], bool] = _fails, runs: int = 2000) -> Story:
    """A story made of events of C{story} that fails too, tried within about C{runs} runs.

    Larger parts are left out first, then smaller ones; then paces are made simpler.
    """
    left = runs

    def still_fails(events: tuple[Event, ...]) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and fails(replace(story, events=events))

    events = story.events
    size = max(1, len(events) // 2)
    while size:
        start = 0
        removed = False
        while start < len(events):
            shorter = events[:start] + events[start + size :]
            if still_fails(shorter):
                events = shorter
                removed = True
            else:
                start += size
        if not removed or size > 1:
            size //= 2
    for index, event in enumerate(events):
        for pace in PACE_NONE, PACE_ALL:
            if event.pace != pace:
                simpler = (*events[:index], event._replace(pace=pace), *events[index + 1 :])
                if still_fails(simpler):
                    events = simpler
                    break
    return replace(story, events=events)
