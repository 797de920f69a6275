"""Tells twistd of C{twistd pvecfs}: data only, as every plugin of Twisted."""

from twisted.application.service import ServiceMaker

pvecfs = ServiceMaker(  # type: ignore[no-untyped-call]  # Twisted has no annotations there
    "pvecfs",
    "pvecfs.tap",
    "The replicated configuration filesystem of a virtualisation cluster.",
    "pvecfs",
)
