"""The place of the mount: making it, clearing it of a crashed daemon's remains, unmounting.

Nothing here asks the file system that is mounted there, but for L{clear}, before ours exists.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from errno import EBUSY, EINVAL, ELOOP, ENOTCONN, EPERM
from pathlib import Path
from threading import Thread
from typing import NamedTuple

from pvecfs.fuse import lowlevel

MOUNTINFO = Path("/proc/self/mountinfo")
CONNECTIONS = Path("/sys/fs/fuse/connections")

_PROBE_SECONDS = 2.0
_MAX_STALE = 8

_MOST_LINKS = 40
"""As many links Linux follows in one path (path_resolution(7))."""


class MountFailed(Exception):
    """The file system could not be mounted: the message names the mountpoint and says why."""

    def __init__(self, mountpoint: str, why: str) -> None:
        super().__init__(f"cannot mount at {mountpoint}: {why}")


class Mounted(NamedTuple):
    """What is mounted at a place.

    @ivar connection: number of the FUSE connection in /sys/fs/fuse/connections.
    @ivar kind: type of the file system.
    @ivar source: its name.
    """

    connection: int
    kind: str
    source: str

    @property
    def is_fuse(self) -> bool:
        return self.kind == "fuse" or self.kind.startswith("fuse.")


def find_mounted(mountpoint: str) -> Mounted | None:
    """What is mounted at C{mountpoint} (an absolute path without links), the topmost."""
    found = None
    for line in MOUNTINFO.read_bytes().splitlines():
        fields = line.split(b" ")
        if os.fsdecode(_unescaped(fields[4])) == mountpoint:
            rest = fields[fields.index(b"-") + 1 :]
            minor = int(fields[2].partition(b":")[2])
            found = Mounted(minor, os.fsdecode(rest[0]), os.fsdecode(_unescaped(rest[1])))
    return found


def _unescaped(text: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), text)


def resolve(mountpoint: str) -> str:
    """The absolute path without links, as the kernel shows it.

    Link by link with readlink, which goes no further than to the place itself: the file system that is mounted there
    is not asked, and may be dead.

    @raise MountFailed: the links lead nowhere.
    """
    found, links = "/", 0
    ahead = os.path.join(os.getcwd(), mountpoint).split("/")[::-1]
    while ahead:
        name = ahead.pop()
        if name == "..":
            found = os.path.dirname(found)
        elif name not in ("", "."):
            place = os.path.join(found, name)
            try:
                target = os.readlink(place)
            except OSError:  # no link, or not there, or not to be looked at: whoever uses the path is told
                found = place
                continue
            links += 1
            if links > _MOST_LINKS:
                raise MountFailed(mountpoint, os.strerror(ELOOP))
            if target.startswith("/"):
                found = "/"
            ahead += target.split("/")[::-1]
    return found


def prepare(mountpoint: str) -> None:
    """See to it that C{mountpoint} is a directory where we can mount.

    @raise MountFailed: it cannot be made so.
    """
    clear(mountpoint)
    try:
        os.makedirs(mountpoint, 0o750, exist_ok=True)
    except FileExistsError:
        raise MountFailed(mountpoint, "it is not a directory") from None
    except OSError as failure:
        raise MountFailed(mountpoint, f"{failure.filename or mountpoint}: {failure.strerror}") from None
    if not os.path.exists("/dev/fuse"):
        raise MountFailed(mountpoint, "there is no /dev/fuse (is the kernel module fuse loaded?)")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountFailed(mountpoint, "no permission for /dev/fuse")
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise MountFailed(mountpoint, "fusermount3 is not installed (package fuse3); only root can mount without it")


def clear(mountpoint: str) -> None:
    """Unmount what a crashed daemon has left at C{mountpoint}.

    @raise MountFailed: a living file system is mounted there, or the dead one cannot be unmounted.
    """
    for _ in range(_MAX_STALE):
        mounted = find_mounted(mountpoint)
        if mounted is None or not mounted.is_fuse:
            return
        state = _probe(mountpoint)
        if state is None:
            raise MountFailed(mountpoint, f"{mounted.source} is mounted there and does not answer; unmount it first")
        if state != ENOTCONN:
            raise MountFailed(mountpoint, f"{mounted.source} is mounted there already")
        try:
            detach(mountpoint)
        except OSError as failure:
            raise MountFailed(mountpoint, f"a stale mount is there: {failure.strerror}") from None
    raise MountFailed(mountpoint, "stale mounts are there, and do not go away")


def _probe(mountpoint: str) -> int | None:
    """The errno of a statfs, 0 for success, or C{None} without an answer in time. In a thread, since it may hang.

    A stat would not do: the kernel may still know the root's attributes, and answer for a dead daemon.
    """
    results: list[int] = []

    def probe() -> None:
        try:
            os.statvfs(mountpoint)
            results.append(0)
        except OSError as failure:
            results.append(failure.errno or 0)

    thread = Thread(target=probe, name="stale mount probe", daemon=True)
    thread.start()
    thread.join(_PROBE_SECONDS)
    return results[0] if results else None


def unmount(mountpoint: str) -> None:
    """Unmount, if nobody uses it.

    @raise OSError: EBUSY and others.
    """
    if os.geteuid() == 0:
        lowlevel.umount2(os.fsencode(mountpoint), lowlevel.UMOUNT_NOFOLLOW)
    else:
        _fusermount(mountpoint, "-u")


def detach(mountpoint: str) -> None:
    """End the connection, whoever uses it, and take the mount out of sight.

    @raise OSError: it could not be.
    """
    if os.geteuid() == 0:
        # In this order inside: a lazy unmount alone leaves the connection to those who hold files.
        lowlevel.umount2(os.fsencode(mountpoint), lowlevel.MNT_FORCE | lowlevel.MNT_DETACH | lowlevel.UMOUNT_NOFOLLOW)
    else:
        _fusermount(mountpoint, "-uz")


def abort(connection: int) -> bool:
    """End a FUSE connection: everyone who waits gets ECONNABORTED, everyone who comes ENOTCONN.

    @return: whether that was possible.
    """
    try:
        (CONNECTIONS / str(connection) / "abort").write_bytes(b"1")
    except OSError:
        return False
    return True


def _fusermount(mountpoint: str, option: str) -> None:
    try:
        done = subprocess.run(
            ["fusermount3", "-q", option, "--", mountpoint],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=2.0,
            check=False,
        )
    except FileNotFoundError:
        raise OSError(EPERM, "fusermount3 is not installed") from None
    except subprocess.TimeoutExpired:
        raise OSError(EBUSY, "fusermount3 does not come back") from None
    if done.returncode != 0:
        # It says no more than that, but what is not mounted cannot be busy.
        raise OSError(EBUSY if find_mounted(mountpoint) else EINVAL, "fusermount3 could not unmount")
