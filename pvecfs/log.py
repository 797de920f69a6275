"""Loggers whose verbosity is switched at run time (the special file C{.debug})."""

from __future__ import annotations

from twisted.logger import FilteringLogObserver, Logger, LogLevel, LogLevelFilterPredicate, globalLogPublisher

_levels = LogLevelFilterPredicate(defaultLogLevel=LogLevel.info)
_observer = FilteringLogObserver(globalLogPublisher, [_levels])


def logger(part: str) -> Logger:
    """The logger of one part of pvecfs, of namespace C{pvecfs.<part>}; debug events pass while verbose."""
    return Logger(f"pvecfs.{part}", observer=_observer)


def set_verbose(verbose: bool) -> None:
    """Let debug events of all parts pass, or not. Any thread."""
    _levels.setLogLevelForNamespace("pvecfs", LogLevel.debug if verbose else LogLevel.info)
