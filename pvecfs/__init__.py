"""pvecfs: the replicated configuration filesystem of a virtualisation cluster, on Twisted."""

__version__ = "0.1.0"
