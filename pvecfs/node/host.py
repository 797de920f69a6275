"""What the daemon asks of its host: name, address, group, directories, files for others, readiness."""

from __future__ import annotations

import grp
import ipaddress
import os
import socket
import stat
from contextlib import suppress
from errno import ENOTDIR
from pathlib import Path


class StartFailed(Exception):
    """The daemon cannot start: one line that says what is wrong and where."""


RUN_MODE = 0o750
STATE_MODE = 0o750
OWN_NAME = "pve-cluster"
"""How the state and the run directory are called (60-operation.md). One of another name was chosen by somebody."""

FILE_MODE = 0o644
RESTART_FLAG = "cfs-restart-flag"
RESTART_FLAG_MODE = 0o440
HEALTH_SOCKET = "health"
"""Name of the socket, in the run directory, at which the daemon says how it is."""


def short_host_name() -> str:
    """The host name up to its first dot."""
    return os.uname().nodename.partition(".")[0]


def first_address(name: str) -> str:
    """The first address of C{name} that is not loopback, as text.

    @raise StartFailed: there is none.
    """
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise StartFailed(f"cannot resolve the node name {name!r}: {error}; give an address with --node-ip") from error
    for _family, _type, _protocol, _canonical, address in found:
        text = str(address[0]).partition("%")[0]
        if not ipaddress.ip_address(text).is_loopback:
            return text
    raise StartFailed(
        f"the node name {name!r} resolves to loopback addresses only; correct /etc/hosts or give --node-ip"
    )


def checked_address(text: str) -> str:
    """C{text} if it is an IP address.

    @raise StartFailed: it is none.
    """
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise StartFailed(f"--node-ip {text!r} is not an IP address") from error


def group_id(name: str) -> int:
    """The id of the group C{name}.

    @raise StartFailed: there is no such group.
    """
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise StartFailed(f"there is no group {name!r} on this host (--group)") from error


def make_directory(path: Path, mode: int, group: int | None) -> None:
    """Have a directory C{path}, missing parents included. Where we are root, it is given to root and C{group}, with
    C{mode}, if we make it, or it is root's and ours by its name, or empty. Any other stays as it is, for its users.

    @raise StartFailed: that is not possible, or everybody may write to it.
    """
    try:
        try:
            status = path.stat()
        except FileNotFoundError:
            path.mkdir(mode=mode, parents=True)
            status = path.stat()
            ours = True
        else:
            shared = bool(status.st_mode & stat.S_ISVTX) or status.st_uid != 0
            ours = not shared and (path.name == OWN_NAME or not os.listdir(path))
        if not stat.S_ISDIR(status.st_mode):
            raise NotADirectoryError(ENOTDIR, os.strerror(ENOTDIR))
        if ours and os.geteuid() == 0:
            os.chown(path, 0, -1 if group is None else group)
            path.chmod(mode)
        elif status.st_mode & (stat.S_ISVTX | stat.S_IWOTH):
            raise StartFailed(f"{path} is a directory that others may write to; give one of its own")
    except OSError as error:
        raise StartFailed(f"cannot make the directory {path}: {error.strerror}") from error


def write_pid_file(path: Path, lock_name: str) -> None:
    """Write our process id to C{path}.

    @param lock_name: of the file that every daemon holds open, beside its database.
    @raise StartFailed: that is not possible, or the file is a running daemon's.
    """
    other = _daemon_of(path, lock_name)
    if other is not None:
        raise StartFailed(f"the pid file {path} is that of process {other}, which uses another database")
    try:
        replace_file(path, b"%d\n" % os.getpid())
    except OSError as error:
        raise StartFailed(f"cannot write the pid file {path}: {error.strerror}") from error


def _daemon_of(path: Path, lock_name: str) -> int | None:
    """The daemon that C{path} names. The number alone tells little: since its process was killed it may have become any
    other's. And who is not our user keeps nobody from starting."""
    try:
        with path.open("rb") as file:
            number = int(file.read(32))
        process = Path("/proc", str(number))
        if number == os.getpid() or process.stat().st_uid != os.geteuid():
            return None
        descriptors = list((process / "fd").iterdir())
    except (OSError, ValueError):
        return None
    for descriptor in descriptors:
        with suppress(OSError):  # closed by now
            if descriptor.readlink().name == lock_name:
                return number
    return None


def remove_pid_file(path: Path) -> None:
    """Remove C{path} if it is ours still.

    @raise OSError: it cannot be removed.
    """
    with suppress(FileNotFoundError):
        if path.read_bytes() == b"%d\n" % os.getpid():
            path.unlink()


def replace_file(path: Path, content: bytes) -> None:
    """Replace C{path} by a file with C{content}, mode 0644, atomically and durably.

    @raise OSError: it is as it was.
    """
    temporary = path.with_name(f".{path.name}.pvecfs")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, FILE_MODE)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fchmod(file.fileno(), FILE_MODE)
            os.fsync(file.fileno())
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def set_restart_flag(run_directory: Path, group: int | None) -> None:
    """Tell the IPC clients, who look at this file, that the service will be back."""
    flag = run_directory / RESTART_FLAG
    descriptor = os.open(flag, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, RESTART_FLAG_MODE)
    try:
        os.fchmod(descriptor, RESTART_FLAG_MODE)
        if group is not None and os.geteuid() == 0:
            os.fchown(descriptor, 0, group)
    finally:
        os.close(descriptor)


def clear_restart_flag(run_directory: Path) -> None:
    """We are back."""
    (run_directory / RESTART_FLAG).unlink(missing_ok=True)


def notify_service_supervisor(state: str) -> None:
    """Send C{state} (C{READY=1}, C{STOPPING=1}) to systemd's notify socket, when there is one (sd_notify(3)).

    A supervisor that does not listen is its own problem: nothing is raised.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_UNIX, kind) as s, suppress(OSError):
        s.sendto(state.encode(), address)
