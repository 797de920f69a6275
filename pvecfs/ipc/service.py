"""The libqb service that the platform's programs ask (50-ipc.md). Everything happens on the reactor thread."""

from __future__ import annotations

import ctypes
import os
from errno import EACCES, EADDRINUSE, EINVAL, EIO, EMSGSIZE, ENOMEM

from twisted.application.service import Service

from pvecfs.interfaces import INodeView, IStatus
from pvecfs.ipc import libqb
from pvecfs.ipc.descriptors import MAX_CONNECTIONS, present_share
from pvecfs.ipc.leftovers import remove_leftovers
from pvecfs.ipc.poll import PollReactor, ReactorPoll
from pvecfs.ipc.requests import Peer, Sources, answer
from pvecfs.log import logger
from pvecfs.tree.errors import OperationError

SERVICE_ID = 1

MAX_BUFFER = 16 * 1024 * 1024
"""The largest message size that a client may ask for, bytes. libqb takes three rings of that size from /dev/shm for
each connection, whatever the client asks; Proxmox's programs ask for 1 MiB."""

_COPIED = 65536
"""A body up to this size is joined to its header; a larger one is handed to libqb as it is."""

_log = logger("ipc")

_PAGE = os.sysconf("SC_PAGESIZE")


class Connection:
    """A client's connection.

    @ivar buffer: the largest reply that it takes, bytes with the header.
    @ivar complained: a malformed request of it was logged already.
    """

    __slots__ = ("buffer", "complained", "peer")

    def __init__(self, peer: Peer, buffer: int) -> None:
        self.peer = peer
        self.buffer = buffer
        self.complained = False


