"""C{twistd pvecfs}: the options, and the composition of the services."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

from twisted.application.service import IService
from twisted.python import usage

from pvecfs import __version__
from pvecfs.tree.admission import MAX_NAME_BYTES, Limits
from pvecfs.tree.locks import LIFETIME

MIB = 1024 * 1024
DEFAULT_LIMITS = Limits()

_OF_A_CONVERSION = "Parameter type enforcement failed: "
"""What Twisted puts before the message of a conversion, which says all there is to say."""

MAX_IPC_NAME_BYTES = 107
"""libqb makes the address of a local socket of it, of which there is no more (unix(7))."""


def count(option: str) -> Callable[[str], int]:
    """A conversion for C{option}: a whole number from 1."""

    def convert(text: str) -> int:
        if not text.isascii() or not text.isdigit() or int(text) < 1:
            raise ValueError(f"--{option}: {text!r} is not a whole number from 1")
        return int(text)

    return convert


def seconds(option: str) -> Callable[[str], float]:
    """A conversion for C{option}: a time that is longer than 0."""

    def convert(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            number = 0.0
        if not 0 < number < float("inf"):
            raise ValueError(f"--{option}: {text!r} is not a number of seconds")
        return number

    return convert


def path(option: str) -> Callable[[str], str]:
    """A conversion for C{option}: a path, made absolute, since a daemon changes its directory."""

    def convert(text: str) -> str:
        if not text or "\0" in text:
            raise ValueError(f"--{option}: a path cannot be empty")
        return str(Path(text).absolute())

    return convert


def one_of(option: str, *words: str) -> Callable[[str], str]:
    """A conversion for C{option}: one of C{words}."""

    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(f"--{option}: {text!r} is none of {', '.join(words)}")
        return text

    return convert


def _is_name(text: str) -> bool:
    """Whether a directory could have that name."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        return False
    return 0 < size <= MAX_NAME_BYTES and "/" not in text and "\0" not in text and text not in (".", "..")


