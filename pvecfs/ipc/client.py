"""A client of the service, on libqb as Proxmox's programs are: for operators' scripts and tests. It blocks."""

from __future__ import annotations

import ctypes
import os
import select
import socket
import struct
from collections.abc import Sequence
from errno import EAGAIN, EMSGSIZE, ENOTCONN, EPROTO, ETIMEDOUT
from types import TracebackType

from pvecfs.ipc import libqb
from pvecfs.tree.errors import OperationError

DEFAULT_BUFFER = 1024 * 1024 + 4096
"""Bytes: the largest file fits in, with the reply's header."""

_NAME = struct.Struct("256s")


class Client:
    """A connection. Not to be shared by threads.

    Every request raises L{OperationError} with the errno of the reply, or another OSError when the service cannot be
    asked: ECONNREFUSED (nobody there), EACCES (refused), EMSGSIZE (the request is too large), ENOTCONN (gone),
    ETIMEDOUT. After the last two the connection is closed: a late reply would be taken for the next one's.

    @param name: the service's.
    @param buffer: bytes of the largest request or reply. Rings of that size are made for each connection.
    @param timeout: seconds that connecting, and each request, may take.
    """

    def __init__(self, name: str = "pve2", buffer: int = DEFAULT_BUFFER, timeout: float = 10.0) -> None:
        self._name = name
        self._buffer = buffer
        self._timeout = timeout
        self._connection: int | None = None

    def __enter__(self) -> Client:
        self.connect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def connect(self) -> None:
        """Connect, if not connected."""
        if self._connection is not None:
            return
        self._libqb = libqb.load()
        descriptor = ctypes.c_int(-1)
        ctypes.set_errno(0)
        connection = self._libqb.ipcc_connect_async(self._name.encode(), self._buffer, descriptor)
        if not connection:
            raise self._error(ctypes.get_errno() or ENOTCONN)
        poll = select.poll()
        poll.register(descriptor.value, select.POLLIN)
        if not poll.poll(self._timeout * 1000):
            # libqb frees a connection of this state only when it goes on with it, which fails without the other side.
            with socket.socket(fileno=os.dup(descriptor.value)) as half_open:
                half_open.shutdown(socket.SHUT_RDWR)
            self._libqb.ipcc_connect_continue(connection)
            raise self._error(ETIMEDOUT)
        result = self._libqb.ipcc_connect_continue(connection)
        if result != 0:
            raise self._error(abs(result))
        self._connection = connection
        self._size: int = max(self._buffer, self._libqb.ipcc_get_buffer_size(connection))
        self._reply = ctypes.create_string_buffer(self._size)

    def close(self) -> None:
        """Disconnect; harmless when not connected."""
        connection, self._connection = self._connection, None
        if connection is not None:
            self._libqb.ipcc_disconnect(connection)

    def request(self, request_id: int, body: bytes = b"") -> bytes:
        """Send a request, and return its reply's body."""
        header = libqb.REQUEST_HEADER.pack(request_id, libqb.REQUEST_HEADER.size + len(body))
        reply = self.exchange(header + body)
        answered, size, error = libqb.REPLY_HEADER.unpack_from(reply)
        if answered != request_id or size != len(reply):
            self.close()
            raise self._error(EPROTO)
        if error:
            raise OperationError(-error)
        return reply[libqb.REPLY_HEADER.size :]

    def exchange(self, request: bytes) -> bytes:
        """Send the bytes of a request, whatever they are, and return those of the reply, at least a header."""
        self.send(request)
        return self.receive()

    def send(self, request: bytes) -> None:
        """Send the bytes of a request without waiting for the reply; EAGAIN when the ring is full of them."""
        result = self._libqb.ipcc_send(self._connected(), request, len(request))
        if result < 0:
            if -result not in (EAGAIN, EMSGSIZE):
                self.close()
            raise self._error(-result)

    def receive(self) -> bytes:
        """Wait for a reply."""
        connection = self._connected()
        result = self._libqb.ipcc_recv(connection, self._reply, self._size, max(1, round(self._timeout * 1000)))
        if result < libqb.REPLY_HEADER.size:
            self.close()
            raise self._error(EPROTO if result >= 0 else ETIMEDOUT if result == -EAGAIN else -result)
        return ctypes.string_at(self._reply, result)

    def _connected(self) -> int:
        if self._connection is None:
            raise self._error(ENOTCONN)
        return self._connection

    def _error(self, errno: int) -> OSError:
        return OSError(errno, os.strerror(errno), f"IPC service {self._name}")

    # The requests of 50-ipc.md, by id

    def file_system_version(self) -> bytes:
        """``.version``."""
        return self.request(1)

    def cluster_info(self) -> bytes:
        """``.members``."""
        return self.request(2)

    def guest_list(self) -> bytes:
        """``.vmlist``."""
        return self.request(3)

    def set_status(self, name: bytes, value: bytes) -> None:
        """Set this node's status value C{name}; an empty value removes it. Not for read-only clients (EPERM)."""
        self.request(4, _name_field(name) + value)

    def get_status(self, name: bytes, node: bytes = b"") -> bytes:
        """The status value C{name} of C{node}, or of this node."""
        return self.request(5, _name_field(name) + _name_field(node))

    def get_config(self, path: bytes) -> bytes:
        """The content of the file at C{path} in the tree."""
        return self.request(6, path + b"\0")

    def log(self, priority: int, ident: bytes, tag: bytes, message: bytes) -> None:
        """Put an entry into the cluster log. C{ident} and C{tag} have at most 254 bytes."""
        lengths = bytes((priority, len(ident) + 1, len(tag) + 1))
        self.request(7, b"%b%b\0%b\0%b\0" % (lengths, ident, tag, message))

    def get_log(self, limit: int = 0, user: bytes = b"") -> bytes:
        """The newest C{limit} (0: 50) entries of the cluster log, of C{user} or of all: JSON."""
        return self.request(8, struct.pack("<I12x", limit) + user + b"\0")

    def round_robin_dump(self) -> bytes:
        """``.rrd``, ending with NUL."""
        return self.request(10)

    def guest_property(self, vmid: int, name: bytes) -> bytes:
        """A property of the guest C{vmid}, or with 0 of all: JSON."""
        return self.request(11, struct.pack("<I", vmid) + name + b"\0")

    def verify_token(self, token: bytes) -> None:
        """Return if the file of tokens has exactly that line; ENOENT if not."""
        self.request(12, token + b"\0")

    def guest_properties(self, vmid: int, names: Sequence[bytes]) -> bytes:
        """Properties of the guest C{vmid}, or with 0 of all: JSON."""
        return self.request(13, struct.pack("<IB", vmid, len(names)) + b"".join(name + b"\0" for name in names))


def _name_field(name: bytes) -> bytes:
    if len(name) >= _NAME.size or b"\0" in name:
        raise ValueError(f"not a name: {name!r}")
    return _NAME.pack(name)
