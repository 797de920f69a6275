"""The layouts and constants of the bindings are those of the C headers; errors become the right exceptions."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import threading
import time
from pathlib import Path
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from pvecfs.corosync import errors, libcmap, libcpg, libquorum, libraries
from pvecfs.errors import CorosyncUnavailable, TryAgain

STRUCTURES: list[tuple[str, type[ctypes.Structure], dict[str, str]]] = [
    ("struct cpg_name", libcpg.Name, {"length": "length", "value": "value"}),
    ("struct cpg_address", libcpg.Address, {"nodeid": "nodeid", "pid": "pid", "reason": "reason"}),
    ("struct iovec", libcpg.IoVector, {"base": "iov_base", "length": "iov_len"}),
    ("cpg_callbacks_t", libcpg.Callbacks, {"deliver": "cpg_deliver_fn", "configuration": "cpg_confchg_fn"}),
    ("quorum_callbacks_t", libquorum.Callbacks, {"notify": "quorum_notify_fn"}),
    ("struct cmap_notify_value", libcmap.NotifyValue, {"type": "type", "len": "len", "data": "data"}),
]
"""The C type, ours, and the names of its fields there."""

CONSTANTS = {
    "CPG_TYPE_AGREED": libcpg.CPG_TYPE_AGREED,
    "CPG_MAX_NAME_LENGTH": libcpg.CPG_MAX_NAME_LENGTH,
    "CPG_MEMBERS_MAX": libcpg.CPG_MEMBERS_MAX,
    "CS_DISPATCH_ONE_NONBLOCKING": libraries.CS_DISPATCH_ONE_NONBLOCKING,
    "QUORUM_SET": libquorum.QUORUM_SET,
    "CS_TRACK_CURRENT": libquorum.CS_TRACK_CURRENT,
    "CS_TRACK_CHANGES": libquorum.CS_TRACK_CHANGES,
    "CMAP_KEYNAME_MAXLEN": libcmap.CMAP_KEYNAME_MAXLEN,
    "CMAP_TRACK_ADD": libcmap.CMAP_TRACK_ADD,
    "CMAP_TRACK_DELETE": libcmap.CMAP_TRACK_DELETE,
    "CMAP_TRACK_MODIFY": libcmap.CMAP_TRACK_MODIFY,
    "CMAP_TRACK_PREFIX": libcmap.CMAP_TRACK_PREFIX,
    "CMAP_VALUETYPE_STRING": libcmap.STRING,
    "CS_OK": errors.CS_OK,
    "CS_ERR_TRY_AGAIN": errors.CS_ERR_TRY_AGAIN,
    "CS_ERR_BUSY": errors.CS_ERR_BUSY,
    "CS_ERR_NOT_EXIST": errors.CS_ERR_NOT_EXIST,
    "CS_ERR_NO_SECTIONS": libcmap.CS_ERR_NO_SECTIONS,
    "sizeof(cs_error_t)": ctypes.sizeof(ctypes.c_int),
    "sizeof(cpg_handle_t)": ctypes.sizeof(ctypes.c_uint64),
    "sizeof(quorum_handle_t)": ctypes.sizeof(ctypes.c_uint64),
    "sizeof(cmap_handle_t)": ctypes.sizeof(ctypes.c_uint64),
    "sizeof(cmap_value_types_t)": ctypes.sizeof(ctypes.c_int),
}

PROTOTYPES = """
static cs_error_t (*a)(cpg_handle_t *, cpg_callbacks_t *) = cpg_initialize;
static cs_error_t (*b)(cpg_handle_t) = cpg_finalize;
static cs_error_t (*c)(cpg_handle_t, int *) = cpg_fd_get;
static cs_error_t (*d)(cpg_handle_t, unsigned int *) = cpg_local_get;
static cs_error_t (*e)(cpg_handle_t, const struct cpg_name *) = cpg_join;
static cs_error_t (*f)(cpg_handle_t, const struct cpg_name *) = cpg_leave;
static cs_error_t (*g)(cpg_handle_t, cpg_guarantee_t, const struct iovec *, unsigned int) = cpg_mcast_joined;
static cs_error_t (*h)(cpg_handle_t, cs_dispatch_flags_t) = cpg_dispatch;
static cs_error_t (*i)(quorum_handle_t *, quorum_callbacks_t *, uint32_t *) = quorum_initialize;
static cs_error_t (*j)(quorum_handle_t, unsigned int) = quorum_trackstart;
static cs_error_t (*k)(cmap_handle_t, const char *, void *, size_t *, cmap_value_types_t *) = cmap_get;
static cs_error_t (*l)(cmap_handle_t, const char *, cmap_iter_handle_t *) = cmap_iter_init;
static cs_error_t (*m)(cmap_handle_t, cmap_iter_handle_t, char *, size_t *, cmap_value_types_t *) = cmap_iter_next;
static cs_error_t (*n)(cmap_handle_t, const char *, int32_t, cmap_notify_fn_t, void *, cmap_track_handle_t *)
    = cmap_track_add;