class Options(usage.Options):
    """Options of C{twistd pvecfs}. Their names are part of the contract: scripts use them."""

    synopsis = "[options]"
    longdesc = (
        "Mounts the cluster's configuration filesystem, kept in an SQLite database and, in a cluster, "
        "replicated over corosync. Without root it runs in local mode (--local), with paths of your own."
    )
    optFlags: ClassVar = [
        ["local", "l", "Force local mode: ignore corosync.conf, assume quorum."],
        ["debug", "d", "Start with verbose logging."],
        ["no-ipc", None, "Offer no libqb service."],
        ["no-realtime", None, "In a cluster, leave all threads at normal priority."],
        ["no-cpu-latency", None, "Let idle processors sleep as they like while changes come."],
        ["no-cpu-affinity", None, "In local mode, let threads move between processors while changes come."],
    ]
    optParameters: ClassVar = [
        ["mountpoint", None, "/etc/pve", "Where to mount.", path("mountpoint")],
        ["state-dir", None, "/var/lib/pve-cluster", "Holds config.db and its lock file.", path("state-dir")],
        ["run-dir", None, "/run/pve-cluster", "Holds the restart flag and the health socket.", path("run-dir")],
        ["pid-file", None, None, "Holds the process id, while the database is ours. [default: none]", path("pid-file")],
        [
            "corosync-conf",
            None,
            "/etc/corosync/corosync.conf",
            "The host's copy of corosync.conf.",
            path("corosync-conf"),
        ],
        ["node-name", None, None, "Name of this node. [default: the host name up to its first dot]"],
        ["node-ip", None, None, "Address of this node. [default: the first of the node name that is not loopback]"],
        ["group", None, "www-data", "Group of all files, and of IPC clients that may only read."],
        ["ipc-name", None, "pve2", "Name of the libqb service."],
        ["rrd-dir", None, "/var/lib/rrdcached/db", "Where the round-robin databases are.", path("rrd-dir")],
        ["rrdcached-socket", None, "/run/rrdcached.sock", "Socket of rrdcached.", path("rrdcached-socket")],
        ["max-size", None, DEFAULT_LIMITS.max_bytes // MIB, "Limit of the filesystem's data, MiB.", count("max-size")],
        [
            "max-entries",
            None,
            DEFAULT_LIMITS.max_entries,
            "Limit of the number of files and directories.",
            count("max-entries"),
        ],
        [
            "verify-interval",
            None,
            3600.0,
            "Seconds between two verifications of the cluster's trees.",
            seconds("verify-interval"),
        ],
        [
            "operation-timeout",
            None,
            60.0,
            "Longest wait of one change for the cluster, seconds.",
            seconds("operation-timeout"),
        ],
        [
            "lock-timeout",
            None,
            LIFETIME,
            "Age at which a lock may be taken away, seconds (for tests).",
            seconds("lock-timeout"),
        ],
        [
            "durability",
            None,
            "process",
            "What an acknowledged change survives: 'process' or 'power' loss.",
            one_of("durability", "process", "power"),
        ],
    ]

    def opt_version(self) -> None:
        """Show the version of pvecfs and exit."""
        print(f"pvecfs {__version__}")
        raise SystemExit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse C{options}. Wrong ones end the program with exit code 1: older versions of twistd exit with 0."""
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]  # Twisted has no annotations there
        except usage.UsageError as error:
            raise SystemExit(f"pvecfs: {str(error).removeprefix(_OF_A_CONVERSION)}") from error

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        for option in "node-name", "ipc-name":
            name = self[option]
            if name is not None and not _is_name(name):
                raise usage.UsageError(f"--{option} {name!r} is not a name")
        if len(os.fsencode(self["ipc-name"])) > MAX_IPC_NAME_BYTES:
            raise usage.UsageError(f"--ipc-name is longer than {MAX_IPC_NAME_BYTES} bytes")
        self._check_places()

    def _check_places(self) -> None:
        """What we use ourselves cannot be in the mount: who waits for an answer cannot give it."""
        from pvecfs.fuse.mountpoint import MountFailed, resolve

        try:
            mountpoint = resolve(self["mountpoint"])
            for option in "state-dir", "run-dir", "rrd-dir", "rrdcached-socket", "corosync-conf", "pid-file":
                if self[option] is None:
                    continue
                # The last two are files, which we replace: what a link of that name leads to is left alone.
                replaced = option in ("corosync-conf", "pid-file")
                place = os.path.dirname(self[option]) if replaced else self[option]
                if Path(resolve(place)).is_relative_to(mountpoint):
                    raise usage.UsageError(f"--{option} {self[option]} is in the mount, {self['mountpoint']}")
            self._check_pid_file()
        except MountFailed as error:
            raise usage.UsageError(str(error)) from error

    def _check_pid_file(self) -> None:
        """It would take the place of what it is called like.

        @raise MountFailed: links lead nowhere.
        """
        from pvecfs.fuse.mountpoint import resolve
        from pvecfs.store.lockfile import DATABASE_NAME, locks_of
        from pvecfs.store.rows import BESIDE

        if self["pid-file"] is None:
            return
        directory, name = os.path.split(self["pid-file"])
        database = os.path.join(resolve(self["state-dir"]), DATABASE_NAME)
        taken = {path + suffix for path in (database, resolve(database)) for suffix in ("", *BESIDE)}
        taken |= {lock.path for lock in locks_of(database)}
        if os.path.join(resolve(directory), name) in taken:
            raise usage.UsageError(f"--pid-file {self['pid-file']} is a file of the database")


def makeService(options: Options) -> IService:
    """The node as a service: it acquires nothing before it is started."""
    from twisted.internet import reactor

    from pvecfs.daemon import NodeService

    return NodeService(reactor, options)
