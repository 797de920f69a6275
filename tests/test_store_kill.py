"""kill -9 in the middle of a write load: what was acknowledged is there, and nothing is half there."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from random import Random

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.tree.tree import Tree
from tests.store_databases import random_deltas, reopened

KILLS = 50


class KillTests(SynchronousTestCase):
    def test_kill(self) -> None:
        directory = os.path.abspath(self.mktemp())
        os.mkdir(directory)
        path = os.path.join(directory, "config.db")
        tree = reopened(path)
        random = Random(11)
        acknowledged_at_all = 0
        for seed in range(KILLS):
            lines = random.randrange(1, 300)
            writer = subprocess.Popen(
                [sys.executable, "-m", "tests.store_writer", path, str(seed)],
                stdout=subprocess.PIPE,
                cwd=Path(__file__).parent.parent,
            )
            assert writer.stdout is not None
            with writer, writer.stdout:
                acknowledged = [writer.stdout.readline() for _ in range(lines)]
                writer.kill()
                acknowledged += writer.stdout.read().splitlines(keepends=True)
            if acknowledged and not acknowledged[-1].endswith(b"\n"):
                acknowledged.pop()
            self.assertEqual(acknowledged, [b"%d\n" % (tree.version + n + 1) for n in range(len(acknowledged))])
            acknowledged_at_all += len(acknowledged)
            tree = self.check(path, tree, seed, len(acknowledged))
        connection = sqlite3.connect(path)
        self.assertEqual(connection.execute("PRAGMA integrity_check").fetchone(), ("ok",))
        connection.close()
        self.assertGreater(acknowledged_at_all, KILLS)

    def check(self, path: str, before: Tree, seed: int, acknowledged: int) -> Tree:
        """The database holds the writer's changes up to some change, which is not before the last acknowledged one."""
        found = reopened(path)
        committed = found.version - before.version
        self.assertGreaterEqual(committed, acknowledged)
        random, tree = Random(seed), before
        while tree.version < found.version:
            tree, made = random_deltas(random, tree, 10)
            for delta in made:
                if delta.tree.version == found.version:
                    tree = delta.tree
                    break
        self.assertEqual(found.index(), tree.index())
        return found
