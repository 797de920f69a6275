"""The commands of C{docs/recovery.md}, run as they stand there against nodes in a temporary place.

A chapter's fenced C{sh} blocks run in bash, one after the other, stopping at the first failure. The paths of a real
host are replaced by temporary ones; C{systemctl}, C{twistd3} and C{pvecfs-db} are small programs in front of the path,
which do what the real ones would with those paths.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

from twisted.trial import unittest

from tests.needs import needs_fuse, needs_root

ROOT = Path(__file__).resolve().parent.parent
DOCUMENT = ROOT / "docs" / "recovery.md"

FILE, DIRECTORY = 8, 4


def chapters(text: str) -> dict[str, list[str]]:
    """The C{sh} blocks of each chapter of C{text}, by the chapter's heading."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^#{1,2} ", text, flags=re.M)[1:]:
        heading, _, body = part.partition("\n")
        found[heading.strip()] = re.findall(r"^```sh\n(.*?)^```", body, flags=re.M | re.S)
    return found


class Place:
    """A host's paths, below a temporary directory, and the programs that use them."""

    def __init__(self, directory: Path, node: str) -> None:
        self.directory = directory
        self.node = node
        self.mount = directory / "pve"
        self.state = directory / "state"
        self.root_home = directory / "root"
        self.corosync = directory / "corosync"
        self.pidfile = directory / "pid"
        self.paths = {
            "/etc/pve": self.mount,
            "/var/lib/pve-cluster": self.state,
            "/etc/corosync": self.corosync,
            "/run/pve-cluster.pid": self.pidfile,
            "/var/log": directory / "log",
            "/root": self.root_home,
        }

    def prepare(self) -> None:
        """Make the directories and the programs."""
        for path in (self.mount, self.state, self.root_home, self.corosync, self.directory / "log", self.programs):
            path.mkdir(parents=True)
        python = shlex.quote(sys.executable)
        options = [
            f"--mountpoint={self.mount}", f"--state-dir={self.state}", f"--run-dir={self.directory}/run",
            f"--corosync-conf={self.corosync}/corosync.conf", f"--node-name={self.node}", "--node-ip=127.0.0.1",
            "--group=root", "--no-ipc", f"--rrd-dir={self.directory}/rrd", f"--rrdcached-socket={self.directory}/rrdc",
        ]  # fmt: skip
        self.program(
            "twistd3",
            f'before=()\nwhile [ "$1" != pvecfs ]; do before+=("$1"); shift; done\nshift\n'
            f"exec {python} -c 'from twisted.scripts.twistd import run; run()' \"${{before[@]}}\" pvecfs "
            f'{shlex.join(options)} "$@"',
        )
        self.program(
            "pvecfs-db",
            f'exec {python} -c "from pvecfs.cli import main; main()" --state-dir {shlex.quote(str(self.state))} "$@"',
        )
        self.program(
            "systemctl",
            f"""
            pid={shlex.quote(str(self.pidfile))} mount={shlex.quote(str(self.mount))}
            log={shlex.quote(str(self.directory / "log/pvecfs.log"))}
            case "$*" in
            "start pvecfs")
                twistd3 --pidfile= --logfile "$log" pvecfs --pid-file "$pid"
                for i in {{1..300}}; do mountpoint -q "$mount" && exit 0; sleep 0.1; done
                tail -20 "$log" >&2
                exit 1 ;;
            "stop pvecfs"*)
                [ -s "$pid" ] || exit 0
                kill "$(cat "$pid")"
                for i in {{1..100}}; do [ -e "$pid" ] || exit 0; sleep 0.1; done
                exit 1 ;;
            *) echo "systemctl $*: not known here" >&2; exit 1 ;;
            esac
            """,
        )

    @property
    def programs(self) -> Path:
        return self.directory / "bin"

    def program(self, name: str, body: str) -> None:
        path = self.programs / name
        path.write_text(f"#!/bin/bash\n{textwrap.dedent(body)}\n")
        path.chmod(0o755)

    def run(self, commands: str, expected: int = 0) -> str:
        """Run C{commands} with this place's paths; their output."""
        pattern = "|".join(re.escape(path) for path in sorted(self.paths, key=len, reverse=True))
        commands = re.sub(rf"(?<![\w/.])(?:{pattern})(?![\w-])", lambda m: str(self.paths[m.group(0)]), commands)
        environment = {**os.environ, "PATH": f"{self.programs}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", commands],
            cwd=self.directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
        )
        if done.returncode != expected:
            raise AssertionError(f"exit status {done.returncode} of:\n{commands}\n{done.stdout}")
        return done.stdout

    def stop(self) -> None:
        """Stop the node, however it was left."""
        subprocess.run([str(self.programs / "systemctl"), "stop", "pvecfs"], check=False, timeout=30)
        if os.path.ismount(self.mount):
            subprocess.run(["umount", "-l", str(self.mount)], check=False, timeout=30)

    def rows(self, *rows: tuple[int, int, int, str, bytes | None]) -> None:
        """Write a database of C{rows}: inode, parent, type, name, data. The root's row is added."""
        version = max(row[0] for row in rows)
        with sqlite3.connect(self.state / "config.db") as db:
            db.execute("PRAGMA journal_mode=WAL")
            db.execute(
                "CREATE TABLE tree (inode INTEGER PRIMARY KEY NOT NULL, "
                + "".join(f"{c} INTEGER NOT NULL CHECK(typeof({c})=='integer'), " for c in self.integers)
                + "name TEXT NOT NULL, data BLOB)"
            )
            db.execute("INSERT INTO tree VALUES (0, 0, ?, 0, 1700000000, 8, '__version__', NULL)", (version,))
            for inode, parent, kind, name, data in rows:
                db.execute(
                    "INSERT INTO tree VALUES (?, ?, ?, 0, 1700000000, ?, ?, ?)",
                    (inode, parent, inode, kind, name, data),
                )
        db.close()

    integers = ("parent", "version", "writer", "mtime", "type")


