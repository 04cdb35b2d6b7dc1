"""An append-only log in one folder that outlives the processes which write it, one after the other.

    journal = Journal.open(folder)       # claims the next epoch; whoever wrote before is shut out
    for position, record in journal.earlier(): ...
    position = journal.append(record)    # with the system, not on disk
    journal.sync()                       # on disk, and this process still owned the run

What its files look like, and what counts of them, is in `orchestration/ledger/segments.py`. It needs of the file
system that a file is created by one process only and that a synced file is read as it was written: no locks, no
database, so that a run folder may lie on NFS or Lustre.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from core.errors import WorkerError
from orchestration.ledger.segments import (
    Position,
    Segment,
    epochs_in,
    frame,
    header_payload,
    read_record,
    records_of,
    segment_path,
    survey,
)


class Disk:
    """The calls of the operating system that write a journal: what a test lets fail."""

    def make_folder(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self.sync_path(path.parent)

    def create(self, path: Path) -> int:
        """Descriptor of a new file. Raises `FileExistsError` if there is one."""
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)

    def write(self, descriptor: int, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]

    def sync(self, descriptor: int) -> None:
        os.fsync(descriptor)

    def sync_path(self, path: Path) -> None:
        """Bring a file's content, or a folder's names, to disk."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def close(self, descriptor: int) -> None:
        os.close(descriptor)


class Journal:
    """The log, as the process that drives the run writes it.

    Loss window: whatever was appended since the last `sync` may be gone after a crash, in whole or from some record
    on. An operating system that lives on loses nothing of it.
    """

    def __init__(
        self, folder: Path, epoch: int, descriptor: int, earlier: Sequence[Segment], disk: Disk
    ) -> None:
        self.epoch = epoch
        self._earlier = earlier
        self._folder = folder
        self._path = segment_path(folder, epoch)
        self._descriptor = descriptor
        self._disk = disk
        self._num_bytes = 0
        self._num_synced_bytes = 0
        self._is_whole = True

    @classmethod
    def open(cls, folder: Path, *, disk: Disk | None = None) -> "Journal":
        """Claim the next epoch, and seal the earlier ones as they are now.

        Raises `UserError` if a part of the journal is gone, `WorkerError` if another process claimed a newer epoch
        meanwhile.
        """
        disk = disk or Disk()
        disk.make_folder(folder)
        epoch, descriptor = _claim(folder, disk)
        # Claimed first, looked at second: whatever was synced by a process that still owned the run is seen here.
        earlier = survey(folder, before=epoch)
        counted = [segment for segment in earlier if segment.num_bytes]
        if counted:
            # Seen is not yet on disk, and sealed it must be. Those before it were synced by who sealed them first.
            disk.sync_path(counted[-1].path)
        journal = cls(folder, epoch, descriptor, earlier, disk)
        journal.append(header_payload(epoch, {segment.epoch: segment.num_bytes for segment in earlier}))
        journal.sync()
        disk.sync_path(folder)
        return journal

    def earlier(self) -> Iterator[tuple[Position, bytes]]:
        """Position and payload of what earlier epochs appended, oldest first. Raises `UserError`, with file and
        byte, for one that is damaged."""
        for segment in self._earlier:
            yield from records_of(segment)

    def append(self, record: bytes) -> Position:
        """Hand a record to the operating system; where it stands. Raises `OSError` if the disk is full or fails,
        and `WorkerError` from then on: what stands behind half a record is never read."""
        self._require_whole()
        position = Position(self.epoch, self._num_bytes)
        data = frame(record)
        self._is_whole = False
        self._disk.write(self._descriptor, data)
        self._is_whole = True
        self._num_bytes += len(data)
        return position

    def sync(self) -> None:
        """Bring to disk what was appended. Once it returns, every later epoch reads it.

        Asked before and after: a process that claims the run in between may have looked before this one wrote.
        Raises as `append` and `require_ownership` do.
        """
        self._require_whole()
        self.require_ownership()
        if self._num_synced_bytes < self._num_bytes:
            self._is_whole = False  # after a failed sync nobody knows what is on disk
            self._disk.sync(self._descriptor)
            self._is_whole = True
            self._num_synced_bytes = self._num_bytes
            self.require_ownership()

    def require_ownership(self) -> None:
        """Raises `WorkerError` if another process has claimed the run, or somebody removed what this one writes.

        A file system that shows new names late (NFS: a minute, as it is commonly mounted) lets this pass for as
        long. What is written meanwhile is ignored all the same.
        """
        newest = max(epochs_in(self._folder), default=0)
        self._is_whole = self._is_whole and newest == self.epoch
        if newest < self.epoch:
            raise WorkerError(f"{self._path}: is gone, and with it what was to be recorded")
        if newest > self.epoch:
            raise WorkerError(
                f"another process has taken over this run: {segment_path(self._folder, newest)} is newer than "
                f"{self._path.name}, which this process writes. Nothing more of it counts."
            )

    def read(self, position: Position) -> bytes:
        """The record at this position. Raises `UserError` if it is damaged."""
        return read_record(self._folder, position)

    def close(self) -> None:
        """Sync, and let go of the file. After a failure only the latter."""
        try:
            if self._is_whole:
                self.sync()
        finally:
            self._disk.close(self._descriptor)

    def _require_whole(self) -> None:
        if not self._is_whole:
            raise WorkerError(
                f"{self._path}: failed before, or the run was taken over; nothing more is recorded"
            )


def _claim(folder: Path, disk: Disk) -> tuple[int, int]:
    """Epoch and descriptor of a segment that no other process has."""
    epoch = max(epochs_in(folder), default=0)
    while True:
        epoch += 1
        try:
            return epoch, disk.create(segment_path(folder, epoch))
        except FileExistsError:
            continue  # another process was a moment earlier
