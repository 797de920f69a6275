"""libfuse 3's low-level API, through the library that mfusepy has loaded: prototypes, layouts, constants, nothing else.

mfusepy itself drives the high-level API, which must answer a request on the thread that took it, chooses node ids
itself and knows files by path. Prototypes: C{fuse_lowlevel.h}; layouts of replies: C{linux/fuse.h}, the kernel's
interface, which never changes incompatibly. C{tests/test_fuse_layout.py} compares them with the headers.
"""

from __future__ import annotations

import ctypes
import os
import struct
from ctypes import CFUNCTYPE, c_char_p, c_int, c_longlong, c_size_t, c_uint, c_uint64, c_void_p

os.environ.setdefault("FUSE_LIBRARY_NAME", "fuse3")  # without it mfusepy prefers libfuse 2, which cannot invalidate

try:
    import mfusepy  # type: ignore[import-untyped]  # it ships no py.typed
except (OSError, AttributeError) as reason:  # what it raises without a library, or for one that is too old
    raise ImportError(f"libfuse 3 is needed: {reason}") from None

if mfusepy.fuse_version_major != 3:
    raise ImportError(f"libfuse 3 is needed, mfusepy has loaded {mfusepy._libfuse._name}")

Stat = mfusepy.c_stat
FileInfo = mfusepy.fuse_file_info
ConnectionInfo = mfusepy.fuse_conn_info

ROOT_NODE = 1

FORGET = struct.Struct("=QQ")
"""C{struct fuse_forget_data}: node id, number of lookups."""

# Bits of conn.want (fuse_common.h)
CAP_ATOMIC_O_TRUNC = 1 << 3
CAP_AUTO_INVAL_DATA = 1 << 12
CAP_READDIRPLUS = 1 << 13
CAP_READDIRPLUS_AUTO = 1 << 14
CAP_WRITEBACK_CACHE = 1 << 16
CAP_NO_OPEN_SUPPORT = 1 << 17
CAP_PARALLEL_DIROPS = 1 << 18
CAP_HANDLE_KILLPRIV = 1 << 20
CAP_CACHE_SYMLINKS = 1 << 23
CAP_NO_OPENDIR_SUPPORT = 1 << 24
CAP_EXPLICIT_INVAL_DATA = 1 << 25

# What a setattr request asks for (fuse_lowlevel.h)
SET_MODE = 1 << 0
SET_UID = 1 << 1
SET_GID = 1 << 2
SET_SIZE = 1 << 3
SET_ATIME = 1 << 4
SET_MTIME = 1 << 5
SET_ATIME_NOW = 1 << 7
SET_MTIME_NOW = 1 << 8

# Flags of an open reply (linux/fuse.h)
FOPEN_KEEP_CACHE = 1 << 1

# Payloads of replies, as the kernel reads them (linux/fuse.h)
ATTRIBUTES = "QQQQQQIIIIIIIIII"
"""C{struct fuse_attr}: ino, size, blocks, atime, mtime, ctime, their nanoseconds, mode, nlink, uid, gid, rdev,
block size, flags."""
ENTRY_OUT = struct.Struct("=QQQQII" + ATTRIBUTES)
"""C{struct fuse_entry_out}: node id, generation, seconds that the name is valid, seconds that the attributes are,
the nanoseconds of both, attributes."""
ATTR_OUT = struct.Struct("=QII" + ATTRIBUTES)
"""C{struct fuse_attr_out}: seconds and nanoseconds that the attributes are valid, padding, attributes."""
OPEN_OUT = struct.Struct("=QII")
"""C{struct fuse_open_out}: handle, flags, padding."""
STATFS_OUT = struct.Struct("=QQQQQIIIIIIIIII")
"""C{struct fuse_kstatfs}: blocks, free, available, files, free files, block size, name length, fragment size, zeros."""
DIRENT = struct.Struct("=QQII")
"""C{struct fuse_dirent}: inode number, offset of the next one, length of the name, type; the name follows, padded to a
multiple of 8."""

