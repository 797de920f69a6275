"""What installs and starts pvecfs: plugin, unit, scripts, manual pages."""

from __future__ import annotations

import configparser
import importlib.machinery
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from twisted.application.service import IServiceMaker
from twisted.plugin import getPlugins
from twisted.trial import unittest

from pvecfs.ipc.descriptors import WANTED
from tests.daemons import is_mounted
from tests.needs import needs_fuse

ROOT = Path(__file__).resolve().parent.parent

OPTIONS = [
    "local",
    "debug",
    "mountpoint",
    "state-dir",
    "run-dir",
    "pid-file",
    "corosync-conf",
    "node-name",
    "node-ip",
    "group",
    "ipc-name",
    "no-ipc",
    "no-realtime",
    "no-cpu-latency",
    "no-cpu-affinity",
    "rrd-dir",
    "rrdcached-socket",
    "max-size",
    "max-entries",
    "verify-interval",
    "operation-timeout",
]


def twistd(directory: str, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
    """Run twistd with this checkout's plugin, in C{directory}."""
    return subprocess.run(
        [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", *arguments],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class PluginTests(unittest.TestCase):
    def test_found(self) -> None:
        """Twisted finds one service maker for C{pvecfs}."""
        found = [m for m in getPlugins(IServiceMaker) if getattr(m, "tapname", "") == "pvecfs"]
        self.assertEqual([getattr(m, "module", None) for m in found], ["pvecfs.tap"])

    def test_no_package(self) -> None:
        """The directory is a part of Twisted's plugin package, which it is only without a file of its own."""
        self.assertFalse((ROOT / "twisted" / "__init__.py").exists())
        self.assertFalse((ROOT / "twisted" / "plugins" / "__init__.py").exists())

    def test_help(self) -> None:
        """C{twistd pvecfs --help} works from any directory and names every option of the contract."""
        directory = self.mktemp()
        os.mkdir(directory)
        done = twistd(directory, "pvecfs", "--help")
        self.assertEqual(done.returncode, 0, done.stderr)
        for name in OPTIONS:
            self.assertRegex(done.stdout, rf"--{name}[=\s]")

    def test_manual_page(self) -> None:
        """The manual page describes each option that exists, and none other."""
        from pvecfs.tap import Options

        described = set(re.findall(r"\*\*--([a-z-]+)\*\*", (ROOT / "docs/man/pvecfs.md").read_text()))
        described -= {"nodaemon", "pidfile", "logfile", "syslog"}  # twistd's own
        options = Options()
        missing = set(OPTIONS) - described
        self.assertEqual(missing, set())
        unknown = described - {name.rstrip("=") for name in options.longOpt}
        self.assertEqual(unknown, set())

    def test_manual_page_of_the_tool(self) -> None:
        """The tool's manual page describes each command that exists, with its options, and none other."""
        from pvecfs.cli import main

        text = (ROOT / "docs/man/pvecfs-db.md").read_text().partition("## Commands")[2].partition("## Exit")[0]
        described = {
            row[0]: set(re.findall(r"\*\*(--[a-z-]+)\*\*", row[1]))
            for row in re.findall(r"^\*\*([a-z-]+)\*\*(.*)\n: ", text, re.M)
        }
        existing = {
            name: {option for parameter in command.params for option in parameter.opts if option.startswith("-")}
            for name, command in main.commands.items()
        }
        self.assertEqual(described, existing)

    def test_manual_page_of_health(self) -> None:
        """The manual page of C{pvecfs-health} describes each option that exists, and none other."""
        from pvecfs.healthcli import main

        text = (ROOT / "docs/man/pvecfs-health.md").read_text().partition("## Options")[2].partition("## ")[0]
        existing = {option for parameter in main.params for option in parameter.opts}
        self.assertEqual(set(re.findall(r"\*\*(--[a-z-]+)\*\*", text)), existing | {"--help"})

    def test_programs(self) -> None:
        """The package installs each console script, with a manual page."""
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        programs = re.findall(r"^([\w-]+) = ([\w.]+):main$", setup["options.entry_points"]["console_scripts"], re.M)
        self.assertEqual(len(programs), 2)
        for name, module in programs:
            starter = ROOT / "packaging" / name
            self.assertIn(f"from {module} import main", starter.read_text())
            self.assertTrue(os.access(starter, os.X_OK))
            self.assertIn(f"packaging/{name} debian/pvecfs/usr/bin/{name}\n", (ROOT / "debian/rules").read_text())
            self.assertIn(f"build/man/{name}.8\n", (ROOT / "debian/pvecfs.manpages").read_text())
            self.assertIn(f'"man/{name}", "{name}"', (ROOT / "docs/conf.py").read_text())
            self.assertIn(f"man/{name}\n", (ROOT / "docs/index.md").read_text())


# Each gives a unit a mount namespace of its own (systemd.exec(5)): no other process would see the mount.
MOUNT_NAMESPACE = {
    "PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateUsers", "PrivateNetwork", "PrivateIPC", "ProtectSystem",
    "ProtectHome", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
    "ProtectProc", "ProcSubset", "ProtectHostname", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths",
    "NoExecPaths", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "DynamicUser", "RootDirectory", "RootImage",
    "MountAPIVFS", "MountFlags", "LogNamespace", "ExtensionImages", "MountImages",
}  # fmt: skip


class UnitTests(unittest.TestCase):
    unit = ROOT / "packaging" / "pvecfs.service"

    def directives(self) -> list[tuple[str, str]]:
        rows = [line for line in self.unit.read_text().splitlines() if line and line[0] not in "#["]
        return [(name, value) for name, _, value in (row.partition("=") for row in rows)]

    def test_mount_seen_by_all(self) -> None:
        self.assertEqual({name for name, _ in self.directives()} & MOUNT_NAMESPACE, set())

    def test_contract(self) -> None:
        """Readiness by notification, the pid file that scripts know, the order before corosync, the old name."""
        directives = self.directives()
        self.assertIn(("Type", "notify"), directives)
        self.assertIn(("Restart", "on-failure"), directives)
        self.assertIn(("Alias", "pve-cluster.service"), directives)
        self.assertIn("--pidfile= pvecfs --pid-file /run/pve-cluster.pid", dict(directives)["ExecStart"])
        before = " ".join(value for name, value in directives if name == "Before").split()
        self.assertIn("corosync.service", before)
        after = " ".join(value for name, value in directives if name == "After").split()
        self.assertNotIn("corosync.service", after)

    def test_granted(self) -> None:
        """The descriptors that the daemon wants, and the capabilities for what it asks of the system."""
        directives = dict(self.directives())
        self.assertGreaterEqual(int(directives["LimitNOFILE"]), WANTED)
        granted = directives["CapabilityBoundingSet"].split()
        self.assertIn("CAP_SYS_NICE", granted)  # real-time priority
        self.assertIn("CAP_NET_ADMIN", granted)  # SO_SNDBUFFORCE

    def test_verify(self) -> None:
        """systemd finds nothing wrong with it, by its own name and as pve-cluster."""
        if shutil.which("systemd-analyze") is None:
            raise unittest.SkipTest("needs systemd-analyze")
        text = self.unit.read_text().replace("/usr/bin/twistd3", "/bin/true")  # Debian's twistd may be missing here
        for name in ("pvecfs.service", "pve-cluster.service"):
            directory = Path(self.mktemp())
            directory.mkdir()
            (directory / "pvecfs.service").write_text(text)
            if name != "pvecfs.service":
                (directory / name).symlink_to("pvecfs.service")
            done = subprocess.run(
                ["systemd-analyze", "verify", "--man=no", str(directory.absolute() / name)],
                capture_output=True,
                text=True,
                timeout=60,
            )
            self.assertNotIn("pvecfs", done.stderr)
            self.assertNotIn("pve-cluster", done.stderr)


class PackageTests(unittest.TestCase):
    def test_vendored(self) -> None:
        """What the Debian package builds in is pinned, hashed, and among the requirements."""
        setup = configparser.ConfigParser()
        setup.read(ROOT / "setup.cfg")
        required = set(re.findall(r"^([\w.]+)", setup["options"]["install_requires"].strip(), re.M))
        for row in (ROOT / "packaging/vendored.txt").read_text().splitlines():
            if not row.startswith("#"):
                self.assertRegex(row, r"^\w+==[\d.]+ --hash=sha256:[0-9a-f]{64}$")
                self.assertIn(row.partition("==")[0], required)

    def test_version(self) -> None:
        """The Debian package carries the version of the code."""
        from pvecfs import __version__

        newest = re.match(r"pvecfs \(([^)]+)\)", (ROOT / "debian/changelog").read_text())
        assert newest is not None
        self.assertEqual(newest.group(1), __version__)

    def test_state_directory(self) -> None:
        """A database can be restored on a host where no daemon ever ran (docs/recovery.md)."""
        self.assertEqual((ROOT / "debian/pvecfs.dirs").read_text(), "var/lib/pve-cluster\n")
        rules = (ROOT / "debian/rules").read_text()
        self.assertIn("execute_after_dh_fixperms:\n\tchmod 750 debian/pvecfs/var/lib/pve-cluster\n", rules)

    def test_scripts(self) -> None:
        """Each script is executable and parses."""
        for script in [*(ROOT / "scripts").iterdir(), ROOT / ".ci/run"]:
            if script.is_dir():
                continue
            first = script.read_text().partition("\n")[0]
            self.assertTrue(os.access(script, os.X_OK), script)
            if "python" not in first:
                shell = first.removeprefix("#!")
                subprocess.run([shell, "-n", str(script)], check=True, timeout=20)

    def test_make(self) -> None:
        """The targets exist."""
        if shutil.which("make") is None:
            raise unittest.SkipTest("needs make")
        targets = [
            "run",
            "stop",
            "test",
            "lint",
            "types",
            "docs",
            "deb",
            "test-package",
            "dist",
            "simulate",
            "chaos",
            "bench",
            "clean",
        ]
        subprocess.run(["make", "-n", *targets], cwd=ROOT, check=True, capture_output=True, timeout=20)


class LocalNodeTests(unittest.TestCase):
    """C{scripts/start-local} and C{scripts/stop-local}, in a checkout of their own that is reached through a link."""

    timeout = 120

    def setUp(self) -> None:
        base = Path(tempfile.mkdtemp(prefix="pvecfs ")).resolve()
        self.addCleanup(shutil.rmtree, base, ignore_errors=True)
        self.checkout = base / "check out"
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        self.link = base / "link"
        self.link.symlink_to(self.checkout)
        self.pid_file = self.checkout / ".run/pvecfs.pid"
        self.pid_file.parent.mkdir()

    def script(self, name: str) -> str:
        done = subprocess.run(
            [str(self.link / "scripts" / name)],
            cwd=self.link,
            env={**os.environ, "PWD": str(self.link), "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        self.assertEqual(done.returncode, 0, done.stdout)
        return done.stdout

    def test_another_process(self) -> None:
        """The number in the pid file is one's that has nothing to do with us."""
        for words in ["sleep", "60"], ["tail", "-f", str(self.pid_file)]:
            with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
                self.pid_file.write_text(str(process.pid))
                try:
                    self.assertIn("No local node", self.script("stop-local"))
                    self.assertIsNone(process.poll())
                finally:
                    process.kill()
        self.pid_file.write_text("1")
        self.assertIn("No local node", self.script("stop-local"))

    def install(self) -> None:
        """Have what C{scripts/make-venv} makes, and leave nothing running."""
        program = self.checkout / ".venv/bin/twistd"
        program.parent.mkdir(parents=True)
        program.write_text(
            f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -c 'from twisted.scripts.twistd import run; run()' \"$@\"\n"
        )
        program.chmod(0o755)
        self.addCleanup(self.script, "stop-local")

    @needs_fuse()
    def test_run_and_stop(self) -> None:
        self.install()
        another = subprocess.Popen(["sleep", "60"])
        self.addCleanup(another.wait)
        self.addCleanup(another.kill)
        self.pid_file.write_text(str(another.pid))
        self.assertIn("Starting a local node", self.script("start-local"))
        self.assertTrue(os.path.ismount(self.checkout / ".run/pve"))
        self.assertIn("runs already", self.script("start-local"))
        self.assertIn("Stopped", self.script("stop-local"))
        self.assertFalse(os.path.ismount(self.checkout / ".run/pve"))
        self.assertIn("No local node", self.script("stop-local"))

    def wait_until_dead(self) -> None:
        """Until the mount has nobody behind it."""
        with self.assertRaises(OSError):
            while True:
                os.statvfs(self.checkout / ".run/pve")
                time.sleep(0.01)

    @needs_fuse()
    def test_killed(self) -> None:
        """Its mount is there, and dead: a start takes its place, a stop removes it."""
        self.install()
        for script, said in ("start-local", "Starting a local node"), ("stop-local", "was killed"):
            self.script("start-local")
            os.kill(int(self.script("local-pid")), signal.SIGKILL)
            self.wait_until_dead()
            self.assertIn(said, self.script(script))
        self.assertFalse(is_mounted(self.checkout / ".run/pve"))
        self.assertIn("No local node", self.script("stop-local"))


def run_tests_script() -> ModuleType:
    """C{scripts/run-tests} as a module."""
    loader = importlib.machinery.SourceFileLoader("run_tests_script", str(ROOT / "scripts/run-tests"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = written
    return module


class TotalsTests(unittest.TestCase):
    def totals(self, *lines: str) -> tuple[int, int, int]:
        totals = run_tests_script().Totals()
        for line in lines:
            totals.line(line + "\n")
        numbers: tuple[int, int, int] = totals.numbers()
        return numbers

    def test_passed(self) -> None:
        self.assertEqual(self.totals("Ran 5 tests in 0.1s", "", "PASSED (skips=2, successes=3)"), (3, 0, 2))

    def test_failed(self) -> None:
        line = "FAILED (skips=1, expectedFailures=1, failures=2, errors=3, unexpectedSuccesses=1, successes=9)"
        self.assertEqual(self.totals(line), (10, 6, 1))

    def test_cut_short(self) -> None:
        """Without a summary the lines count, and the cut itself is a failure."""
        lines = ["  test_a ...   [OK]", "  test_b ...   [SKIPPED]", "  test_c ...  [ERROR]", "  test_d ... "]
        self.assertEqual(self.totals(*lines), (1, 2, 1))

    def test_nothing(self) -> None:
        self.assertEqual(self.totals("PASSED"), (0, 0, 0))
