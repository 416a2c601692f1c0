"""Weight files that are read again and again during a run: known to be the same, and not left in the page cache."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import HeadraceError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


@dataclass(frozen=True)
class FileState:
    """What changes when a file is replaced, cut off or written to."""

    device: int
    inode: int
    size: int
    modified_ns: int


def file_states(paths: Iterable[Path]) -> dict[Path, FileState]:
    """The present state of files. Raises HeadraceError where one cannot be looked at."""
    return {path: _state(path) for path in paths}


def check_unchanged(states: Mapping[Path, FileState]) -> None:
    """Raises HeadraceError where a file is no longer in the state it was."""
    for path, state in states.items():
        if _state(path) != state:
            raise HeadraceError(f"{path} was changed while the model was in use: load the model again.")


def _state(path: Path) -> FileState:
    try:
        status = path.stat()
    except OSError as error:
        raise HeadraceError(f"{path} cannot be read: {error.strerror or error}.") from error
    return FileState(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class PassingFile(FileIO):
    """A file whose pages are dropped from the system's cache as soon as they have been read.

    What is streamed is larger than what the cache may hold of it: keeping it only costs the time to make room.
    """

    def readinto(self, buffer: WriteableBuffer, /) -> int | None:
        position = self.tell()
        count = super().readinto(buffer)
        if count and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.fileno(), position, count, os.POSIX_FADV_DONTNEED)
        return count
