"""Descriptors: how many the process may have, and how many of them are the clients'.

Each client takes one, and so does each connection that has not said yet who it is. Were there none left, the daemon
could not open what it needs itself, and no client could be refused in order.
"""

from __future__ import annotations

import resource
from typing import NamedTuple

from pvecfs.log import logger

MAX_CONNECTIONS = 1024
"""Clients connected at once, where there are descriptors for them."""

MAX_GREETINGS = 256
"""Connections that have not said yet who they are, at once; libqb itself knows no limit, and anybody may connect."""

OTHERS = 128
"""Descriptors that no client gets. A few dozen are in use: database, mount, corosync, rrdcached, commands, log."""

WANTED = MAX_CONNECTIONS + MAX_GREETINGS + OTHERS

_log = logger("ipc")


class Share(NamedTuple):
    """The clients' part of the descriptors: how many connections and greetings there may be."""

    connections: int
    greetings: int


def clients_share(soft: int) -> Share:
    """What clients may take of C{soft} descriptors, the soft limit RLIMIT_NOFILE. One of each at least."""
    if soft == resource.RLIM_INFINITY:
        soft = WANTED
    free = max(soft - OTHERS, 2)
    greetings = min(MAX_GREETINGS, max(free // 4, 1))
    return Share(min(MAX_CONNECTIONS, free - greetings), greetings)


def present_share() -> Share:
    """L{clients_share} of this process's limit."""
    return clients_share(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def raise_limit() -> None:
    """Raise the process's soft limit RLIMIT_NOFILE to L{WANTED}, or as far as the hard one allows. Never lowers it.

    Not further than that: commands inherit it, and who uses select(2) cannot have a descriptor above 1023.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError) as error:
        _log.warn("the limit of open files stays {soft}: {error}", soft=soft, error=error)