NOTIFY_INC_EPOCH = struct.pack("=IiQ", 16, 8, 0)
"""A whole notification (C{struct fuse_out_header}): every name that the kernel remembers has to be asked for again."""


class Args(ctypes.Structure):
    """C{struct fuse_args}."""

    _fields_ = (("argc", c_int), ("argv", ctypes.POINTER(c_char_p)), ("allocated", c_int))


class Buffer(ctypes.Structure):
    """C{struct fuse_buf}: a request. libfuse allocates the memory when it receives the first one, and uses it again."""

    _fields_ = (("size", c_size_t), ("flags", c_int), ("memory", c_void_p), ("fd", c_int), ("position", c_longlong))


_OPERATIONS = (
    ("init", CFUNCTYPE(None, c_void_p, ctypes.POINTER(ConnectionInfo))),
    ("destroy", CFUNCTYPE(None, c_void_p)),
    ("lookup", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p)),
    ("forget", CFUNCTYPE(None, c_void_p, c_uint64, c_uint64)),
    ("getattr", CFUNCTYPE(None, c_void_p, c_uint64, c_void_p)),
    ("setattr", CFUNCTYPE(None, c_void_p, c_uint64, ctypes.POINTER(Stat), c_int, c_void_p)),
    ("readlink", CFUNCTYPE(None, c_void_p, c_uint64)),
    ("mknod", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p, c_uint, c_uint64)),
    ("mkdir", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p, c_uint)),
    ("unlink", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p)),
    ("rmdir", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p)),
    ("symlink", CFUNCTYPE(None, c_void_p, c_char_p, c_uint64, c_char_p)),
    ("rename", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p, c_uint64, c_char_p, c_uint)),
    ("link", CFUNCTYPE(None, c_void_p, c_uint64, c_uint64, c_char_p)),
    ("open", CFUNCTYPE(None, c_void_p, c_uint64, c_void_p)),
    ("read", CFUNCTYPE(None, c_void_p, c_uint64, c_size_t, c_longlong, c_void_p)),
    ("write", CFUNCTYPE(None, c_void_p, c_uint64, c_void_p, c_size_t, c_longlong, ctypes.POINTER(FileInfo))),
    ("flush", c_void_p),
    ("release", c_void_p),
    ("fsync", CFUNCTYPE(None, c_void_p, c_uint64, c_int, c_void_p)),
    ("opendir", CFUNCTYPE(None, c_void_p, c_uint64, c_void_p)),
    ("readdir", CFUNCTYPE(None, c_void_p, c_uint64, c_size_t, c_longlong, c_void_p)),
    ("releasedir", c_void_p),
    ("fsyncdir", CFUNCTYPE(None, c_void_p, c_uint64, c_int, c_void_p)),
    ("statfs", CFUNCTYPE(None, c_void_p, c_uint64)),
    ("setxattr", c_void_p),
    ("getxattr", c_void_p),
    ("listxattr", c_void_p),
    ("removexattr", c_void_p),
    ("access", c_void_p),
    ("create", CFUNCTYPE(None, c_void_p, c_uint64, c_char_p, c_uint, ctypes.POINTER(FileInfo))),
    ("getlk", c_void_p),
    ("setlk", c_void_p),
    ("bmap", c_void_p),
    ("ioctl", CFUNCTYPE(None, c_void_p, c_uint64, c_uint, c_void_p, c_void_p, c_uint, c_void_p, c_size_t, c_size_t)),
    ("poll", c_void_p),
    ("write_buf", c_void_p),
    ("retrieve_reply", c_void_p),
    ("forget_multi", CFUNCTYPE(None, c_void_p, c_size_t, c_void_p)),
    ("flock", c_void_p),
    ("fallocate", c_void_p),
    ("readdirplus", c_void_p),
    ("copy_file_range", c_void_p),
    ("lseek", c_void_p),
)


class Operations(ctypes.Structure):
    """C{struct fuse_lowlevel_ops}. Those that are C{c_void_p} here stay NULL: libfuse then answers in C, flushes and
    extended attributes with ENOSYS (so that the kernel never asks again), releases with success."""

    _fields_ = _OPERATIONS