@needs_root()
@needs_fuse()
class RecoveryTests(unittest.TestCase):
    """Each chapter, with the situation it is for."""

    timeout = 240

    def setUp(self) -> None:
        self.chapters = chapters(DOCUMENT.read_text())

    def place(self, node: str) -> Place:
        place = Place(Path(self.mktemp()).absolute(), node)
        place.prepare()
        self.addCleanup(place.stop)
        return place

    def follow(self, place: Place, heading: str) -> list[str]:
        """Run the first chapter's copy, then C{heading}'s blocks; the output of each of those."""
        place.run("".join(self.chapters["Recovery"]))
        blocks = self.chapters[heading]
        self.assertNotEqual(blocks, [], heading)
        return [place.run(block) for block in blocks]

    def saved(self, node: str) -> Path:
        """A copy of the database of a node with one guest, which is gone now."""
        lost = self.place(node)
        lost.run(
            f"""
            systemctl start pvecfs
            mkdir -p /etc/pve/nodes/{node}/qemu-server /etc/pve/priv
            echo 'memory: 512' >/etc/pve/nodes/{node}/qemu-server/100.conf
            echo secret >/etc/pve/priv/key
            pvecfs-db backup /root/copy.db
            systemctl stop pvecfs
            pvecfs-db check
            """
        )
        return lost.root_home / "copy.db"

    def test_new_host(self) -> None:
        """Case 1: a copied database starts on a new host, with mode 0600."""
        copy = self.saved("alpha")
        place = self.place("alpha")
        place.run("systemctl start pvecfs; systemctl stop pvecfs")
        shutil.copy(copy, place.root_home / "config.db.saved")
        (place.root_home / "config.db.saved").chmod(0o644)
        self.follow(place, "A new host for a lost one")
        self.assertEqual((place.mount / "local/qemu-server/100.conf").read_text(), "memory: 512\n")
        self.assertEqual((place.mount / "priv/key").read_text(), "secret\n")
        self.assertEqual(stat.S_IMODE((place.state / "config.db").stat().st_mode), 0o600)

    def test_copied_by_hand(self) -> None:
        """Case 1, without the tool: the file is put in its place, its mode is enforced."""
        copy = self.saved("alpha")
        place = self.place("alpha")
        shutil.copy(copy, place.state / "config.db")
        (place.state / "config.db").chmod(0o644)
        place.run("systemctl start pvecfs")
        self.assertEqual((place.mount / "local/qemu-server/100.conf").read_text(), "memory: 512\n")
        self.assertEqual(stat.S_IMODE((place.state / "config.db").stat().st_mode), 0o600)

    def test_other_name(self) -> None:
        """Case 2: the new host has another name."""
        copy = self.saved("alpha")
        place = self.place("beta")
        shutil.copy(copy, place.state / "config.db")
        self.follow(place, "The new host has another name")
        self.assertEqual((place.mount / "qemu-server/100.conf").read_text(), "memory: 512\n")
        self.assertFalse((place.mount / "nodes/alpha").exists())
        self.assertRegex((place.mount / ".vmlist").read_text(), r'"100": *\{[^}]*"node": "beta"')

    def test_back_to_local_mode(self) -> None:
        """Case 3: a node of a cluster becomes a node of its own."""
        place = self.place("alpha")
        text = "totem {\n  version: 2\n  cluster_name: c\n  config_version: 3\n}\n"
        (place.corosync / "corosync.conf").write_text(text)
        (place.corosync / "authkey").write_bytes(b"key")
        place.run("systemctl start pvecfs")
        self.assertEqual((place.mount / "corosync.conf").read_text(), text)
        self.assertEqual(stat.S_IMODE((place.mount / "corosync.conf").stat().st_mode), 0o440)
        self.follow(place, "Back to local mode")
        self.assertFalse((place.mount / "corosync.conf").exists())
        self.assertFalse((place.corosync / "corosync.conf").exists())
        (place.mount / "written").write_text("x")
        self.assertEqual((place.mount / "written").read_text(), "x")

    def lost_and_found(self, place: Place) -> list[bytes]:
        """The contents of all files below C{lost+found}."""
        return sorted(p.read_bytes() for p in (place.mount / "lost+found").rglob("*") if p.is_file())

    def test_duplicate_name(self) -> None:
        """90-beyond's first broken database: C{b} is there twice, once with a file in it."""
        place = self.place("alpha")
        place.rows(
            (2, 0, DIRECTORY, "b", None),
            (3, 2, FILE, "x", b"precious"),
            (4, 0, DIRECTORY, "b", None),
            (5, 4, FILE, "y", b"precious too"),
            (6, 0, FILE, "other", b"1"),
        )
        outputs = self.follow(place, "Two entries of one name")
        self.assertIn("b", outputs[0])
        kept = sorted(p.read_bytes() for p in (place.mount / "b").iterdir())
        self.assertEqual(sorted(kept + self.lost_and_found(place)), [b"precious", b"precious too"])
        self.assertEqual((place.mount / "other").read_bytes(), b"1")

    def test_file_for_guests(self) -> None:
        """90-beyond's second: a file at C{nodes/<node>/qemu-server}."""
        place = self.place("alpha")
        place.rows(
            (2, 0, DIRECTORY, "nodes", None),
            (3, 2, DIRECTORY, "alpha", None),
            (4, 3, FILE, "qemu-server", b"precious"),
        )
        outputs = self.follow(place, "A file where a node's guests belong")
        self.assertIn("qemu-server", outputs[0])
        self.assertEqual(self.lost_and_found(place), [b"precious"])
        place.run("mkdir -p /etc/pve/nodes/alpha/qemu-server && echo a >/etc/pve/qemu-server/100.conf")

    def test_backup_and_restore(self) -> None:
        """The copy of a node that is being written to passes check, and starts when it is restored."""
        place = self.place("alpha")
        place.run(
            """
            systemctl start pvecfs
            echo a >/etc/pve/f
            (for i in {1..2000}; do echo $i >/etc/pve/f$((i % 50)); done) >/dev/null 2>&1 &
            """
        )
        self.follow(place, "Backups")
        place.run("pvecfs-db check /root/config.db.backup")
        self.assertEqual((place.mount / "f").read_text(), "a\n")


class DocumentTests(unittest.TestCase):
    def test_every_chapter_is_known(self) -> None:
        """A chapter with commands is followed by a test, or is one of the few that need more than one host."""
        with_commands = {heading for heading, blocks in chapters(DOCUMENT.read_text()).items() if blocks}
        followed = set(re.findall(r'self\.follow\(place, "([^"]+)"\)', Path(__file__).read_text()))
        self.assertEqual(with_commands - followed, {"Recovery"})
