"""A case: a scene is set as root, then something is done as some user; what it gives is plain data, to be compared."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Generator
from pathlib import Path

Outcome = object
"""JSON: what the case saw, or the name of an errno."""

Act = Generator[None, None, Outcome]
"""Sets the scene, yields once, and then acts as the user; returns the outcome. An OSError is an outcome too."""

CASES: dict[str, Callable[[Path], Act]] = {}
"""By name, in the order of definition. Each is given an empty directory of its own."""

GROUP = 33
"""www-data on Debian; the tests have the mount use it."""

USERS = {"root": (0, 0), "group": (GROUP, GROUP), "other": (65534, 65534)}


def case(act: Callable[[Path], Act]) -> Callable[[Path], Act]:
    """Make a case of a generator function."""
    name = act.__name__
    assert name not in CASES, name
    CASES[name] = act
    return act


def file(path: Path, data: bytes = b"0123456789") -> Path:
    """A file that looks as one on the mount does."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640)
    try:
        os.write(fd, data)
    finally:
        os.close(fd)
    os.chown(path, 0, GROUP)
    os.chmod(path, 0o640)
    return path


def directory(path: Path) -> Path:
    """A directory that looks as one on the mount does."""
    os.mkdir(path, 0o755)
    os.chown(path, 0, GROUP)
    return path


def attempt(work: Callable[[], Outcome]) -> Outcome:
    """The result of C{work}, or its errno's name."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))


def kind(path: str | Path) -> str:
    mode = os.lstat(path).st_mode
    return {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "link", stat.S_IFIFO: "fifo"}.get(
        stat.S_IFMT(mode), oct(stat.S_IFMT(mode))
    )


def picture(place: Path) -> dict[str, object]:
    """What is below C{place}: files with their content (long ones: their size), directories with what is in them."""
    found: dict[str, object] = {}
    for entry in sorted(os.scandir(place), key=lambda entry: entry.name):
        name = entry.name if len(entry.name) < 40 else f"({len(entry.name)} characters)"
        if entry.is_dir(follow_symlinks=False):
            found[name] = picture(Path(entry.path))
        elif entry.is_file(follow_symlinks=False):
            data = Path(entry.path).read_bytes()
            found[name] = data.decode("latin-1") if len(data) < 100 else len(data)
        else:
            found[name] = kind(entry.path)
    return found


def run(name: str, place: Path, user: str) -> Outcome:
    """Play the case C{name} in the new directory C{place}."""
    directory(place)
    act = CASES[name](place)
    uid, gid = USERS[user]
    try:
        next(act)
        os.setegid(gid)
        os.seteuid(uid)
        try:
            next(act)
        except StopIteration as stop:
            return stop.value
        finally:
            os.seteuid(0)
            os.setegid(0)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error.errno))
    raise AssertionError(f"{name} yields twice")
