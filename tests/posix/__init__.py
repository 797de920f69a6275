"""What POSIX and Linux say of file systems, as cases that run anywhere; compared between tmpfs and the mount."""
