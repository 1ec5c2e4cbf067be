"""The commands, one per file: parse options, connect the rooms, turn errors into exit codes."""
