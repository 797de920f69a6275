"""What calls do, one by one and together."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.posix.case import Act, Outcome, attempt, case, directory, file, kind, picture

_libc = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


@contextmanager
def opened(path: Path, flags: int) -> Iterator[int]:
    fd = os.open(path, flags, 0o640)
    try:
        yield fd
    finally:
        os.close(fd)


def renameat2(old: Path, new: Path, flags: int) -> Outcome:
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), flags) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return "done"


def in_child(work: Callable[[], Outcome]) -> Outcome:
    """C{work}'s outcome in a forked process, where it has no locks and other descriptors."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, repr(attempt(work)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        text = answer.read().decode()
    os.waitpid(child, 0)
    return text


# Reading and writing


@case
def read_in_pieces(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as fd:
        pieces = [os.read(fd, n).decode() for n in (3, 0, 4, 100, 100)]
        return [pieces, os.pread(fd, 3, 8).decode(), os.pread(fd, 3, 100).decode(), os.lseek(fd, 0, os.SEEK_CUR)]


@case
def seek(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as fd:
        return [
            os.lseek(fd, 4, os.SEEK_SET),
            os.lseek(fd, 2, os.SEEK_CUR),
            os.lseek(fd, -1, os.SEEK_END),
            os.lseek(fd, 100, os.SEEK_END),
            attempt(lambda: os.lseek(fd, -1, os.SEEK_SET)),
            attempt(lambda: os.lseek(fd, 0, 99)),
            attempt(lambda: os.lseek(fd, 0, os.SEEK_DATA)),
            attempt(lambda: os.lseek(fd, 0, os.SEEK_HOLE)),
            attempt(lambda: os.lseek(fd, 10, os.SEEK_DATA)),
        ]


@case
def write_beyond_the_end(place: Path) -> Act:
    path = file(place / "f", b"ab")
    yield
    with opened(path, os.O_RDWR) as fd:
        return [os.pwrite(fd, b"z", 10), os.fstat(fd).st_size, os.pread(fd, 100, 0).decode("latin-1")]


@case
def write_in_the_middle(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        os.lseek(fd, 3, os.SEEK_SET)
        return [os.write(fd, b"XY"), os.write(fd, b""), os.lseek(fd, 0, os.SEEK_CUR), os.pread(fd, 99, 0).decode()]


@case
def vectors(place: Path) -> Act:
    path = file(place / "f", b"")
    yield
    with opened(path, os.O_RDWR) as fd:
        written = os.writev(fd, [b"ab", b"", b"cde"]), os.pwritev(fd, [b"1", b"2"], 1)
        buffers = [bytearray(2), bytearray(9)]
        return [*written, os.preadv(fd, buffers, 0), [b.decode("latin-1") for b in buffers]]


@case
def wrong_descriptors(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as reading, opened(path, os.O_WRONLY) as writing, opened(path, os.O_PATH) as bare:
        return [
            attempt(lambda: os.write(reading, b"x")),
            attempt(lambda: os.ftruncate(reading, 0)),
            attempt(lambda: os.read(writing, 1)),
            attempt(lambda: os.pread(reading, 1, -1)),
            attempt(lambda: os.pwrite(writing, b"x", -1)),
            attempt(lambda: os.read(bare, 1)),
            attempt(lambda: os.fstat(bare).st_size),
        ]


@case
def read_a_directory(place: Path) -> Act:
    yield
    with opened(place, os.O_RDONLY) as fd:
        return [attempt(lambda: os.read(fd, 1)), attempt(lambda: os.ftruncate(fd, 0)), attempt(lambda: os.fsync(fd))]


@case
def append(place: Path) -> Act:
    path = file(place / "f", b"a")
    yield
    with opened(path, os.O_RDWR | os.O_APPEND) as first, opened(path, os.O_RDWR | os.O_APPEND) as second:
        for number in range(10):
            os.write((first, second)[number % 2], b"%d" % number)
        os.lseek(first, 0, os.SEEK_SET)
        os.write(first, b"end")
        return [os.pread(first, 100, 0).decode(), os.lseek(first, 0, os.SEEK_CUR)]


@case
def append_by_processes(place: Path) -> Act:
    path = file(place / "f", b"")
    yield
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            try:
                with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                    for _ in range(25):
                        os.write(fd, b"%d" % number * 100 + b"\n")
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    lines = path.read_bytes().split(b"\n")
    return [len(lines), sorted({line.decode() for line in lines})]


@case
def two_descriptors(place: Path) -> Act:
    path = file(place / "f", b"")
    yield
    with opened(path, os.O_WRONLY) as writing, opened(path, os.O_RDONLY) as reading:
        seen = []
        for number in range(5):
            os.write(writing, b"%d" % number)
            seen.append(os.read(reading, 10).decode())
        return [seen, os.stat(path).st_size]


@case
def large_file(place: Path) -> Act:
    path = file(place / "f", b"")
    data = bytes(range(256)) * 4096
    yield
    with opened(path, os.O_RDWR) as fd:
        return [os.write(fd, data), os.fstat(fd).st_size, os.pread(fd, len(data) + 1, 0) == data]


@case
def too_large(place: Path) -> Act:
    path = file(place / "f", b"")
    yield
    with opened(path, os.O_RDWR) as fd:
        return [
            attempt(lambda: os.pwrite(fd, b"x", 1024 * 1024)),
            attempt(lambda: os.ftruncate(fd, 1024 * 1024 + 1)),
            attempt(lambda: os.truncate(path, 2**40)),
        ]


@case
def truncation(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        seen = []
        for length in 4, 4, 0, 3, 8:
            os.ftruncate(fd, length)
            if length == 3:
                os.pwrite(fd, b"x", 0)
            seen.append(os.pread(fd, 99, 0).decode("latin-1"))
        return [seen, attempt(lambda: os.ftruncate(fd, -1)), os.stat(path).st_size]


@case
def synchronise(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd, opened(place, os.O_RDONLY) as parent:
        os.write(fd, b"x")
        return [attempt(lambda: os.fsync(fd)), attempt(lambda: os.fdatasync(fd)), attempt(lambda: os.fsync(parent))]


@case
def synchronous_and_direct(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR | os.O_SYNC) as fd, opened(path, os.O_RDWR | os.O_DSYNC | os.O_NOATIME) as second:
        return [os.write(fd, b"ab"), os.write(second, b"c"), path.read_bytes().decode()]


@case
def truncating_open(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as before:
        with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
            sizes = [os.fstat(fd).st_size, os.fstat(before).st_size]
            os.write(fd, b"new")
        return [sizes, os.read(before, 100).decode()]


@case
def reservation(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        return [attempt(lambda: os.posix_fallocate(fd, 0, 20)), os.fstat(fd).st_size]


@case
def punch_a_hole(place: Path) -> Act:
    path = file(place / "f", b"x" * 8192)
    yield
    with opened(path, os.O_RDWR) as fd:
        done = _libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096))
        return [done, path.read_bytes().count(b"x")]


@case
def copies_by_the_kernel(place: Path) -> Act:
    path, to, third = file(place / "f"), file(place / "g", b""), file(place / "h", b"")
    yield
    with opened(path, os.O_RDONLY) as source, opened(to, os.O_RDWR) as target, opened(third, os.O_RDWR) as other:
        return [
            attempt(lambda: os.copy_file_range(source, target, 6, 2, 1)),
            attempt(lambda: os.sendfile(other, source, 3, 5)),
            to.read_bytes().decode("latin-1"),
            third.read_bytes().decode(),
        ]


@case
def mapping(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        with mmap.mmap(fd, 10, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as private:
            private[0:1] = b"p"
        with mmap.mmap(fd, 10, mmap.MAP_SHARED, mmap.PROT_READ) as shared:
            os.pwrite(fd, b"W", 1)
            seen = shared[:].decode()
        return [seen, path.read_bytes().decode()]


@case
def written_mapping(place: Path) -> Act:
    path = file(place / "f")
    yield

    def write() -> Outcome:
        with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 10, mmap.MAP_SHARED) as shared:
            shared[2:4] = b"MM"
            shared.flush()
        return path.read_bytes().decode()

    return attempt(write)


# Names


@case
def deleted_but_open(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as fd:
        os.read(fd, 4)
        os.unlink(path)
        return [attempt(lambda: os.read(fd, 100).decode()), attempt(lambda: os.fstat(fd).st_nlink), picture(place)]


@case
def written_after_its_deletion(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        os.unlink(path)
        file(path, b"another")
        return [attempt(lambda: os.write(fd, b"x")), attempt(lambda: os.ftruncate(fd, 0)), picture(place)]


@case
def replaced_but_open(place: Path) -> Act:
    path, new = file(place / "f"), file(place / "new", b"new")
    yield
    with opened(path, os.O_RDONLY) as fd:
        os.rename(new, path)
        return [os.read(fd, 100).decode(), path.read_bytes().decode()]


@case
def renamed_but_open(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        os.rename(path, place / "g")
        os.write(fd, b"moved")
        return picture(place)


@case
def renames(place: Path) -> Act:
    for name in "d1", "d2", "full":
        directory(place / name)
    for name in "f1", "f2", "full/x":
        file(place / name, name.encode())
    yield

    def rename(old: str, new: str) -> Outcome:
        return attempt(lambda: os.rename(place / old, place / new))

    return [
        rename("f1", "f1"),
        rename("f1", "f2"),
        rename("d1", "d2"),
        rename("f2", "d2"),
        rename("d2", "f2"),
        rename("d2", "full"),
        rename("d2", "d2/inside"),
        rename("f2", "d2/f"),
        rename("d2/f", "full/x"),
        picture(place),
    ]


@case
def rename_of_a_full_directory(place: Path) -> Act:
    file(directory(place / "full") / "x")
    directory(place / "empty")
    yield
    moved = attempt(lambda: os.rename(place / "full", place / "moved"))
    return [moved, attempt(lambda: os.rename(place / "moved", place / "empty")), picture(place)]


@case
def rename_into_itself(place: Path) -> Act:
    directory(directory(place / "a") / "b")
    yield
    down = attempt(lambda: os.rename(place / "a", place / "a/b/c"))
    return [down, attempt(lambda: os.rename(place / "a/b", place / "a"))]


@case
def rename_without_replacing(place: Path) -> Act:
    a, b = file(place / "a", b"a"), file(place / "b", b"b")
    yield
    return [
        attempt(lambda: renameat2(a, b, RENAME_NOREPLACE)),
        attempt(lambda: renameat2(a, place / "c", RENAME_NOREPLACE)),
        picture(place),
    ]


@case
def rename_exchanging(place: Path) -> Act:
    a, b = file(place / "a", b"a"), file(place / "b", b"b")
    yield
    return [attempt(lambda: renameat2(a, b, RENAME_EXCHANGE)), picture(place)]


@case
def rename_keeps_the_inode(place: Path) -> Act:
    path = file(place / "f")
    yield
    before = os.stat(path)
    os.rename(path, place / "g")
    return os.stat(place / "g").st_ino == before.st_ino


@case
def inodes_are_unique(place: Path) -> Act:
    yield
    for number in range(50):
        if number % 2:
            (place / f"d{number}").mkdir()
        else:
            (place / f"f{number}").touch()
    with os.scandir(place) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    return [len(set(listed.values())), all(os.stat(place / name).st_ino == inode for name, inode in listed.items())]


@case
def listing(place: Path) -> Act:
    for number in range(1000):
        file(place / f"f{number:04}", b"")
    yield
    with os.scandir(place) as entries:
        names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    return [len(names), len(set(names)), names[0], names[-1]]


@case
def listing_has_dots(place: Path) -> Act:
    directory(place / "d")
    yield
    done = subprocess.run(["ls", "-aU", str(place)], capture_output=True, timeout=20, check=True)
    return sorted(done.stdout.decode().split())


@case
def listing_while_deleting(place: Path) -> Act:
    for number in range(300):
        file(place / f"f{number}", b"")
    yield
    seen = []
    with os.scandir(place) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.path)
    return [len(seen) == len(set(seen)), os.listdir(place)]


@case
def listing_is_fresh(place: Path) -> Act:
    yield
    seen = []
    with opened(place, os.O_RDONLY) as fd:
        for name in "a", "b":
            (place / name).touch()
            seen.append(sorted(os.listdir(place)))
            seen.append(sorted(os.listdir(fd)))
    os.unlink(place / "a")
    return [seen, os.listdir(place)]


@case
def seek_in_a_directory(place: Path) -> Act:
    for number in range(40):
        file(place / f"f{number}", b"")
    yield
    with opened(place, os.O_RDONLY) as fd:
        buffer = ctypes.create_string_buffer(512)

        def entries() -> list[tuple[str, int]]:
            found, at = [], 0
            length = _libc.syscall(217, fd, buffer, 512)  # getdents64 on x86-64
            while at < length:
                _, offset, size, _ = struct.unpack_from("<qqHB", buffer.raw, at)
                found.append((buffer.raw[at + 19 : at + size].split(b"\0")[0].decode(), offset))
                at += size
            return found

        if os.uname().machine != "x86_64":
            return "equal"
        first, second = entries(), entries()
        os.lseek(fd, first[-1][1], os.SEEK_SET)
        again = entries()
        os.lseek(fd, 0, os.SEEK_SET)
        return "equal" if (again, entries()) == (second, first) else [first, second, again]


@case
def working_directory_deleted(place: Path) -> Act:
    gone = directory(place / "gone")
    yield
    before = os.open(".", os.O_PATH)
    try:
        os.chdir(gone)
        os.rmdir(gone)
        return [
            attempt(os.getcwd),
            attempt(lambda: os.listdir(".")),
            attempt(lambda: os.close(os.open("new", os.O_CREAT | os.O_WRONLY, 0o640))),
            attempt(lambda: os.mkdir("new")),
        ]
    finally:
        os.fchdir(before)
        os.close(before)


@case
def unlink_directory_and_rmdir_file(place: Path) -> Act:
    file(place / "f")
    directory(place / "d")
    yield
    with opened(place, os.O_RDONLY) as fd:
        return [
            attempt(lambda: os.unlink("d", dir_fd=fd)),
            attempt(lambda: os.rmdir("f", dir_fd=fd)),
            attempt(lambda: os.rmdir("d", dir_fd=fd)),
            attempt(lambda: os.unlink("f", dir_fd=fd)),
            picture(place),
        ]


@case
def relative_to_descriptors(place: Path) -> Act:
    directory(place / "d")
    yield
    with opened(place / "d", os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.mkdir("sub", dir_fd=fd)
        os.close(os.open("sub/f", os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=fd))
        os.rename("sub/f", "f", src_dir_fd=fd, dst_dir_fd=fd)
        return [os.stat("f", dir_fd=fd).st_size, os.access("sub", os.F_OK, dir_fd=fd), picture(place)]


@case
def deep(place: Path) -> Act:
    yield
    path = place
    for number in range(60):
        path = path / f"directory{number:02}"
        os.mkdir(path)
    (path / "f").write_text("deep")
    (path / "f").unlink()
    while path != place:
        os.rmdir(path)
        path = path.parent
    return picture(place)


@case
def names_of_all_bytes(place: Path) -> Act:
    yield
    base = os.fsencode(place)
    names = [bytes([byte]) for byte in range(1, 256) if byte not in (47, 46)]
    for name in names:
        os.close(os.open(base + b"/" + name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o640))
    listed = sorted(os.listdir(base)) == sorted(names)
    for name in names:
        os.unlink(base + b"/" + name)
    return [listed, os.listdir(base)]


# Attributes and times


@case
def modes_at_creation(place: Path) -> Act:
    yield
    before = os.umask(0)
    try:
        os.close(os.open(place / "f", os.O_CREAT | os.O_WRONLY, 0o666))
        os.mkdir(place / "d", 0o777)
    finally:
        os.umask(before)
    return [oct(os.stat(place / name).st_mode) for name in ("f", "d")]


@case
def changed_modes(place: Path) -> Act:
    path = file(place / "f")
    yield
    done = [attempt(partial(os.chmod, path, mode)) for mode in (0o640, 0o600, 0o4755, 0o444)]
    return [done, oct(os.stat(path).st_mode)]


@case
def links_of_a_directory(place: Path) -> Act:
    directory(place / "a")
    directory(place / "b")
    yield
    return os.stat(place).st_nlink


@case
def hard_links(place: Path) -> Act:
    path = file(place / "f")
    yield
    os.link(path, place / "g")
    return os.stat(path).st_nlink


@case
def times_set(place: Path) -> Act:
    path = file(place / "f")
    yield
    seen: list[Outcome] = []
    for times in ((1, 2), (0, 0), (2**31, 2**31 + 5), (2**32 - 1, 2**32 - 1)):
        os.utime(path, times)
        seen.append(int(os.stat(path).st_mtime))
    return seen


@case
def times_set_out_of_range(place: Path) -> Act:
    path = file(place / "f")
    yield
    os.utime(path, (-5, -5))
    early = os.stat(path).st_mtime
    os.utime(path, (2**32 + 7, 2**32 + 7))
    return [early, os.stat(path).st_mtime]


@case
def times_of_nanoseconds(place: Path) -> Act:
    path = file(place / "f")
    yield
    os.utime(path, ns=(5_000_000_001, 7_123_456_789))
    status = os.stat(path)
    return [status.st_atime_ns, status.st_mtime_ns]


@case
def times_omitted(place: Path) -> Act:
    path = file(place / "f")
    os.utime(path, (1000, 1000))
    yield
    omit = struct.pack("<qqqq", 0, 0x3FFFFFFE, 0, 0x3FFFFFFE)
    now = struct.pack("<qqqq", 0, 0x3FFFFFFF, 0, 0x3FFFFFFF)
    seen: list[Outcome] = []
    for times in omit, now:
        _libc.utimensat(AT_FDCWD, os.fsencode(path), times, 0)
        seen.append(int(os.stat(path).st_mtime) == 1000 or abs(os.stat(path).st_mtime - time.time()) < 60)
        seen.append(int(os.stat(path).st_mtime) == 1000)
    return seen


@case
def a_write_sets_the_time(place: Path) -> Act:
    path = file(place / "f")
    os.utime(path, (1000, 1000))
    yield
    with opened(path, os.O_RDWR) as fd:
        os.read(fd, 5)
        os.fstat(fd)
        kept = int(os.stat(path).st_mtime)
        os.write(fd, b"x")
    return [kept, abs(os.stat(path).st_mtime - time.time()) < 60]


@case
def a_truncate_sets_the_time(place: Path) -> Act:
    path = file(place / "f")
    os.utime(path, (1000, 1000))
    yield
    os.truncate(path, 5)
    return abs(os.stat(path).st_mtime - time.time()) < 60


@case
def a_new_name_sets_the_directorys_time(place: Path) -> Act:
    inside = directory(place / "d")
    os.utime(inside, (1000, 1000))
    yield
    (inside / "f").touch()
    return int(os.stat(inside).st_mtime) != 1000


@case
def size_and_blocks(place: Path) -> Act:
    path = file(place / "f", b"x" * 4096)
    yield
    status = os.stat(path)
    return [status.st_size, status.st_blocks, os.stat(place).st_size >= 0]


@case
def file_system_numbers(place: Path) -> Act:
    path = file(place / "f")
    yield
    before = os.statvfs(place)
    with opened(path, os.O_RDONLY) as fd:
        same = os.fstatvfs(fd).f_blocks == before.f_blocks
    return [same, before.f_bsize, before.f_namemax, before.f_bfree <= before.f_blocks, before.f_ffree <= before.f_files]


@case
def extended_attributes(place: Path) -> Act:
    path = file(place / "f")
    yield
    return [
        attempt(lambda: os.setxattr(path, "user.a", b"1")),
        attempt(lambda: os.getxattr(path, "user.a").decode()),
        attempt(lambda: os.removexattr(path, "user.a")),
        attempt(lambda: os.getxattr(path, "user.none")),
        attempt(lambda: os.getxattr(path, "nonsense")),
    ]


@case
def control_requests(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as fd:
        return [attempt(lambda: fcntl.ioctl(fd, 0x5401, bytes(64))), os.isatty(fd)]


@case
def execution(place: Path) -> Act:
    path = file(place / "script", b"#!/bin/sh\nexit 3\n")
    yield
    return attempt(lambda: subprocess.run([str(path)], timeout=10, check=False).returncode)


# Locks and races


@case
def whole_file_locks(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDONLY) as first, opened(path, os.O_RDONLY) as second:
        fcntl.flock(first, fcntl.LOCK_EX)
        seen = [attempt(lambda: fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB))]
        fcntl.flock(first, fcntl.LOCK_SH)
        seen.append(attempt(lambda: fcntl.flock(second, fcntl.LOCK_SH | fcntl.LOCK_NB)))
        seen.append(attempt(lambda: fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)))
        return seen


@case
def record_locks(place: Path) -> Act:
    path = file(place / "f")
    yield
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB, 5, 0)

        def elsewhere(start: int) -> Outcome:
            with opened(path, os.O_RDWR) as other:
                fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB, 2, start)
            return "locked"

        return [in_child(lambda: elsewhere(0)), in_child(lambda: elsewhere(7))]


@case
def exclusive_creation_by_threads(place: Path) -> Act:
    yield
    outcomes: list[Outcome] = []

    def create() -> None:
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
        outcomes.append(attempt(lambda: os.close(os.open(place / "f", flags, 0o640))))

    threads = [threading.Thread(target=create) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(map(str, outcomes))


@case
def directories_by_threads(place: Path) -> Act:
    yield
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda: outcomes.append(attempt(lambda: os.mkdir(place / "d")))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(map(str, outcomes))


@case
def replacing_is_whole(place: Path) -> Act:
    path = file(place / "f", b"0" * 5000)
    yield
    stop = threading.Event()

    def replace() -> None:
        number = 0
        with suppress(PermissionError):  # the user's rights are not what this is about
            while not stop.is_set():
                number += 1
                (place / "new").write_bytes(b"%d" % (number % 10) * 5000)
                os.rename(place / "new", path)

    writer = threading.Thread(target=replace)
    writer.start()
    try:
        return all(len(data) == 5000 and len(set(data)) == 1 for data in (path.read_bytes() for _ in range(200)))
    finally:
        stop.set()
        writer.join()


@case
def events(place: Path) -> Act:
    """What inotify tells a program that waits for changes."""
    yield
    fd = _libc.inotify_init1(os.O_NONBLOCK)
    try:
        _libc.inotify_add_watch(fd, os.fsencode(place), 0x3CE)  # modify, close after writing, moved, create, delete
        (place / "f").write_text("x")
        os.rename(place / "f", place / "g")
        os.unlink(place / "g")
        seen, data = [], os.read(fd, 10000)
        while data:
            _, mask, _, length = struct.unpack_from("<iIII", data)
            seen.append([hex(mask), data[16 : 16 + length].rstrip(b"\0").decode()])
            data = data[16 + length :]
        return seen
    finally:
        os.close(fd)


@case
def kinds(place: Path) -> Act:
    file(place / "f")
    directory(place / "d")
    yield
    return [kind(place / "f"), kind(place / "d")]
