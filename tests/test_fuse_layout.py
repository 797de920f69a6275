"""The layouts in C{pvecfs.fuse.lowlevel} are those of the C headers."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess

from twisted.trial import unittest

from pvecfs.fuse import lowlevel
from tests.needs import needs_fuse

HEADER = "/usr/include/fuse3/fuse_lowlevel.h"

STRUCTURES = {
    "struct fuse_lowlevel_ops": lowlevel.Operations,
    "struct fuse_args": lowlevel.Args,
}

FIELDS = {
    "struct stat": (lowlevel.Stat, ("st_mode", "st_uid", "st_gid", "st_size")),
    "struct fuse_file_info": (lowlevel.FileInfo, ("flags", "fh")),
    "struct fuse_conn_info": (lowlevel.ConnectionInfo, ("max_write", "capable", "want")),
}

PACKED = {
    "struct fuse_entry_out": lowlevel.ENTRY_OUT.size,
    "struct fuse_attr_out": lowlevel.ATTR_OUT.size,
    "struct fuse_open_out": lowlevel.OPEN_OUT.size,
    "struct fuse_kstatfs": lowlevel.STATFS_OUT.size,
    "struct fuse_dirent": lowlevel.DIRENT.size,
    "struct fuse_forget_data": lowlevel.FORGET.size,
    "struct fuse_attr": struct.calcsize("=" + lowlevel.ATTRIBUTES),
}

OFFSETS = {
    ("struct fuse_entry_out", "attr"): 40,
    ("struct fuse_entry_out", "attr_valid"): 24,
    ("struct fuse_attr_out", "attr"): 16,
    ("struct fuse_attr", "mtime"): 32,
    ("struct fuse_attr", "mode"): 60,
    ("struct fuse_attr", "gid"): 72,
    ("struct fuse_attr", "blksize"): 80,
    ("struct fuse_kstatfs", "bsize"): 40,
    ("struct fuse_kstatfs", "frsize"): 48,
    ("struct fuse_open_out", "open_flags"): 8,
    ("struct fuse_dirent", "namelen"): 16,
    ("struct fuse_dirent", "name"): 24,
}

CONSTANTS = {
    "FUSE_CAP_ATOMIC_O_TRUNC": lowlevel.CAP_ATOMIC_O_TRUNC,
    "FUSE_CAP_AUTO_INVAL_DATA": lowlevel.CAP_AUTO_INVAL_DATA,
    "FUSE_CAP_READDIRPLUS": lowlevel.CAP_READDIRPLUS,
    "FUSE_CAP_READDIRPLUS_AUTO": lowlevel.CAP_READDIRPLUS_AUTO,
    "FUSE_CAP_WRITEBACK_CACHE": lowlevel.CAP_WRITEBACK_CACHE,
    "FUSE_CAP_NO_OPEN_SUPPORT": lowlevel.CAP_NO_OPEN_SUPPORT,
    "FUSE_CAP_PARALLEL_DIROPS": lowlevel.CAP_PARALLEL_DIROPS,
    "FUSE_CAP_HANDLE_KILLPRIV": lowlevel.CAP_HANDLE_KILLPRIV,
    "FUSE_CAP_CACHE_SYMLINKS": lowlevel.CAP_CACHE_SYMLINKS,
    "FUSE_CAP_NO_OPENDIR_SUPPORT": lowlevel.CAP_NO_OPENDIR_SUPPORT,
    "FUSE_CAP_EXPLICIT_INVAL_DATA": lowlevel.CAP_EXPLICIT_INVAL_DATA,
    "FUSE_SET_ATTR_MODE": lowlevel.SET_MODE,
    "FUSE_SET_ATTR_UID": lowlevel.SET_UID,
    "FUSE_SET_ATTR_GID": lowlevel.SET_GID,
    "FUSE_SET_ATTR_SIZE": lowlevel.SET_SIZE,
    "FUSE_SET_ATTR_ATIME": lowlevel.SET_ATIME,
    "FUSE_SET_ATTR_MTIME": lowlevel.SET_MTIME,
    "FUSE_SET_ATTR_ATIME_NOW": lowlevel.SET_ATIME_NOW,
    "FUSE_SET_ATTR_MTIME_NOW": lowlevel.SET_MTIME_NOW,
    "FOPEN_KEEP_CACHE": lowlevel.FOPEN_KEEP_CACHE,
    "FUSE_ROOT_ID": lowlevel.ROOT_NODE,
    "MNT_FORCE": lowlevel.MNT_FORCE,
    "MNT_DETACH": lowlevel.MNT_DETACH,
    "UMOUNT_NOFOLLOW": lowlevel.UMOUNT_NOFOLLOW,
}


@needs_fuse()
class LayoutTests(unittest.SynchronousTestCase):
    """Against a compiled program. C{linux/fuse.h} repeats names of libfuse's headers, so each has its own."""

    def setUp(self) -> None:
        if shutil.which("cc") is None or not os.path.exists(HEADER):
            raise unittest.SkipTest("needs a C compiler and libfuse's headers (libfuse3-dev)")

    def compiled(self, headers: list[str], expressions: list[str]) -> list[int]:
        """The values of C expressions."""
        lines = "".join(f'printf("%lld\\n", (long long)({expression}));' for expression in expressions)
        includes = "".join(f"#include <{header}>\n" for header in ["stdio.h", "stddef.h", "sys/mount.h", *headers])
        program = self.mktemp()
        source = program + ".c"
        with open(source, "w") as out:
            out.write(
                f"#define _GNU_SOURCE\n#define FUSE_USE_VERSION 35\n{includes}int main(void) {{ {lines} return 0; }}"
            )
        flags = ["-D_FILE_OFFSET_BITS=64", "-I/usr/include/fuse3", "-o", program]
        subprocess.run(["cc", source, *flags], check=True, timeout=60)
        output = subprocess.run([os.path.abspath(program)], check=True, timeout=10, capture_output=True).stdout
        return [int(line) for line in output.split()]

    def test_libfuse(self) -> None:
        expected: dict[str, int] = {}
        for name, structure in STRUCTURES.items():
            expected[f"sizeof({name})"] = ctypes.sizeof(structure)
            for described in structure._fields_:
                expected[f"offsetof({name}, {described[0]})"] = getattr(structure, described[0]).offset
        for name, (structure, fields) in FIELDS.items():
            for field in fields:
                expected[f"offsetof({name}, {field})"] = getattr(structure, field).offset
        expected["offsetof(struct stat, st_mtim)"] = lowlevel.Stat.st_mtimespec.offset
        expected["sizeof(struct fuse_forget_data)"] = lowlevel.FORGET.size
        expected |= {name: value for name, value in CONSTANTS.items() if not name.startswith("FOPEN")}
        found = self.compiled(["fuse_lowlevel.h"], list(expected))
        self.assertEqual(dict(zip(expected, found, strict=True)), expected)

    def test_kernel(self) -> None:
        expected = {f"sizeof({name})": size for name, size in PACKED.items() if name != "struct fuse_forget_data"}
        expected |= {f"offsetof({name}, {field})": offset for (name, field), offset in OFFSETS.items()}
        expected |= {name: value for name, value in CONSTANTS.items() if name.startswith("FOPEN")}
        found = self.compiled(["linux/fuse.h"], list(expected))
        self.assertEqual(dict(zip(expected, found, strict=True)), expected)

    def test_every_operation_is_there(self) -> None:
        with open(HEADER) as header:
            text = re.sub(r"/\*.*?\*/", "", header.read(), flags=re.DOTALL)
        body = text[text.index("struct fuse_lowlevel_ops {") :]
        names = list(dict.fromkeys(re.findall(r"\n\tvoid \(\*(\w+)\)", body[: body.index("\n};")])))
        self.assertEqual([field[0] for field in lowlevel.Operations._fields_], names)
