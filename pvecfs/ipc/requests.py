"""The requests of the service C{pve2}: one function each, and one table of them (50-ipc.md).

A request's body is decoded first, by its layout; a request that breaks the layout is EINVAL. The functions only read
what they are given and ask L{Sources}; they raise L{OperationError} for what the client shall see as an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from errno import ECHRNG, EINVAL, ENOENT, EPERM
from typing import Any, Generic, NamedTuple, TypeVar

from pvecfs.interfaces import INodeView, IStatus
from pvecfs.ipc.guests import GuestConfigs, properties_document
from pvecfs.tree.entry import Entry
from pvecfs.tree.errors import OperationError
from pvecfs.tree.paths import is_private

NAME_FIELD = 256
"""Bytes of a name in requests 4 and 5, its NUL included."""

MAX_PRIORITY = 7
"""The highest syslog priority, debug."""

LOWEST_VMID = 100
"""Guests are numbered from here; 0 stands for all of them."""

TOKENS = b"priv/token.cfg"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who asks.

    @ivar read_only: of the group that may read, and may not read what is private.
    """

    pid: int
    read_only: bool


class Sources:
    """What the requests read and change."""

    def __init__(self, view: INodeView, status: IStatus) -> None:
        self.view = view
        self.status = status
        self.guests = GuestConfigs()
        self._tokens: tuple[Entry | None, frozenset[bytes]] = (None, frozenset())

    def tokens(self) -> frozenset[bytes]:
        """The lines of the file of tokens, without their newlines; split once per version of it."""
        entry = self.view.tree.lookup(TOKENS)
        if entry is not self._tokens[0]:
            self._tokens = (entry, frozenset() if entry is None else frozenset(entry.data.split(b"\n")))
        return self._tokens[1]


# Layouts: what a body holds. Each takes the bytes after the header and returns its fields, or raises EINVAL.


class StatusValue(NamedTuple):
    name: bytes
    value: bytes


class StatusName(NamedTuple):
    name: bytes
    node: bytes


class LogEntry(NamedTuple):
    priority: int
    ident: bytes
    tag: bytes
    message: bytes


class LogQuery(NamedTuple):
    limit: int
    user: bytes


class GuestQuery(NamedTuple):
    vmid: int
    rest: bytes


def _malformed(why: str) -> OperationError:
    return OperationError(EINVAL, why)


def nothing(body: bytes) -> None:
    """No body at all."""
    if body:
        raise _malformed("a body where none belongs")


def _name(field: bytes) -> bytes:
    """Up to the first NUL, at most 255 bytes."""
    return field[: NAME_FIELD - 1].partition(b"\0")[0]


def status_value(body: bytes) -> StatusValue:
    """Name, 256 bytes; then the value."""
    if len(body) < NAME_FIELD:
        raise _malformed("too short for a name")
    return StatusValue(_name(body[:NAME_FIELD]), body[NAME_FIELD:])


def status_name(body: bytes) -> StatusName:
    """Name, 256 bytes; node, 256 bytes."""
    if len(body) < 2 * NAME_FIELD:
        raise _malformed("too short for two names")
    return StatusName(_name(body[:NAME_FIELD]), _name(body[NAME_FIELD : 2 * NAME_FIELD]))


def last_string(body: bytes) -> bytes:
    """A string that ends at its first NUL, or else at the last byte, which counts as NUL whatever it is."""
    if not body:
        raise _malformed("no string")
    return body[:-1].partition(b"\0")[0]


def log_entry(body: bytes) -> LogEntry:
    """Priority u8, lengths of ident and tag u8 (with NUL), ident, tag, message; each with its NUL."""
    if len(body) < 3:
        raise _malformed("too short for a log entry")
    priority, ident_end, tag_end = body[0], 3 + body[1], 3 + body[1] + body[2]
    strings = (body[3:ident_end], body[ident_end:tag_end], body[tag_end:])
    if tag_end > len(body) or not all(string.endswith(b"\0") for string in strings):
        raise _malformed("a string of a log entry that does not end in it")
    ident, tag, message = (string.partition(b"\0")[0] for string in strings)
    return LogEntry(priority, ident, tag, message)


def log_query(body: bytes) -> LogQuery:
    """Max entries u32, 12 bytes reserved, user; the last byte counts as NUL."""
    if len(body) <= 16:
        raise _malformed("too short for a log query")
    return LogQuery(int.from_bytes(body[:4], "little"), last_string(body[16:]))


def token(body: bytes) -> bytes:
    """One line, with NUL."""
    text = body[:-1]
    if not text or body[-1] != 0 or b"\n" in text or b"\0" in text:
        raise _malformed("not a token")
    return text


def guest_query(body: bytes) -> GuestQuery:
    """VMID u32; what follows is looked at after it is known that there is such a guest."""
    if len(body) < 4:
        raise _malformed("too short for a VMID")
    return GuestQuery(int.from_bytes(body[:4], "little"), body[4:])


