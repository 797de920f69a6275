"""20-filesystem.md, row by row, on a real mount."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

from tests.fuse_support import MountCase, get, put
from tests.needs import needs_fuse, needs_root

LINKS = {"local": "nodes/n1", "qemu-server": "nodes/n1/qemu-server", "lxc": "nodes/n1/lxc", "openvz": "nodes/n1/openvz"}
DOCUMENTS = {".version", ".members", ".vmlist", ".clusterlog", ".rrd", ".debug"}


def run(*command: str, **named: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program, 30 s at most."""
    return subprocess.run(command, capture_output=True, timeout=30, check=False, **named)  # type: ignore[call-overload,no-any-return]  # keyword arguments are passed on


def shell(script: str, cwd: str) -> str:
    done = run("sh", "-ec", script, cwd=cwd)
    assert done.returncode == 0, (script, done.stdout, done.stderr)
    return done.stdout.decode()


@needs_fuse()
class AttributeTests(MountCase):
    """The table of modes."""

    def mode(self, path: str) -> str:
        return oct(os.lstat(os.path.join(self.node.path, path)).st_mode & 0o7777)

    def private_tree(self) -> None:
        for path in ("priv", "priv/lock", "nodes", "nodes/n1", "nodes/n1/priv", "nodes/n1/priv/deep"):
            self.node.ask("changed", "mkdir", path)
        for path in ("priv/key", "nodes/n1/priv/deep/key", "plain", "vps.mount", "101.premount", "0101.mount"):
            self.node.ask("changed", "create", path)

    EXPECTED = (
        ("", "0o755", "0o755"),
        ("test_modes", "0o755", "0o555"),
        ("nodes/n1", "0o755", "0o555"),
        ("priv", "0o700", "0o500"),
        ("priv/lock", "0o700", "0o500"),
        ("nodes/n1/priv", "0o700", "0o500"),
        ("nodes/n1/priv/deep", "0o700", "0o500"),
        ("plain", "0o640", "0o440"),
        ("priv/key", "0o600", "0o400"),
        ("nodes/n1/priv/deep/key", "0o600", "0o400"),
        ("vps.mount", "0o740", "0o540"),
        ("101.premount", "0o740", "0o540"),
        ("0101.mount", "0o640", "0o440"),
        ("local", "0o755", "0o555"),
        ("lxc", "0o755", "0o555"),
        (".version", "0o440", "0o440"),
        (".debug", "0o640", "0o640"),
    )

    def test_modes(self) -> None:
        self.private_tree()
        for path, quorate, _ in self.EXPECTED:
            self.assertEqual(self.mode(path), quorate, path)
        held = os.open(os.path.join(self.node.path, "plain"), os.O_RDONLY)
        self.addCleanup(os.close, held)
        self.node.ask("quorate", False)
        self.addCleanup(self.node.ask, "quorate", True)
        for path, _, not_quorate in self.EXPECTED:
            self.assertEqual(self.mode(path), not_quorate, path)
        self.assertEqual(os.fstat(held).st_mode & 0o777, 0o440)
        self.node.ask("quorate", True)
        for path, quorate, _ in self.EXPECTED:
            self.assertEqual(self.mode(path), quorate, path)

    def test_a_mode_follows_its_file(self) -> None:
        self.private_tree()
        path = self.in_place("f")
        put(path, b"x")
        os.stat(path)
        private = os.path.join(self.node.path, "priv", "moved")
        os.rename(path, private)
        self.assertEqual(os.stat(private).st_mode & 0o777, 0o600)
        os.rename(private, self.in_place("102.mount"))
        self.assertEqual(os.stat(self.in_place("102.mount")).st_mode & 0o777, 0o740)
        self.node.remote("rename", self.in_tree("102.mount"), "priv/moved")
        self.assertEqual(os.stat(private).st_mode & 0o777, 0o600)

    def test_fields(self) -> None:
        path = self.in_place("f")
        before = int(time.time())
        put(path, b"x" * 513)
        found = os.stat(path)
        self.assertEqual((found.st_size, found.st_blocks, found.st_nlink), (513, 2, 1))
        self.assertTrue(before <= found.st_mtime <= before + 2)
        self.assertEqual((found.st_atime, found.st_ctime), (found.st_mtime, found.st_mtime))
        self.assertEqual(os.stat(self.place).st_nlink, 2)
        group = 33 if os.geteuid() == 0 else os.getegid()
        for name in ("", "local", ".version", self.tree_path):
            found = os.lstat(os.path.join(self.node.path, name))
            self.assertEqual((found.st_uid, found.st_gid), (os.geteuid(), group), name)
        for name in ("", "local", "openvz", ".version", ".debug"):
            found = os.lstat(os.path.join(self.node.path, name))
            self.assertEqual((found.st_atime, found.st_mtime, found.st_ctime), (0, 0, 0), name)

    def test_source(self) -> None:
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        found = next(fields for fields in mounts if fields[1] == self.node.path)
        self.assertEqual(found[0], "pvecfs-test")
        self.assertIn("default_permissions", found[3])

    def test_not_quorate(self) -> None:
        path, directory = self.in_place("f"), self.in_place("d")
        put(path, b"here")
        os.mkdir(directory)
        self.node.ask("quorate", False)
        self.addCleanup(self.node.ask, "quorate", True)
        self.assertEqual(get(path), b"here")
        for call in (
            lambda: os.mkdir(self.in_place("new")),
            lambda: put(self.in_place("new"), b"x"),
            lambda: put(path, b"x"),
            lambda: os.unlink(path),
            lambda: os.rmdir(directory),
            lambda: os.rename(path, self.in_place("g")),
            lambda: os.truncate(path, 1),
            lambda: os.utime(path, (5, 5)),
        ):
            self.assert_errno(errno.EACCES, call)
        if os.geteuid() == 0:
            fd = os.open(path, os.O_WRONLY)
            self.assert_errno(errno.EACCES, os.write, fd, b"x")
            os.close(fd)
        os.chmod(path, 0o640)
        os.chown(path, -1, -1)
        put(os.path.join(self.node.path, ".debug"), b"1\n", os.O_WRONLY)
        put(os.path.join(self.node.path, ".debug"), b"0\n", os.O_WRONLY)
        self.assertEqual(get(path), b"here")


