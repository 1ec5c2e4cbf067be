"""The user's machine: paths, files, SQLite files, interrupts."""
