"""The register: what was given out, found again from a picture's looks and watermark when its metadata is gone."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from headrace.errors import HeadraceError, RequestError
from headrace.recipe import Recipe

SAME_LOOKS = 8
"""Fingerprints that differ in so many of 64 bits are of one picture; random ones do with a chance of 2.8e-10."""

SAME_MARK = 22
"""The same where the watermark agrees, which by itself has a chance of 1 in 65,536; random ones do with 0.8 %."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS pictures (
    name TEXT PRIMARY KEY,
    fingerprint INTEGER NOT NULL,
    identifier INTEGER,
    made_at TEXT NOT NULL,
    recipe TEXT
) WITHOUT ROWID
"""


@dataclass(frozen=True)
class Entry:
    """One picture that was given out.

    name: what its owner knows it by, such as a job's id. fingerprint: its ISCC bits. identifier: its watermark's, None
    where it has none. made_at: UTC, ISO 8601. recipe: None where it is private.
    """

    name: str
    fingerprint: int
    identifier: int | None
    made_at: str
    recipe: Recipe | None


@dataclass(frozen=True)
class Match:
    """An entry that may be the picture asked for: how many of 64 bits differ, and whether the watermark agrees."""

    entry: Entry
    distance: int
    same_mark: bool


class Register:
    """A SQLite file of entries; every call opens it anew, so threads and processes may share it.

    Calls raise HeadraceError where the disk is full, or another process keeps the file for half a minute.
    """

    def __init__(self, path: str | os.PathLike[str], *, create: bool = True) -> None:
        """Raises RequestError where there is none and none is to be made, or the file is something else."""
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise RequestError(f"There is no register {self.path}.")
        try:
            with self._open() as connection:
                connection.execute(_SCHEMA)
                connection.execute("SELECT name, fingerprint, identifier, made_at, recipe FROM pictures LIMIT 0")
        except HeadraceError as error:
            raise RequestError(f"{self.path} cannot be used as a register ({error.__cause__}).") from error

    def add(self, name: str, fingerprint: int, identifier: int | None, recipe: Recipe | None = None) -> None:
        """Write an entry, in the place of one of the same name."""
        document = None if recipe is None else json.dumps(recipe.as_dict())
        made_at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        row = name, _signed(fingerprint), identifier, made_at, document
        with self._open() as connection:
            connection.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", row)

    def remove(self, name: str) -> None:
        """Forget a picture."""
        with self._open() as connection:
            connection.execute("DELETE FROM pictures WHERE name = ?", (name,))

    def find(self, fingerprint: int, identifier: int | None, limit: int = 5) -> list[Match]:
        """The entries that are the picture or may be, best first. All are looked at: about a second for a million."""
        with self._open() as connection:
            rows = connection.execute("SELECT name, fingerprint, identifier FROM pictures").fetchall()
            if not rows:
                return []
            held = np.array([bits for _, bits, _ in rows], dtype=np.int64).view(np.uint64)
            distances = np.bitwise_count(held ^ np.uint64(fingerprint)).tolist()
            found = [
                (not same, distance, name)
                for (name, _, mark), distance in zip(rows, distances, strict=True)
                if distance <= (SAME_MARK if (same := identifier is not None and mark == identifier) else SAME_LOOKS)
            ]
            best = sorted(found)[:limit]
            return [Match(self._entry(connection, name), distance, not other) for other, distance, name in best]

    def _entry(self, connection: sqlite3.Connection, name: str) -> Entry:
        query = "SELECT fingerprint, identifier, made_at, recipe FROM pictures WHERE name = ?"
        bits, identifier, made_at, document = connection.execute(query, (name,)).fetchone()
        recipe = None if document is None else Recipe.from_dict(json.loads(document))
        return Entry(name, bits % 2**64, identifier, made_at, recipe)

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with contextlib.closing(sqlite3.connect(self.path, timeout=30)) as connection, connection:
                yield connection
        except sqlite3.Error as error:
            raise HeadraceError(f"The register {self.path} cannot be read or written ({error}).") from error


def _signed(bits: int) -> int:
    """SQLite's integers are signed."""
    return bits - 2**64 if bits >= 2**63 else bits
