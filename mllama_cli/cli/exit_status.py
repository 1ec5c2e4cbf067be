"""Exit codes of every command."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """0 done, 1 failure, 2 a request that cannot be carried out, 3 partly done, 130 interrupted with Ctrl-C."""

    DONE = 0
    FAILURE = 1
    USAGE = 2
    PARTLY = 3
    INTERRUPTED = 130
