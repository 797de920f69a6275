"""Processors that stay awake between the steps of a change, so that each step begins at once.

A change goes from its caller to the daemon and back; whoever has handed it on waits, and its processor goes to sleep.
To wake it takes longer than the step: 30 to 50 microseconds in a virtual machine, which leaves its processor to the
host when it idles, and up to 100 and more from the deep states of a real one. Linux lets a process say how long that
may take (C{/dev/cpu_dma_latency}, Documentation/power/pm_qos_interface.rst): it holds for all processors, until it is
said otherwise, or the file is closed, so also when the process ends. Here it is said while changes come through the
mount, and for the moment that tells that no more come.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

from pvecfs.log import logger

DEVICE = "/dev/cpu_dma_latency"

DRIVER = "/sys/devices/system/cpu/cpuidle/current_driver"

POLLING = 0
"""Microseconds: no processor leaves the kernel's idle loop. In a virtual machine there is nothing between that and the
host, which haltpoll counts as 1 microsecond, whatever it takes."""

SHALLOW = 2
"""Microseconds: the first sleeping state (C1) of usual processors. It does not slow its neighbours down, as polling can
where two share a core."""

ANY = 2_000_000_000
"""Microseconds: PM_QOS_CPU_LATENCY_DEFAULT_VALUE, no wish."""

_log = logger("latency")


class DelayingReactor(Protocol):
    """What is wanted of a reactor."""

    def callLater(self, delay: float, callable: Callable[..., object]) -> object: ...


class ProcessorLatency:
    """How soon processors wake up while that is wanted, between L{start} and L{stop}. Where the system refuses, it
    stays at a line in the log. For the reactor thread.

    @param device: takes a native 32-bit integer, microseconds.
    @param driver: names the driver of idle processors; it need not exist.
    """

    def __init__(self, reactor: DelayingReactor, device: str = DEVICE, driver: str = DRIVER) -> None:
        self._reactor = reactor
        self._device = device
        self._driver = driver
        self._fd = -1
        self._limit = SHALLOW
        self._wanted = False
        self._said = False

    def start(self) -> None:
        """From now on L{want} has an effect."""
        with suppress(OSError), open(self._driver) as file:
            if file.read().strip() == "haltpoll":
                self._limit = POLLING
        try:
            # It is a wish of ANY from the beginning. Kept open: a wish that is new takes the kernel longer.
            self._fd = os.open(self._device, os.O_WRONLY | os.O_CLOEXEC)
        except OSError as error:
            _log.info("idle processors sleep as they like: {reason}", reason=error)

    def want(self, wanted: bool) -> None:
        """Whether processors are to stay awake now. It is said a turn later: what is at hand goes first."""
        self._wanted = wanted
        if self._fd >= 0:
            self._reactor.callLater(0, self._say)

    def stop(self) -> None:
        """Processors are left alone again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _say(self) -> None:
        if self._fd < 0 or self._said == self._wanted:
            return
        self._said = self._wanted
        limit = self._limit if self._wanted else ANY
        try:
            os.write(self._fd, limit.to_bytes(4, sys.byteorder, signed=True))  # 15 to 45 microseconds; waits for nobody
        except OSError as error:
            _log.info("idle processors sleep as they like: {reason}", reason=error)
            self.stop()