static void deliver(uint64_t h, const struct cpg_name *g, uint32_t n, uint32_t p, void *m, size_t l) {}
static void changed(uint64_t h, const struct cpg_name *g, const struct cpg_address *m, size_t mc,
    const struct cpg_address *l, size_t lc, const struct cpg_address *j, size_t jc) {}
static cpg_callbacks_t callbacks = { deliver, changed };
static void quorum(uint64_t h, uint32_t q, uint64_t r, uint32_t c, uint32_t *v) {}
static quorum_callbacks_t quorum_callbacks = { quorum };
static void notify(uint64_t h, uint64_t t, int32_t e, const char *k, struct cmap_notify_value n,
    struct cmap_notify_value o, void *d) {}
static cmap_notify_fn_t notify_fn = notify;
"""
"""The prototypes as the bindings have them: with -Werror the compiler says where the headers differ."""


def missing_compiler() -> str | None:
    headers = all(Path("/usr/include/corosync", name).exists() for name in ("cpg.h", "quorum.h", "cmap.h"))
    if os.environ.get("CI") == "true" or (shutil.which("cc") and headers):
        return None
    return "needs a C compiler and the headers of libcpg, libquorum and libcmap"


class HeadersTests(SynchronousTestCase):
    """A program compiled against the headers prints what ctypes has to agree with."""

    skip = missing_compiler()

    def compiled(self, statements: list[str]) -> list[int]:
        directory = Path(self.mktemp())
        directory.mkdir()
        includes = ["stdio.h", "stddef.h", "sys/uio.h", "corosync/cpg.h", "corosync/quorum.h", "corosync/cmap.h"]
        source = "".join(f"#include <{name}>\n" for name in includes) + PROTOTYPES
        body = "".join(f'printf("%zu\\n", (size_t)({statement}));\n' for statement in statements)
        (directory / "layout.c").write_text(f"{source}\nint main(void) {{\n{body}return 0;\n}}\n")
        flags = ["-Wall", "-Werror", "-Wno-unused-variable", "-Wno-unused-function"]
        libraries = ["-lcpg", "-lquorum", "-lcmap"]
        command = ["cc", *flags, "-o", str(directory / "layout"), str(directory / "layout.c"), *libraries]
        built = subprocess.run(command, capture_output=True, text=True, timeout=60)
        self.assertEqual(built.returncode, 0, built.stderr)
        printed = subprocess.run([str(directory / "layout")], capture_output=True, text=True, check=True, timeout=10)
        return [int(line) for line in printed.stdout.split()]

    def test_agreement(self) -> None:
        """Sizes, offsets and constants are equal, the prototypes compile."""
        ours: dict[str, int] = dict(CONSTANTS)
        for name, structure, fields in STRUCTURES:
            ours[f"sizeof({name})"] = ctypes.sizeof(structure)
            for field, in_c in fields.items():
                ours[f"offsetof({name}, {in_c})"] = getattr(structure, field).offset
                ours[f"sizeof((({name} *)0)->{in_c})"] = getattr(structure, field).size
        theirs = dict(zip(ours, self.compiled(list(ours)), strict=True))
        self.assertEqual(ours, theirs)


class GroupNameTests(SynchronousTestCase):
    def test_terminator_counts(self) -> None:
        """The terminating NUL is part of the length: 12 and 15 bytes for the two groups."""
        self.assertEqual(libcpg.Name.of(b"pve_dcdb_v1").length, 12)
        self.assertEqual(libcpg.Name.of(b"pve_kvstore_v1").length, 15)
        name = libcpg.Name.of(b"pve_dcdb_v1")
        self.assertEqual(bytes(name), b"\x0c\0\0\0pve_dcdb_v1\0" + bytes(116))

    def test_longest(self) -> None:
        self.assertEqual(libcpg.Name.of(b"n" * 127).length, 128)

    def test_refused(self) -> None:
        for name in (b"n" * 128, b"with\0nul"):
            self.assertRaises(ValueError, libcpg.Name.of, name)


class AddressesTests(SynchronousTestCase):
    def test_copied(self) -> None:
        array = (libcpg.Address * 2)(libcpg.Address(1, 100, 0), libcpg.Address(0xFFFFFFFF, 2, 3))
        self.assertEqual(libcpg.processes(ctypes.addressof(array), 2), ((1, 100), (0xFFFFFFFF, 2)))

    def test_none(self) -> None:
        self.assertEqual(libcpg.processes(None, 0), ())
        self.assertEqual(libcpg.processes(None, 5), ())

    def test_too_many(self) -> None:
        """A length that the library cannot have is not believed."""
        array = (libcpg.Address * 1)()
        self.assertRaises(ValueError, libcpg.processes, ctypes.addressof(array), 129)


class MemoryLibrary:
    """libquorum of one connection, handle 5.

    @ivar kind: what initialize says of the provider.
    @ivar code: what finalize and dispatch return.
    @ivar events: (quorate, node ids), told one at each dispatch.
    """

    def __init__(self) -> None:
        self.kind = libquorum.QUORUM_SET
        self.code = errors.CS_OK
        self.events: list[tuple[int, tuple[int, ...]]] = []
        self.finalized: list[int] = []
        # Functions, not methods: prototypes are attributes that are set.
        self.quorum_initialize = lambda *arguments: self._initialize(*arguments)
        self.quorum_finalize = lambda handle: self._finalize(handle)
        self.quorum_dispatch = lambda handle, flags: self._dispatch(handle)
        self.quorum_trackstart = lambda handle, flags: errors.CS_OK
        self.quorum_fd_get = lambda handle, fd: errors.CS_OK

    def _initialize(self, handle: Any, callbacks: Any, kind: Any) -> int:
        handle._obj.value, kind._obj.value = 5, self.kind
        self.callbacks = callbacks._obj
        return errors.CS_OK

    def _finalize(self, handle: int) -> int:
        self.finalized.append(handle)
        return self.code

    def _dispatch(self, handle: int) -> int:
        if self.code == errors.CS_OK and self.events:
            quorate, nodes = self.events.pop(0)
            self.callbacks.notify(handle, quorate, 1, len(nodes), (ctypes.c_uint32 * len(nodes))(*nodes))
        return self.code


class BindingTests(SynchronousTestCase):
    """What the three libraries have in common, on libquorum."""

    def setUp(self) -> None:
        self.memory = MemoryLibrary()
        self.library = libquorum.LibQuorum(cast(Any, self.memory), cast(Any, self.memory))

    def test_events(self) -> None:
        """Each dispatch gives what was told in it; of one that tells nothing it is an empty list."""
        handle = self.library.initialize()
        self.memory.events = [(1, (1, 2)), (0, ())]
        told = [self.library.dispatch(handle) for _ in range(3)]
        self.assertEqual(told, [[(True, (1, 2))], [(False, ())], []])
        self.memory.code = errors.CS_ERR_TRY_AGAIN
        self.assertIsNone(self.library.dispatch(handle))

    def test_finalized(self) -> None:
        """The handle is gone, also if that failed, which is said with the call's name."""
        handle = self.library.initialize()
        self.memory.code = 2
        error = self.assertRaises(CorosyncUnavailable, self.library.finalize, handle)
        self.assertEqual(str(error), "quorum_finalize: library error (2)")
        self.memory.code = errors.CS_OK
        error = self.assertRaises(CorosyncUnavailable, self.library.dispatch, handle)
        self.assertEqual(str(error), "quorum_dispatch: not a handle of ours")

    def test_no_provider(self) -> None:
        """Without a quorum provider the handle is given back, and the reason told."""
        self.memory.kind = 0
        error = self.assertRaises(CorosyncUnavailable, self.library.initialize)
        self.assertIn("no quorum provider", str(error))
        self.assertEqual(self.memory.finalized, [5])


class ErrorsTests(SynchronousTestCase):
    def test_ok(self) -> None:
        errors.check(errors.CS_OK, "call")

    def test_again(self) -> None:
        for code in (6, 10):
            self.assertRaises(TryAgain, errors.check, code, "call")

    def test_unavailable(self) -> None:
        for code in (*sorted(set(errors.NAMES) - {6, 10}), 0, -1, 4711):
            error = self.assertRaises(CorosyncUnavailable, errors.check, code, "cpg_join")
            self.assertEqual(error.code, code)
            self.assertIn("cpg_join", str(error))

    def test_made_once(self) -> None:
        """Threads that ask for a library at the same time get the same: its events would be lost in another one."""
        made = []

        def make() -> object:
            time.sleep(0.02)
            made.append(object())
            return made[-1]

        library, got = libraries.once(make), []
        threads = [threading.Thread(target=lambda: got.append(library())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(5)
        self.assertEqual((len(made), len(set(got)), len(got)), (1, 1, 4))

    def test_missing_library(self) -> None:
        """A library that is not installed is a clear error."""
        error = self.assertRaises(CorosyncUnavailable, libraries.load, "libnosuchcorosync.so.4")
        self.assertIn("libnosuchcorosync.so.4", str(error))
