"""C{twistd pvecfs --local} as a user meets it: start, work, stop, crash, wrong input."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from pathlib import Path

from twisted.internet.defer import fail
from twisted.internet.task import Clock
from twisted.trial.unittest import TestCase

from pvecfs import daemon
from pvecfs.daemon import Cluster, instant
from pvecfs.node.hostconf import HostConfiguration
from pvecfs.node.ledger import Ledger
from pvecfs.node.status import NoRoundRobin, StatusService
from pvecfs.node.view import NodeView
from pvecfs.replica.kvstore import StatusReplica
from pvecfs.replica.machine import Mode
from pvecfs.scheduling import RealTimeThreads
from pvecfs.store.lockfile import LOCK_TIMEOUT, LockFile
from pvecfs.store.memory import MemoryStore
from pvecfs.tap import Options
from pvecfs.tree.admission import Limits
from pvecfs.tree.locks import LockClocks
from pvecfs.tree.tree import Tree
from tests.daemons import TWISTD, DaemonProcess, is_mounted, processes_of, temporary_base, twistd_environment
from tests.lab import eventually
from tests.needs import needs_fuse, needs_root

GOLDEN = Path(__file__).parent / "golden"


def opened_by(pid: int) -> set[Path]:
    """The files that a process has open."""
    found = set()
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed by now
            found.add(descriptor.readlink())
    return found


class DaemonCase(TestCase):
    """A directory for one daemon, cleaned up whatever happens."""

    timeout = 120

    def setUp(self) -> None:
        self.base = temporary_base(self)
        self.daemon = self.new_daemon()

    def new_daemon(self, *options: str) -> DaemonProcess:
        daemon = DaemonProcess(self.base, "--local", *options)
        self.addCleanup(daemon.clean)
        return daemon


@needs_root()
@needs_fuse()
class Life(DaemonCase):
    def test_new_database(self) -> None:
        self.daemon.start()
        mount = self.daemon.mount
        self.assertTrue(is_mounted(mount))
        (mount / "nodes/n1/qemu-server").mkdir(parents=True)
        (mount / "local/qemu-server/100.conf").write_text("name: web\n")
        self.assertIn('"100": { "node": "n1", "type": "qemu"', (mount / ".vmlist").read_text())
        self.assertEqual(stat.S_IMODE(os.stat(self.daemon.database).st_mode), 0o600)
        self.assertEqual(stat.S_IMODE(os.stat(self.daemon.state).st_mode), 0o750)
        self.assertEqual(stat.S_IMODE(os.stat(self.daemon.run).st_mode), 0o750)
        code, seconds = self.daemon.stop()
        self.assertEqual(code, 0)
        self.assertLess(seconds, 5)
        self.assertFalse(is_mounted(mount))
        flag = self.daemon.run / "cfs-restart-flag"
        self.assertEqual(stat.S_IMODE(os.stat(flag).st_mode), 0o440)
        self.daemon.start()
        self.assertFalse(flag.exists())
        self.assertEqual((mount / "qemu-server/100.conf").read_text(), "name: web\n")

    def test_recorded_database(self) -> None:
        self.daemon.state.mkdir()
        shutil.copy(GOLDEN / "config.db", self.daemon.database)
        self.daemon.start()
        self.assertEqual((self.daemon.mount / "nodes/n2/qemu-server/100.conf").stat().st_size, 23)
        self.assertEqual(os.stat(os.fsencode(self.daemon.mount) + rb"/nodes/n1/not\xc3\xa9s.txt").st_size, 10)

    def test_every_stopping_signal_exits_with_0(self) -> None:
        for number in signal.SIGTERM, signal.SIGINT, signal.SIGHUP:
            self.daemon.start()
            self.assertEqual(self.daemon.stop(number)[0], 0, number)

    def test_kill_and_restart(self) -> None:
        self.daemon.start()
        (self.daemon.mount / "kept").write_text("x")
        self.daemon.kill()
        with self.assertRaises(OSError):  # the mount is stale
            os.listdir(self.daemon.mount)
        self.daemon.start()
        self.assertEqual((self.daemon.mount / "kept").read_text(), "x")

    def test_stop_with_an_open_file_and_a_working_directory_in_it(self) -> None:
        self.daemon.start()
        path = self.daemon.mount / "open"
        path.write_text("x")
        client = subprocess.Popen(["sleep", "30"], cwd=self.daemon.mount, stdin=path.open())
        self.addCleanup(client.wait)
        self.addCleanup(client.kill)
        with path.open() as held:
            code, seconds = self.daemon.stop()
            self.assertEqual(code, 0)
            self.assertLess(seconds, 5)
            self.assertFalse(held.closed)
        self.assertFalse(is_mounted(self.daemon.mount))

    def test_stopped_while_the_database_is_locked(self) -> None:
        """A start that waits for another program which uses the database ends as soon as it is told to."""
        self.daemon.start()
        self.daemon.stop()
        with contextlib.closing(sqlite3.connect(self.daemon.database, isolation_level=None)) as other:
            other.execute("PRAGMA locking_mode=EXCLUSIVE")
            other.execute("BEGIN EXCLUSIVE")
            process = self.daemon.spawn()
            eventually(lambda: self.daemon.database in opened_by(process.pid), 20, "the database")
            process.terminate()
            self.assertEqual(process.wait(5), 0)
        self.daemon.start()

    def test_signals_while_stopping(self) -> None:
        self.daemon.before = (
            "from pvecfs.daemon import NodeService as N\n"
            "once = N._signalled\n"
            "N._signalled = lambda *arguments: (once(*arguments), once(*arguments))\n"
        )
        self.daemon.start()
        self.assertEqual(self.daemon.stop()[0], 0)
        self.assertNotIn("Traceback", self.daemon.log_text())

    def test_link_as_mountpoint(self) -> None:
        """The mount is where the links lead: it is found there by a stop, and by a start after a crash."""
        real = self.base / "real"
        (real / "pve").mkdir(parents=True)
        (self.base / "above").symlink_to("real")
        self.daemon.mount.symlink_to("above/pve")
        for end in self.daemon.kill, self.daemon.stop:
            self.daemon.start()
            self.assertTrue(is_mounted(real / "pve"))
            self.assertNotEqual(processes_of(real / "pve"), [])
            (self.daemon.mount / "file").write_text("x")
            end()
        self.assertFalse(is_mounted(real / "pve"))
        self.assertEqual(processes_of(real / "pve"), [])

    def test_pid_file(self) -> None:
        """It is there as long as the database is in use, however a start beside it ends."""
        path = self.base / "pid"
        self.daemon.options += ["--pid-file", str(path)]
        path.write_text("1")  # left by one that was killed; that number is in use
        self.daemon.start()
        self.assertEqual(path.read_text(), f"{self.daemon.pid}\n")
        self.daemon.before = "import pvecfs.daemon\npvecfs.daemon.LOCK_TIMEOUT = 0.1"
        other = DaemonProcess(self.base, *self.daemon.options)
        other.before = self.daemon.before
        self.assertEqual(other.spawn().wait(30), 1)
        self.assertIn("another daemon uses this database", self.daemon.log_text())
        self.assertEqual(path.read_text(), f"{self.daemon.pid}\n")
        self.assertEqual(self.daemon.stop()[0], 0)
        self.assertFalse(path.exists())

    def test_mount_taken_away(self) -> None:
        self.daemon.start()
        subprocess.run(["umount", str(self.daemon.mount)], check=True, timeout=10)
        assert self.daemon.process is not None
        self.assertEqual(self.daemon.process.wait(10), 0)
        sqlite3.connect(self.daemon.database).execute("SELECT * FROM tree").fetchall()

    @needs_root()
    def test_mount_broken(self) -> None:
        """An aborted connection, as C{umount -f} leaves one that is in use, is a failure: the service manager is to
        start the daemon again. The dead mount does not stay."""
        self.daemon.start()
        with subprocess.Popen(["sleep", "60"], cwd=self.daemon.mount) as client:
            try:
                self.assertNotEqual(subprocess.run(["umount", "-f", str(self.daemon.mount)], timeout=10).returncode, 0)
                assert self.daemon.process is not None
                self.assertEqual(self.daemon.process.wait(10), 1)
            finally:
                client.kill()
        self.assertFalse(is_mounted(self.daemon.mount))
        self.assertIn("is broken", self.daemon.log_text())

    @needs_root()
    def test_mount_taken_away_that_nobody_can_look_at(self) -> None:
        """Without a descriptor to see what is mounted, it counts as broken."""
        self.daemon.before = (
            "import os, errno, pvecfs.fuse.mountpoint as mountpoint\n"
            "find = mountpoint.find_mounted\n"
            "def failing(place):\n"
            f"    if os.path.exists({str(self.base / 'fail')!r}):\n"
            "        raise OSError(errno.EMFILE, 'Too many open files')\n"
            "    return find(place)\n"
            "mountpoint.find_mounted = failing\n"
        )
        self.daemon.start()
        (self.base / "fail").touch()
        subprocess.run(["umount", str(self.daemon.mount)], check=True, timeout=10)
        assert self.daemon.process is not None
        self.assertEqual(self.daemon.process.wait(10), 1)
        self.assertIn("Too many open files", self.daemon.log_text())

    def test_failing_requests(self) -> None:
        """A failed read of C{/dev/fuse}, and a defect of ours, are told and end the daemon with an error."""
        for outcome, reason in ("return -5", "Input/output error"), ("raise RuntimeError('a defect')", "a defect"):
            self.daemon.before = (
                "import os, pvecfs.fuse.lowlevel as lowlevel\n"
                "take = lowlevel.session_receive\n"
                "def failing(session, place):\n"
                f"    if os.path.exists({str(self.base / 'fail')!r}):\n"
                f"        {outcome}\n"
                "    return take(session, place)\n"
                "lowlevel.session_receive = failing\n"
            )
            self.daemon.start()
            (self.base / "fail").touch()
            subprocess.run(["stat", "-f", str(self.daemon.mount)], stderr=subprocess.DEVNULL, timeout=10)
            assert self.daemon.process is not None
            self.assertEqual(self.daemon.process.wait(10), 1)
            self.assertIn(reason, self.daemon.log_text())
            self.assertFalse(is_mounted(self.daemon.mount))
            (self.base / "fail").unlink()

    def test_debug_switch(self) -> None:
        self.daemon.start()
        switch = self.daemon.mount / ".debug"
        self.assertEqual(switch.read_text(), "0\n")
        subprocess.run(f"echo 1 > {switch}", shell=True, check=True, timeout=10)
        self.assertEqual(switch.read_text(), "1\n")
        (self.daemon.mount / "told").mkdir()
        subprocess.run(f"echo 0 > {switch}", shell=True, check=True, timeout=10)
        self.assertEqual(switch.read_text(), "0\n")
        (self.daemon.mount / "not-told").mkdir()
        self.daemon.stop()
        self.assertRegex(self.daemon.log_text(), r"Mkdir /?told: 0, [0-9.]+ ms")
        self.assertNotIn("not-told", self.daemon.log_text())

    def test_many_configs(self) -> None:
        """10,000 VM configs of 1 KiB."""
        self.daemon.start()
        directory = self.daemon.mount / "nodes/n1/qemu-server"
        directory.mkdir(parents=True)
        self.daemon.stop()
        with sqlite3.connect(self.daemon.database) as db:
            parent, version = db.execute(
                "SELECT inode, (SELECT version FROM tree WHERE inode = 0) FROM tree WHERE name = 'qemu-server'"
            ).fetchone()
            db.executemany(
                "INSERT INTO tree VALUES (?, ?, ?, 0, 1, 8, ?, ?)",
                (
                    (version + i, parent, version + i, f"{1000 + i}.conf", b"memory: 512\n" * 85)
                    for i in range(1, 10001)
                ),
            )
            db.execute("UPDATE tree SET version = version + 10000 WHERE inode = 0")
        seconds = self.daemon.start()
        self.assertEqual(len(os.listdir(directory)), 10000)
        self.assertIn(b'"11000": { "node": "n1"', (self.daemon.mount / ".vmlist").read_bytes())
        self.assertLess(seconds, 30)  # measured in benchmarks; here only: not absurd

    def test_cluster_without_corosync_is_read_only(self) -> None:
        self.daemon.start()
        (self.daemon.mount / "corosync.conf").write_text("totem {\n  config_version: 1\n}\n")
        self.daemon.stop()
        self.daemon.options.remove("--local")
        self.daemon.start()
        self.assertEqual(stat.S_IMODE(os.lstat(self.daemon.mount / "local").st_mode), 0o555)
        self.assertIn("config_version", (self.daemon.mount / "corosync.conf").read_text())
        with self.assertRaises(PermissionError):
            (self.daemon.mount / "new").write_text("x")
        code, seconds = self.daemon.stop()
        self.assertEqual(code, 0)
        self.assertLess(seconds, 5)

    def test_host_has_corosync_conf_when_ready(self) -> None:
        """corosync is started as soon as we are ready; no thread has to come first."""
        conf = "totem {\n  config_version: 1\n}\n"
        self.daemon.start()
        (self.daemon.mount / "corosync.conf").write_text(conf)
        self.daemon.stop()
        self.daemon.options.remove("--local")
        self.daemon.before = (
            "import pvecfs.daemon\n"
            "from twisted.internet.defer import Deferred\n"
            "pvecfs.daemon.deferToThread = lambda *arguments: Deferred()\n"
        )
        self.daemon.start()
        self.assertEqual((self.base / "corosync.conf").read_text(), conf)

    def test_host_corosync_conf_cannot_be_written(self) -> None:
        """No reason not to start."""
        self.daemon.start()
        (self.daemon.mount / "corosync.conf").write_text("totem {\n  config_version: 1\n}\n")
        self.daemon.stop()
        self.daemon.options.remove("--local")
        (self.base / "corosync.conf").mkdir()
        self.daemon.start()
        self.assertIn("cannot update", self.daemon.log_text())

    def test_first_start_imports_corosync_conf(self) -> None:
        conf = b"totem {\n  config_version: 3\n}\n"
        (self.base / "corosync.conf").write_bytes(conf)
        self.daemon.options.remove("--local")
        self.daemon.start()
        self.assertEqual((self.daemon.mount / "corosync.conf").read_bytes(), conf)
        self.daemon.stop()
        with sqlite3.connect(self.daemon.database) as db:
            rows = db.execute("SELECT inode, version, writer, name, data FROM tree ORDER BY inode").fetchall()
        self.assertEqual([row[:4] for row in rows], [(0, 3, 0, "__version__"), (2, 3, 0, "corosync.conf")])
        self.assertEqual(bytes(rows[1][4]), conf)


@needs_root()
@needs_fuse()
class SignalsDuringTheStart(DaemonCase):
    """What was done is undone, and that is an orderly stop."""

    STEPS = (
        ("pvecfs.store.lockfile", "LockFile.try_acquire"),
        ("pvecfs.store.sqlite", "SqliteStore.open"),
        ("pvecfs.fuse.mount", "FuseMount._begin"),
        ("pvecfs.daemon", "Cluster.startService"),
        ("pvecfs.ipc.service", "IpcService.startService"),
        ("pvecfs.node.host", "clear_restart_flag"),
        ("pvecfs.daemon", "NodeService._running"),
    )

    def test_every_step(self) -> None:
        conf = self.base / "corosync.conf"
        conf.write_text("totem {\n  config_version: 1\n}\n")
        self.daemon.options.remove("--local")
        self.daemon.options += ["--pid-file", str(self.base / "pid")]
        for number, (module, step) in enumerate(self.STEPS):
            name = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[number % 3].name
            self.daemon.before = (
                f"import os, signal, {module}\n"
                f"step = {module}.{step}\n"
                "def then_signalled(*arguments):\n"
                "    result = step(*arguments)\n"
                f"    os.kill(os.getpid(), signal.{name})\n"
                "    return result\n"
                f"{module}.{step} = then_signalled\n"
            )
            self.daemon.log.unlink(missing_ok=True)
            code = self.daemon.spawn().wait(20)
            log = self.daemon.log_text()
            self.assertEqual(code, 0, f"{step}: {log}")
            self.assertNotIn("Traceback", log, step)
            self.assertIn(f"received {name}", log, step)
            self.assertFalse(is_mounted(self.daemon.mount), step)
            self.assertEqual(processes_of(self.daemon.mount), [], step)
            self.assertFalse((self.base / "pid").exists(), step)
        self.daemon.before = ""
        self.daemon.start()
        self.assertIn("config_version", (self.daemon.mount / "corosync.conf").read_text())

    def test_while_waiting_for_the_lock(self) -> None:
        self.daemon.state.mkdir()
        lock = LockFile.beside(self.daemon.database)
        self.assertTrue(lock.try_acquire())
        self.addCleanup(lock.release)
        self.daemon.before = (
            "import os, signal, time\n"
            "from pvecfs.store.lockfile import LockFile\n"
            "tries = LockFile.try_acquire\n"
            "LockFile.try_acquire = lambda lock: (tries(lock), os.kill(os.getpid(), signal.SIGTERM))[0]\n"
        )
        began = time.monotonic()
        self.assertEqual(self.daemon.spawn().wait(20), 0)
        self.assertLess(time.monotonic() - began, LOCK_TIMEOUT)
        self.assertFalse(self.daemon.database.exists())


@needs_root()
@needs_fuse()
class Crashes(DaemonCase):
    timeout = 300

    def test_kill_in_the_middle_of_writes(self) -> None:
        """kill -9 again and again under load: each acknowledged change is there, none is half there."""
        self.daemon.start()
        mount = self.daemon.mount
        writer = (
            "import os, sys, itertools\n"
            "for i in itertools.count(int(sys.argv[2])):\n"
            "    data = b'%08d' % i * 300\n"
            "    with open(sys.argv[1] + '/f%d' % (i % 7), 'wb', 0) as f: f.write(data)\n"
            "    os.rename(sys.argv[1] + '/f%d' % (i % 7), sys.argv[1] + '/g%d' % (i % 7))\n"
            "    os.write(1, b'%d\\n' % i)\n"
        )
        number = 0
        for _ in range(int(os.environ.get("PVECFS_KILLS", "8"))):
            process = subprocess.Popen(
                [TWISTD[0], "-c", writer, str(mount), str(number)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(0.2)
            self.daemon.kill()
            acknowledged = process.communicate(timeout=10)[0].split()
            self.daemon.start()
            number = int(acknowledged[-1]) if acknowledged else number
            for i in range(max(0, number - 5), number + 1):
                found = (mount / f"g{i % 7}").read_bytes()
                self.assertEqual((len(found), found[:8] * 300), (2400, found))
                self.assertGreaterEqual(int(found[:8]), i)
            number += 7


@needs_fuse()
class WrongInput(DaemonCase):
    """One clear line, an exit code that is not 0, nothing mounted or half made."""

    def refused(self, *options: str, daemon: DaemonProcess | None = None) -> str:
        """Start a daemon that must not start; return the last line that it prints."""
        daemon = daemon or self.daemon
        result = subprocess.run(
            [
                *TWISTD,
                "--nodaemon",
                "--pidfile=",
                "--logfile",
                str(self.base / "refused.log"),
                "pvecfs",
                *daemon.options,
                *options,
            ],
            capture_output=True,
            cwd=self.base,
            env=twistd_environment(),
            timeout=30,
            check=False,
        )
        self.assertNotEqual(result.returncode, 0)
        message = (result.stdout + result.stderr).decode()
        self.assertNotIn("Traceback", message)
        self.assertFalse(is_mounted(daemon.mount))
        return message.strip().splitlines()[-1]

    def test_unknown_option(self) -> None:
        self.assertIn("--colour", self.refused("--colour"))

    def test_unexpected_argument(self) -> None:
        self.assertIn("surprise", self.refused("surprise"))

    def test_wrong_number(self) -> None:
        self.assertEqual(self.refused("--max-size", "none"), "pvecfs: --max-size: 'none' is not a whole number from 1")

    def test_impossible_directory(self) -> None:
        (self.base / "file").write_text("")
        self.assertIn(str(self.base / "file"), self.refused("--state-dir", str(self.base / "file" / "state")))

    def test_unknown_group(self) -> None:
        if os.geteuid():
            return
        self.assertIn("no-such-group", self.refused("--group", "no-such-group"))

    def test_long_ipc_name(self) -> None:
        self.assertIn("longer than 107 bytes", self.refused("--ipc-name", "n" * 108))

    def test_unresolvable_name(self) -> None:
        index = self.daemon.options.index("--node-ip")
        del self.daemon.options[index : index + 2]
        self.assertIn("no-such-host.invalid", self.refused("--node-name", "no-such-host.invalid"))

    def test_address_that_is_none(self) -> None:
        self.assertIn("300.1.1.1", self.refused("--node-ip", "300.1.1.1"))

    def test_file_instead_of_a_mountpoint(self) -> None:
        self.daemon.mount.write_text("")
        self.assertIn(str(self.daemon.mount), self.refused())

    def test_not_a_database(self) -> None:
        self.daemon.state.mkdir()
        self.daemon.database.write_bytes(b"something else" * 1000)
        self.assertIn(str(self.daemon.database), self.refused())
        self.assertEqual(self.daemon.database.read_bytes(), b"something else" * 1000)

    def test_large_corosync_conf(self) -> None:
        """It is named, and imported when it has become smaller."""
        if os.geteuid():
            return
        self.daemon.options.remove("--local")
        path = self.base / "corosync.conf"
        conf = b"totem {\n  config_version: 1\n}\n"
        path.write_bytes(conf + b"#" * 1024 * 1024)
        self.assertIn(f"cannot import {path}: File too large", self.refused())
        path.write_bytes(conf)
        self.daemon.start()
        self.assertEqual((self.daemon.mount / "corosync.conf").read_bytes(), conf)

    def test_directory_of_others(self) -> None:
        """It keeps its owner and mode, and is not taken."""
        shared = self.base / "shared"
        shared.mkdir()
        shared.chmod(0o1777)
        for option in "--run-dir", "--state-dir":
            self.assertIn(f"{shared} is a directory that others may write to", self.refused(option, str(shared)))
        self.assertEqual(stat.S_IMODE(shared.stat().st_mode), 0o1777)
        self.assertEqual(list(shared.iterdir()), [])

    def test_database_with_a_defect(self) -> None:
        self.daemon.state.mkdir()
        shutil.copy(GOLDEN / "config.db", self.daemon.database)
        with sqlite3.connect(self.daemon.database) as db:
            db.execute("INSERT INTO tree VALUES (900, 12, 900, 1, 1, 8, 'crm_commands', NULL)")
        db.close()
        before = self.daemon.database.read_bytes()
        self.assertIn("crm_commands", self.refused())
        self.assertEqual(self.daemon.database.read_bytes(), before)

    def test_second_daemon(self) -> None:
        self.daemon.start()
        other = DaemonProcess(self.base, "--local", "--ipc-name", "pvecfs-other")
        other.mount = self.base / "other"
        other.options += ["--mountpoint", str(other.mount)]
        self.assertIn("another daemon", self.refused(daemon=other))
        self.assertTrue(is_mounted(self.daemon.mount))

    def test_pid_file_of_another_daemon(self) -> None:
        """One of another database: it is as it was."""
        path = self.base / "pid"
        self.daemon.options += ["--pid-file", str(path)]
        self.daemon.start()
        other = DaemonProcess(self.base, "--local", "--no-ipc", "--pid-file", str(path))
        self.addCleanup(other.clean)
        other.mount = self.base / "other"
        other.options += ["--mountpoint", str(other.mount), "--state-dir", str(self.base / "other-state")]
        message = self.refused(daemon=other)
        self.assertIn(f"the pid file {path} is that of process {self.daemon.pid}", message)
        self.assertEqual(path.read_text(), f"{self.daemon.pid}\n")

    def test_second_daemon_by_a_link(self) -> None:
        """Another state directory, whose database is a link to the same file."""
        self.daemon.start()
        other = DaemonProcess(self.base, "--local", "--ipc-name", "pvecfs-other")
        other.mount = self.base / "other"
        state = self.base / "other-state"
        state.mkdir()
        (state / "config.db").symlink_to(self.daemon.database)
        other.options += ["--mountpoint", str(other.mount), "--state-dir", str(state)]
        self.assertIn("another daemon", self.refused(daemon=other))

    def test_nothing_is_left_by_a_failed_start(self) -> None:
        self.daemon.mount.write_text("")
        self.refused()
        self.assertEqual(
            sorted(path.name for path in self.base.iterdir() if path.name != "refused.log"), ["mnt", "run", "state"]
        )
        self.assertNotIn("cfs-restart-flag", os.listdir(self.daemon.run))


class PlacesTests(TestCase):
    """What the daemon itself uses cannot be in its mount."""

    def refused(self, *options: str) -> str:
        with self.assertRaises(SystemExit) as refused:
            Options().parseOptions(list(options))
        return str(refused.exception)

    def test_in_the_mount(self) -> None:
        base = Path(self.mktemp()).absolute()
        (base / "mount").mkdir(parents=True)
        (base / "link").symlink_to("mount/below")
        (base / "also").symlink_to("mount")
        for name in "state-dir", "run-dir", "rrd-dir", "rrdcached-socket":
            for place in "mount", "mount/below", "link", "other/../mount":
                for mount in "mount", "also":
                    message = self.refused("--mountpoint", str(base / mount), f"--{name}", str(base / place))
                    self.assertIn(f"--{name} {base / place} is in the mount", message)
            Options().parseOptions(["--mountpoint", str(base / "mount"), f"--{name}", str(base / "mount2")])
        for name in "pid-file", "corosync-conf":
            for place in "mount/file", "also/file":
                message = self.refused("--mountpoint", str(base / "mount"), f"--{name}", str(base / place))
                self.assertIn(f"--{name}", message)
            # a link as the file itself will be replaced
            Options().parseOptions(["--mountpoint", str(base / "mount"), f"--{name}", str(base / "link")])
        self.assertIn("is in the mount", self.refused("--mountpoint", "/var"))

    def test_pid_file_in_the_place_of_the_database(self) -> None:
        base = Path(self.mktemp()).absolute()
        for name in "state", "elsewhere", "third":
            (base / name).mkdir(parents=True)
        (base / "link").symlink_to("state")
        (base / "state/config.db").symlink_to(base / "elsewhere/config.db")
        for directory in "state", "link", "third/../state", "elsewhere":
            for file in "config.db", "config.db-wal", "config.db-shm", "config.db-journal", ".pmxcfs.lockfile":
                path = base / directory / file
                message = self.refused("--state-dir", str(base / "link"), "--pid-file", str(path))
                self.assertIn(f"--pid-file {path} is a file of the database", message)
        for path in base / "state/pid", base / "third/config.db":
            Options().parseOptions(["--state-dir", str(base / "link"), "--pid-file", str(path)])

    def test_links_that_lead_nowhere(self) -> None:
        loop = Path(self.mktemp()).absolute()
        loop.symlink_to(loop)
        self.assertIn(f"{loop}: Too many levels", self.refused("--mountpoint", str(loop)))

    def test_defaults(self) -> None:
        options = Options()
        options.parseOptions([])
        self.assertIsNone(options["pid-file"])


class GarbageTests(TestCase):
    """The garbage collector and synchronisations."""

    def test_synchronisation(self) -> None:
        """It rests while entries come, and leaves a large tree out for ever."""
        reactor = Clock()
        limits = Limits()
        tree = Tree.new(1)
        view = NodeView(tree, b"n1", limits, False, False, lambda debug: None)
        status = StatusService(StatusReplica(b"n1", 1, 1, b"10.0.0.1"), NoRoundRobin(), instant)
        cluster = Cluster(
            reactor,
            Options(),
            Ledger(reactor, MemoryStore(tree), view),  # type: ignore[arg-type]  # nothing is called from threads
            view,
            status,
            LockClocks(),
            limits,
            HostConfiguration(reactor, "/nonexistent", lambda call: fail(OSError()), lambda command: None),
            RealTimeThreads(reactor),  # type: ignore[arg-type]  # as above
        )
        self.addCleanup(gc.enable)
        self.addCleanup(gc.unfreeze)
        told = cluster._tree_group.mode_changed
        for entries, kept in (2, False), (1, True):
            self.patch(daemon, "LARGE", entries)
            for end in Mode.SYNCED, Mode.LEAVE, Mode.START_SYNC:
                gc.unfreeze()
                told(Mode.UPDATE)
                self.assertFalse(gc.isenabled())
                told(end)
                self.assertTrue(gc.isenabled())
                self.assertEqual(gc.get_freeze_count() > 0, kept)
                gc.unfreeze()
                told(Mode.SYNCED)
                self.assertEqual(gc.get_freeze_count(), 0)
