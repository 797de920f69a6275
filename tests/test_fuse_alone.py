"""Local mode, in which the kernel keeps what it would have to ask for again in a cluster: it must stay true.

C{FUSE_STRESS_SECONDS} is the length of the load, as in L{tests.test_fuse_coherence}.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

from twisted.trial.unittest import TestCase

from tests.daemons import DaemonProcess, temporary_base
from tests.needs import needs_fuse

SECONDS = float(os.environ.get("FUSE_STRESS_SECONDS", "6"))
PROCESSES = 4
ROUND_SECONDS = 0.5
NAMES = tuple(f"f{number}" for number in range(6))
PLACES = ("a", "b", "priv")
"""Directories; modes in the last one are others, so that a move changes them."""


def change_at_random(mount: Path, random: Random) -> None:
    """One call of a kind that leaves attributes with the kernel. Others are at the same files: any may fail."""
    path = mount / random.choice(PLACES) / random.choice(NAMES)
    other = mount / random.choice(PLACES) / random.choice(NAMES)
    what = random.randrange(9)
    if what == 0:
        path.write_bytes(random.randbytes(random.randrange(5000)))
    elif what == 1:
        os.truncate(path, random.randrange(3000))
    elif what == 2:
        with open(path, "r+b", buffering=0) as file:
            file.truncate(random.randrange(100))
            os.fstat(file.fileno())
            file.write(random.randbytes(random.randrange(2000)))
            file.truncate(random.randrange(2500))
    elif what == 3:
        os.utime(path, (1, random.randrange(1, 2**31)))
    elif what == 4:
        os.rename(path, other)
    elif what == 5:
        path.unlink()
    elif what == 6:
        with open(path, "ab", buffering=0) as file:
            file.write(b"appended")
    elif what == 7:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    else:
        os.stat(path)
        path.read_bytes()


def load(mount: Path, seed: int, seconds: float) -> Iterator[int]:
    """Processes that change things for C{seconds}. @return: their ids."""
    for number in range(PROCESSES):
        child = os.fork()
        if child == 0:
            random = Random(seed * PROCESSES + number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                with contextlib.suppress(OSError):
                    change_at_random(mount, random)
            os._exit(0)
        yield child


@needs_fuse()
class AloneTests(TestCase):
    timeout = 60 + 4 * SECONDS

    def setUp(self) -> None:
        base = temporary_base(self)
        self.daemon = DaemonProcess(base)
        self.addCleanup(self.daemon.clean)
        self.daemon.start()

    def stored(self) -> dict[str, tuple[int, int, bytes]]:
        """Size, mtime and data of each file, by path, as the database has them."""
        with contextlib.closing(sqlite3.connect(f"file:{self.daemon.database}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT inode, parent, type, mtime, name, data FROM tree WHERE inode > 0"
            ).fetchall()
        names = {inode: (parent, name) for inode, parent, _, _, name, _ in rows}
        files = {}
        for _, parent, kind, mtime, name, data in rows:
            if kind == 8 and parent:
                content = data if isinstance(data, bytes) else (data or "").encode()
                files[f"{names[parent][1]}/{name}"] = (len(content), mtime, content)
        return files

    def test_kernel_and_database_agree(self) -> None:
        """After each round of four processes at the same files, stat, listing and content are those of the database."""
        mount = self.daemon.mount
        for place in PLACES:
            (mount / place).mkdir(exist_ok=True)
        looked = 0
        for number in range(max(2, int(SECONDS / ROUND_SECONDS))):
            for child in list(load(mount, number, ROUND_SECONDS)):
                _, status = os.waitpid(child, 0)
                self.assertEqual(status, 0)
            files = self.stored()
            for place in PLACES:
                present = {path.split("/")[1] for path in files if path.startswith(place + "/")}
                self.assertEqual(set(os.listdir(mount / place)), present)
                for name in NAMES:
                    path = mount / place / name
                    if name not in present:
                        self.assertRaises(FileNotFoundError, os.stat, path)
                        continue
                    found = os.stat(path)
                    size, mtime, content = files[f"{place}/{name}"]
                    mode = 0o600 if place == "priv" else 0o640
                    self.assertEqual(
                        (found.st_size, int(found.st_mtime), stat.S_IMODE(found.st_mode)), (size, mtime, mode), path
                    )
                    self.assertEqual(path.read_bytes(), content, path)
                    looked += 1
        self.assertGreater(looked, 0)
