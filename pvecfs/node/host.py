"""What the daemon asks of its host: name, address, group, directories, restart flag, readiness."""

from __future__ import annotations

import grp
import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path


class StartFailed(Exception):
    """The daemon cannot start: one line that says what is wrong and where."""


RUN_MODE = 0o750
STATE_MODE = 0o750
RESTART_FLAG = "cfs-restart-flag"
RESTART_FLAG_MODE = 0o440


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
    """Make C{path} with C{mode}, owned by root and C{group} where we are root; its parent must exist or be made.

    @raise StartFailed: that is not possible.
    """
    try:
        if not path.is_dir():
            path.mkdir(mode=mode, parents=True, exist_ok=True)
        if os.geteuid() == 0:
            if group is not None:
                os.chown(path, 0, group)
            path.chmod(mode)
    except OSError as error:
        raise StartFailed(f"cannot make the directory {path}: {error.strerror}") from error


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
