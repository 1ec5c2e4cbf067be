"""A client of running engines: HTTP over a socket, with the same events as an engine in this process."""
