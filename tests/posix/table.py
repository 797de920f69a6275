"""Every call against every kind of path."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from pathlib import Path

from tests.posix.case import CASES, Act, Outcome, attempt, directory, file, picture

TARGETS: dict[str, str] = {
    "file": "f",
    "empty_directory": "d",
    "full_directory": "full",
    "missing": "missing",
    "below_missing": "missing/x",
    "below_file": "f/x",
    "file_slash": "f/",
    "directory_slash": "d/",
    "missing_slash": "missing/",
    "dot": "d/.",
    "dot_dot": "d/..",
    "many_slashes": ".//d///../f",
    "empty": "",
    "longest_name": "n" * 255,
    "name_too_long": "n" * 256,
    "below_name_too_long": "n" * 256 + "/x",
    "path_too_long": "d/../" * 1000 + "f",
    "odd_name": "a\nb\\c\udcff é",
}


def _open(flags: int) -> Callable[[str], Outcome]:
    def act(path: str) -> Outcome:
        fd = os.open(path, flags, 0o640)
        try:
            return os.fstat(fd).st_size if stat.S_ISREG(os.fstat(fd).st_mode) else "open"
        finally:
            os.close(fd)

    return act


def _stat(look: Callable[[str], os.stat_result]) -> Callable[[str], Outcome]:
    def act(path: str) -> Outcome:
        status = look(path)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 0
        return [oct(status.st_mode), status.st_uid, status.st_gid, size, status.st_nlink]

    return act


def _done(work: Callable[[str], object]) -> Callable[[str], Outcome]:
    def act(path: str) -> Outcome:
        work(path)
        return "done"

    return act


def _bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)


def _chdir(path: str) -> None:
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(path)
    finally:
        os.fchdir(before)
        os.close(before)


CALLS: dict[str, Callable[[str], Outcome]] = {
    "open_read": _open(os.O_RDONLY),
    "open_write": _open(os.O_WRONLY),
    "open_both": _open(os.O_RDWR),
    "open_creat": _open(os.O_WRONLY | os.O_CREAT),
    "open_creat_read": _open(os.O_RDONLY | os.O_CREAT),
    "open_excl": _open(os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "open_trunc": _open(os.O_WRONLY | os.O_TRUNC),
    "open_creat_trunc": _open(os.O_WRONLY | os.O_CREAT | os.O_TRUNC),
    "open_directory": _open(os.O_RDONLY | os.O_DIRECTORY),
    "open_nofollow": _open(os.O_RDONLY | os.O_NOFOLLOW),
    "open_path": _open(os.O_PATH),
    "open_tmpfile": _open(os.O_WRONLY | os.O_TMPFILE),
    "stat": _stat(os.stat),
    "lstat": _stat(os.lstat),
    "access_f": lambda path: os.access(path, os.F_OK),
    "access_r": lambda path: os.access(path, os.R_OK, effective_ids=True),
    "access_w": lambda path: os.access(path, os.W_OK, effective_ids=True),
    "access_x": lambda path: os.access(path, os.X_OK, effective_ids=True),
    "truncate": _done(lambda path: os.truncate(path, 3)),
    "truncate_longer": _done(lambda path: os.truncate(path, 20)),
    "truncate_negative": _done(lambda path: os.truncate(path, -1)),
    "unlink": _done(os.unlink),
    "rmdir": _done(os.rmdir),
    "mkdir": _done(lambda path: os.mkdir(path, 0o755)),
    "mknod_file": _done(lambda path: os.mknod(path, 0o640 | stat.S_IFREG)),
    "mknod_fifo": _done(lambda path: os.mkfifo(path, 0o640)),
    "mknod_device": _done(lambda path: os.mknod(path, 0o640 | stat.S_IFCHR, os.makedev(1, 3))),
    "bind": _done(_bind),
    "symlink": _done(lambda path: os.symlink("f", path)),
    "link_to": _done(lambda path: os.link("f", path)),
    "link_from": _done(lambda path: os.link(path, "linked")),
    "readlink": lambda path: os.readlink(path),
    "rename_from": _done(lambda path: os.rename(path, "renamed")),
    "rename_file_to": _done(lambda path: os.rename("g", path)),
    "rename_directory_to": _done(lambda path: os.rename("e", path)),
    "chmod_same": _done(lambda path: os.chmod(path, 0o640)),
    "chmod_other": _done(lambda path: os.chmod(path, 0o777)),
    "chown_same": _done(lambda path: os.chown(path, 0, 33)),
    "chown_nothing": _done(lambda path: os.chown(path, -1, -1)),
    "chown_other": _done(lambda path: os.chown(path, 1000, -1)),
    "utime": _done(lambda path: os.utime(path, (5, 5))),
    "utime_now": _done(lambda path: os.utime(path)),
    "scandir": lambda path: len(os.listdir(path)),
    "statvfs": lambda path: os.statvfs(path).f_namemax,
    "getxattr": lambda path: os.getxattr(path, "user.x").decode(),
    "setxattr": _done(lambda path: os.setxattr(path, "user.x", b"x")),
    "listxattr": lambda path: len(os.listxattr(path)),
    "chdir": _done(_chdir),
}


def _scene(place: Path) -> None:
    file(place / "f")
    file(place / "g", b"other")
    for name in "d", "e", "full":
        directory(place / name)
    file(place / "full" / "inside")


def _add(name: str, call: Callable[[str], Outcome], target: str) -> None:
    def act(place: Path) -> Act:
        _scene(place)
        if target == TARGETS["longest_name"] or target == TARGETS["odd_name"]:
            file(place / target)
        os.chdir(place)
        yield
        outcome = attempt(lambda: call(target))
        if outcome != "done":
            return outcome
        os.seteuid(0)
        return picture(place)

    act.__name__ = name
    CASES[name] = act


for _call_name, _call in CALLS.items():
    for _target_name, _target in TARGETS.items():
        _add(f"{_call_name}.{_target_name}", _call, _target)
