"""The tree: entries, changes, digests, index, VM list, locks. Pure: no thread, no clock, no SQLite."""
