"""What a file system's errors mean."""

import errno

_FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))  # Windows has no EDQUOT


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is a disk (or a quota) without room."""
    return (isinstance(error, OSError) and error.errno in _FULL) or (
        error.__cause__ is not None and is_disk_full(error.__cause__)
    )
