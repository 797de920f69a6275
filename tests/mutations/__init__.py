"""Small faults put into our own code, to see that the simulator notices them (docs/reliability-simulator.md)."""
