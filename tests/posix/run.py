"""Plays all cases: C{python -m tests.posix.run DIRECTORY USER} prints a JSON object, name to outcome."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import tests.posix.behaviour
import tests.posix.table
from tests.posix.case import CASES, run

assert tests.posix.behaviour and tests.posix.table  # they fill CASES


def main(place: str, user: str) -> None:
    os.setgroups([])
    os.umask(0o022)
    base = Path(place, user)
    base.mkdir()
    outcomes = {}
    for number, name in enumerate(CASES):
        outcomes[name] = run(name, base / str(number), user)
        os.chdir("/")
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main(*sys.argv[1:])
