"""The status documents, to the byte (40-status.md, "Documents"). Pure functions, and a cache of what they made."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter

from pvecfs.replica.clusterlog import log_document
from pvecfs.replica.status import RRD_SECONDS, StatusSnapshot
from pvecfs.tree.quoting import escaped
from pvecfs.tree.tree import Tree


def _quoted(text: bytes) -> str:
    """C{text} as a JSON string; what is not UTF-8 becomes U+FFFD."""
    return f'"{escaped(text, with_del=False).decode("utf-8", "replace")}"'


def version_document(tree: Tree, status: StatusSnapshot) -> bytes:
    """C{.version}: counters by which programs see that something changed."""
    lines = [
        f'{{\n"starttime": {status.starttime},\n"clinfo": {status.clinfo},\n"vmlist": {tree.vms.version},\n',
        *(f"{_quoted(path)}: {count},\n" for path, count in tree.counters.items()),
        '"kvstore": {\n',
        ",\n".join(
            _quoted(node.node)
            + ": {\n"
            + ",\n".join(f"{_quoted(key)}: {version}" for key, version in node.versions)
            + "}\n"
            for node in status.versions
        ),
        "}\n}\n",
    ]
    return "".join(lines).encode()


def members_document(tree: Tree, status: StatusSnapshot) -> bytes:
    """C{.members}: the cluster and its nodes."""
    head = f'{{\n"nodename": {_quoted(status.nodename)},\n"version": {status.clinfo}'
    configuration = status.configuration
    if configuration is None:
        return (head + "\n}\n").encode()
    addresses = dict(status.addresses)
    nodes = []
    for node in sorted(configuration.nodes, key=lambda node: node.node_id):
        online = int(node.node_id in status.online)
        address = addresses.get(node.node_id)
        ip = "" if address is None else f', "ip": {_quoted(address)}'
        nodes.append(f'  {_quoted(node.name)}: {{ "id": {node.node_id}, "online": {online}{ip}}}')
    return (
        f'{head},\n"cluster": {{ "name": {_quoted(configuration.name)}, "version": {configuration.version}, '
        f'"nodes": {len(configuration.nodes)}, "quorate": {int(status.quorate)} }},\n'
        '"nodelist": {\n' + ",\n".join(nodes) + ("\n" if nodes else "") + "  }\n}\n"
    ).encode()


def vmlist_document(tree: Tree, status: StatusSnapshot) -> bytes:
    """C{.vmlist}: the cluster's VMs."""
    vms = ",\n".join(
        f'"{vm.vmid}": {{ "node": {_quoted(vm.node)}, "type": "{vm.kind}", "version": {vm.version} }}'
        for vm in tree.vms.items()
    )
    return (f'{{\n"version": {tree.vms.version}' + (f',\n"ids": {{\n{vms}}}' if vms else "") + "\n\n}\n").encode()


def clusterlog_document(tree: Tree, status: StatusSnapshot) -> bytes:
    """C{.clusterlog}: the newest entries of the cluster log."""
    return log_document(status.log)


def rrd_document(status: StatusSnapshot, now: float) -> bytes:
    """C{.rrd}: the live lines; without the NUL that ends it over IPC.

    @param now: monotonic time, seconds.
    """
    return b"".join(
        b"%b:%b\n" % (key, line.value)
        for key, line in sorted(status.rrd.items(), key=itemgetter(0))
        if line.arrived >= now - RRD_SECONDS
    )


_MAKERS: dict[bytes, Callable[[Tree, StatusSnapshot], bytes]] = {
    b".version": version_document,
    b".members": members_document,
    b".vmlist": vmlist_document,
    b".clusterlog": clusterlog_document,
}


class Documents:
    """Makes documents, and remembers the last of each: programs poll them far more often than anything changes.

    Any thread, no lock: what is remembered is an immutable triple, replaced whole. Two threads may make the same
    document at once; both results are right.
    """

    def __init__(self) -> None:
        self._made: dict[bytes, tuple[object, object, bytes]] = {}

    def document(self, name: bytes, tree: Tree, status: StatusSnapshot, now: float) -> bytes:
        """The document C{name}.

        @param now: monotonic time, seconds.
        @raise KeyError: no such document.
        """
        if name == b".rrd":
            return rrd_document(status, now)
        made = self._made.get(name)
        if made is not None and made[0] is tree and made[1] is status:
            return made[2]
        document = _MAKERS[name](tree, status)
        self._made[name] = (tree, status, document)
        return document
