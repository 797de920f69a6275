"""C{python -m tests.fuzz.run --inputs N}: N inputs, shared by all decoders; 1 if one of them breaks."""

from __future__ import annotations

import argparse
import sys
import time
from random import Random

from tests.fuzz.targets import TARGETS


def main() -> int:
    """Run; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz.run", description="Give malformed input to all decoders."
    )
    parser.add_argument("--inputs", type=int, default=1_000_000, help="altogether")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", default="", help="only decoders whose name contains this")
    options = parser.parse_args()
    targets = [target for target in TARGETS if options.target in target.name]
    each = -(-options.inputs // len(targets))
    failed = 0
    began = time.monotonic()
    for target in targets:
        start = time.monotonic()
        try:
            accepted = target.fuzz(Random(f"{options.seed} {target.name}"), each)
        except AssertionError as error:
            failed += 1
            print(f"FAILED {error}")
        else:
            rate = each / (time.monotonic() - start)
            print(f"{target.name}: {each} inputs, {accepted} accepted, {rate:.0f} a second", flush=True)
    print(f"{each * len(targets)} inputs in {time.monotonic() - began:.0f} s, {failed} decoders failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
