"""A JSON-lines file that another process appends to, read as it grows."""

import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UserError

Row = dict[str, Any]

LAST_BYTES = 256
"""That are compared to see whether a file was written anew."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """How far a reader has come."""

    generation: int
    """How often the file had been started anew, as a resumed run does."""
    position: int
    """Rows read."""


class JsonLines:
    """The rows so far. Each byte is read once, for all readers and from any thread.

    cursor = None
    while True:
        file.refresh()
        cursor, is_anew, rows = file.since(cursor)
    """

    def __init__(self, path: Path, required: Mapping[str, type]) -> None:
        """`required`: keys that every row has, and what their values are."""
        self._path = path
        self._required = required
        self._lock = threading.Lock()
        self._rows: list[Row] = []
        self._generation = 0
        self._inode: int | None = None
        self._end = 0
        self._last = b""
        """What stands before the end: in a file that was written anew something else does, even if the new one was
        given the old one's inode."""

    def refresh(self) -> None:
        """Read the lines that are whole by now; a file that is not there has none.

        Raises `UserError` that names a line that is not an object with the required keys, each time again: rows
        before it stay, rows after it are not read.
        """
        with self._lock:
            try:
                with self._path.open("rb") as stream:
                    inode = os.fstat(stream.fileno()).st_ino
                    stream.seek(self._end - len(self._last))
                    if inode != self._inode or stream.read(len(self._last)) != self._last:
                        self._start_anew(inode)
                        stream.seek(0)
                    content = stream.read()
            except FileNotFoundError:
                if self._inode is not None:
                    self._start_anew(None)
                return
            except OSError as error:
                raise UserError(f"{self._path}: cannot be read ({error.strerror})") from None
            # What follows the last end of a line is being written.
            for line in content.split(b"\n")[:-1]:
                self._rows.append(self._parsed(line))
                self._end += len(line) + 1
                self._last = (self._last + line + b"\n")[-LAST_BYTES:]

    def since(self, cursor: Cursor | None) -> tuple[Cursor, bool, list[Row]]:
        """The rows that a reader does not have yet, and whether it has to drop those that it has."""
        with self._lock:
            is_anew = cursor is None or cursor.generation != self._generation
            start = 0 if cursor is None or is_anew else cursor.position
            return Cursor(self._generation, len(self._rows)), is_anew, self._rows[start:]

    def rows(self) -> list[Row]:
        """All rows so far."""
        return self.since(None)[2]

    def _start_anew(self, inode: int | None) -> None:
        self._inode, self._end, self._last, self._rows = inode, 0, b"", []
        self._generation += 1

    def _parsed(self, line: bytes) -> Row:
        number = len(self._rows) + 1
        try:
            row = json.loads(line.decode("utf-8"), parse_constant=lambda name: None)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError(f"{self._path}:{number}: not a JSON object; is the file damaged?")
        for key, kind in self._required.items():
            if key not in row or not isinstance(row[key], kind):
                raise UserError(f"{self._path}:{number}: its {key} is missing or wrong; is the file damaged?")
        return row
