"""The IPC service over real libqb connections."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import random
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
import unittest
from errno import (
    EACCES,
    EADDRINUSE,
    ECONNREFUSED,
    EINVAL,
    EMSGSIZE,
    ENOENT,
    ENOMEM,
    ENOTCONN,
    EPERM,
    EPROTO,
    ETIMEDOUT,
)

from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from pvecfs.interfaces import INodeView, IStatus
from pvecfs.ipc import libqb
from pvecfs.ipc.client import Client
from pvecfs.ipc.service import MAX_BUFFER, IpcService
from tests.ipc_doubles import GOLDEN, MemoryStatus, MemoryView, golden_tree
from tests.ipc_process import READ_GID, ROOT, Daemon, run_as
from tests.needs import needs_libqb, needs_root

HEADER = 16
CONFIG = 6

SMALL = 12 * 1024
"""A small buffer, so that its ring wraps often."""

GONE = {ENOTCONN, ECONNREFUSED}


def pairs() -> dict[str, tuple[bytes, bytes]]:
    """The recorded requests and replies by name."""
    recorded = json.loads((GOLDEN / "ipc-pairs.json").read_text())
    return {pair["call"]: (base64.b64decode(pair["request"]), base64.b64decode(pair["reply"])) for pair in recorded}


def comparable(call: str, reply: bytes) -> tuple[int, int, bytes]:
    """id, error and body of a reply, without what differs by nature: times, pids, counters."""
    request_id, _, error = libqb.REPLY_HEADER.unpack_from(reply)
    body = reply[libqb.REPLY_HEADER.size :]
    if call == "GET_FS_VERSION":
        body = re.sub(rb": \d+", b": 0", body)
    elif call.startswith("GET_LOG"):
        body = re.sub(rb'"(uid|time|pid)": \d+', rb'"\1": 0', body)
    return request_id, error, body


def descriptor_of(client: Client) -> int:
    """The number of the socket by which a client announces its requests."""
    fd = ctypes.c_int32(-1)
    libqb.load().ipcc_fd_get(client._connection, fd)
    return fd.value


@needs_libqb()
@needs_root()
class ServiceTests(TestCase):
    """One daemon for each test, in a process of its own."""

    def setUp(self) -> None:
        self.daemon = Daemon(self.id().rpartition(".")[2][:60])
        self.addCleanup(self.daemon.end)
        self.name = self.daemon.name
        self.before = self.daemon.used()

    def assert_unharmed(self) -> None:
        """The service answers, and has what it had at first."""
        self.assertEqual(self.daemon.used_again(self.before), self.before)
        with Client(self.name) as client:
            self.assertEqual(client.get_config(b"user.cfg"), b"while n3 down\n")
        self.assertEqual(self.daemon.used_again(self.before), self.before)
        self.assertIsNone(self.daemon.process.poll())

    def test_recorded_pairs(self) -> None:
        """Each recorded request gets the recorded reply, in the recorded order."""
        with Client(self.name) as client:
            for call, (request, recorded) in pairs().items():
                reply = client.exchange(request)
                self.assertEqual(comparable(call, reply), comparable(call, recorded), call)
                _, size, _ = libqb.REPLY_HEADER.unpack_from(reply)
                self.assertEqual(size, len(reply), call)

    def test_log_has_clients_pid(self) -> None:
        with Client(self.name) as client:
            client.log(6, b"root@pam", b"test", b"it is me")
            document = client.get_log(1)
        self.assertIn(b'"pid": %d, ' % os.getpid(), document)
        self.assertIn(b'"tag": "test"', document)
        self.assertIn(b'"user": "root@pam"', document)

    def test_client_methods(self) -> None:
        with Client(self.name) as client:
            self.assertIn(b'"starttime"', client.file_system_version())
            self.assertIn(b'"nodename": "n1"', client.cluster_info())
            self.assertIn(b'"100"', client.guest_list())
            client.set_status(b"key", b"value")
            self.assertEqual(client.get_status(b"key"), b"value")
            self.assertEqual(client.get_status(b"key", b"n1"), b"value")
            client.set_status(b"key", b"")
            self.assert_errno(ENOENT, client.get_status, b"key")
            self.assertEqual(client.get_config(b"/nodes/n1//priv/secret"), b"secret\n")
            self.assertEqual(client.get_config(b"empty.cfg"), b"")
            self.assertEqual(client.round_robin_dump(), b"\0")
            self.assertEqual(client.guest_property(0, b"memory"), b'{\n"100":{"memory": "512"}\n}\n')
            self.assertEqual(
                client.guest_properties(100, [b"name", b"memory"]), b'{\n"100":{"name": "web1","memory": "512"}\n}\n'
            )
            client.verify_token(b"user@pve!token 0123-4567")
            self.assert_errno(ENOENT, client.verify_token, b"user@pve!token 0123")
            self.assertRaises(ValueError, client.get_status, b"x" * 256)

    def assert_errno(self, errno: int, call: object, *arguments: object) -> None:
        assert callable(call)
        self.assertEqual(self.assertRaises(OSError, call, *arguments).errno, errno)

    def test_read_only_client(self) -> None:
        """www-data reads what it may and gets EPERM for the rest; root in that group is no more than it."""
        for uid in (READ_GID, 0, 12345):
            results = run_as(
                uid,
                READ_GID,
                self.name,
                [
                    ("get_config", ["user.cfg"]),
                    ("get_config", ["priv/token.cfg"]),
                    ("get_config", ["/priv//missing"]),
                    ("get_config", ["nodes//n1/priv/secret"]),
                    ("get_config", ["nodes/n1/missing"]),
                    ("set_status", ["key", "value"]),
                    ("log", [6, "root@pam", "test", "message"]),
                    ("request", [4, ""]),
                    ("request", [7, ""]),
                    ("verify_token", ["user@pve!token 0123-4567"]),
                    ("guest_property", [100, "memory"]),
                    ("get_status", ["tasklist", "n2"]),
                ],
            )
            self.assertEqual(
                results,
                [
                    *("while n3 down\n", EPERM, EPERM, EPERM, ENOENT, EPERM, EPERM, EPERM, EPERM, None),
                    *('{\n"100":{"memory": "512"}\n}\n', '[{"upid":1}]'),
                ],
            )
        self.assert_unharmed()

    def test_others_are_refused(self) -> None:
        """Other users, root's group without root, and root in another group."""
        for uid, gid in ((65534, 65534), (1000, 0), (0, 1000), (READ_GID, 1000)):
            self.assertEqual(run_as(uid, gid, self.name, [("cluster_info", [])]), [EACCES], (uid, gid))
        self.assert_unharmed()
        self.daemon.end()
        for uid, gid in ((65534, 65534), (1000, 0), (0, 1000), (READ_GID, 1000)):
            self.assertIn(f"refused IPC client: uid {uid}, gid {gid}", self.daemon.log)

    def test_many_connections(self) -> None:
        """200 connections come and go, 50 at once."""
        for _ in range(4):
            clients = [Client(self.name, buffer=SMALL) for _ in range(50)]
            for client in clients:
                client.connect()
            self.assertEqual(self.daemon.ask("connections"), 50)
            for client in clients:
                client.send(libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 9) + b"user.cfg\0")
            for client in reversed(clients):
                self.assertEqual(client.receive()[libqb.REPLY_HEADER.size :], b"while n3 down\n")
            for client in clients:
                client.close()
        self.assert_unharmed()

    def test_killed_clients(self) -> None:
        """kill -9 at any moment, among them the middle of a request."""
        script = (
            "import sys; from pvecfs.ipc.client import Client\n"
            "client = Client(sys.argv[1]); client.connect(); print(flush=True)\n"
            "while True: client.get_config(b'bench/large.cfg')"
        )
        for milliseconds in range(8):
            with subprocess.Popen(
                [sys.executable, "-c", script, self.name], stdout=subprocess.PIPE, cwd=ROOT
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(milliseconds / 1000)
                process.kill()
        self.assert_unharmed()

    def test_died_after_request_without_notice(self) -> None:
        """A client that dies between putting a request into the ring and announcing it."""
        client = Client(self.name)
        client.connect()
        fd = descriptor_of(client)
        with _muted(fd):
            client.send(libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 9) + b"user.cfg\0")
        with socket.socket(fileno=os.dup(fd)) as connection:
            connection.shutdown(socket.SHUT_RDWR)
        client.close()
        self.assert_unharmed()

    def test_requests_without_notice(self) -> None:
        """A client that puts five requests into the ring and announces one does not stop the service."""
        with Client(self.name) as client, Client(self.name) as other:
            fd = descriptor_of(client)
            with _muted(fd):
                for _ in range(5):
                    client.send(libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 9) + b"user.cfg\0")
            os.write(fd, b"x")
            self.assertEqual(client.receive()[libqb.REPLY_HEADER.size :], b"while n3 down\n")
            self.assertEqual(other.get_config(b"user.cfg"), b"while n3 down\n")
            os.write(fd, b"xxxxxxxx")  # more than there are
            self.assertEqual(other.get_config(b"user.cfg"), b"while n3 down\n")
        self.assert_unharmed()

    def test_out_of_band_notice(self) -> None:
        """A client that announces a request out of band does not stop the service."""
        with Client(self.name) as client, Client(self.name, timeout=5) as other:
            fd = descriptor_of(client)
            with _muted(fd):
                client.send(libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 9) + b"user.cfg\0")
            with socket.socket(fileno=os.dup(fd)) as connection:
                try:
                    connection.send(b"x", socket.MSG_OOB)
                except OSError as error:
                    raise unittest.SkipTest(f"no out-of-band bytes on local sockets: {error}") from error
            self.assertEqual(other.get_config(b"user.cfg"), b"while n3 down\n")
            self.assertEqual(client.receive()[libqb.REPLY_HEADER.size :], b"while n3 down\n")
        self.assert_unharmed()

    def test_no_shared_memory(self) -> None:
        """Who gets no shared memory is refused, and the log says so: libqb does not."""
        resource.prlimit(self.daemon.process.pid, resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))
        with self.assertRaises(OSError):
            Client(self.name, timeout=5).connect()
        resource.prlimit(self.daemon.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self.assert_unharmed()
        self.daemon.end()
        self.assertIn(
            f"IPC client of pid {os.getpid()} went away while it connected, or got no memory", self.daemon.log
        )

    def test_never_reads(self) -> None:
        """A client that asks and never reads is disconnected; others are served meanwhile."""
        with Client(self.name) as other:
            client = Client(self.name, buffer=SMALL, timeout=5)
            client.connect()
            request = libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 19) + b"bench/kibibyte.cfg\0"
            errno = None
            for _ in range(1000):
                try:
                    client.send(request)
                except OSError as error:
                    errno = error.errno
                    break
                self.assertEqual(len(other.get_config(b"bench/kibibyte.cfg")), 1024)
            self.assertIn(errno, GONE)
        self.assert_unharmed()
        self.daemon.end()
        self.assertIn("takes no replies", self.daemon.log)

    def test_half_greetings(self) -> None:
        """Connections that say half of who they are, or nothing, or something else."""
        for greeting in (b"", b"\xff\xff\xff\xff", b"x" * 24, b"x" * 10000):
            with socket.socket(socket.AF_UNIX) as connection:
                _connect(connection, self.name)
                connection.send(greeting)
                with Client(self.name) as client:
                    self.assertEqual(client.get_config(b"user.cfg"), b"while n3 down\n")
        self.assert_unharmed()

    def test_many_silent_greetings(self) -> None:
        """Who connects and says nothing uses up no more descriptors than a fixed number."""
        silent = []
        try:
            for _ in range(400):
                connection = socket.socket(socket.AF_UNIX)
                silent.append(connection)
                _connect(connection, self.name)
            self.assertEqual(run_as(0, 0, self.name, [("get_config", ["user.cfg"])]), ["while n3 down\n"])
            self.assertLess(self.daemon.ask("descriptors"), self.before[0] + 300)
        finally:
            for connection in silent:
                connection.close()
        self.assert_unharmed()

    def test_silent_greetings_when_service_stops(self) -> None:
        with socket.socket(socket.AF_UNIX) as connection:
            _connect(connection, self.name)
            with Client(self.name) as client:
                client.cluster_info()
                self.assertEqual(self.daemon.ask("stop"), 0)
                self.assertIn(self.assertRaises(OSError, client.cluster_info).errno, GONE)
            connection.settimeout(5)
            self.assertEqual(connection.recv(1), b"")
        self.assertRaises(OSError, Client(self.name).connect)
        self.assertEqual(self.daemon.used()[1:], (0, 0))
        self.assertLess(self.daemon.used()[0], self.before[0])  # the listening socket is closed as well

    def test_reply_larger_than_buffer(self) -> None:
        """EMSGSIZE without a body, and the connection lives on; a reply that just fits is sent."""
        with Client(self.name, buffer=SMALL) as client:
            self.assert_errno(EMSGSIZE, client.get_config, b"bench/large.cfg")
            self.assertEqual(client.get_config(b"user.cfg"), b"while n3 down\n")
            size = client._size - HEADER - 256  # libqb may make more of the buffer than was asked
            client.set_status(b"a", b"x" * size)
            self.assertEqual(len(client.get_status(b"a")), size)
            self.assert_errno(EMSGSIZE, client.set_status, b"a", b"x" * (size + 1))
            self.assertEqual(client.get_config(b"user.cfg"), b"while n3 down\n")
        large = 1024 * 1024
        with Client(self.name, buffer=large + 24) as client:
            self.assertEqual(client.get_config(b"bench/large.cfg"), b"l" * large)
        with Client(self.name, buffer=large + 23) as client:
            self.assert_errno(EMSGSIZE, client.get_config, b"bench/large.cfg")
        self.assert_unharmed()

    def test_greedy_buffer(self) -> None:
        """Rings of any size that a client likes would fill /dev/shm."""
        self.assert_errno(ENOMEM, Client(self.name, buffer=MAX_BUFFER + 1).connect)
        self.assert_unharmed()

    def test_size_beyond_what_arrived(self) -> None:
        """The header's size is believed no further than the bytes that arrived, wherever in the ring they are."""
        lie = libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 9)
        truth = libqb.REQUEST_HEADER.pack(CONFIG, HEADER + 9) + b"user.cfg\0"
        for step in (HEADER, HEADER + 4):
            with Client(self.name, buffer=SMALL) as client:
                for turn in range(3000):
                    # Odd and even lengths, so that chunks begin at each word of the ring's ends.
                    client.exchange(truth)
                    reply = client.exchange(lie.ljust(step, b"p") if turn % 3 else lie)
                    self.assertEqual(libqb.REPLY_HEADER.unpack(reply), (CONFIG, 24, -EINVAL), turn)
        with Client(self.name) as client:
            for size in (-1, 0, 15, 26, 2**31 - 1, -(2**31)):
                reply = client.exchange(struct.pack("<i4xi4x", CONFIG, size) + b"user.cfg\0")
                self.assertEqual(libqb.REPLY_HEADER.unpack(reply), (CONFIG, 24, -EINVAL), size)
            # Bytes after the request's end are no part of it.
            reply = client.exchange(truth + b"after")
            self.assertEqual(reply[24:], b"while n3 down\n")
            # Less than a header: whose reply it is cannot be known.
            self.assertEqual(libqb.REPLY_HEADER.unpack(client.exchange(b"\x06\0\0\0")), (0, 24, -EINVAL))
        self.assert_unharmed()
        self.daemon.end()
        self.assertIn("malformed IPC request 6 of pid", self.daemon.log)

    def test_stopped_daemon(self) -> None:
        """The client's deadline holds for connecting and for requests; the service forgets who gave up."""
        client = Client(self.name, timeout=0.1)
        client.connect()
        self.daemon.process.send_signal(signal.SIGSTOP)
        try:
            self.assert_errno(ETIMEDOUT, client.get_config, b"user.cfg")
            self.assert_errno(ENOTCONN, client.get_config, b"user.cfg")
            self.assert_errno(ETIMEDOUT, Client(self.name, timeout=0.1).connect)
        finally:
            self.daemon.process.send_signal(signal.SIGCONT)
        self.assert_unharmed()

    def test_random_requests(self) -> None:
        """100,000 requests of random bytes and lengths, some of them close to true ones."""
        chance = random.Random(20)
        true = [request for request, _ in pairs().values()]
        client = Client(self.name, buffer=65536)
        client.connect()
        closed = 0
        for number in range(100_000):
            request = _random_request(chance, true)
            try:
                reply = client.exchange(request)
            except OSError as error:
                self.assertIn(error.errno, {*GONE, EPROTO}, (number, request))
                client.close()
                client.connect()
                closed += 1
                continue
            request_id, size, error_number = libqb.REPLY_HEADER.unpack_from(reply)
            self.assertEqual(size, len(reply))
            self.assertLessEqual(error_number, 0)
            if len(request) >= HEADER:
                self.assertEqual(request_id, struct.unpack_from("<i", request)[0])
        client.close()
        self.assertLess(closed, 1000)
        self.assert_unharmed()
        self.daemon.end()
        self.assertNotIn("Traceback", self.daemon.log)

    def test_name_taken(self) -> None:
        """A service that cannot open says so, and can be stopped."""
        service = IpcService(Clock(), self.name, MemoryView(golden_tree()), MemoryStatus(), READ_GID)  # type: ignore[arg-type]  # no descriptor comes to a Clock
        with self.assertRaisesRegex(OSError, f"IPC service '{self.name}': another program offers it") as refused:
            service.startService()
        self.assertEqual(refused.exception.errno, EADDRINUSE)
        service.stopService()
        self.assert_unharmed()


