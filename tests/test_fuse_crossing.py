"""Requests that cross a change of another node: the tree goes by names, the kernel by what it knew under them.

The other node's change is delivered between the kernel's request and the request's own change (C{first}), or it is
published, and the kernel was not told yet (C{held}).
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from threading import Thread
from typing import Any

from tests.fuse_support import MountCase, get, put
from tests.needs import needs_fuse

SAMPLE = os.environ.get("FUSE_PAIRS", "60")
"""How many of the pairs are tried in each of the two orders, or C{all}."""

Step = tuple[str, ...]


class CrossingCase(MountCase):
    def setUp(self) -> None:
        super().setUp()
        self.node.remote("mtime", self.tree_path, 5)  # the first thing told makes the kernel forget all names

    def cross(self, order: str, request: Callable[[], object], *changes: Step) -> None:
        """Make C{request} while another node's C{changes} are on their way; until the kernel was told of all."""
        if order == "held":
            self.node.ask("held", True)
        try:
            for kind, *arguments in changes:
                count = 2 if kind == "rename" else 1
                named = [*map(self.in_tree, arguments[:count]), *arguments[count:]]
                self.node.ask("first" if order == "first" else "change", kind, *named)
            request()
        finally:
            if order == "held":
                self.node.ask("held", False)

    def told(self) -> None:
        self.node.ask("drained")


