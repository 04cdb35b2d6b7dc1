"""The log of a run, as it is written: what the next driver reads after a crash or a take-over."""

import os
from pathlib import Path

import pytest

from core.errors import WorkerError
from orchestration.ledger.journal import Disk, Journal
from orchestration.ledger.segments import Leftovers, Position, frame, header_payload
from tests.ledger_fakes import Crash, CrashingDisk, ignored, read, written


def test_records_are_read_in_order_and_by_position(tmp_path: Path) -> None:
    first = Journal.open(tmp_path)
    positions = [first.append(record) for record in (b"a", b"b")]
    first.close()
    second = Journal.open(tmp_path)
    positions.append(second.append(b"c"))
    assert second.read(positions[2]) == b"c"  # before it is synced
    second.close()
    third = Journal.open(tmp_path)
    assert list(third.earlier()) == list(zip(positions, (b"a", b"b", b"c"), strict=True))
    assert [third.read(position) for position in positions] == [b"a", b"b", b"c"]
    assert [position.epoch for position in positions] == [1, 1, 2]
    assert positions[1].offset - positions[0].offset == len(frame(b"a"))


def test_what_a_replaced_driver_writes_is_ignored_and_counted(tmp_path: Path) -> None:
    zombie = written(tmp_path, b"a")
    zombie.append(b"b")  # not synced, but there: it counts
    second = written(tmp_path, b"c")
    zombie.append(b"d")
    zombie.append(b"e")
    assert read(tmp_path) == [b"a", b"b", b"c"]
    assert ignored(tmp_path) == [Leftovers(2, 0), Leftovers(0, 0)]
    with pytest.raises(WorkerError, match=r"another process has taken over this run: .*000002\.log is newer"):
        zombie.sync()
    with pytest.raises(WorkerError, match="the run was taken over; nothing more is recorded"):
        zombie.append(b"f")
    zombie.close()
    second.close()
    third = written(tmp_path)
    assert [payload for _, payload in third.earlier()] == [b"a", b"b", b"c"]


class InterruptedDisk(Disk):
    """Another process claims the run at the first sync of this file."""

    def __init__(self, folder: Path, *, before: bool) -> None:
        self.folder = folder
        self.before = before
        self.other: Journal | None = None
        self.armed = False

    def sync(self, descriptor: int) -> None:
        if self.before:
            self._take_over()
        super().sync(descriptor)
        self._take_over()

    def _take_over(self) -> None:
        if self.armed and self.other is None:
            self.other = Journal.open(self.folder)


@pytest.mark.parametrize("before", [True, False])
def test_a_take_over_in_the_middle_of_a_sync_is_noticed(tmp_path: Path, before: bool) -> None:
    disk = InterruptedDisk(tmp_path, before=before)
    journal = Journal.open(tmp_path, disk=disk)
    journal.append(b"a")
    disk.armed = True
    with pytest.raises(WorkerError, match="taken over"):
        journal.sync()


class RacedDisk(Disk):
    """Another process creates its segment a moment before this one does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.other: Journal | None = None

    def create(self, path: Path) -> int:
        self.other = self.other or written(self.folder, b"a")
        return super().create(path)


def test_of_two_that_start_at_once_the_later_one_takes_over(tmp_path: Path) -> None:
    disk = RacedDisk(tmp_path)
    journal = Journal.open(tmp_path, disk=disk)
    assert disk.other is not None
    assert (disk.other.epoch, journal.epoch) == (1, 2)
    assert [payload for _, payload in journal.earlier()] == [b"a"]
    with pytest.raises(WorkerError, match="taken over"):
        disk.other.sync()


def test_what_is_sealed_is_on_disk(tmp_path: Path) -> None:
    """A process dies with records unsynced, the next one reads and seals them, then the machine dies."""
    disk = CrashingDisk()
    first = Journal.open(tmp_path, disk=disk)
    first.append(b"a")
    Journal.open(tmp_path, disk=disk)
    disk.power_off(kept=0, zeros=False, forgets_names=True)
    assert read(tmp_path) == [b"a"]


def test_nothing_is_recorded_behind_half_a_record(tmp_path: Path) -> None:
    disk = CrashingDisk(tears=True)
    journal = Journal.open(tmp_path, disk=disk)
    journal.append(b"a")
    disk.dies_at = disk.num_calls + 1
    with pytest.raises(Crash):
        journal.append(b"torn" * 10)
    disk.dies_at = None
    for again in (lambda: journal.append(b"b"), journal.sync):
        with pytest.raises(WorkerError, match=r"000001\.log: failed before"):
            again()
    journal.close()
    assert read(tmp_path) == [b"a"]


def test_nothing_is_recorded_in_a_file_that_was_removed(tmp_path: Path) -> None:
    journal = written(tmp_path, b"a")
    (tmp_path / "000001.log").unlink()
    with pytest.raises(WorkerError, match=r"000001\.log: is gone"):
        journal.sync()
    with pytest.raises(WorkerError, match="nothing more is recorded"):
        journal.append(b"b")


def test_a_sync_that_failed_is_not_tried_again(tmp_path: Path) -> None:
    """The system may have thrown away what it could not write, and say that all is well the second time."""
    disk = CrashingDisk()
    journal = Journal.open(tmp_path, disk=disk)
    journal.append(b"a")
    disk.dies_at = disk.num_calls + 1
    with pytest.raises(Crash):
        journal.sync()
    disk.dies_at = None
    with pytest.raises(WorkerError, match="failed before"):
        journal.sync()


def test_a_system_that_takes_a_few_bytes_at_a_time_gets_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, data: write(descriptor, bytes(data)[:7]))
        written(tmp_path, b"a" * 100, b"b").close()
    assert read(tmp_path) == [b"a" * 100, b"b"]


def test_closing_syncs(tmp_path: Path) -> None:
    disk = CrashingDisk()
    journal = Journal.open(tmp_path, disk=disk)
    position = journal.append(b"a")
    journal.close()
    disk.power_off(kept=0, zeros=False, forgets_names=True)
    assert read(tmp_path) == [b"a"]
    assert position == Position(1, len(frame(header_payload(1, {}))))