@needs_fuse()
class RootTests(MountCase):
    """Links and special files."""

    def at_root(self, name: str) -> str:
        return os.path.join(self.node.path, name)

    def test_links(self) -> None:
        for name, target in LINKS.items():
            self.assertEqual(os.readlink(self.at_root(name)), target)
        self.node.ask("changed", "mkdir", "nodes")
        self.node.ask("changed", "mkdir", "nodes/n1")
        put(self.at_root("local/f"), b"through the link")
        self.assertEqual(get(self.at_root("nodes/n1/f")), b"through the link")

    def test_listing(self) -> None:
        for name in (b"local", b".version"):
            self.node.remote("create", name)
        listed = os.listdir(self.node.path)
        self.assertEqual(len(listed), len(set(listed)))
        self.assertTrue(set(LINKS) | DOCUMENTS | {self.tree_path} <= set(listed))
        with os.scandir(self.node.path) as entries:
            for entry in entries:
                found = entry.stat(follow_symlinks=False)
                self.assertEqual(entry.inode(), found.st_ino, entry.name)
                self.assertEqual(entry.is_symlink(), entry.name in LINKS, entry.name)
                self.assertEqual(entry.is_dir(follow_symlinks=False), stat.S_ISDIR(found.st_mode), entry.name)
        self.assertTrue(os.path.islink(self.at_root("local")))
        self.assertEqual(get(self.at_root(".version")), b"{}\n")
        for name in (b"local", b".version"):
            self.node.remote("delete", name)
        self.assertTrue(set(LINKS) | DOCUMENTS <= set(os.listdir(self.node.path)))

    def test_nothing_can_be_done_to_them(self) -> None:
        put(self.in_place("f"), b"x")
        for name in ("local", "openvz", ".version", ".debug"):
            path = self.at_root(name)
            self.assert_errno(errno.EACCES, os.unlink, path)
            self.assert_errno(errno.EACCES, os.rename, path, self.in_place("g"))
            self.assert_errno(errno.EACCES, os.rename, self.in_place("f"), path)
            self.assert_errno(errno.EACCES, os.utime, path, (5, 5), follow_symlinks=False)
            self.assert_errno(errno.EACCES, os.utime, path, follow_symlinks=False)
            failure = self.assertRaises(OSError, os.mkdir, path)
            self.assertIn(failure.errno, (errno.EACCES, errno.EEXIST))
            failure = self.assertRaises(OSError, os.open, path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
            self.assertIn(failure.errno, (errno.EACCES, errno.EEXIST))
        self.assert_errno(errno.EACCES, os.utime, self.node.path, (5, 5))
        self.assert_errno(errno.EACCES, os.utime, self.node.path)

    @needs_root()
    def test_documents_cannot_be_written(self) -> None:
        for name in (".version", ".clusterlog"):
            fd = os.open(self.at_root(name), os.O_WRONLY)
            failure = self.assertRaises(OSError, os.write, fd, b"x")
            self.assertIn(failure.errno, (errno.EIO, errno.EACCES))
            os.close(fd)
            failure = self.assertRaises(OSError, os.truncate, self.at_root(name), 0)
            self.assertIn(failure.errno, (errno.EIO, errno.EACCES))
            self.assertEqual(get(self.at_root(name)), b"{}\n")

    def test_a_document_is_made_when_opened(self) -> None:
        path = self.at_root(".members")
        self.node.ask("document", ".members", "first")
        self.assertEqual(get(path), b"first")
        held = os.open(path, os.O_RDONLY)
        self.addCleanup(os.close, held)
        self.assertEqual(os.read(held, 2), b"fi")
        self.node.ask("document", ".members", "second, longer")
        self.assertEqual(os.stat(path).st_size, 14)
        self.assertEqual(get(path), b"second, longer")
        self.assertEqual(os.fstat(held).st_size, 5)
        self.assertEqual(os.read(held, 100), b"rst")
        self.node.ask("document", ".members", "")
        self.assertEqual((get(path), os.stat(path).st_size), (b"", 0))

    def test_chunked_readers_see_one_document(self) -> None:
        """While it changes all the time, in content and length."""
        path = self.at_root(".clusterlog")
        stop = os.path.join(self.node.directory, "stop")
        script = (
            "import os, sys\n"
            "reads = 0\n"
            "while reads < 50 or not os.path.exists(sys.argv[2]):\n"
            "    reads += 1\n"
            "    fd = os.open(sys.argv[1], os.O_RDONLY)\n"
            "    parts = []\n"
            "    while part := os.read(fd, 700): parts.append(part)\n"
            "    whole = b''.join(parts)\n"
            "    assert len(whole) == os.fstat(fd).st_size and len(set(whole.split())) == 1, whole\n"
            "    os.close(fd)\n"
        )
        self.node.ask("document", ".clusterlog", "0 ")
        readers = [subprocess.Popen([sys.executable, "-c", script, path, stop]) for _ in range(3)]
        round = 0
        while any(reader.poll() is None for reader in readers):  # the watchdog ends them
            round += 1
            if round == 2000:
                Path(stop).touch()
            self.node.ask("document", ".clusterlog", f"{round} " * (round * 37 % 4000 + 1))
        self.assertEqual([reader.wait() for reader in readers], [0, 0, 0])
        self.assertGreaterEqual(round, 2000)

    def test_debug(self) -> None:
        path = self.at_root(".debug")
        self.assertEqual(get(path), b"0\n")
        shell("echo 1 > .debug", self.node.path)
        self.assertTrue(self.node.ask("state")["debug"])
        self.assertEqual((get(path), os.stat(path).st_size), (b"1\n", 2))
        shell("echo 0 > .debug", self.node.path)
        self.assertEqual(get(path), b"0\n")
        shell("echo 0 > .debug", self.node.path)
        self.assertEqual(get(path), b"0\n")
        fd = os.open(path, os.O_WRONLY)
        self.addCleanup(os.close, fd)
        self.assert_errno(errno.EIO, os.write, fd, b"2\n")
        self.assert_errno(errno.EIO, os.pwrite, fd, b"1\n", 2)
        self.assertEqual(os.pwrite(fd, b"1\nmore", 0), 2)
        self.assertEqual(get(path), b"1\n")
        self.assertEqual(os.pwrite(fd, b"0\n", 0), 2)
        self.assertEqual(get(path), b"0\n")
        os.truncate(path, 0)
        self.assertEqual(get(path), b"0\n")


@needs_fuse()
class OperationTests(MountCase):
    """Operations that differ from a local file system, and some that must not."""

    def test_chmod(self) -> None:
        path = self.in_place("f")
        put(path, b"x")
        self.node.ask("changed", "mkdir", "priv")
        self.node.ask("changed", "create", "priv/k")
        proposed = self.node.ask("state")["proposed"]
        private = os.path.join(self.node.path, "priv")
        for target, right, wrong in ((path, 0o640, 0o600), (self.place, 0o640, 0o755), (private, 0o600, 0o700)):
            before = os.stat(target).st_mode
            os.chmod(target, right)
            self.assert_errno(errno.EPERM, os.chmod, target, wrong)
            self.assert_errno(errno.EPERM, os.chmod, target, right | 0o4000)
            self.assertEqual(os.stat(target).st_mode, before)
        os.chmod(private + "/k", 0o600)
        self.assertEqual(self.node.ask("state")["proposed"], proposed)

    def test_chown(self) -> None:
        path = self.in_place("f")
        put(path, b"x")
        uid, gid = os.stat(path).st_uid, os.stat(path).st_gid
        for right in ((uid, gid), (-1, gid), (uid, -1), (-1, -1)):
            os.chown(path, *right)
        if os.geteuid() == 0:
            for wrong in ((1, gid), (uid, 0), (1, 1)):
                self.assert_errno(errno.EPERM, os.chown, path, *wrong)

    def test_not_supported(self) -> None:
        path = self.in_place("f")
        put(path, b"x")
        self.assert_errno(errno.EPERM, os.symlink, "f", self.in_place("s"))
        self.assert_errno(errno.EPERM, os.link, path, self.in_place("l"))
        self.assert_errno(errno.EPERM, os.mkfifo, self.in_place("p"))
        self.assert_errno(errno.EPERM, socket.socket(socket.AF_UNIX).bind, self.in_place("s"))
        self.assert_errno(errno.ENOTSUP, os.setxattr, path, "user.a", b"b")
        self.assert_errno(errno.ENOTSUP, os.getxattr, path, "user.a")
        self.assert_errno(errno.ENOTSUP, os.removexattr, path, "user.a")
        try:
            self.assertEqual(os.listxattr(path), [])
        except OSError as failure:
            self.assertEqual(failure.errno, errno.ENOTSUP)
        with open(path, "r+b") as file:
            self.assert_errno(errno.ENOTTY, fcntl.ioctl, file, 0x5401)
            os.posix_fallocate(file.fileno(), 0, 10)  # the C library writes zeros instead
            self.assertEqual(os.fstat(file.fileno()).st_size, 10)
        self.assertEqual(os.listdir(self.place), ["f"])

    @needs_root()
    def test_device_nodes(self) -> None:
        self.assert_errno(errno.EPERM, os.mknod, self.in_place("d"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
        os.mknod(self.in_place("f"), stat.S_IFREG | 0o600)
        self.assertEqual(get(self.in_place("f")), b"")

    def test_rename(self) -> None:
        os.mkdir(self.in_place("full"))
        put(self.in_place("full/x"), b"x")
        os.mkdir(self.in_place("empty"))
        self.assert_errno(errno.ENOTEMPTY, os.rename, self.in_place("full"), self.in_place("other"))
        self.assert_errno(errno.ENOTEMPTY, os.rename, self.in_place("empty"), self.in_place("full"))
        self.assertNotEqual(run("mv", "-T", "full", "empty", cwd=self.place).returncode, 0)
        os.mkdir(self.in_place("empty2"))
        os.rename(self.in_place("empty2"), self.in_place("empty"))
        os.rename(self.in_place("empty"), self.in_place("renamed"))
        os.mkdir(self.in_place("empty"))
        self.assertEqual(sorted(os.listdir(self.place)), ["empty", "full", "renamed"])
        self.assertEqual(get(self.in_place("full/x")), b"x")
        put(self.in_place("f"), b"f")
        self.assert_errno(errno.EISDIR, os.rename, self.in_place("f"), self.in_place("full"))
        self.assert_errno(errno.ENOTDIR, os.rename, self.in_place("full"), self.in_place("f"))
        shell("mv -n f full/x; mv -n f g; test -e g", self.place)
        self.assertEqual(get(self.in_place("full/x")), b"x")

    def test_rename_shows_at_once(self) -> None:
        path, other = self.in_place("a"), self.in_place("b")
        put(path, b"x")
        os.utime(path, (1000, 1000))
        self.assertEqual(os.listdir(self.place), ["a"])
        self.assertEqual(shell("stat -c %Y a", self.place), "1000\n")
        os.rename(path, other)
        self.assertEqual(os.listdir(self.place), ["b"])
        self.assertGreater(int(shell("stat -c %Y b", self.place)), 1000)  # asks for the mtime only
        self.assertFalse(os.path.exists(path))
        put(path, b"y")
        self.assertEqual(sorted(os.listdir(self.place)), ["a", "b"])

    def test_utime(self) -> None:
        path = self.in_place("f")
        put(path, b"x")
        os.utime(path, (1, 12345))
        self.assertEqual((os.stat(path).st_mtime, os.stat(path).st_atime), (12345, 12345))
        proposed = self.node.ask("state")["proposed"]
        shell("touch -a f", self.place)
        self.assertEqual(os.stat(path).st_mtime, 12345)
        self.assertEqual(self.node.ask("state")["proposed"], proposed)
        shell("touch -m f", self.place)
        self.assertLess(abs(os.stat(path).st_mtime - time.time()), 3)
        os.utime(path)
        self.assertEqual(self.node.ask("state")["proposed"], proposed + 2)
        os.utime(path, (0, 2**32 + 7))
        self.assertEqual(os.stat(path).st_mtime, 7)
        os.utime(self.place, (0, 99))
        self.assertEqual(os.stat(self.place).st_mtime, 99)

    def test_a_truncate_is_one_change(self) -> None:
        path = self.in_place("f")
        put(path, b"0123456789")
        proposed = self.node.ask("state")["proposed"]
        os.truncate(path, 4)
        self.assertEqual(self.node.ask("state")["proposed"], proposed + 1)
        self.assertEqual((get(path), os.stat(path).st_size), (b"0123", 4))
        os.truncate(path, 6)
        self.assertEqual((get(path), os.stat(path).st_size), (b"0123\0\0", 6))
        with open(path, "r+b", buffering=0) as file:
            file.truncate(2)
            self.assertEqual(file.read(), b"01")
        self.assertEqual(self.node.ask("state")["proposed"], proposed + 3)
        put(path, b"new")
        self.assertEqual(self.node.ask("state")["proposed"], proposed + 5)

    def test_ten_zero_bytes(self) -> None:
        shell(": > f; truncate -s 10 f", self.place)
        self.assertEqual((get(self.in_place("f")), os.stat(self.in_place("f")).st_size), (bytes(10), 10))

    def test_locks_of_a_host(self) -> None:
        put(self.in_place("f"), b"x")
        with open(self.in_place("f"), "r+b") as one, open(self.in_place("f"), "r+b") as two:
            fcntl.flock(one, fcntl.LOCK_EX)
            self.assert_errno(errno.EAGAIN, fcntl.flock, two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.flock(one, fcntl.LOCK_UN)
            fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            fcntl.lockf(one, fcntl.LOCK_EX | fcntl.LOCK_NB)
            script = "import fcntl, sys\nfcntl.lockf(open(sys.argv[1], 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
            done = run(sys.executable, "-c", script, self.in_place("f"))
            self.assertIn(b"BlockingIOError", done.stderr)

    def test_a_handle_whose_file_is_gone(self) -> None:
        for remote in (False, True):
            path = self.in_place("f")
            put(path, b"what it had")
            held = os.open(path, os.O_RDWR)
            if remote:
                self.node.remote("delete", self.in_tree("f"))
            else:
                os.unlink(path)
            put(path, b"another file")
            self.assertEqual(os.pread(held, 100, 0), b"what it had")
            self.assert_errno(errno.ENOENT, os.pwrite, held, b"x", 0)
            self.assertEqual(os.fstat(held).st_size, 11)
            self.assert_errno(errno.ENOENT, os.ftruncate, held, 0)
            os.close(held)
            self.assertEqual(get(path), b"another file")

    def test_a_reader_of_a_replaced_file(self) -> None:
        for remote in (False, True):
            put(self.in_place("f"), b"old" * 1000)
            held = os.open(self.in_place("f"), os.O_RDONLY)
            self.assertEqual(os.read(held, 3), b"old")
            put(self.in_place("f.new"), b"new" * 1000)
            if remote:
                self.node.remote("rename", self.in_tree("f.new"), self.in_tree("f"))
            else:
                os.rename(self.in_place("f.new"), self.in_place("f"))
            self.assertEqual(os.read(held, 4000), b"old" * 999)
            os.close(held)
            self.assertEqual(get(self.in_place("f")), b"new" * 1000)
            self.assertEqual(os.listdir(self.place), ["f"])

    def test_lost_race_of_a_plain_create(self) -> None:
        for data, flags in ((b"theirs", 0), (b"theirs", os.O_TRUNC)):
            path = self.in_place(f"f{flags}")
            name = self.in_tree(f"f{flags}")
            self.node.ask("first", "create", name)
            self.node.ask("first", "write", name, data)
            fd = os.open(path, os.O_CREAT | os.O_RDWR | flags, 0o640)
            self.addCleanup(os.close, fd)
            self.assertEqual(os.read(fd, 100), b"" if flags else data)
            self.assertEqual(os.fstat(fd).st_size, 0 if flags else 6)
            os.pwrite(fd, b"OUR", 0)
            self.assertEqual(get(path), b"OUR" if flags else b"OURirs")
        self.node.ask("first", "mkdir", self.in_tree("d"))
        self.assert_errno(errno.EISDIR, os.open, self.in_place("d"), os.O_CREAT | os.O_WRONLY)

    def test_lost_race_of_an_exclusive_create(self) -> None:
        self.node.ask("first", "create", self.in_tree("f"))
        self.assert_errno(errno.EEXIST, os.open, self.in_place("f"), os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        self.node.ask("first", "mkdir", self.in_tree("d"))
        self.assert_errno(errno.EEXIST, os.mkdir, self.in_place("d"))
        self.node.ask("drained")
        self.assertEqual(sorted(os.listdir(self.place)), ["d", "f"])

    def test_a_vmid_that_is_known_elsewhere(self) -> None:
        for path in ("nodes", "nodes/n1", "nodes/n1/lxc", "nodes/n2", "nodes/n2/lxc"):
            self.node.ask("changed", "mkdir", path)
        self.node.remote("create", "nodes/n2/lxc/100.conf")
        flags = os.O_CREAT | os.O_WRONLY
        self.assert_errno(errno.EEXIST, os.open, os.path.join(self.node.path, "lxc/100.conf"), flags)
        put(os.path.join(self.node.path, "lxc/101.conf"), b"x")

    def test_large_files(self) -> None:
        path = self.in_place("big")
        data = os.urandom(1 << 20)
        proposed = self.node.ask("state")["proposed"]
        put(path, data)
        self.assertEqual(self.node.ask("state")["proposed"], proposed + 2)  # create, one write
        self.assertEqual(get(path), data)
        fd = os.open(path, os.O_RDWR)
        self.addCleanup(os.close, fd)
        self.assert_errno(errno.EFBIG, os.pwrite, fd, b"x", 1 << 20)
        self.assert_errno(errno.EFBIG, os.pwrite, fd, b"x", 1 << 40)
        self.assert_errno(errno.EFBIG, os.ftruncate, fd, (1 << 20) + 1)
        self.assert_errno(errno.EFBIG, os.truncate, path, 1 << 33)
        self.assertEqual((get(path), os.stat(path).st_size), (data, 1 << 20))

    def test_statfs(self) -> None:
        before = os.statvfs(self.place)
        self.assertEqual(
            (before.f_bsize, before.f_frsize, before.f_blocks, before.f_files, before.f_namemax),
            (4096, 4096, 32768, 262144, 255),
        )
        put(self.in_place("f"), bytes(4096 * 4))
        after = os.statvfs(self.place)
        self.assertEqual(before.f_bfree - after.f_bfree, 4)
        self.assertEqual((after.f_bavail, after.f_ffree), (after.f_bfree, before.f_ffree - 1))

    def test_synchronise(self) -> None:
        fd = os.open(self.in_place("f"), os.O_CREAT | os.O_RDWR)
        directory = os.open(self.place, os.O_RDONLY)
        before = self.node.ask("state")["synchronised"]
        os.write(fd, b"x")
        os.fsync(fd)
        os.fdatasync(fd)
        os.fsync(directory)
        os.close(fd)
        os.close(directory)
        self.assertEqual(self.node.ask("state")["synchronised"], before + 3)

    def test_names(self) -> None:
        path = os.fsencode(self.place)
        names = [b"\xff\xfe", b"a b", b"new\nline", "gr\u00fc\u00dfe".encode(), b"x" * 255, b"...", b"\\"]
        for name in names:
            with open(path + b"/" + name, "wb") as file:
                file.write(name)
        self.assertEqual(sorted(os.listdir(path)), sorted(names))
        for name in names:
            with open(path + b"/" + name, "rb") as file:
                self.assertEqual(file.read(), name)
            os.rename(path + b"/" + name, path + b"/renamed")
            os.unlink(path + b"/renamed")
        self.assertEqual(os.listdir(path), [])

    def test_long_names(self) -> None:
        long = "y" * 256
        for call in (os.stat, os.mkdir, os.unlink, Path.touch):
            self.assert_errno(errno.ENAMETOOLONG, call, Path(self.in_place(long)))
        put(self.in_place("f"), b"x")
        self.assert_errno(errno.ENAMETOOLONG, os.rename, self.in_place("f"), self.in_place(long))

    def test_append(self) -> None:
        path = self.in_place("log")
        put(path, b"")
        ours = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.addCleanup(os.close, ours)
        os.write(ours, b"one\n")
        self.assertEqual(get(path), b"one\n")
        self.node.remote("write", self.in_tree("log"), b"theirs\n", 4)
        os.write(ours, b"two\n")
        self.node.ask("drained")
        self.assertEqual(get(path), b"one\ntheirs\ntwo\n")
        os.write(ours, b"three\n")
        self.assertEqual(get(path), b"one\ntheirs\ntwo\nthree\n")

    def test_mapped_files(self) -> None:
        path = self.in_place("f")
        put(path, b"a" * 5000)
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            self.assertEqual(mapped[:], b"a" * 5000)
            self.node.remote("write", self.in_tree("f"), b"b" * 5000)
            self.assertEqual(mapped[:], b"b" * 5000)

    def test_expired_locks(self) -> None:
        self.node.ask("changed", "mkdir", "priv")
        self.node.ask("changed", "mkdir", "priv/lock")
        directory = os.path.join(self.node.path, "priv/lock")
        lock = os.path.join(directory, "l")
        os.mkdir(lock)
        self.assert_errno(errno.EEXIST, os.mkdir, lock)
        self.assert_errno(errno.EACCES, os.utime, lock, (0, 0))
        os.utime(lock)
        self.node.ask("clock", 121.0)
        self.assertEqual(os.listdir(directory), ["l"])
        os.utime(lock, (0, 0))
        os.mkdir(lock)
        self.node.ask("clock", 121.0)
        os.utime(lock, (0, 0))
        self.node.ask("drained")
        self.assertEqual(os.listdir(directory), [])
        self.assertFalse(os.path.exists(lock))
        os.mkdir(lock)
        os.rmdir(lock)

    def test_directory_deleted_while_listed(self) -> None:
        os.mkdir(self.in_place("d"))
        held = os.open(self.in_place("d"), os.O_RDONLY)
        self.addCleanup(os.close, held)
        os.rmdir(self.in_place("d"))
        self.assert_errno(errno.ENOENT, os.listdir, held)


@needs_fuse()
@needs_root()
class GroupTests(MountCase):
    """What www-data may do."""

    def as_group(self, *command: str) -> int:
        return run(*command, user="www-data", group="www-data", extra_groups=[], cwd="/").returncode

    def test_access(self) -> None:
        self.node.ask("changed", "mkdir", "priv")
        self.node.ask("changed", "write", "priv/key", b"secret")
        self.node.ask("changed", "create", "priv/key")
        put(self.in_place("f"), b"for all of the group")
        at = self.node.path
        self.assertEqual(self.as_group("cat", self.in_place("f")), 0)
        self.assertEqual(self.as_group("cat", at + "/.version"), 0)
        self.assertEqual(self.as_group("ls", self.place), 0)
        self.assertNotEqual(self.as_group("cat", at + "/priv/key"), 0)
        self.assertNotEqual(self.as_group("ls", at + "/priv"), 0)
        self.assertNotEqual(self.as_group("sh", "-c", f"echo x > {self.in_place('f')}"), 0)
        self.assertNotEqual(self.as_group("touch", self.in_place("new")), 0)
        self.assertNotEqual(self.as_group("rm", "-f", self.in_place("f")), 0)
        nobody = run("cat", self.in_place("f"), user="nobody", group="nogroup", extra_groups=[], cwd="/")
        self.assertNotEqual(nobody.returncode, 0)
        os.rename(self.in_place("f"), at + "/priv/f")
        self.assertNotEqual(self.as_group("cat", at + "/priv/f"), 0)


@needs_fuse()
class ProgramTests(MountCase):
    """What people and programs do."""

    def test_shell(self) -> None:
        shell("mkdir a; echo one > a/f; cp -a a/f a/g; sed -i s/one/two/ a/g; ls -la; mv a/g b", self.place)
        self.assertEqual(get(self.in_place("b")), b"two\n")
        self.assertEqual(sorted(os.listdir(self.place)), ["a", "b"])
        self.assertEqual(os.listdir(self.in_place("a")), ["f"])
        self.assertEqual(shell("tar -cf - . | tar -tf - | sort", self.place), "./\n./a/\n./a/f\n./b\n")
        shell("mkdir x; cp -r a x/; diff -r a x/a; rm -r x; test ! -e x", self.place)
        shell("dd if=/dev/zero of=z bs=1000 count=3 2>/dev/null; dd if=b of=z conv=notrunc 2>/dev/null", self.place)
        self.assertEqual(get(self.in_place("z")), b"two\n" + bytes(2996))

    def test_editors(self) -> None:
        """vi renames to a backup, writes anew, removes the backup; others write a copy and rename it."""
        path = self.in_place("f")
        put(path, b"old\n")
        os.rename(path, path + "~")
        put(path, b"new\n")
        self.assertEqual((get(path), get(path + "~")), (b"new\n", b"old\n"))
        os.unlink(path + "~")
        for round in range(20):
            with open(path + ".tmp", "w") as file:
                file.write(f"round {round}\n")
                file.flush()
                os.fsync(file.fileno())
            os.rename(path + ".tmp", path)
            self.assertEqual(get(path), b"round %d\n" % round)
            self.assertEqual(os.listdir(self.place), ["f"])

    def test_large_directories(self) -> None:
        names = {f"file with a rather long name {number}" for number in range(2000)}
        for name in names:
            self.node.ask("change", "create", self.in_tree(name))
        self.node.ask("drained")
        for _ in range(3):
            listed = os.listdir(self.place)
            self.assertEqual(len(listed), 2000)
            self.assertEqual(set(listed), names)
        # A reader in the middle, while files come and go: nothing is skipped or repeated.
        with os.scandir(self.place) as entries:
            seen = [next(entries).name for _ in range(10)]
            for name in seen[:5]:
                os.unlink(self.in_place(name))
            put(self.in_place("late"), b"")
            seen += [entry.name for entry in entries]
        self.assertEqual(len(seen), len(set(seen)))
        self.assertTrue(names <= set(seen))
        self.assertEqual(len(os.listdir(self.place)), 1996)
        done = run("rm", "-rf", self.place)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertFalse(os.path.exists(self.place))

    def test_four_processes(self) -> None:
        script = (
            "import os, sys\n"
            "place, own = sys.argv[1:]\n"
            "for round in range(60):\n"
            "    data = f'{own} {round} '.encode() * 300\n"
            "    with open(f'{place}/{own}', 'wb') as f: f.write(data)\n"
            "    assert open(f'{place}/{own}', 'rb').read() == data\n"
            "    with open(f'{place}/shared.{own}', 'wb') as f: f.write(data)\n"
            "    os.rename(f'{place}/shared.{own}', f'{place}/shared')\n"
            "    words = open(f'{place}/shared', 'rb').read().split()\n"
            "    assert len(words) == 600 and len(set(zip(words[::2], words[1::2]))) == 1, words[:9]\n"
            "    os.mkdir(f'{place}/d{own}'); os.rmdir(f'{place}/d{own}')\n"
            "    try: fd = os.open(f'{place}/once{round}', os.O_CREAT | os.O_EXCL | os.O_WRONLY)\n"
            "    except FileExistsError: continue\n"
            "    os.write(fd, own.encode()); os.close(fd); print(round)\n"
        )
        command = [sys.executable, "-c", script, self.place]
        workers = [subprocess.Popen([*command, str(n)], stdout=subprocess.PIPE) for n in range(4)]
        created = []
        for worker in workers:
            output, _ = worker.communicate(timeout=60)
            self.assertEqual(worker.returncode, 0)
            created += output.split()
        self.assertEqual(sorted(map(int, created)), list(range(60)))
