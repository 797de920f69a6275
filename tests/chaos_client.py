"""A client under chaos: works on a node's mount until it is told to end, and writes down what it did.

Started in the node's namespaces by L{tests.chaos}. The record has a line when an operation begins and one when it is
over, so that one that never ends is known too: C{{"id", "begin", "op", "args"}} and C{{"id", "end", "result"}}. Times
are those of the monotonic clock, which all nodes of a laboratory have in common. A result is C{ok}, the name of an
errno (the outcome is unknown then: it happened or it did not), or C{no}: nothing was asked of the cluster.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
import zlib
from collections.abc import Callable
from errno import errorcode
from typing import IO, Any

MOUNT = "/etc/pve"
KEYS = 4
LOCKS = 2
GUESTS = range(100, 106)
KINDS = ("qemu-server", "lxc")
LARGEST = 20_000
"""Bytes of a value."""


def value(client: str, number: int) -> bytes:
    """What C{client} writes as its C{number}th value: says whose it is, and shows when a part is missing."""
    draw = random.Random(f"{client} {number}")
    body = draw.randbytes(draw.choice((8, 200, 3000, LARGEST))).hex().encode()
    return b"%s %d %d %d\n%s" % (client.encode(), number, len(body), zlib.crc32(body), body)


def parsed(content: bytes) -> tuple[str, int] | None:
    """Client and number of a value, C{None} when it is none, or not whole."""
    head, _, body = content.partition(b"\n")
    try:
        client, number, length, checksum = head.decode().split(" ")
        if len(body) == int(length) and zlib.crc32(body) == int(checksum):
            return client, int(number)
    except ValueError:
        pass
    return None


class Client:
    """@param record: where the history goes. @param nodes: names of all nodes."""

    def __init__(self, name: str, node: str, nodes: list[str], seed: str, lock_timeout: float, record: IO[str]) -> None:
        self.name = name
        self.node = node
        self.nodes = nodes
        self.draw = random.Random(f"{seed} {name}")
        self.lock_timeout = lock_timeout
        self.record = record
        self.ended = False
        self.operations = 0
        self.values = 0

    def note(self, **line: Any) -> None:
        self.record.write(json.dumps(line) + "\n")
        self.record.flush()

    def done(self, op: str, args: list[Any], action: Callable[[], str | None]) -> str:
        """Do and record an operation; C{action} returns what it found, or C{None} for C{ok}."""
        self.operations += 1
        self.note(id=self.operations, begin=time.monotonic(), op=op, args=args)
        try:
            result = action() or "ok"
        except OSError as error:
            result = errorcode.get(error.errno or 0, "EIO")
        except json.JSONDecodeError:
            result = "TORN"
        self.note(id=self.operations, end=time.monotonic(), result=result)
        return result

    def pause(self, longest: float) -> None:
        if not self.ended:
            time.sleep(self.draw.uniform(0, longest))

    def run(self, kind: str) -> None:
        step = {"writer": self.write, "locker": self.lock, "guests": self.guest}[kind]
        self.note(client=self.name, node=self.node, kind=kind)
        while not self.ended:
            if not self.may_write():
                time.sleep(0.1)
            elif step() not in ("ok", "no", "ENOENT", "EEXIST"):
                self.pause(1.0)
            self.pause(0.1)
        self.note(ended=True)

    def may_write(self) -> bool:
        """As programs look before they write. (Fewer operations of unknown outcome make the judgement sharper.)"""
        try:
            return bool(os.lstat(f"{MOUNT}/local").st_mode & 0o200)
        except OSError:
            return False

    def _is_mounted(self) -> bool:
        return os.path.isdir(f"{MOUNT}/chaos")

    # Files of its own: only this client changes them

    def write(self) -> str:
        key = f"{self.name}-{self.draw.randrange(KEYS)}"
        path = f"{MOUNT}/chaos/{key}"
        what = self.draw.random()
        if what < 0.35:
            self.values += 1
            result = self.done("put", [key, self.values], lambda: self._put(path, value(self.name, self.values)))
        elif what < 0.6:
            self.values += 1
            result = self.done("overwrite", [key, self.values], lambda: self._overwrite(path, self.values))
        elif what < 0.7:
            result = self.done("delete", [key], lambda: os.unlink(path))
        elif what < 0.85:
            return self.done("read", [key], lambda: self._read(path))
        else:
            return self.read_others()
        if result == "ok":
            self.done("read", [key], lambda: self._read(path))
        return result

    def _put(self, path: str, content: bytes) -> str | None:
        temporary = f"{path}.tmp"
        try:
            descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            try:
                os.write(descriptor, content)
            finally:
                os.close(descriptor)
        except OSError:
            return "no"
        os.rename(temporary, path)
        return None

    def _overwrite(self, path: str, number: int) -> None:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        try:
            os.write(descriptor, value(self.name, number))
        finally:
            os.close(descriptor)

    def _read(self, path: str) -> str:
        began = time.monotonic()
        mounted = self._is_mounted()
        try:
            with open(path, "rb") as file:
                content = file.read()
        except FileNotFoundError:
            # Between two runs of the daemon there is no mount, and no file either. A restart takes longer than this.
            if mounted and self._is_mounted() and time.monotonic() - began < 0.2:
                return "none"
            raise
        if not content:
            return "empty"
        found = parsed(content)
        return "TORN" if found is None else f"{found[0]} {found[1]}"

    def read_others(self) -> str:
        if self.draw.random() < 0.5:
            name = self.draw.choice((".version", ".members", ".vmlist", ".clusterlog"))
            return self.done("document", [name], lambda: self._document(name))
        try:
            names = os.listdir(f"{MOUNT}/chaos")
        except OSError:
            return "EIO"
        others = [name for name in names if not name.endswith(".tmp")]
        if not others:
            return "no"
        key = self.draw.choice(others)
        return self.done("look", [key], lambda: self._read(f"{MOUNT}/chaos/{key}"))

    def _document(self, name: str) -> None:
        with open(f"{MOUNT}/{name}", "rb") as file:
            json.loads(file.read())

    # Locks

    def lock(self) -> str:
        name = f"chaos-{self.draw.randrange(LOCKS)}"
        path = f"{MOUNT}/priv/lock/{name}"
        began = time.monotonic()
        result = self.done("lock", [name], lambda: os.mkdir(path))
        if result == "EEXIST":
            self.done("ask", [name], lambda: os.utime(path, (0, 0)))
            self.pause(0.3)
        elif result == "ok":
            if self.draw.random() < 0.2:
                return result  # a holder that died: the lock has to be taken from it
            self.pause(self.lock_timeout * 0.6)
            if time.monotonic() - began < self.lock_timeout * 0.7:  # else it may be another's by now
                self.done("unlock", [name], lambda: self._unlock(path))
        return result

    def _unlock(self, path: str) -> str | None:
        began = time.monotonic()
        mounted = self._is_mounted()
        try:
            os.rmdir(path)
        except FileNotFoundError:
            if mounted and self._is_mounted() and time.monotonic() - began < 0.2:
                return "GONE"
            raise
        return None

    # Guests: everybody creates, moves and deletes the same few

    def guest(self) -> str:
        vmid = self.draw.choice(GUESTS)
        try:
            with open(f"{MOUNT}/.vmlist", "rb") as file:
                listed = json.load(file)["ids"].get(str(vmid)) if vmid else None
        except (OSError, KeyError, json.JSONDecodeError):
            listed = None
        there = None
        if listed is not None:
            there = f"nodes/{listed['node']}/{'lxc' if listed['type'] == 'lxc' else 'qemu-server'}/{vmid}.conf"
        target = f"nodes/{self.draw.choice(self.nodes)}/{self.draw.choice(KINDS)}/{vmid}.conf"
        what = self.draw.random()
        if there is None or what < 0.15:
            return self.done("create", [vmid, target], lambda: self._create(target))
        if what < 0.75 and target != there:
            return self.done("move", [vmid, there, target], lambda: os.rename(f"{MOUNT}/{there}", f"{MOUNT}/{target}"))
        return self.done("destroy", [vmid, there], lambda: os.unlink(f"{MOUNT}/{there}"))

    def _create(self, path: str) -> None:
        os.close(os.open(f"{MOUNT}/{path}", os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def main() -> None:
    kind, name, node, nodes, seed, lock_timeout, path = sys.argv[1:]
    with open(path, "a", encoding="ascii") as record:
        client = Client(name, node, nodes.split(","), seed, float(lock_timeout), record)

        def end(number: int, frame: object) -> None:
            client.ended = True

        signal.signal(signal.SIGTERM, end)
        client.run(kind)


if __name__ == "__main__":
    main()
