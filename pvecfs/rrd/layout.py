"""Which round-robin database an RRD update belongs to, and how such a database is made (40-status.md, "RRD").

Pure: no file is looked at. Names come from other nodes, so nothing that could leave the directory passes.
"""

from __future__ import annotations

import re
import time
from dataclasses import dataclass

STEP = 60
"""Seconds between two values."""

HEARTBEAT = 120
"""Seconds after which a missing value is unknown."""

_ARCHIVES = tuple(
    b"RRA:%b:0.5:%d:%d" % (function, steps, rows)
    for function in (b"AVERAGE", b"MAX")
    for steps, rows in ((1, 1440), (30, 1440), (360, 1440), (10080, 570))
)


class MalformedUpdate(ValueError):
    """An RRD key that we do not know, a name that is none, or a value that does not fit: the message says which."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of database.

    @ivar directory: below the root of all databases.
    @ivar names: components of the path below C{directory}.
    @ivar skipped: leading columns of a value that are not stored; the time follows them.
    @ivar sources: the data sources in order, those of type DERIVE marked by a final '/'.
    """

    directory: bytes
    names: int
    skipped: int
    sources: tuple[bytes, ...]

    def definitions(self) -> tuple[bytes, ...]:
        """The data sources and archives, as rrdtool's create takes them."""
        return (
            *(
                b"DS:%b:%b:%d:0:U" % (source.rstrip(b"/"), b"DERIVE" if source.endswith(b"/") else b"GAUGE", HEARTBEAT)
                for source in self.sources
            ),
            *_ARCHIVES,
        )


NODE = Kind(
    b"pve-node-9.0",
    1,
    2,
    tuple(
        b"""loadavg maxcpu cpu iowait memtotal memused swaptotal swapused roottotal rootused netin/ netout/
        memavailable arcsize pressurecpusome pressureiosome pressureiofull pressurememorysome
        pressurememoryfull""".split()
    ),
)
VM = Kind(
    b"pve-vm-9.0",
    1,
    4,
    tuple(
        b"""maxcpu cpu maxmem mem maxdisk disk netin/ netout/ diskread/ diskwrite/ memhost pressurecpusome
        pressurecpufull pressureiosome pressureiofull pressurememorysome pressurememoryfull""".split()
    ),
)
STORAGE = Kind(b"pve-storage-9.0", 2, 0, (b"total", b"used"))

_KINDS = {b"pve2-node": NODE, b"pve2.3-vm": VM, b"pve2-storage": STORAGE}
_VERSIONED_KINDS = {b"node": NODE, b"vm": VM, b"storage": STORAGE}
_VERSIONED = re.compile(rb"pve-(node|vm|storage)-[0-9]+(?:\.[0-9]+)*")
_NAME = re.compile(rb"[^/\x00-\x1f\x7f]{1,255}")
_TIME = re.compile(rb"[0-9]{1,12}")
_COLUMN = re.compile(rb"[0-9A-Za-z.+-]*")


@dataclass(frozen=True, slots=True)
class Update:
    """What to store where.

    @ivar path: relative to the root of all databases.
    @ivar line: time and values, joined by ':', as rrdtool's update takes them.
    """

    kind: Kind
    path: bytes
    line: bytes


def _kind_of(prefix: bytes) -> Kind:
    kind = _KINDS.get(prefix)
    if kind is None:
        versioned = _VERSIONED.fullmatch(prefix)
        if versioned is None:
            raise MalformedUpdate(f"unknown kind {prefix!r}")
        kind = _VERSIONED_KINDS[versioned[1]]
    return kind


def parse_update(key: bytes, value: bytes) -> Update:
    """The update of C{key} (without C{rrd/}) by C{value} (without NUL).

    A value with fewer data columns than we store is an older format and padded with unknown values; one with more is a
    newer one and cut.

    @raise MalformedUpdate: nothing can be stored for it.
    """
    prefix, *names = key.split(b"/")
    kind = _kind_of(prefix)
    if len(names) != kind.names:
        raise MalformedUpdate(f"{len(names)} names, {kind.names} needed")
    for name in names:
        if _NAME.fullmatch(name) is None or name in (b".", b".."):
            raise MalformedUpdate(f"{name!r} is not a name")
    columns = value.split(b":")[kind.skipped :]
    if len(columns) < 2:
        raise MalformedUpdate("no values")
    moment, *data = columns[: 1 + len(kind.sources)]
    if _TIME.fullmatch(moment) is None:
        raise MalformedUpdate(f"{moment!r} is not a time")
    for column in data:
        if _COLUMN.fullmatch(column) is None:
            raise MalformedUpdate(f"{column!r} is not a value")
    data = [column or b"U" for column in data]
    data += [b"U"] * (len(kind.sources) - len(data))
    return Update(kind, b"/".join((kind.directory, *names)), b":".join((moment, *data)))


def local_midnight(now: float) -> int:
    """The last midnight of this host's time zone: where a new database starts. Seconds since 1970."""
    year, month, day = time.localtime(now)[:3]
    return int(time.mktime((year, month, day, 0, 0, 0, 0, 0, -1)))
