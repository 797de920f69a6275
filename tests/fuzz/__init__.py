"""Malformed input for every decoder, made from recorded input (docs/reliability-simulator.md)."""