class IpcService(Service):
    """The service C{name}, in the reactor's hands: no thread of its own, no polling.

    uid 0 with gid 0 may do everything, gid C{read_gid} may read; everybody else is refused when connecting, and so is
    who would take a descriptor that others need (L{pvecfs.ipc.descriptors}, by the limit when the service opens).

    @ivar read_gid: the numeric group of read-only clients, C{www-data}'s.
    @ivar owner: uid and gid of clients that may do everything.
    """

    def __init__(
        self,
        reactor: PollReactor,
        name: str,
        view: INodeView,
        status: IStatus,
        read_gid: int,
        owner: tuple[int, int] = (0, 0),
    ) -> None:
        self._reactor = reactor
        self._ipc_name = name
        self._view = view
        self._status = status
        self._read_gid = read_gid
        self._owner = owner
        self._connections: dict[int, Connection] = {}
        self._service: int | None = None

    @property
    def connection_count(self) -> int:
        """Clients connected now."""
        return len(self._connections)

    def startService(self) -> None:
        """Open the service.

        @raise OSError: libqb is missing, or the name is taken (EADDRINUSE).
        """
        self._sources = Sources(self._view, self._status)
        self._libqb = libqb.load()
        share = present_share()
        self._max_connections = share.connections
        self._poll = ReactorPoll(self._reactor, share.greetings)
        self._handlers = libqb.ServiceHandlers(
            libqb.ConnectionAccept(self._connection_accept),
            libqb.ConnectionCreated(self._connection_created),
            libqb.MessageProcess(self._message_process),
            libqb.ConnectionClosed(self._connection_closed),
            libqb.ConnectionDestroyed(self._connection_destroyed),
        )
        service = self._libqb.ipcs_create(self._ipc_name.encode(), SERVICE_ID, libqb.IPC_SHM, self._handlers)
        if not service:
            raise OSError(ENOMEM, f"IPC service {self._ipc_name!r}: {os.strerror(ENOMEM)}")
        self._libqb.ipcs_poll_handlers_set(service, self._poll.handlers)
        # One request of a connection at a time: the byte that announces it has certainly arrived. When libqb takes
        # several, it waits, for ever, for the bytes of those that a client put into the ring without announcing them.
        self._libqb.ipcs_request_rate_limit(service, libqb.RATE_SLOW)
        result = self._libqb.ipcs_run(service)
        if result < 0:  # and the service is freed
            taken = result == -EADDRINUSE
            reason = "another program offers it (see --ipc-name)" if taken else os.strerror(-result)
            raise OSError(-result, f"IPC service {self._ipc_name!r}: {reason}")
        self._service = service
        left = remove_leftovers(self._ipc_name)
        if left:
            _log.info("removed the shared memory of {count} clients of a killed daemon", count=left)
        if share.connections < MAX_CONNECTIONS:
            _log.warn("at most {count} IPC clients: the limit of open files is low", count=share.connections)
        super().startService()  # type: ignore[no-untyped-call]  # Twisted's has no annotations
        _log.info("IPC service {name} is open", name=self._ipc_name)

    def stopService(self) -> None:
        """Disconnect all clients and close the service. Nothing of it is left in /dev/shm."""
        super().stopService()  # type: ignore[no-untyped-call]  # Twisted's has no annotations
        service, self._service = self._service, None
        if service is not None:
            self._libqb.ipcs_destroy(service)
            self._poll.close()
            _log.info("IPC service {name} is closed", name=self._ipc_name)

    # libqb's side. No exception may leave these.

    def _connection_accept(self, connection: int, uid: int, gid: int) -> int:
        try:
            stats = libqb.ConnectionStats()
            self._libqb.ipcs_connection_stats_get(connection, stats, 0)
            pid = stats.client_pid
            if (uid, gid) != self._owner and gid != self._read_gid:
                _log.warn("refused IPC client: uid {uid}, gid {gid}, pid {pid}", uid=uid, gid=gid, pid=pid)
                return -EACCES
            buffer = self._libqb.ipcs_connection_get_buffer_size(connection)
            if not 0 < buffer <= MAX_BUFFER or len(self._connections) >= self._max_connections:
                _log.warn(
                    "refused IPC client of pid {pid}: a buffer of {buffer} bytes, {count} clients are connected",
                    pid=pid,
                    buffer=buffer,
                    count=len(self._connections),
                )
                return -ENOMEM
            self._connections[connection] = Connection(Peer(pid, (uid, gid) != self._owner), buffer)
        except BaseException:
            _log.failure("an IPC client cannot be accepted")
            return -EIO
        return 0

    def _connection_created(self, connection: int) -> None:
        pass

    def _connection_closed(self, connection: int) -> int:
        self._connections.pop(connection, None)
        return 0

    def _connection_destroyed(self, connection: int) -> None:
        # A connection that fails while it is made is never created nor closed, but destroyed. libqb keeps the reason to
        # itself, but for the client.
        failed = self._connections.pop(connection, None)
        if failed is not None:
            _log.warn(
                "IPC client of pid {pid} went away while it connected, or got no memory in /dev/shm",
                pid=failed.peer.pid,
            )

    def _message_process(self, connection: int, data: int, size: int) -> int:
        try:
            self._process(connection, data)
        except BaseException:
            _log.failure("an IPC request could not be answered")
            self._disconnect_later(connection)
        return 0

    def _process(self, connection: int, data: int) -> None:
        client = self._connections[connection]
        request_id, body = self._received(client, data)
        error = 0
        reply = b""
        if body is None:
            error = -EINVAL
        else:
            try:
                reply = answer(self._sources, client.peer, request_id, body)
            except OperationError as refused:
                error = -(refused.errno or EIO)
            except Exception:
                _log.failure("IPC request {id} failed", id=request_id)
                error = -EIO
        if error == -EINVAL and not client.complained:
            client.complained = True
            _log.warn("malformed IPC request {id} of pid {pid}", id=request_id, pid=client.peer.pid)
        self._reply(connection, client, request_id, error, reply)

    def _received(self, client: Connection, data: int) -> tuple[int, bytes | None]:
        """Copy a request out of the memory shared with the client, who may change it at any time.

        @param data: its address in the ring, which is mapped twice, one right after the other.
        @return: its id, and its body or C{None} when its size is not true.
        """
        # libqb tells the size that the client claims. The length of what arrived stands before it in the ring; for a
        # message at the ring's start that is the ring's end, one ring further on. A start is a page's start.
        chunk = data - libqb.CHUNK_HEADER.size
        if data % _PAGE < libqb.CHUNK_HEADER.size:
            chunk += -(-(client.buffer + 13) // _PAGE) * _PAGE
        arrived, magic = libqb.CHUNK_HEADER.unpack(ctypes.string_at(chunk, libqb.CHUNK_HEADER.size))
        if magic != libqb.CHUNK_MAGIC or arrived > client.buffer:
            arrived = client.buffer
        header = libqb.REQUEST_HEADER.size
        if arrived < header:
            return 0, None
        request_id, size = libqb.REQUEST_HEADER.unpack(ctypes.string_at(data, header))
        if not header <= size <= arrived:
            return request_id, None
        return request_id, ctypes.string_at(data + header, size - header)

    def _reply(self, connection: int, client: Connection, request_id: int, error: int, body: bytes) -> None:
        size = libqb.REPLY_HEADER.size + len(body)
        if size > client.buffer:
            size, error, body = libqb.REPLY_HEADER.size, -EMSGSIZE, b""
        header = libqb.REPLY_HEADER.pack(request_id, size, error)
        if size <= _COPIED:
            sent = self._libqb.ipcs_response_send(connection, header + body, size)
        else:
            parts = (libqb.IoVec * 2)()
            for part, content in zip(parts, (header, body), strict=True):
                part.iov_base = ctypes.cast(ctypes.c_char_p(content), ctypes.c_void_p)
                part.iov_len = len(content)
            sent = self._libqb.ipcs_response_sendv(connection, parts, 2)
        if sent != size:
            # Its ring is full: it asks and never reads. There is no other way to tell it that a reply is missing.
            _log.warn("IPC client of pid {pid} takes no replies ({sent}): disconnected", pid=client.peer.pid, sent=sent)
            self._disconnect_later(connection)

    def _disconnect_later(self, connection: int) -> None:
        """Not now: libqb is in the middle of this connection's request."""
        self._libqb.ipcs_connection_ref(connection)
        self._reactor.callLater(0, self._disconnect, connection)

    def _disconnect(self, connection: int) -> None:
        # A connection that was closed meanwhile is not in the table; it is still the same one, as we hold it.
        if connection in self._connections:
            self._libqb.ipcs_disconnect(connection)
        self._libqb.ipcs_connection_unref(connection)