def property_names(body: bytes) -> list[bytes]:
    """Count u8, then that many names that begin with a-z, each with NUL."""
    if not body or not body[0]:
        raise _malformed("no properties")
    names = body[1:].split(b"\0")
    if names.pop() or len(names) != body[0]:
        raise _malformed("not the number of properties that was announced")
    if not all(b"a" <= name[:1] <= b"z" for name in names):
        raise _malformed("a property that does not begin with a-z")
    return names


# The requests. Each returns the reply's body.


def file_system_version(sources: Sources, peer: Peer, _: None) -> bytes:
    return sources.view.document(b".version")


def cluster_info(sources: Sources, peer: Peer, _: None) -> bytes:
    return sources.view.document(b".members")


def guest_list(sources: Sources, peer: Peer, _: None) -> bytes:
    return sources.view.document(b".vmlist")


def set_status(sources: Sources, peer: Peer, asked: StatusValue) -> bytes:
    sources.status.set_value(asked.name, asked.value)
    return b""


def get_status(sources: Sources, peer: Peer, asked: StatusName) -> bytes:
    return sources.status.value(asked.name, asked.node)


def get_config(sources: Sources, peer: Peer, path: bytes) -> bytes:
    entry: Entry | None = sources.view.tree.lookup(path)
    if entry is None or entry.is_directory:
        raise OperationError(ENOENT)
    return entry.data


def log(sources: Sources, peer: Peer, asked: LogEntry) -> bytes:
    if asked.priority <= MAX_PRIORITY:
        sources.status.log(asked.priority, asked.ident, asked.tag, asked.message, peer.pid)
    return b""


def get_log(sources: Sources, peer: Peer, asked: LogQuery) -> bytes:
    return sources.status.log_document(asked.limit, asked.user)


def round_robin_dump(sources: Sources, peer: Peer, _: None) -> bytes:
    return sources.view.document(b".rrd") + b"\0"


def guest_property(sources: Sources, peer: Peer, asked: GuestQuery) -> bytes:
    return _properties(sources, asked, lambda body: [last_string(body)])


def guest_properties(sources: Sources, peer: Peer, asked: GuestQuery) -> bytes:
    return _properties(sources, asked, property_names)


def _properties(sources: Sources, asked: GuestQuery, names: Callable[[bytes], Sequence[bytes]]) -> bytes:
    if 0 < asked.vmid < LOWEST_VMID:
        raise _malformed("a VMID below 100")
    tree = sources.view.tree
    if asked.vmid and tree.vms.lookup(asked.vmid) is None:
        raise OperationError(ENOENT)
    return properties_document(sources.guests.of(tree, asked.vmid), names(asked.rest))


def verify_token(sources: Sources, peer: Peer, asked: bytes) -> bytes:
    if asked not in sources.tokens():
        raise OperationError(ENOENT)
    return b""


class Access(Enum):
    """Who may ask. Clients that may do everything may always."""

    READ = auto()
    """Read-only clients too."""
    PUBLIC_PATH = auto()
    """Read-only clients too, unless the path is private."""
    WRITE = auto()
    """No read-only client, whatever the body."""


Fields = TypeVar("Fields")


@dataclass(frozen=True, slots=True)
class Request(Generic[Fields]):
    """A row of the table.

    @ivar answer: gives the reply's body.
    @ivar layout: gives the fields of a request's body.
    """

    answer: Callable[[Sources, Peer, Fields], bytes]
    layout: Callable[[bytes], Fields]
    access: Access


REQUESTS: dict[int, Request[Any]] = {
    1: Request(file_system_version, nothing, Access.READ),
    2: Request(cluster_info, nothing, Access.READ),
    3: Request(guest_list, nothing, Access.READ),
    4: Request(set_status, status_value, Access.WRITE),
    5: Request(get_status, status_name, Access.READ),
    6: Request(get_config, last_string, Access.PUBLIC_PATH),
    7: Request(log, log_entry, Access.WRITE),
    8: Request(get_log, log_query, Access.READ),
    10: Request(round_robin_dump, nothing, Access.READ),
    11: Request(guest_property, guest_query, Access.READ),
    12: Request(verify_token, token, Access.READ),
    13: Request(guest_properties, guest_query, Access.READ),
}


def answer(sources: Sources, peer: Peer, request_id: int, body: bytes) -> bytes:
    """The body of the reply to the request C{request_id} with C{body} (what follows its header).

    @raise OperationError: the errno for the client: ECHRNG for an unknown id, EPERM, EINVAL, or the request's own.
    """
    request = REQUESTS.get(request_id)
    if request is None:
        raise OperationError(ECHRNG)
    if peer.read_only and request.access is Access.WRITE:
        raise OperationError(EPERM)
    fields = request.layout(body)
    if peer.read_only and request.access is Access.PUBLIC_PATH and is_private(fields):
        raise OperationError(EPERM)
    return request.answer(sources, peer, fields)
