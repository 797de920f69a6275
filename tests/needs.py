"""What a test needs of its machine. Elsewhere it is skipped with the reason; in CI a missing thing is a failure."""

from __future__ import annotations

import ctypes.util
import os
import shutil
from collections.abc import Callable
from typing import TypeVar

from pvecfs.latency import DEVICE

T = TypeVar("T")


def _needs(missing: str | None) -> Callable[[T], T]:
    """Mark a test case class or method as skipped when something is C{missing}; not in CI: there it fails by itself."""

    def mark(case: T) -> T:
        if missing is not None and os.environ.get("CI") != "true":
            case.skip = missing  # type: ignore[attr-defined]  # trial reads this attribute of classes and functions
        return case

    return mark


def needs_root() -> Callable[[T], T]:
    return _needs(None if os.geteuid() == 0 else "needs root")


def needs_fuse() -> Callable[[T], T]:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return _needs("needs /dev/fuse")
    if shutil.which("fusermount3") is None or ctypes.util.find_library("fuse3") is None:
        return _needs("needs libfuse 3 and fusermount3")
    return _needs(None)


def needs_corosync() -> Callable[[T], T]:
    if os.geteuid() != 0:
        return _needs("needs root, to run corosync in network namespaces")
    if shutil.which("corosync") is None or ctypes.util.find_library("cpg") is None:
        return _needs("needs corosync and libcpg")
    if shutil.which("ip") is None:
        return _needs("needs iproute2")
    return _needs(None)


def needs_libqb() -> Callable[[T], T]:
    return _needs(None if ctypes.util.find_library("qb") is not None else "needs libqb")


def needs_gcc() -> Callable[[T], T]:
    return _needs(None if shutil.which("gcc") is not None else "needs gcc, to compile a library for the test")


def needs_realtime() -> Callable[[T], T]:
    """SCHED_RR: CAP_SYS_NICE, and where control groups have shares of real-time (RT_GROUP_SCHED), one for this."""
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except OSError as error:
        return _needs(f"needs real-time priority: {error.strerror}")
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return _needs(None)


def needs_processors() -> Callable[[T], T]:
    """That a thread can choose between processors."""
    return _needs(None if len(os.sched_getaffinity(0)) > 1 else "needs two processors")


def needs_cpu_latency() -> Callable[[T], T]:
    """That a wish can be uttered how soon processors wake up."""
    return _needs(None if os.access(DEVICE, os.R_OK | os.W_OK) else f"needs {DEVICE}")
