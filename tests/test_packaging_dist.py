"""The source distribution and the wheel, installed into an empty virtual environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from twisted.trial import unittest

ROOT = Path(__file__).resolve().parent.parent
LEFT_OUT = ("golden", "__pycache__", ".*", "_trial_temp*", "build", "dist", "*.egg-info", "dropin.cache")


class DistributionTests(unittest.TestCase):
    timeout = 420

    def run_in(self, directory: Path, *command: str | Path) -> str:
        """Run C{command} in C{directory} without what this process's environment says about Python; its output."""
        environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME")}
        done = subprocess.run(
            [str(part) for part in command],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        unreachable = done.returncode != 0 and "Temporary failure in name resolution" in done.stdout + done.stderr
        if unreachable and os.environ.get("CI") != "true":
            raise unittest.SkipTest("needs a package index")
        self.assertEqual(done.returncode, 0, f"{command}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def test_installed(self) -> None:
        """C{python -m build}; the wheel in an empty environment: plugin and console script work from any directory."""
        work = Path(self.mktemp()).absolute()
        work.mkdir()
        # Not looked for from here, where make leaves a directory of that name.
        if subprocess.run([sys.executable, "-m", "build", "--version"], cwd=work, capture_output=True).returncode != 0:
            raise unittest.SkipTest("needs the module build")
        shutil.copytree(ROOT, work / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
        self.run_in(work, sys.executable, "-m", "build", "--outdir", work / "dist", work / "source")
        (sdist,) = (work / "dist").glob("*.tar.gz")
        (wheel,) = (work / "dist").glob("*.whl")

        with tarfile.open(sdist) as archive:
            names = {name.partition("/")[2] for name in archive.getnames()}
        for name in ("twisted/plugins/pvecfs_plugin.py", "Makefile", "docs/recovery.md", "packaging/pvecfs.service"):
            self.assertIn(name, names)
        with zipfile.ZipFile(wheel) as archive2:
            names = set(archive2.namelist())
        self.assertIn("twisted/plugins/pvecfs_plugin.py", names)
        self.assertNotIn("twisted/__init__.py", names)
        self.assertNotIn("twisted/plugins/__init__.py", names)
        self.assertEqual([n for n in names if n.startswith("tests/") or "__pycache__" in n], [])

        self.run_in(work, sys.executable, "-m", "venv", work / "empty")
        self.run_in(work, work / "empty/bin/python", "-m", "pip", "install", "-q", wheel)
        self.assertIn("--operation-timeout", self.run_in(work, work / "empty/bin/twistd", "pvecfs", "--help"))
        self.assertIn("rename-node", self.run_in(work, work / "empty/bin/pvecfs-db", "--help"))
        self.assertIn("--metrics", self.run_in(work, work / "empty/bin/pvecfs-health", "--help"))