class DoublesTests(TestCase):
    """The doubles are what they say."""

    def test_interfaces(self) -> None:
        verifyObject(INodeView, MemoryView(golden_tree()))
        verifyObject(IStatus, MemoryStatus())


def _random_request(chance: random.Random, true: list[bytes]) -> bytes:
    """Random bytes, a header with a random body, or a true request with a few bytes changed, cut or added."""
    kind = chance.randrange(4)
    if kind == 0:
        # An empty message, and the id -3, ask libqb itself to disconnect.
        return chance.randbytes(chance.choice((1, 4, 15, 16, 17, 24, chance.randrange(1, 600))))
    if kind == 1:
        body = chance.randbytes(chance.choice((0, 1, 3, 4, 5, 16, 17, 255, 256, 511, 512, 513, chance.randrange(3000))))
        return libqb.REQUEST_HEADER.pack(chance.randrange(-2, 16), HEADER + len(body)) + body
    request = bytearray(chance.choice(true))
    for _ in range(chance.randrange(4)):
        request[chance.randrange(len(request))] = chance.choice((0, 1, 10, 255, chance.randrange(256)))
    if kind == 2:
        del request[chance.randrange(HEADER, len(request) + 1) :]
        request += chance.randbytes(chance.randrange(4))
        struct.pack_into("<i", request, 8, len(request))
    return bytes(request)


def _connect(connection: socket.socket, name: str) -> None:
    """Connect to the service without libqb, which binds the whole of the address, filled with NUL."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 5, 0))
    connection.connect(f"\0{name}".ljust(108, "\0"))


class _muted:
    """A descriptor whose bytes go nowhere for a while."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> None:
        self.kept = os.dup(self.fd)
        self.sink = socket.socketpair()
        os.dup2(self.sink[0].fileno(), self.fd)

    def __exit__(self, *_: object) -> None:
        os.dup2(self.kept, self.fd)
        os.close(self.kept)
        for end in self.sink:
            end.close()
