"""C{pvecfs-health}: what it prints, and its exit codes; with a daemon of the test's own making, and a real one."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

from click.testing import CliRunner, Result
from twisted.trial.unittest import SynchronousTestCase, TestCase

from pvecfs import __version__, healthcli
from pvecfs.node.health import document
from tests.daemons import ROOT, DaemonProcess, temporary_base
from tests.needs import needs_fuse
from tests.test_node_health import HEALTHY, WAITING


class CommandTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.directory = temporary_base(self)

    def listen(self) -> socket.socket:
        """A socket at which a daemon would listen."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(listener.close)
        listener.bind(str(self.directory / "health"))
        listener.listen()
        return listener

    def answer(self, *parts: bytes) -> None:
        """Have the next client told C{parts}."""
        listener = self.listen()

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                for part in parts:
                    client.sendall(part)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)

    def run_command(self, *arguments: str) -> Result:
        result = CliRunner().invoke(healthcli.main, ["--run-dir", str(self.directory), *arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    def test_healthy(self) -> None:
        told = document(HEALTHY)
        self.answer(told[:10], told[10:])
        result = self.run_command()
        self.assertEqual(result.exit_code, 0)
        self.assertTrue(result.output.startswith("healthy\nnode "))

    def test_problems(self) -> None:
        self.answer(document(replace(HEALTHY, groups=(WAITING,))))
        result = self.run_command()
        self.assertEqual(result.exit_code, 1)
        self.assertTrue(result.output.startswith("problem: group pve_dcdb_v1 is not synchronised"))

    def test_json(self) -> None:
        told = document(replace(HEALTHY, quorate=False))
        self.answer(told)
        result = self.run_command("--json")
        self.assertEqual(result.exit_code, 1)
        self.assertEqual(json.loads(result.output), json.loads(told))

    def test_metrics(self) -> None:
        self.answer(document(HEALTHY))
        result = self.run_command("--metrics")
        self.assertEqual(result.exit_code, 0)
        self.assertIn("\npvecfs_healthy 1\n", result.output)

    def test_metrics_of_what_is_not_well(self) -> None:
        """They are there all the same, and the exit code lets who writes them to a file go on."""
        self.answer(document(replace(HEALTHY, groups=(WAITING,))))
        result = self.run_command("--metrics")
        self.assertEqual(result.exit_code, 0)
        self.assertIn("\npvecfs_healthy 0\n", result.output)
        (self.directory / "health").unlink()
        result = self.run_command("--metrics")
        self.assertEqual(result.exit_code, 0)
        self.assertIn("\npvecfs_up 0\n", result.output)

    def fails(self, says: str) -> None:
        """Nothing is printed but one line that names the socket."""
        result = self.run_command()
        self.assertEqual(result.exit_code, 2)
        self.assertIn(f"{self.directory}/health: ", result.output)
        self.assertIn(says, result.output)
        self.assertEqual(result.output.count("\n"), 1)

    def test_nobody(self) -> None:
        self.fails("no daemon answers: No such file")
        self.listen().close()
        self.fails("no daemon answers: Connection refused")

    def test_silence(self) -> None:
        """One time for all of it: what comes bit by bit does not lengthen it."""
        self.patch(healthcli, "TIMEOUT", 0.2)
        listener = self.listen()
        self.fails("no answer within")
        listener.accept()[0].close()

        def trickle() -> None:
            client, _ = listener.accept()
            with client, contextlib.suppress(BrokenPipeError):
                for _ in range(300):
                    client.sendall(b" ")
                    time.sleep(0.01)

        thread = threading.Thread(target=trickle, daemon=True)
        thread.start()
        self.addCleanup(thread.join, 10)
        self.fails("no answer within")

    def test_nonsense(self) -> None:
        for told in (b"", b"no document", b"[]", b"{}", b'{"problems": []}'):
            self.answer(told)
            self.fails("the answer is not understood" if told else "closed without an answer")
            (self.directory / "health").unlink()

    def test_command_line(self) -> None:
        for arguments in (["--no-such-option"], ["extra"], ["--json", "--metrics"], ["--run-dir", __file__]):
            result = self.run_command(*arguments)
            self.assertEqual(result.exit_code, 2, arguments)
            self.assertIn("Usage", result.output)
        result = self.run_command("--version")
        self.assertEqual((result.exit_code, __version__ in result.output), (0, True))
        self.assertIn("--metrics", self.run_command("--help").output)


def pvecfs_health(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program itself, asking the daemon of that run directory."""
    return subprocess.run(
        [sys.executable, "-m", "pvecfs.healthcli", "--run-dir", str(directory), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_fuse()
class DaemonTests(TestCase):
    timeout = 120

    def test_local(self) -> None:
        """From ready to stopped; in the place of what a killed daemon has left; not without the socket's place."""
        daemon = DaemonProcess(temporary_base(self), "--local", "--max-entries=10")
        self.addCleanup(daemon.clean)
        daemon.start()
        (daemon.mount / "d").mkdir()
        done = pvecfs_health(daemon.run)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("healthy\n", done.stdout)
        told = json.loads(pvecfs_health(daemon.run, "--json").stdout)
        expected = {"pid": daemon.pid, "mode": "local", "mountpoint": str(daemon.mount), "proposed": 1}
        self.assertEqual({name: told[name] for name in expected}, expected)
        self.assertEqual(told["database"]["path"], str(daemon.database))
        daemon.kill()
        self.assertEqual(pvecfs_health(daemon.run).returncode, 2)
        daemon.start()
        for number in range(7):
            (daemon.mount / f"f{number}").touch()
        done = pvecfs_health(daemon.run)
        self.assertEqual(done.returncode, 1, done.stdout + done.stderr)
        self.assertTrue(done.stdout.startswith("problem: close to the limit: 9 of 10 entries"), done.stdout)
        os.kill(daemon.pid, signal.SIGSTOP)
        done = pvecfs_health(daemon.run)
        os.kill(daemon.pid, signal.SIGCONT)
        self.assertEqual((done.returncode, done.stdout), (2, ""))
        self.assertIn("no answer within 5 s", done.stderr)
        self.assertEqual(daemon.stop()[0], 0)
        self.assertFalse((daemon.run / "health").exists())
        (daemon.run / "health").write_text("somebody's")
        daemon.start()
        self.assertIn("health cannot be had", daemon.log_text())
        self.assertEqual(daemon.stop()[0], 0)
        self.assertEqual((daemon.run / "health").read_text(), "somebody's")
        self.assertNotIn("Traceback", daemon.log_text())
