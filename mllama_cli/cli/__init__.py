"""One file a command: parses, wires the rooms together, turns errors into exit codes."""
