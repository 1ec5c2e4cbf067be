"""The destination of a quantized model: a partial folder that replaces the final one when it is complete."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from mllama_cli.core.errors import QuantizationError, UsageError
from mllama_cli.hub.catalog import is_mllama
from mllama_cli.system.files import is_disk_full, is_file

RESUME_HINT = "Run the same command to resume."


class QuantizeDestination:
    """A model's ``folder``, which appears at the end; until then everything is in ``partial`` next to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.partial = folder.with_name(folder.name + ".partial")

    def check(self, source: Path, *, force: bool) -> None:
        """Raise UsageError if something exists that may not be replaced."""
        ours, theirs = self.folder.resolve(), source.resolve()
        if ours == theirs or ours in theirs.parents or theirs in ours.parents:
            raise UsageError(
                f"{self.folder} and the model to quantize must not contain one another", "Choose another DEST."
            )
        if not self.folder.exists() and not self.folder.is_symlink():
            return
        if self.folder.is_dir() and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            return
        if not force:
            raise UsageError(f"{self.folder} exists already", "Choose another DEST, or replace it with --force.")
        if not is_mllama(self.folder):
            raise UsageError(f"{self.folder} exists and is not a model, so it is not replaced", "Choose another DEST.")

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Lock the partial folder, and convert OSError to QuantizationError."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.partial / ".lock")
            try:
                lock.acquire(timeout=0)
            except Timeout:
                raise UsageError(
                    f"Another process is writing {self.folder}", "Wait for it, or choose another DEST."
                ) from None
            try:
                yield
            finally:
                lock.release()
        except OSError as error:
            if is_disk_full(error):
                raise QuantizationError(
                    f"The disk of {self.folder} is full", f"Free some space. {RESUME_HINT}"
                ) from error
            raise QuantizationError(
                f"{self.folder} could not be written: {error.strerror or error}", "Choose another DEST."
            ) from error

    def used(self) -> int:
        """Return the bytes that the partial folder takes on disk."""
        if not self.partial.is_dir():
            return 0
        return sum(_on_disk(path.stat()) for path in self.partial.iterdir() if is_file(path))

    def appear(self) -> None:
        """Rename the finished folder to its final name, replacing an old one."""
        (self.partial / ".lock").unlink(missing_ok=True)
        old = self.folder.with_name(self.folder.name + ".old")
        if self.folder.exists() or self.folder.is_symlink():
            if old.is_dir():  # left by a run that was killed at this point
                shutil.rmtree(old)
            self.folder.rename(old)
        self.partial.rename(self.folder)
        if old.is_symlink():
            old.unlink()
        elif old.is_dir():
            shutil.rmtree(old)


def _on_disk(status: os.stat_result) -> int:
    """Return a file's allocated bytes: one that was created at its full size may have holes."""
    blocks: int | None = getattr(status, "st_blocks", None)  # not on Windows
    return status.st_size if blocks is None else min(status.st_size, 512 * blocks)
