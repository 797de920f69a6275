"""Counters of changes, for the paths that ``.version`` lists (10-tree.md, "Changes that are counted")."""

from __future__ import annotations

PATHS: tuple[bytes, ...] = tuple(
    b"""
    corosync.conf corosync.conf.new storage.cfg user.cfg domains.cfg notifications.cfg priv/notifications.cfg
    priv/shadow.cfg priv/acme/plugins.cfg priv/tfa.cfg priv/token.cfg priv/wg-keys.cfg datacenter.cfg vzdump.cron
    vzdump.conf jobs.cfg ha/crm_commands ha/manager_status ha/resources.cfg ha/rules.cfg ha/groups.cfg ha/fence.cfg
    status.cfg replication.cfg ceph.conf sdn/vnets.cfg sdn/zones.cfg sdn/controllers.cfg sdn/subnets.cfg
    sdn/ipams.cfg sdn/mac-cache.json sdn/pve-ipam-state.json sdn/dns.cfg sdn/fabrics.cfg sdn/route-maps.cfg
    sdn/prefix-lists.cfg sdn/.running-config virtual-guest/cpu-models.conf virtual-guest/profiles.cfg
    firewall/cluster.fw mapping/directory.cfg mapping/pci.cfg mapping/usb.cfg
    """.split()
)
"""The counted paths, in the order of the document."""

_POSITIONS = {path: position for position, path in enumerate(PATHS)}


class Counters:
    """How often each of L{PATHS} was changed or (re)loaded. Immutable."""

    __slots__ = ("_values",)

    def __init__(self, values: tuple[int, ...] = (0,) * len(PATHS)) -> None:
        self._values = values

    def value(self, path: bytes) -> int:
        """The counter of one of L{PATHS}.

        @raise KeyError: C{path} is not counted.
        """
        return self._values[_POSITIONS[path]]

    def items(self) -> list[tuple[bytes, int]]:
        """Path and counter, in the order of L{PATHS}."""
        return list(zip(PATHS, self._values, strict=True))

    def changed(self, path: bytes) -> Counters:
        """After a change of C{path} (normalised: no leading or doubled ``/``), counted or not."""
        position = _POSITIONS.get(path)
        if position is None:
            return self
        values = self._values
        return Counters((*values[:position], values[position] + 1, *values[position + 1 :]))

    def loaded(self) -> Counters:
        """After a load at start, or a synchronisation that committed: each one more."""
        return Counters(tuple(value + 1 for value in self._values))
