"""C{twistd pvecfs}: the options, and the composition of the services."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from twisted.application.service import IService
from twisted.python import usage

from pvecfs import __version__
from pvecfs.tree.admission import Limits
from pvecfs.tree.locks import LIFETIME

MIB = 1024 * 1024
DEFAULT_LIMITS = Limits()


def at_least(minimum: int) -> Callable[[str], int]:
    """A conversion for an option: a decimal number that is not below C{minimum}."""

    def convert(text: str) -> int:
        number = int(text)
        if number < minimum:
            raise ValueError(f"{number} is less than {minimum}")
        return number

    return convert


def seconds(text: str) -> float:
    """A conversion for an option: a time that is longer than 0."""
    number = float(text)
    if not 0 < number < float("inf"):
        raise ValueError(f"{text} is not a time")
    return number


def path(text: str) -> str:
    """A conversion for an option: a path, made absolute, since a daemon changes its directory."""
    if not text or "\0" in text:
        raise ValueError("a path cannot be empty")
    return str(Path(text).absolute())


def durability(text: str) -> str:
    """A conversion for an option: what an acknowledged change survives."""
    if text not in ("process", "power"):
        raise ValueError(f"{text!r} is neither 'process' nor 'power'")
    return text


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
    ]
    optParameters: ClassVar = [
        ["mountpoint", None, "/etc/pve", "Where to mount.", path],
        ["state-dir", None, "/var/lib/pve-cluster", "Holds config.db and its lock file.", path],
        ["run-dir", None, "/run/pve-cluster", "Holds the restart flag.", path],
        ["corosync-conf", None, "/etc/corosync/corosync.conf", "The host's copy of corosync.conf.", path],
        ["node-name", None, None, "Name of this node. [default: the host name up to its first dot]"],
        ["node-ip", None, None, "Address of this node. [default: the first of the host name that is not loopback]"],
        ["group", None, "www-data", "Group of all files, and of IPC clients that may only read."],
        ["ipc-name", None, "pve2", "Name of the libqb service."],
        ["rrd-dir", None, "/var/lib/rrdcached/db", "Where the round-robin databases are.", path],
        ["rrdcached-socket", None, "/run/rrdcached.sock", "Socket of rrdcached.", path],
        ["max-size", None, DEFAULT_LIMITS.max_bytes // MIB, "Limit of the filesystem's data, MiB.", at_least(1)],
        ["max-entries", None, DEFAULT_LIMITS.max_entries, "Limit of the number of files and directories.", at_least(1)],
        ["verify-interval", None, 3600.0, "Seconds between two verifications of the cluster's trees.", seconds],
        ["operation-timeout", None, 60.0, "Longest wait of one change for the cluster, seconds.", seconds],
        ["lock-timeout", None, LIFETIME, "Age at which a lock may be taken away, seconds (for tests).", seconds],
        ["durability", None, "process", "What an acknowledged change survives: 'process' or 'power' loss.", durability],
    ]

    def opt_version(self) -> None:
        """Show the version of pvecfs and exit."""
        print(f"pvecfs {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *arguments: str) -> None:
        if arguments:
            raise usage.UsageError(f"unexpected argument {arguments[0]!r}")

    def postOptions(self) -> None:
        name = self["node-name"]
        if name is not None and (not name or "/" in name or "\0" in name or name in (".", "..") or len(name) > 255):
            raise usage.UsageError(f"--node-name {name!r} is not a name")
        if not self["ipc-name"] or "/" in self["ipc-name"]:
            raise usage.UsageError(f"--ipc-name {self['ipc-name']!r} is not a name")


def makeService(options: Options) -> IService:
    """The node as a service: it acquires nothing before it is started."""
    from twisted.internet import reactor

    from pvecfs.node.daemon import NodeService

    return NodeService(reactor, options)
