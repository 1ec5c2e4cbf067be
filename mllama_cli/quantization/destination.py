"""The destination of a quantized model: a partial folder that replaces the final one when it is complete."""

import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mllama_cli.core.errors import QuantizationError, UsageError
from mllama_cli.hub.kinds import is_mllama
from mllama_cli.hub.plan import is_companion_file
from mllama_cli.quantization.journal import JOURNAL_NAME, is_journal
from mllama_cli.system.files import is_disk_full, is_file, is_folder, resolved
from mllama_cli.system.locks import Lock
from mllama_cli.system.safe_files import UnsafeFileError, is_temporary, neighbor_name, require_plain

RESUME_HINT = "Run the same command to resume."

LOCK_NAME = ".lock"
REPLACED_NAME = ".replaced"
"""The old model, which is moved into the partial folder just before that takes its place."""


class QuantizeDestination:
    """A model's ``folder``, which appears at the end; until then everything is in ``partial`` next to it.

    A partial folder is taken up only if our journal is in it, and nothing but our files.
    """

    def __init__(self, folder: Path) -> None:
        if folder.name.strip(". ") == "":
            raise UsageError(f"{folder} cannot be the name of a model", "Name a new folder.")
        self.folder = folder
        self.partial = folder.with_name(neighbor_name(folder.name, ".partial"))

    def check(self, sources: Iterable[Path], *, force: bool) -> None:
        """Raise UsageError if something exists that may not be replaced."""
        ours = resolved(self.folder)
        for theirs in map(resolved, sources):
            if ours == theirs or ours in theirs.parents or theirs in ours.parents:
                raise UsageError(
                    f"{self.folder} and the model that is read must not contain one another", "Choose another DEST."
                )
        self._require_own_partial()
        if not os.path.lexists(self.folder):
            return
        if is_folder(self.folder) and not self.folder.is_symlink() and not any(self.folder.iterdir()):
            return
        if not force:
            raise UsageError(f"{self.folder} exists already", "Choose another DEST, or replace it with --force.")
        if not is_mllama(self.folder):
            raise UsageError(f"{self.folder} exists and is not a model, so it is not replaced", "Choose another DEST.")

    @contextmanager
    def writing(self) -> Iterator[Lock]:
        """Lock the partial folder and yield the lock; convert OSError to QuantizationError."""
        try:
            self.partial.mkdir(parents=True, exist_ok=True)
            lock = Lock.acquire(str(self.partial / LOCK_NAME))
            if lock is None:
                raise UsageError(f"Another process is writing {self.folder}", "Wait for it, or choose another DEST.")
            try:
                self._require_own_partial()
                yield lock
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
        if not is_folder(self.partial):
            return 0
        return sum(_on_disk(path.stat()) for path in self.partial.iterdir() if is_file(path))

    def remove_others(self) -> None:
        """Remove files of an earlier run with other settings, which would end up in the finished folder."""
        for path in self.partial.iterdir():
            if path.name not in (JOURNAL_NAME, LOCK_NAME, REPLACED_NAME):
                path.unlink()

    def appear(self) -> None:
        """Rename the finished folder to its final name, replacing an old one."""
        (self.partial / LOCK_NAME).unlink(missing_ok=True)
        if os.path.lexists(self.folder):
            _remove(self.partial / REPLACED_NAME)  # left by a run that was killed at this point
            self.folder.rename(self.partial / REPLACED_NAME)
        self.partial.rename(self.folder)
        _remove(self.folder / REPLACED_NAME)
        (self.folder / JOURNAL_NAME).unlink()

    def _require_own_partial(self) -> None:
        """Raise UsageError unless the partial folder is absent, empty or ours."""
        if not os.path.lexists(self.partial):
            return
        reason = ""
        if self.partial.is_symlink() or not is_folder(self.partial):
            reason = "is not a folder"
        else:
            names = []
            for path in self.partial.iterdir():
                names.append(path.name)
                if path.name == REPLACED_NAME:
                    continue
                if path.name not in (JOURNAL_NAME, LOCK_NAME) and not _is_written(path.name):
                    reason = f"holds {path.name}"
                try:
                    require_plain(path.name, path.lstat())
                except UnsafeFileError as error:
                    reason = f"holds something unsafe: {error.strerror}"
            journal = self.partial / JOURNAL_NAME
            kept = [name for name in names if name != LOCK_NAME and not is_temporary(name)]
            # A run that is killed as it begins leaves an empty journal, or none.
            begun = kept in ([], [JOURNAL_NAME]) and not (kept and journal.lstat().st_size)
            if not reason and not begun and not is_journal(journal):
                reason = f"has no {JOURNAL_NAME}"
        if reason:
            raise UsageError(
                f"{self.partial} was not left by mllama: it {reason}", "Move it away, or choose another DEST."
            )


def _is_written(name: str) -> bool:
    """Return whether a file of that name is written into the partial folder."""
    return is_temporary(name) or name.endswith(".safetensors") or is_companion_file(name)


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()
    elif is_folder(path):
        shutil.rmtree(path)


def _on_disk(status: os.stat_result) -> int:
    """Return a file's allocated bytes: one that was created at its full size may have holes."""
    blocks: int | None = getattr(status, "st_blocks", None)  # not on Windows
    return status.st_size if blocks is None else min(status.st_size, 512 * blocks)
