"""Plays the scenario under the recorder, and loads what crashes at every point of it leave."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from random import Random
from typing import Any

from tests.crashpoints.disk import SECTOR, Disk, Record, State, records
from tests.crashpoints.scenario import history, loaded

SOURCE = Path(__file__).parent / "recorder.c"
ROOT = Path(__file__).resolve().parent.parent.parent


def fast_directory() -> str:
    """A new directory, in memory where that is possible: nothing here depends on a real disk."""
    return tempfile.mkdtemp(prefix="pvecfs-crash-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)


class Stage:
    """Where scenarios are played: the compiled recorder, and a scratch directory, gone after L{clear}."""

    def __init__(self) -> None:
        self.base = fast_directory()
        self._library = os.path.join(self.base, "recorder.so")
        compiler = ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", self._library, str(SOURCE)]
        subprocess.run([*compiler, "-ldl", "-lpthread"], check=True, timeout=60)
        self._number = 0

    def clear(self) -> None:
        shutil.rmtree(self.base, ignore_errors=True)

    def play(
        self,
        durability: str,
        faults: Sequence[dict[str, Any]] = (),
        record: bool = True,
        start_only: bool = False,
        initial: State | None = None,
    ) -> tuple[Any, list[Record]]:
        """Play the scenario in a process of its own.

        @param faults: once with each of them, instead of once without.
        @param start_only: only open and close the database.
        @param initial: files that are there at the beginning.
        @return: what it printed, and the record.
        """
        self._number += 1
        place = os.path.join(self.base, f"play{self._number}")
        directory = os.path.join(place, "files")
        os.makedirs(directory)
        for name, content in (initial or {}).items():
            Path(directory, name).write_bytes(content)
        log = os.path.join(place, "log")
        command = [sys.executable, "-m", "tests.crashpoints.scenario", directory, durability]
        if faults:
            Path(place, "faults").write_text(json.dumps(faults))
            command.append(os.path.join(place, "faults"))
        if start_only:
            command.append("start")
        environment = {**os.environ, "LD_PRELOAD": self._library, "CRASHPOINTS_DIRECTORY": directory, "TMPDIR": place}
        if record:
            environment["CRASHPOINTS_LOG"] = log
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        timeout = 60 + len(faults)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True, timeout=timeout)
        found = records(Path(log).read_bytes()) if record else []
        shutil.rmtree(place)
        return json.loads(done.stdout), found


@dataclass
class Crashes:
    """Loads states that crashes leave, and says which were wrong.

    @param durability: of the store that was recorded.
    @ivar points: calls after, and within, which there was a crash.
    @ivar states: states looked at; C{distinct}: different ones, each loaded once.
    @ivar wrong: what must not be.
    """

    durability: str
    base: str
    seed: int = 1
    points: int = 0
    states: int = 0
    wrong: list[str] = field(default_factory=list)
    _versions: dict[bytes, int | str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        trees = history()
        self._indexes = {tree.index(): number for number, tree in enumerate(trees)}

    @property
    def distinct(self) -> int:
        return len(self._versions)

    def check(
        self, made: Iterable[Record], power: bool = True, stride: int = 1, offset: int = 0, initial: State | None = None
    ) -> None:
        """Crash after each C{stride}th call, and within each write: the process is killed, or power is lost."""
        disk = Disk(initial)
        random = Random(self.seed)
        submitted = acknowledged = synced = 0
        for number, record in enumerate(made):
            if record.kind == "m":
                word, _, value = record.data.decode().partition(" ")
                if word == "submitted":
                    submitted = max(submitted, int(value))
                elif word == "acknowledged":
                    acknowledged = int(value)
                elif word == "synced":
                    synced = int(value)
                continue
            here = number % stride == offset
            if here and record.kind == "w" and len(record.data) > SECTOR:
                torn = disk.killed()
                name = record.path.rpartition("/")[2]
                before = torn[name].ljust(record.offset, b"\0")
                half = record.data[: len(record.data) // 2]
                torn[name] = before[: record.offset] + half + before[record.offset + len(half) :]
                self._expect(torn, acknowledged, submitted, f"killed within call {number}")
            disk.apply(record)
            if not here:
                continue
            self.points += 1
            self._expect(disk.killed(), acknowledged, submitted, f"killed after call {number}")
            if power:
                least = acknowledged if self.durability == "power" else synced
                for kind, state in enumerate(disk.lost_power(random)):
                    self._expect(state, least, submitted, f"power lost after call {number}, state {kind}")

    def _expect(self, state: State, least: int, most: int, where: str) -> None:
        self.states += 1
        version = self.version(state)
        if isinstance(version, str):
            self.wrong.append(f"{where}: {version}")
        elif not least <= version <= most:
            self.wrong.append(f"{where}: has {version} changes, not {least} to {most}")

    def version(self, state: State) -> int | str:
        """How many of the scenario's changes a start finds in C{state}; or what is wrong with it."""
        digest = sha256()
        for name, content in sorted(state.items()):
            digest.update(b"%d %d " % (len(name), len(content)) + name.encode() + content)
        key = digest.digest()
        if key not in self._versions:
            self._versions[key] = self._load(state)
        return self._versions[key]

    def _load(self, state: State) -> int | str:
        directory = tempfile.mkdtemp(dir=self.base)
        try:
            for name, content in state.items():
                Path(directory, name).write_bytes(content)
            path = os.path.join(directory, "config.db")
            try:
                tree = loaded(path)
            except Exception as error:
                return f"does not load: {error}"
            connection = sqlite3.connect(path)
            (whole,) = connection.execute("PRAGMA integrity_check").fetchone()
            connection.close()
            if whole != "ok":
                return f"integrity: {whole}"
            return self._indexes.get(tree.index(), f"version {tree.version} is no tree of the history")
        finally:
            shutil.rmtree(directory)