CALLBACK_TYPES = {name: kind for name, kind in _OPERATIONS if kind is not c_void_p}
"""The types of the operations that can be set, by name."""

_library = mfusepy._libfuse
_with_gil = ctypes.PyDLL(_library._name)
"""The same library, called without releasing the interpreter lock: to take requests and to answer them. That is one
read or write of /dev/fuse that waits for nobody, so releasing the lock would only cost. Everything that can wait goes
through C{_library}."""

reply_err = _with_gil.fuse_reply_err
reply_err.argtypes, reply_err.restype = (c_void_p, c_int), c_int
reply_none = _with_gil.fuse_reply_none
reply_none.argtypes, reply_none.restype = (c_void_p,), None
reply_buf = _with_gil.fuse_reply_buf
reply_buf.argtypes, reply_buf.restype = (c_void_p, c_char_p, c_size_t), c_int
reply_write = _with_gil.fuse_reply_write
reply_write.argtypes, reply_write.restype = (c_void_p, c_size_t), c_int
reply_readlink = _with_gil.fuse_reply_readlink
reply_readlink.argtypes, reply_readlink.restype = (c_void_p, c_char_p), c_int

notify_inode = _library.fuse_lowlevel_notify_inval_inode
notify_inode.argtypes, notify_inode.restype = (c_void_p, c_uint64, c_longlong, c_longlong), c_int
notify_entry = _library.fuse_lowlevel_notify_inval_entry
notify_entry.argtypes, notify_entry.restype = (c_void_p, c_uint64, c_char_p, c_size_t), c_int

session_new = _library.fuse_session_new
session_new.argtypes = (ctypes.POINTER(Args), ctypes.POINTER(Operations), c_size_t, c_void_p)
session_new.restype = c_void_p
session_mount = _library.fuse_session_mount
session_mount.argtypes, session_mount.restype = (c_void_p, c_char_p), c_int
session_receive = _with_gil.fuse_session_receive_buf  # the descriptor is non-blocking
session_receive.argtypes, session_receive.restype = (c_void_p, ctypes.POINTER(Buffer)), c_int
session_process = _with_gil.fuse_session_process_buf  # calls Python most often
session_process.argtypes, session_process.restype = (c_void_p, ctypes.POINTER(Buffer)), None
session_exit = _library.fuse_session_exit
session_exit.argtypes, session_exit.restype = (c_void_p,), None
session_destroy = _library.fuse_session_destroy
session_destroy.argtypes, session_destroy.restype = (c_void_p,), None
session_fd = _library.fuse_session_fd
session_fd.argtypes, session_fd.restype = (c_void_p,), c_int

LogFunction = CFUNCTYPE(None, c_int, c_char_p, c_void_p)
_format = ctypes.CDLL(None).vsnprintf
_format.argtypes, _format.restype = (c_char_p, c_size_t, c_char_p, c_void_p), c_int


def format_log(text: bytes, arguments: int) -> str:
    """What libfuse wants to say: C{text} with its C{va_list}."""
    buffer = ctypes.create_string_buffer(1024)
    _format(buffer, len(buffer), text, arguments)
    return buffer.value.decode("utf-8", "replace").strip()


def set_log_function(function: object) -> None:
    """Give libfuse's messages to C{function}, a L{LogFunction} that lives as long as the process."""
    _library.fuse_set_log_func(function)


_libc = ctypes.CDLL(None, use_errno=True)
free = _libc.free
free.argtypes, free.restype = (c_void_p,), None
_libc.umount2.argtypes, _libc.umount2.restype = (c_char_p, c_int), c_int

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8


def umount2(path: bytes, flags: int) -> None:
    """umount2(2); does not ask the file system that is mounted there anything.

    @raise OSError: EPERM, EBUSY, EINVAL (not mounted) and others.
    """
    if _libc.umount2(path, flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fsdecode(path))
