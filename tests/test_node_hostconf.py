"""The host's corosync.conf follows the cluster's."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, execute
from twisted.internet.task import Clock
from twisted.logger import LimitedHistoryLogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from pvecfs.node.hostconf import RELOAD_COMMAND, RELOAD_DELAY, RETRY_INTERVAL, HostConfiguration, configuration_version


def conf(version: int, note: str = "") -> bytes:
    return f"totem {{\n  config_version: {version}\n  # {note}\n}}\n".encode()


def at_once(function: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
    """Stands for deferToThread."""
    return execute(function, *arguments)


class ConfigurationVersion(SynchronousTestCase):
    def test_first_one_counts(self) -> None:
        self.assertEqual(configuration_version(b"config_version : 7\nconfig_version: 9"), 7)

    def test_none(self) -> None:
        self.assertEqual(configuration_version(b"config_version: x"), 0)


class HostConfigurationTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.path = Path(self.mktemp())
        self.clock = Clock()
        self.commands: list[tuple[str, ...]] = []
        self.host = HostConfiguration(self.clock, str(self.path), at_once, self.commands.append)
        self.history = LimitedHistoryLogObserver()
        globalLogPublisher.addObserver(self.history)
        self.addCleanup(globalLogPublisher.removeObserver, self.history)

    def logged(self) -> list[str]:
        events: list[LogEvent] = []
        # The observer's own type is narrower than list.append; the events are the same.
        self.history.replayTo(events.append)  # type: ignore[arg-type]
        return [str(event["log_format"]) for event in events if event.get("log_namespace") == "pvecfs.corosync_conf"]

    def test_newer_replaces(self) -> None:
        self.path.write_bytes(conf(3))
        self.successResultOf(self.host.tree_changed(conf(4), reload=True))
        self.assertEqual(self.path.read_bytes(), conf(4))
        self.assertEqual(os.stat(self.path).st_mode & 0o7777, 0o644)
        self.assertEqual(self.commands, [])
        self.clock.advance(RELOAD_DELAY)
        self.assertEqual(self.commands, [RELOAD_COMMAND])

    def test_tried_again(self) -> None:
        """What failed is tried again, but for what is outdated."""
        self.path.mkdir()
        self.host.bring_in_step(conf(3))
        self.host.tree_changed(conf(4), reload=True)
        self.assertEqual(self.host.version, 4)
        self.path.rmdir()
        self.path.write_bytes(conf(2))
        self.clock.advance(RETRY_INTERVAL)
        self.assertEqual(self.path.read_bytes(), conf(4))
        self.clock.advance(RELOAD_DELAY)
        self.assertEqual(self.commands, [RELOAD_COMMAND])
        self.clock.advance(10 * RETRY_INTERVAL)
        self.assertEqual((self.path.read_bytes(), self.commands), (conf(4), [RELOAD_COMMAND]))

    def test_same_version_other_content_replaces(self) -> None:
        self.path.write_bytes(conf(3, "old"))
        self.successResultOf(self.host.tree_changed(conf(3, "new"), reload=False))
        self.assertEqual(self.path.read_bytes(), conf(3, "new"))

    def test_older_is_refused(self) -> None:
        self.path.write_bytes(conf(5))
        self.successResultOf(self.host.tree_changed(conf(4), reload=True))
        self.assertEqual(self.path.read_bytes(), conf(5))
        self.clock.advance(10)
        self.assertEqual(self.commands, [])
        self.assertIn("local corosync.conf is newer", self.logged()[0])

    def test_without_version_is_refused(self) -> None:
        self.successResultOf(self.host.tree_changed(b"totem {}\n", reload=True))
        self.assertFalse(self.path.exists())
        self.assertEqual(len(self.logged()), 1)

    def test_new_file_needs_no_reload(self) -> None:
        self.successResultOf(self.host.tree_changed(conf(1), reload=True))
        self.assertEqual(self.path.read_bytes(), conf(1))
        self.clock.advance(10)
        self.assertEqual(self.commands, [])

    def test_change_of_another_node_does_not_reload(self) -> None:
        self.path.write_bytes(conf(3))
        self.successResultOf(self.host.tree_changed(conf(4), reload=False))
        self.clock.advance(10)
        self.assertEqual(self.commands, [])

    def test_equal_content_is_left_alone(self) -> None:
        self.path.write_bytes(conf(3))
        before = os.stat(self.path)
        self.successResultOf(self.host.tree_changed(conf(3), reload=True))
        self.assertEqual(os.stat(self.path).st_ino, before.st_ino)

    def test_at_the_start(self) -> None:
        """It is done at once, without a thread, and corosync told later if it may run already."""
        never: Deferred[Any] = Deferred()
        host = HostConfiguration(self.clock, str(self.path), lambda *arguments: never, self.commands.append)
        host.bring_in_step(conf(3))
        self.assertEqual(self.path.read_bytes(), conf(3))
        self.clock.advance(10)
        self.assertEqual(self.commands, [])
        host.bring_in_step(conf(4))
        self.assertEqual(self.path.read_bytes(), conf(4))
        self.clock.advance(RELOAD_DELAY)
        self.assertEqual(self.commands, [RELOAD_COMMAND])

    def test_unwritable_at_the_start(self) -> None:
        self.path.mkdir()
        self.host.bring_in_step(conf(3))
        self.assertIn("cannot update", self.logged()[0])

    def test_unwritable_is_logged(self) -> None:
        self.path.mkdir()
        self.successResultOf(self.host.tree_changed(conf(3), reload=True))
        self.assertIn("cannot update", self.logged()[0])
        self.assertEqual([name for name in os.listdir(self.path.parent) if name.endswith(".pvecfs")], [])