@needs_fuse()
class CrossingTests(CrossingCase):
    def test_rename_of_a_file_that_was_replaced(self) -> None:
        """The file that was moved is found at its new place at once, not the one that the kernel has moved."""
        for order in "first", "held":
            put(self.in_place("job"), b"old")
            put(self.in_place("new"), b"newest")
            get(self.in_place("job"))
            taken = self.in_place(f"taken {order}")
            self.cross(order, partial(os.rename, self.in_place("job"), taken), ("rename", "new", "job"))
            self.assertEqual(get(taken), b"newest")
            self.told()
            self.assertEqual(get(taken), b"newest")
            put(taken, b"and can be written")
            self.assertEqual(get(taken), b"and can be written")

    def test_rename_of_a_directory_that_was_replaced(self) -> None:
        for order in "first", "held":
            d, aside, taken = f"d {order}", f"aside {order}", f"taken {order}"
            os.mkdir(self.in_place(d))
            os.listdir(self.in_place(d))
            request = partial(os.rename, self.in_place(d), self.in_place(taken))
            self.cross(order, request, ("rename", d, aside), ("mkdir", d))
            put(self.in_place(f"{taken}/f"), b"1")
            self.told()
            self.assertEqual((os.listdir(self.in_place(taken)), os.listdir(self.in_place(aside))), (["f"], []))

    def test_write_that_lands_in_another_file(self) -> None:
        """A change of a file goes by its name. Whoever has the other file open sees what was written to it."""
        for number in range(2):
            name, other = f"f{number}", f"other{number}"
            put(self.in_place(name), b"mine")
            put(self.in_place(other), b"of another")
            written = os.open(self.in_place(name), os.O_WRONLY)
            self.addCleanup(os.close, written)
            seen = os.open(self.in_place(other), os.O_RDONLY)
            self.addCleanup(os.close, seen)
            os.pread(seen, 100, 0)
            request = partial(os.ftruncate, written, 2) if number else partial(os.pwrite, written, b"LOCAL", 0)
            self.cross("first", request, ("rename", other, name))
            self.told()
            expected = (b"LOCALother", b"of")[number]
            self.assertEqual((os.pread(seen, 100, 0), os.fstat(seen).st_size), (expected, len(expected)))
            self.assertEqual(get(self.in_place(name)), expected)

    def test_made_in_a_directory_that_was_replaced(self) -> None:
        """It is in the directory that has the name now, and listed there."""
        for number, make in enumerate((lambda path: put(path, b""), os.mkdir)):
            d, e = f"d{number}", f"e{number}"
            for directory in d, e:
                os.mkdir(self.in_place(directory))
                os.listdir(self.in_place(directory))
            self.assertFalse(os.path.exists(self.in_place(f"{e}/x")))
            held = os.open(self.in_place(e), os.O_RDONLY)  # so that the kernel keeps it
            self.addCleanup(os.close, held)
            request = partial(self.assert_errno, errno.ENOENT, make, self.in_place(f"{d}/x"))
            self.cross("first", request, ("delete", d), ("rename", e, d))
            self.told()
            self.assertEqual(os.listdir(self.in_place(d)), ["x"])
            self.assertTrue(os.path.exists(self.in_place(f"{d}/x")))

    def while_it_waits(self, request: Callable[[], object], *change: Any) -> None:
        """Make C{request}; while it waits for the cluster, another node's C{change} comes, and somebody reads C{f}."""
        get(self.in_place("f"))  # the kernel holds the locks of pages that it does not know
        self.node.ask("stuck", True)
        asking = Thread(target=request, daemon=True)
        asking.start()
        end = time.monotonic() + 10
        while not self.node.ask("state")["late"]:
            self.assertLess(time.monotonic(), end)
        kind, name, *rest = change
        self.node.remote(kind, self.in_tree(name), *rest)
        get(self.in_place("f"))
        self.node.ask("stuck", False)
        asking.join(10)
        self.assertFalse(asking.is_alive())
        self.told()

    def test_read_while_a_write_waits(self) -> None:
        """Pages that are read then are without what is written."""
        put(self.in_place("f"), b"original content")
        with open(self.in_place("f"), "r+b", buffering=0) as file:
            for content, expected in (b"Rr", b"LOCAL"), (b"of another node", b"LOCALother node"):
                self.while_it_waits(partial(os.pwrite, file.fileno(), b"LOCAL", 0), "write", "f", content, 0, True)
                self.assertEqual(get(self.in_place("f")), expected)

    def test_read_while_a_truncation_waits(self) -> None:
        put(self.in_place("f"), b"abc")
        with open(self.in_place("f"), "r+b", buffering=0) as file:
            self.while_it_waits(partial(os.ftruncate, file.fileno(), 3), "write", "f", b"0123456789")
            os.pwrite(file.fileno(), b"Z", 9)
        self.assertEqual(get(self.in_place("f")), b"012" + bytes(6) + b"Z")

    def test_deleted_with_what_it_had(self) -> None:
        """A handle goes on to show what the file had when it was deleted, not when that was asked for."""
        put(self.in_place("f"), b"O" * 400_000)
        with open(self.in_place("f"), "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            self.while_it_waits(partial(os.unlink, self.in_place("f")), "write", "f", b"R" * 400_000)
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            self.assertEqual(set(os.pread(file.fileno(), 400_000, 0)), set(b"R"))

    def test_mapped_write_is_committed_by_close(self) -> None:
        """Also on a descriptor that has created the file."""
        libc = ctypes.CDLL(None, use_errno=True)
        libc.mmap.restype = ctypes.c_void_p
        libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
        for flags in os.O_CREAT | os.O_EXCL, 0:
            descriptor = os.open(self.in_place("mapped"), os.O_RDWR | flags, 0o640)
            os.ftruncate(descriptor, 4096)
            address = libc.mmap(None, 4096, 3, 1, descriptor, 0)  # not mmap.mmap: that keeps a descriptor
            before = self.node.ask("state")["version"]
            ctypes.memmove(address, b"hello %d" % flags, 8)
            os.close(descriptor)
            self.assertEqual(self.node.ask("state")["version"], before + 1)
            libc.munmap(ctypes.c_void_p(address), 4096)


FILES = ("a", "b", "c", "D/x", "E/y")
DIRECTORIES = ("D", "E", "F")
ABSENT = ("n", "D/n", "D/y", "E/n", "E/x", "F/n", "F/x", "G/n", "G")

REQUESTS: tuple[Step, ...] = (
    *(
        ("rename", source, target)
        for source, target in product(("a", "D/x", "F"), ("b", "n", "F/n", "D/n", "E/y"))
        if (source, target) != ("F", "F/n")
    ),
    *product(("unlink", "write", "grow", "truncate", "utime", "append", "otrunc"), ("a", "D/x")),
    *product(("create", "exclusive", "mkdir"), ("n", "D/n", "F/n")),
    ("rmdir", "F"),
    ("utime", "F"),
    ("otrunc", "n"),
)

CHANGES: tuple[tuple[Step, ...], ...] = (
    *((("rename", source, target),) for source, target in (
        ("b", "a"), ("a", "b"), ("a", "n"), ("c", "n"), ("D/x", "a"), ("a", "D/x"), ("a", "D/n"), ("b", "D/n"),
        ("c", "F/n"), ("c", "D/x"), ("F", "G"), ("E/y", "D/x"), ("E/y", "n"),
    )),
    *(((kind, name),) for kind, name in (
        ("delete", "a"), ("delete", "F"), ("mkdir", "n"), ("create", "D/n"), ("mkdir", "D/n"), ("create", "F/n"),
    )),
    (("delete", "a"), ("create", "a"), ("write", "a", "rem")),
    (("delete", "a"), ("mkdir", "a")),
    (("create", "n"), ("write", "n", "rem")),
    (("delete", "F"), ("mkdir", "F")),
    (("rename", "F", "G"), ("mkdir", "F")),
    (("delete", "F"), ("create", "F")),
    (("write", "a", "a remote write, longer"),),
    (("write", "D/x", "R"),),
    (("delete", "D/x"), ("delete", "D"), ("rename", "F", "D")),
    (("delete", "D/x"), ("delete", "D"), ("mkdir", "D"), ("create", "D/x"), ("write", "D/x", "newx")),
    (("rename", "a", "n"), ("rename", "b", "a"), ("rename", "n", "b")),
)  # fmt: skip


@needs_fuse()
class PairTests(CrossingCase):
    """One request and what another node does meanwhile, many pairs: in the end programs see what is in the tree."""

    def prepare(self) -> dict[str, int]:
        """Make the files; have the kernel know everything there, and what there is not.

        @return: descriptors, by name.
        """
        for directory in DIRECTORIES:
            os.mkdir(self.in_place(directory))
        held = {}
        for name in FILES:
            put(self.in_place(name), b"content of " + name.encode())
            held[name] = os.open(self.in_place(name), os.O_RDWR)
            os.pread(held[name], 100, 0)
        for directory in ("", *DIRECTORIES):
            os.listdir(self.in_place(directory))
        for name in ABSENT:
            self.assertFalse(os.path.exists(self.in_place(name)))
        return held

    def request(self, held: dict[str, int], kind: str, name: str, *target: str) -> None:
        path = self.in_place(name)
        opened = {
            "append": os.O_WRONLY | os.O_APPEND,
            "otrunc": os.O_WRONLY | os.O_TRUNC | os.O_CREAT,
            "create": os.O_CREAT,
            "exclusive": os.O_CREAT | os.O_EXCL,
        }
        try:
            if kind in opened:
                descriptor = os.open(path, opened[kind], 0o640)
                try:
                    if opened[kind] & os.O_WRONLY:
                        os.write(descriptor, b"LOCAL")
                finally:
                    os.close(descriptor)
            elif kind == "rename":
                os.rename(path, self.in_place(*target))
            elif kind in ("write", "grow"):
                os.pwrite(held[name], b"LOCAL", 0 if kind == "write" else 30)
            elif kind == "truncate":
                os.ftruncate(held[name], 4)
            elif kind == "utime":
                os.utime(path, (9, 9))
            else:
                getattr(os, kind)(path)
        except OSError:
            pass  # it came too late

    def stored(self) -> dict[str, Any]:
        """What is in the tree, by path: content and mtime of a file, C{None} for a directory."""
        rows = {row[0]: row for row in self.node.ask("state")["entries"]}
        found = {}
        for inode, row in rows.items():
            names: list[str] = []
            while inode:
                names.insert(0, rows[inode][3])
                inode = rows[inode][1]
            path = "/".join(names)
            if path.startswith(f"{self.tree_path}/"):
                relative = path.removeprefix(f"{self.tree_path}/")
                found[relative] = None if row[2] == 4 else (row[4].encode("latin-1"), row[5])
        return found

    def seen(self) -> dict[str, Any]:
        """What programs see, by listings and by name."""
        found: dict[str, Any] = {}
        for directory, directories, files in os.walk(self.place):
            for name in directories:
                found[os.path.relpath(f"{directory}/{name}", self.place)] = None
            for name in files:
                path = f"{directory}/{name}"
                try:
                    status, content = os.stat(path), get(path)
                    seen: Any = (content, int(status.st_mtime), *((status.st_size,) * (status.st_size != len(content))))
                except OSError as failure:
                    seen = failure
                found[os.path.relpath(path, self.place)] = seen
        for name in (*FILES, *DIRECTORIES, *ABSENT):
            if os.path.lexists(self.in_place(name)) != (name in found):
                found[name] = "by its name it is not as it is listed"
        return found

    def pairs(self, order: str) -> None:
        chosen = list(product(REQUESTS, CHANGES))
        if SAMPLE != "all":
            chosen = random.Random(int(time.time()) // 3600).sample(chosen, int(SAMPLE))
        place, tree_path = self.place, self.tree_path
        for number, (request, changes) in enumerate(chosen):
            self.place, self.tree_path = f"{place}/{number}", f"{tree_path}/{number}"
            self.watch()
            os.mkdir(self.place)
            held = self.prepare()
            self.cross(order, partial(self.request, held, *request), *changes)
            os.utime(place, (5, 5))  # a request that the kernel has refused brings no change: then this one does
            self.told()
            self.assertEqual(self.seen(), self.stored(), f"{request} {order} {changes}")
            for descriptor in held.values():
                os.close(descriptor)
        self.place = place

    def test_delivered_first(self) -> None:
        self.pairs("first")

    def test_published_and_not_told(self) -> None:
        self.pairs("held")
