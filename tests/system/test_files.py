"""What a file system's errors mean."""

import errno

from mllama_cli.core.errors import CaptionError
from mllama_cli.system.files import is_disk_full


def test_a_full_disk_is_known_also_behind_an_error_of_ours() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    ours = CaptionError("x cannot be written")
    ours.__cause__ = full
    assert is_disk_full(full)
    assert is_disk_full(ours)
    assert is_disk_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))
