"""The mount as a POSIX file system: our own conformance suite, and CPython's tests of what it does with files.

Both run on tmpfs, which says what is right, and on the mount. The differences are exactly those that are expected.
C{PVECFS_POSIX=all} runs more of CPython's tests, for two minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twisted.trial.unittest import TestCase

from tests.daemons import ROOT, DaemonProcess, abort_connection, temporary_base
from tests.needs import needs_fuse, needs_root
from tests.posix.case import USERS
from tests.posix.cpython import MODULES, SLOW_MODULES, reason
from tests.posix.expected import ANY, RULES

TIMEOUT = 240.0


@needs_root()
@needs_fuse()
class PosixTests(TestCase):
    timeout = 600
    maxDiff = None

    def setUp(self) -> None:
        self.base = temporary_base(self)
        os.chmod(self.base, 0o755)  # for the other users
        self.daemon = DaemonProcess(self.base, "--local")
        self.addCleanup(self.daemon.clean)
        self.daemon.start()
        self.reference = tempfile.mkdtemp(prefix="pvecfs-", dir="/dev/shm")
        self.addCleanup(shutil.rmtree, self.reference, ignore_errors=True)
        os.chmod(self.reference, 0o755)

    def played(self, module: str, place: Path | str, *arguments: str) -> dict[str, Any]:
        """What the program C{module} prints; a mount that hangs is taken away from it."""
        command = [sys.executable, "-m", module, str(place), *arguments]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        )
        try:
            output, errors = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            abort_connection(self.daemon.mount)
            process.kill()
            process.communicate(timeout=20)
            raise
        self.assertEqual(process.returncode, 0, errors.decode(errors="replace")[-2000:])
        found = json.loads(output.splitlines()[-1])
        assert isinstance(found, dict)
        return found

    def test_calls(self) -> None:
        """Every call against every kind of path, and what calls do together, as three users."""
        used = set()
        cases = differences = 0
        for user in USERS:
            right = self.played("tests.posix.run", self.reference, user)
            found = self.played("tests.posix.run", self.daemon.mount, user)
            self.assertEqual(right.keys(), found.keys())
            cases += len(found)
            for name, outcome in found.items():
                rules = [rule for rule in RULES if rule.covers(name)]
                if outcome == right[name]:
                    continue
                differences += 1
                self.assertEqual(len(rules), 1, f"{user}: {name}: {outcome}, on tmpfs {right[name]}")
                used.add(rules[0])
                if rules[0].outcome is not ANY:
                    self.assertEqual(outcome, rules[0].outcome, f"{user}: {name}: expected is {rules[0]}")
        stale = [rule.cases for rule in RULES if rule not in used and not rule.depends]
        self.assertEqual(stale, [], "expected differences that are none")
        with open("posix.txt", "a") as file:
            file.write(f"{cases} cases, {differences} expected differences\n")

    def test_cpython(self) -> None:
        """CPython's tests fail on the mount only for the reasons that its specification gives."""
        modules = [*MODULES, *(SLOW_MODULES if os.environ.get("PVECFS_POSIX") == "all" else ())]
        right = self.played("tests.posix.cpython", self.reference, *modules)
        (self.daemon.mount / "tests").mkdir()
        found = self.played("tests.posix.cpython", self.daemon.mount / "tests", *modules)
        unexpected = {
            test: line
            for test, line in found["failed"].items()
            if test not in right["failed"] and reason(test, line) is None
        }
        self.assertEqual("\n".join(f"{test}: {line}" for test, line in unexpected.items()), "")
        with open("posix.txt", "a") as file:
            file.write(f"CPython: {found['run']} tests, {len(found['failed'])} fail for expected reasons\n")

    if find_spec("test.test_os") is None:
        test_cpython.skip = "needs CPython's own tests (Debian: libpython3-testsuite)"  # type: ignore[attr-defined]  # trial reads it
