"""A process that commits changes until it is killed, and says on standard output what was acknowledged.

usage: python -m tests.store_writer DATABASE SEED
"""

from __future__ import annotations

import os
import sys
from random import Random
from threading import Semaphore

from tests.store_databases import random_deltas, store_at


def main(path: str, seed: int) -> None:
    store = store_at(path)
    tree = store.open()
    random = Random(seed)
    room = Semaphore(30)
    while True:
        tree, made = random_deltas(random, tree, 10)
        for delta in made:
            room.acquire()

            def settled(outcome: Exception | None, line: bytes = b"%d\n" % delta.tree.version) -> None:
                if outcome is None:
                    os.write(1, line)
                room.release()

            store.commit(delta, settled)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
