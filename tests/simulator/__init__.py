"""A deterministic simulator of a cluster: real nodes over a simulated corosync (docs/reliability-simulator.md)."""
