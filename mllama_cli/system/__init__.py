"""The user's machine: paths, folders, SQLite files, interrupts."""
