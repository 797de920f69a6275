"""Runs modules of CPython's own tests in a directory: C{python -m tests.posix.cpython DIRECTORY MODULE...}

Prints a JSON object: C{run}, the number of tests; C{failed}, test to the last line of what it raised.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
import unittest
from collections.abc import Iterator

MODULES = (
    "test_tempfile",
    "test_glob",
    "test_fileio",
    "test_file",
    "test_posixpath",
    "test_genericpath",
    "test_filecmp",
    "test_fileinput",
    "test_shelve",
    "test_shutil",
    "test_os",
    "test_mmap",
    "test_fcntl",
)
"""Not test_pathlib: each of its tests begins with making links."""

SLOW_MODULES = ("test_bufio", "test_dbm_dumb", "test_zipfile", "test_mailbox", "test_tarfile")

_MODES = "modes follow from the path"

EXPECTED = (
    (r".*", r"PermissionError: \[Errno 1\] .*", _MODES + "; no links, no named pipes"),
    (r".*", r"shutil\.Error: .*\[Errno 1\] .*", _MODES + "; no links, no named pipes"),
    (
        r".*",
        r"FileNotFoundError: \[Errno 2\] No such file or directory",
        "a handle whose file is gone cannot be written",
    ),
    (r".*", r"OSError: \[Errno 27\] .*", "a file has at most 1 MiB"),
    (r"test_os\.UtimeTests\..*", r"AssertionError: .*", "atime = mtime"),
    (r"test_os\.ExtendedAttributeTests\..*", r"AssertionError: 95 != 61", "no extended attributes"),
    (r".*", r"OSError: \[Errno 95\] .*", "no extended attributes"),
    (r"test_(os|tempfile)\..*\.test_(file_)?mode", r"AssertionError: .*", _MODES),
    (r"test_tarfile\..*(pathlike_name|file_mode)", r"AssertionError: .*", _MODES + "; extraction stops there"),
    (r"test_mailbox\.TestMaildir\.test_clean", r".*", "atime = mtime"),
    (r"test_mailbox\.TestMaildir\.test_reread", r".*", "a new name does not set the directory's time"),
)
"""Test, last line, and why that is no defect (20-filesystem.md, 10-tree.md)."""


def reason(test: str, line: str) -> str | None:
    """Why a test that fails on the mount may, if it may."""
    for tests, lines, why in EXPECTED:
        if re.fullmatch(tests, test) and re.fullmatch(lines, line):
            return why
    return None


def main(place: str, *modules: str) -> None:
    run, failed = 0, {}
    with tempfile.TemporaryDirectory() as elsewhere:  # some modules try the file system out when they are imported
        os.chdir(elsewhere)
        suites = [unittest.defaultTestLoader.loadTestsFromName(f"test.{module}") for module in modules]
    for suite in suites:
        for test in tests_of(suite):
            # A directory for each, so that what one leaves is not another's.
            tempfile.tempdir = os.path.join(place, str(run))
            os.mkdir(tempfile.tempdir)
            os.chdir(tempfile.tempdir)
            result = unittest.TextTestRunner(stream=io.StringIO()).run(unittest.TestSuite([test]))
            run += 1
            for case, trace in [*result.failures, *result.errors]:
                failed[case.id().removeprefix("test.")] = trace.strip().splitlines()[-1]
    os.chdir("/")
    print("\n" + json.dumps({"run": run, "failed": failed}))


def tests_of(suite: unittest.TestSuite | unittest.TestCase) -> Iterator[unittest.TestCase]:
    """The single tests of C{suite}."""
    if isinstance(suite, unittest.TestCase):
        yield suite
    else:
        for part in suite:
            yield from tests_of(part)


if __name__ == "__main__":
    main(*sys.argv[1:])
