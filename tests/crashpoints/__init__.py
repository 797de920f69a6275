"""Crash points of the store: a recorder of system calls, disks as a crash can leave them, a scenario."""
